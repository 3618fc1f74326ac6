//! The network of a container: whatever is in the namespace that its engine has set up.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::json;
use tests::command;
use tests::dns::NameServer;
use tests::netns::{Netns, veth};
use tests::uplink::{Connected, HOST};
use tests::{Container, Created, Scene, place, process};

fn in_namespace<'a>(scene: &'a Scene, namespace: &Netns) -> Container<'a> {
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": namespace.path()})));
    container.set("/process/capabilities", all_capabilities());
    container
}

fn all_capabilities() -> serde_json::Value {
    let caps = ["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"];
    json!({"bounding": caps, "effective": caps, "permitted": caps})
}

/// A shell script on the host, which must succeed.
#[track_caller]
fn host(script: &str) -> String {
    command::run(Command::new("sh").args(["-ec", script])).success().stdout
}

#[test]
fn links_and_what_is_configured_on_them() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    namespace.ip("link set eth0 mtu 1400 address 02:11:22:33:44:55");
    namespace.ip("addr add 10.78.0.5/32 dev eth0");
    namespace.ip("route add 10.99.0.0/16 via 10.77.0.1 mtu 1300");
    namespace.ip("neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
    namespace.ip("link add d0 type dummy");
    namespace.ip("link set d0 up");
    namespace.ip("addr add 10.79.0.1/24 dev d0");
    let before = namespace.traffic_control();
    let mut container = in_namespace(&scene, &namespace);
    let script = "for l in eth0 d0; do cat /sys/class/net/$l/mtu /sys/class/net/$l/address | tr '\\n' ' '; done; echo
        ip -o addr | grep -v ': lo' | sed 's/.*inet/inet/; s/ scope.*//; s/ brd.*//' | grep -v fe80 | sort
        ip route | sed 's/  */ /g; s/ $//' | sort; ip -6 route | grep default | sed 's/ pref.*//; s/  */ /g'
        ip neigh | grep PERMANENT
        ping -c 1 -W 5 10.77.0.1 >/dev/null && ping -c 1 -W 5 fd77::1 >/dev/null && echo reached";
    let outcome = container.sh(script).run().success();
    let lines: Vec<_> = outcome.stdout.lines().map(str::trim_end).collect();
    let first: Vec<_> = lines[0].split(' ').collect();
    assert_eq!(first[..3], ["1400", "02:11:22:33:44:55", "1500"], "{outcome:?}");
    for wanted in [
        "inet 10.77.0.2/24",
        "inet 10.78.0.5/32",
        "inet 10.79.0.1/24",
        "inet6 fd77::2/64",
        "default via 10.77.0.1 dev eth0 metric 77",
        "10.77.0.0/24 dev eth0 scope link src 10.77.0.2",
        "default via fd77::1 dev eth0 metric 77",
        "reached",
    ] {
        assert!(lines.contains(&wanted), "{wanted}: {outcome:?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("10.99.0.0/16 via 10.77.0.1 dev eth0")), "{outcome:?}");
    assert!(
        lines.iter().any(|line| line.starts_with("10.77.0.9 ") && line.contains("02:00:00:00:00:09")),
        "{outcome:?}"
    );
    assert_eq!(namespace.traffic_control(), before);
}

#[test]
fn sysctls_of_a_link_and_of_all() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    let mut container = in_namespace(&scene, &namespace);
    let off = "net.ipv6.conf.all.disable_ipv6";
    container.set("/linux/sysctl", json!({"net.ipv4.conf.eth0.rp_filter": "2", "net.ipv4.ip_forward": "1", off: "1"}));
    let script = "cd /proc/sys/net; cat ipv4/conf/eth0/rp_filter ipv4/ip_forward ipv6/conf/eth0/disable_ipv6
        ping -c 1 -W 5 10.77.0.1 >/dev/null && echo reached";
    assert_eq!(container.sh(script).run().success().stdout, "2\n1\n1\nreached\n");
    // They are written once: what the container makes of them stays when its network changes.
    container.set("/linux/readonlyPaths", json!([]));
    container.set("/linux/sysctl", json!({"net.ipv4.conf.eth0.rp_filter": "2"}));
    let created = container.idle();
    let setting = "/proc/sys/net/ipv4/conf/eth0/rp_filter";
    container.exec_sh(&format!("mount -o remount,rw /proc/sys 2>/dev/null; echo 1 >{setting}")).success();
    namespace.ip("addr add 10.77.0.9/24 dev eth0");
    process::wait_until("the other address", || container.exec_sh("ip addr").stdout.contains("10.77.0.9"));
    assert_eq!(container.exec_sh(&format!("cat {setting}")).stdout, "1\n");
    container.end(&created);
}

#[test]
fn vm_a_link_without_ipv6_has_none_in_the_guest() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    namespace.sh("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6");
    let script = "cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip -6 -o addr show eth0";
    assert_eq!(in_namespace(&scene, &namespace).sh(script).run().success().stdout, "1\n");
}

#[test]
fn links_on_top_of_others() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    for (number, kind) in [(81, "macvlan mode bridge"), (82, "ipvlan mode l2")] {
        host(&format!(
            "ip link add rvt{number} type veth peer name rvu{number}
            ip addr add 10.{number}.0.1/24 dev rvu{number}
            ip link set rvu{number} up; ip link set rvt{number} up
            ip link add link rvt{number} name top{number} netns runvm-test type {kind}"
        ));
        namespace.ip(&format!("link set top{number} up"));
        namespace.ip(&format!("addr add 10.{number}.0.2/24 dev top{number}"));
    }
    let mut container = in_namespace(&scene, &namespace);
    let outcome = container.sh("for n in 81 82; do ping -c 1 -W 5 10.$n.0.1 >/dev/null && echo $n; done").run();
    host("ip link del rvt81; ip link del rvt82");
    assert_eq!(outcome.success().stdout, "81\n82\n");
}

#[test]
fn a_new_namespace_is_filled_between_create_and_start() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/annotations", json!({"io.runvm.timeline": "true"}));
    container.set("/process/capabilities", all_capabilities());
    container.sh(
        "ip -o -4 addr show eth0 | sed 's/.*inet //; s/ .*//'; ping -c 1 -W 5 10.77.0.1 >/dev/null && echo reached",
    );
    let mut created = container.create();
    veth("rvt0", (&format!("/proc/{}/ns/net", created.pid), "eth0"), 77);
    container.start().success();
    assert_eq!((created.stdout.line(), created.stdout.line()), ("10.77.0.2/24".to_owned(), "reached".to_owned()));
    assert_eq!(process::wait_orphan(created.pid), 0);
    if place::is_runvm() {
        let log = fs::read_to_string(scene.log()).unwrap();
        assert!(log.contains("frames: received ") && !log.contains("frames: received 0,"), "{log}");
    }
    container.delete().success();
    process::wait_until("the link to go with its namespace", || !fs::exists("/sys/class/net/rvt0").unwrap());
}

#[test]
fn links_come_and_go_while_it_runs() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    let mut container = in_namespace(&scene, &namespace);
    let created = container.idle();
    let count = || container.exec_sh("ls /sys/class/net | grep -c eth").stdout.trim().to_owned();
    assert_eq!(count(), "0");
    for (number, host) in [(77, "rvt0"), (78, "rvt1")] {
        namespace.veth(number, (host, &format!("eth{number}")));
        process::wait_until("the link to come", || {
            container.exec_sh(&format!("ping -c 1 -W 2 10.{number}.0.1")).code == 0
        });
    }
    assert_eq!(count(), "2");
    // What changes on a link changes in the guest.
    namespace.ip("addr add 10.80.0.3/24 dev eth78");
    // The default route stays without a way to its gateway.
    namespace.ip("addr del 10.78.0.2/24 dev eth78");
    namespace.ip("link set eth78 mtu 1300");
    let seen = "cat /sys/class/net/eth78/mtu; ip -o -4 addr show eth78 | sed 's/.*inet //; s/ .*//'";
    process::wait_until("the other address", || container.exec_sh(seen).stdout == "1300\n10.80.0.3/24\n");
    // What cannot be followed is told if it stays so.
    namespace.ip("link add d0 type dummy");
    process::wait_until("the link to come", || container.exec_sh("ls /sys/class/net").stdout.contains("d0"));
    namespace.sh("ip link set d0 mtu 60; sleep 0.02; ip link set d0 mtu 1400");
    process::wait_until("its MTU", || container.exec_sh("cat /sys/class/net/d0/mtu").stdout == "1400\n");
    let log = || fs::read_to_string(scene.log()).unwrap_or_default();
    assert!(!log().contains("follow a change"), "{}", log());
    namespace.sh("ip link set d0 mtu 60");
    process::wait_until("a warning", || !place::is_runvm() || log().contains("has an MTU of 60"));
    namespace.ip("link del d0");
    // A neighbour that is added later.
    namespace.ip("neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth77 nud permanent");
    process::wait_until("the neighbour", || container.exec_sh("ip neigh").stdout.contains("02:00:00:00:00:09"));
    // A place that became free is used again.
    for _ in 0..3 {
        host("ip link del rvt0");
        process::wait_until("the link to go", || count() == "1");
        namespace.veth(77, ("rvt0", "eth77"));
        process::wait_until("the link to come again", || container.exec_sh("ping -c 1 -W 2 10.77.0.1").code == 0);
    }
    container.end(&created);
}

#[test]
fn much_goes_both_ways() {
    const WORDS: u64 = 6 << 20;
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    let data: Vec<u8> = (0..WORDS).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    fs::write(scene.dir().join("data"), &data).unwrap();
    let sum = host(&format!("md5sum <{}/data", scene.dir().display()));
    let mut server = Command::new("busybox");
    let mut server = server.args(["httpd", "-f", "-p", "5001", "-h"]).arg(scene.dir()).spawn().unwrap();
    let mut container = in_namespace(&scene, &namespace);
    let created = container.idle();
    // To the guest, and back from it.
    let fetch = "wget -q -O /tmp/data http://10.77.0.1:5001/data && md5sum </tmp/data && httpd -p 80 -h /tmp";
    assert_eq!(container.exec_sh(fetch).success().stdout, sum);
    assert_eq!(host("busybox wget -q -O - http://10.77.0.2/data | md5sum"), sum);
    // A datagram larger than the link's frames.
    container.exec_sh("ping -c 1 -W 5 -s 20000 10.77.0.1").success();
    host("busybox ping -c 1 -W 5 -s 20000 10.77.0.2");
    server.kill().unwrap();
    server.wait().unwrap();
    container.end(&created);
}

/// Number of threads in which a container's monitor serves network devices.
fn nic_threads(pid: i32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("virtio-net")).count()
}

#[test]
fn vm_a_nic_has_one_pair_of_queues_for_any_number_of_cpus() {
    const QUEUES: &str = "ls /sys/class/net/eth0/queues | sort | tr '\\n' ' '";
    for cpus in ["1", "2"] {
        let scene = Scene::new();
        let namespace = Netns::new("runvm-test");
        namespace.veth(77, ("rvt0", "eth0"));
        fs::write(scene.dir().join("data"), [7; 1 << 20]).unwrap();
        let sum = host(&format!("md5sum <{}/data", scene.dir().display()));
        let mut server = Command::new("busybox");
        let mut server = server.args(["httpd", "-f", "-p", "5001", "-h"]).arg(scene.dir()).spawn().unwrap();
        let mut container = in_namespace(&scene, &namespace);
        container.annotate("io.runvm.vcpus", cpus);
        let created = container.idle();
        process::wait_until("all CPUs", || container.exec_sh("grep -c ^processor /proc/cpuinfo").stdout.trim() == cpus);
        assert_eq!(container.exec_sh(QUEUES).stdout, "rx-0 tx-0 ");
        // Many connections at a time, from all CPUs.
        let fetch = "for n in $(seq 16); do wget -q -O - http://10.77.0.1:5001/data | md5sum & done; wait";
        assert_eq!(container.exec_sh(fetch).success().stdout, sum.repeat(16));
        assert_eq!(nic_threads(created.pid), 1);
        // A link that comes later has a thread too, and takes it along when it goes.
        host("ip link add rvt1 type veth peer name rvu1; ip link set rvu1 netns runvm-test");
        namespace.ip("link set rvu1 up");
        process::wait_until("the second link", || container.exec_sh("ls /sys/class/net/rvu1/queues/tx-0").code == 0);
        assert_eq!(nic_threads(created.pid), 2);
        namespace.ip("link del rvu1");
        container.exec_sh("ping -c 1 -W 5 10.77.0.1").success();
        server.kill().unwrap();
        server.wait().unwrap();
        container.end(&created);
    }
}

/// A container with a resolver in its namespace, as user-defined networks of Docker have.
fn with_resolver<'a>(scene: &'a Scene, namespace: &Netns) -> (Container<'a>, Created, NameServer) {
    namespace.veth(77, ("rvt0", "eth0"));
    let server = NameServer::new(Some(&namespace.path()), "127.0.0.11:53".parse().unwrap(), [10, 1, 2, 3]);
    let resolv = scene.dir().join("resolv.conf");
    fs::write(&resolv, "nameserver 127.0.0.11\noptions ndots:0\n").unwrap();
    let mut container = in_namespace(scene, namespace);
    container.mount("bind", &resolv, "/etc/resolv.conf", &["bind"]);
    let created = container.idle();
    (container, created, server)
}

#[test]
fn the_resolver_of_its_network_answers() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    let ports = namespace.sh("cat /proc/sys/net/ipv4/ip_local_port_range").stdout;
    let (mut container, created, _server) = with_resolver(&scene, &namespace);
    for _ in 0..3 {
        let found = container.exec_sh("nslookup db.test").success().stdout;
        assert!(found.contains("10.1.2.3"), "{found}");
    }
    let missing = container.exec_sh("nslookup nowhere.example");
    assert!(missing.code != 0 && missing.stdout.contains("NXDOMAIN"), "{missing:?}");
    // By TCP: length, id, flags, counts, a question.
    let question = "\\0\\031\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\2db\\4test\\0\\0\\1\\0\\1";
    let ask = format!("printf '{question}' | nc 127.0.0.11 53 | od -An -tu1 | tr -s ' \\n' ' '");
    let answer = container.exec_sh(&ask).success().stdout;
    assert!(answer.trim_end().ends_with("10 1 2 3"), "{answer}");
    // Many at once.
    let many = "for i in $(seq 40); do nslookup db.test >/tmp/$i & done; wait; cat /tmp/* | grep -c 10.1.2.3";
    assert_eq!(container.exec_sh(many).stdout, "40\n");
    // The port is not taken: name servers are run in containers, too.
    let own =
        "echo own >/tmp/index.html; httpd -p 53 -h /tmp && wget -q -O - http://127.0.0.1:53/ http://10.77.0.2:53/";
    assert_eq!(container.exec_sh(own).success().stdout, "own\nown\n");
    container.exec_sh("nslookup db.test").success();
    container.end(&created);
    assert_eq!(namespace.sh("cat /proc/sys/net/ipv4/ip_local_port_range").stdout, ports);
}

#[test]
fn the_resolver_can_ask_others_from_inside_of_the_namespace() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    let (mut container, created, _server) = with_resolver(&scene, &namespace);
    let _upstream = NameServer::new(None, "10.77.0.1:53".parse().unwrap(), [10, 9, 8, 7]);
    let _upstream6 = NameServer::new(None, "[fd77::1]:53".parse().unwrap(), [10, 9, 8, 6]);
    // As dockerd does it: sockets of its own, whose answers come in by the container's link.
    for (server, address) in [("10.77.0.1", "10.9.8.7"), ("fd77::1", "10.9.8.6")] {
        let found = namespace.sh(&format!("busybox nslookup out.test {server}")).stdout;
        assert!(found.contains(address), "{found}");
        let found = container.exec_sh(&format!("nslookup out.test {server}")).success().stdout;
        assert!(found.contains(address), "{found}");
    }
    // Neighbours are found anew by both.
    host("ip neigh flush dev rvt0");
    namespace.ip("neigh flush dev eth0");
    container.exec_sh("ip neigh flush dev eth0; ping -c 1 -W 5 10.77.0.1 && ping -c 1 -W 5 fd77::1").success();
    namespace.sh("busybox nslookup out.test 10.77.0.1 && busybox nslookup out.test fd77::1");
    container.end(&created);
}

#[test]
fn a_killed_monitor_leaves_the_links_as_they_were() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    let ports = || namespace.sh("cat /proc/sys/net/ipv4/ip_local_port_range").stdout;
    namespace.sh("echo 40000 50000 >/proc/sys/net/ipv4/ip_local_port_range");
    namespace.veth(77, ("rvt0", "eth0"));
    let _server = NameServer::new(Some(&namespace.path()), "127.0.0.11:53".parse().unwrap(), [10, 1, 2, 3]);
    let before = namespace.traffic_control() + &ports();
    let mut container = in_namespace(&scene, &namespace);
    let created = container.idle();
    assert!(place::is_runvm() == (ports() == "65280\t65535\n"), "{}", ports());
    process::signal(created.pid, rustix::process::Signal::KILL);
    assert_eq!(process::wait_orphan(created.pid), 137);
    container.force_delete().success();
    assert_eq!(namespace.traffic_control() + &ports(), before);
    // And can be used again.
    in_namespace(&scene, &namespace).sh("ping -c 1 -W 5 10.77.0.1").run().success();
    assert_eq!(namespace.traffic_control() + &ports(), before);
}

/// The process that works in a container's network namespace.
fn network_helper() -> i32 {
    let helpers: Vec<i32> = process::descendants()
        .into_iter()
        .filter(|(pid, what)| what.contains("network-helper") && process::lives(*pid))
        .map(|(pid, _)| pid)
        .collect();
    assert_eq!(helpers.len(), 1, "{:?}", process::descendants());
    helpers[0]
}

/// Where the descriptors of a process lead.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())).collect()
}

#[test]
fn vm_the_monitor_holds_taps_and_its_helper_one_capability() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    let mut container = in_namespace(&scene, &namespace);
    let created = container.idle();
    let held = descriptors(created.pid);
    let of = |what: &str| held.iter().filter(|path| path.starts_with(what)).count();
    // One tap, and one socket that is told of changes.
    assert_eq!((of("/dev/net/tun"), of("/dev/net"), of("net:[")), (1, 1, 0), "{held:?}");
    let helper = network_helper();
    let field = |name: &str| process::status_field(helper, name).unwrap();
    let net_admin = format!("{:016x}", 1 << 12);
    assert_eq!(["CapEff", "CapPrm"].map(field), [&net_admin; 2].map(String::as_str));
    assert_eq!(["CapBnd", "CapInh", "CapAmb"].map(field), ["0000000000000000"; 3]);
    assert_eq!(["NoNewPrivs", "Seccomp"].map(field), ["1", "2"]);
    assert_eq!(fs::read_link(format!("/proc/{helper}/root")).unwrap().to_str(), Some("/dev/net"));
    assert_eq!(process::namespace(helper, "net"), process::namespace(created.pid, "net"));
    let cgroup = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroup(helper), cgroup(created.pid));
    let held = descriptors(helper);
    let odd = |path: &&String| {
        !["/dev/null", "/dev/net", "socket:", "/proc/", "/run/"].iter().any(|may| path.starts_with(may))
    };
    assert_eq!(held.iter().filter(odd).collect::<Vec<_>>(), Vec::<&String>::new());
    let memory = fs::read_to_string(format!("/proc/{helper}/smaps_rollup")).unwrap();
    let own: u32 = process::field(&memory, "Anonymous").unwrap().split(' ').next().unwrap().parse().unwrap();
    // In kB.
    assert!(own < 800, "{memory}");
    container.end(&created);
}

#[test]
fn vm_a_container_outlives_its_network_helper() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    let before = namespace.traffic_control();
    let mut container = in_namespace(&scene, &namespace);
    let created = container.idle();
    process::signal(network_helper(), rustix::process::Signal::KILL);
    let told = "changes of the network are not mirrored any more: the network helper of the container has ended";
    process::wait_until("the log to say so", || fs::read_to_string(scene.log()).unwrap().contains(told));
    namespace.ip("addr add 10.77.0.9/24 dev eth0");
    container.exec_sh("ping -c 1 -W 5 10.77.0.1").success();
    assert_eq!(container.status(), "running");
    assert!(!container.exec_sh("ip addr").success().stdout.contains("10.77.0.9"));
    assert_eq!(fs::read_to_string(scene.log()).unwrap().matches(told).count(), 1);
    container.end(&created);
    assert_eq!(namespace.traffic_control(), before);
    // Before the start nothing says what the container should have.
    let created = container.create();
    process::signal(network_helper(), rustix::process::Signal::KILL);
    let refused = container.start().failure();
    assert!(refused.stderr.contains("the network helper of the container has ended"), "{refused:?}");
    assert_eq!(container.status(), "created");
    container.force_delete().success();
    assert_eq!(process::wait_orphan(created.pid), 137);
    assert_eq!(namespace.traffic_control(), before);
}

#[test]
fn what_is_refused_leaves_nothing() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    let before = namespace.traffic_control();
    let mut container = in_namespace(&scene, &namespace);
    container.args(&["no-such-program"]);
    let outcome = container.try_create();
    if outcome.code == 0 {
        container.start().failure();
        container.force_delete().success();
    }
    assert_eq!(namespace.traffic_control(), before);
}

#[test]
fn a_namespace_that_is_not_there_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": "/run/netns/no-such"})));
    scene.refused(&container.try_create(), &["/run/netns/no-such", "No such file"]);
}

#[test]
fn a_file_that_is_no_namespace_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": "/etc/passwd"})));
    scene.refused(&container.try_create(), &["/etc/passwd", "not a namespace"]);
}

#[test]
fn vm_the_network_of_a_process_of_the_host_is_refused() {
    let scene = Scene::new();
    let mut holder = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    process::wait_until("a namespace", || fs::read_link(&path).unwrap() != own);
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": path})));
    let outcome = container.try_create();
    holder.kill().unwrap();
    holder.wait().unwrap();
    scene.refused(&outcome, &[&path, "a VM cannot share its network"]);
}

/// One that shares process numbers with another container, and with that its VM.
fn member<'a>(scene: &'a Scene, namespace: &Netns, pid: i32) -> Container<'a> {
    let mut container = in_namespace(scene, namespace);
    container.namespace("pid", Some(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})));
    container
}

#[test]
fn who_shares_a_vm_can_have_a_network_of_its_own() {
    let scene = Scene::new();
    let (one, other) = (Netns::new("runvm-test"), Netns::new("runvm-other"));
    one.veth(77, ("rvt0", "eth0"));
    other.veth(78, ("rvt1", "eth0"));
    let before = other.traffic_control();
    let _server = NameServer::new(Some(&other.path()), "127.0.0.11:53".parse().unwrap(), [10, 1, 2, 3]);
    let resolv = scene.dir().join("resolv.conf");
    fs::write(&resolv, "nameserver 127.0.0.11\noptions ndots:0\n").unwrap();
    let mut first = in_namespace(&scene, &one);
    let up = first.idle();
    let addresses = "ip -o -4 addr | grep -v ': lo' | sed 's/.*inet //; s/ .*//'";
    // More often than there are cards.
    for round in 0..5 {
        let mut second = member(&scene, &other, up.pid);
        second.mount("bind", &resolv, "/etc/resolv.conf", &["bind"]);
        let created = second.idle();
        assert_eq!(second.exec_sh(addresses).stdout, "10.78.0.2/24\n");
        second.exec_sh("ping -c 1 -W 5 10.78.0.1 && ping -c 1 -W 5 fd78::1").success();
        assert!(second.exec_sh("nslookup db.test").success().stdout.contains("10.1.2.3"));
        host("busybox ping -c 1 -W 5 10.78.0.2");
        if round == 0 {
            let ask = "printf '\\0\\031\\1\\2\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\2db\\4test\\0\\0\\1\\0\\1'";
            let by_tcp = second.exec_sh(&format!("{ask} | nc 127.0.0.11 53 | od -An -tu1 | tr -s ' \\n' ' '"));
            assert!(by_tcp.stdout.trim_end().ends_with("10 1 2 3"), "{by_tcp:?}");
            other.veth(79, ("rvt2", "eth1"));
            process::wait_until("the link to come", || second.exec_sh("ping -c 1 -W 2 10.79.0.1").code == 0);
            host("ip link del rvt2");
            process::wait_until("the link to go", || second.exec_sh(addresses).stdout == "10.78.0.2/24\n");
        }
        assert_eq!(first.exec_sh(addresses).stdout, "10.77.0.2/24\n");
        second.end(&created);
        assert_eq!(other.traffic_control(), before);
    }
    first.exec_sh("ping -c 1 -W 5 10.77.0.1").success();
    first.end(&up);
}

#[test]
fn links_come_to_one_that_shares_a_vm_before_its_start() {
    let scene = Scene::new();
    let mut first = scene.container();
    let up = first.idle();
    let mut second = scene.container();
    second.set("/process/capabilities", all_capabilities());
    second.namespace("pid", Some(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", up.pid)})));
    let mut created = second.sh("ping -c 1 -W 5 10.77.0.1 >/dev/null && ls /sys/class/net; sleep 100000").create();
    veth("rvt0", (&format!("/proc/{}/ns/net", created.pid), "eth0"), 77);
    second.start().success();
    created.stdout.expect("eth0\nlo\n");
    assert_eq!(first.exec_sh("ls /sys/class/net").stdout, "lo\n");
    second.end(&created);
    process::wait_until("the link to go with its namespace", || !fs::exists("/sys/class/net/rvt0").unwrap());
    first.end(&up);
}

#[test]
fn vm_the_nics_of_a_vm_are_for_all_its_containers() {
    let scene = Scene::new();
    let (one, other) = (Netns::new("runvm-test"), Netns::new("runvm-other"));
    (0..3).for_each(|number| drop(one.ip(&format!("link add d{number} type dummy"))));
    (0..2).for_each(|number| drop(other.ip(&format!("link add e{number} type dummy"))));
    let before = other.traffic_control();
    let mut first = in_namespace(&scene, &one);
    let up = first.idle();
    scene.refused(&member(&scene, &other, up.pid).try_create(), &["link e1", "2 links", "at most 4 NICs for all"]);
    assert_eq!(other.traffic_control(), before);
    other.ip("link del e1");
    let before = other.traffic_control();
    // One that moves its link on takes nothing with it.
    let mut second = member(&scene, &other, up.pid);
    second.set("/process/capabilities/bounding", json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]));
    for set in ["bounding", "effective", "permitted"] {
        second.set(&format!("/process/capabilities/{set}"), json!(["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]));
    }
    second.sh("unshare -n sleep 1000 & sleep 1; ip link set e0 netns $! && ls /sys/class/net");
    assert_eq!(second.run().success().stdout, "lo\n");
    assert_eq!(member(&scene, &other, up.pid).sh("ls /sys/class/net").run().success().stdout, "e0\nlo\n");
    // Nor does a monitor that is killed.
    let mut third = member(&scene, &other, up.pid);
    let created = third.idle();
    assert_ne!(other.traffic_control(), before);
    process::signal(up.pid, rustix::process::Signal::KILL);
    assert_eq!((process::wait_orphan(up.pid), process::wait_orphan(created.pid)), (137, 137));
    third.force_delete().success();
    first.force_delete().success();
    assert_eq!(other.traffic_control(), before);
}

#[test]
fn the_hosts_own_links_are_left_alone() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    host("while ip -6 addr show tentative | grep -q inet6; do sleep 0.1; done");
    let mut monitor = Command::new("ip");
    let mut monitor = monitor.args(["monitor", "link", "address", "route"]).stdout(Stdio::piped()).spawn().unwrap();
    let before = host("ip addr; ip route; tc qdisc show; tc filter show dev rvt0");
    in_namespace(&scene, &namespace).sh("ping -c 1 -W 5 10.77.0.1").run().success();
    assert_eq!(host("ip addr; ip route; tc qdisc show; tc filter show dev rvt0"), before);
    monitor.kill().unwrap();
    let told = monitor.wait_with_output().unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&told), "", "the kernel told of changes");
}

#[test]
fn vm_more_links_than_nics() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    for number in 0..5 {
        namespace.ip(&format!("link add d{number} type dummy"));
    }
    let before = namespace.traffic_control();
    let outcome = in_namespace(&scene, &namespace).try_create();
    scene.refused(&outcome, &["5 links", "at most 4 NICs"]);
    assert_eq!(namespace.traffic_control(), before);
}

#[test]
fn vm_a_link_that_somebody_redirects_already() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    namespace.sh("tc qdisc add dev eth0 ingress");
    in_namespace(&scene, &namespace).sh("ping -c 1 -W 5 10.77.0.1").run().success();
    namespace.sh("tc filter add dev eth0 ingress protocol ip prio 7 u32 match u32 0 0 flowid 1:1");
    let before = namespace.traffic_control();
    let outcome = in_namespace(&scene, &namespace).try_create();
    scene.refused(&outcome, &["eth0", "ingress"]);
    assert_eq!(namespace.traffic_control(), before);
}

/// A namespace of an ordinary user's, filled by pasta.
#[test]
fn a_tap_of_pasta() {
    let connected = Connected::new();
    let scene = Scene::new();
    let mut pasta = Command::new("setpriv");
    pasta.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "pasta",
        "--foreground",
        "--config-net",
        "--quiet",
        "--tcp-ports",
        "18090:80",
        "--",
        "sleep",
        "100000",
    ]);
    let pasta = command::start(&mut pasta);
    let sleeps = |pid: &i32| process::status_field(*pid, "Name").is_some_and(|name| name == "sleep");
    let owner = process::until("a namespace", || process::descendants().into_keys().find(sleeps));
    let address = || host(&format!("nsenter --net=/proc/{owner}/ns/net ip -o -4 addr show scope global"));
    process::wait_until("an address", || address().contains(HOST));
    let path = scene.dir().join("netns");
    fs::write(&path, "").unwrap();
    host(&format!("mount --bind /proc/{owner}/ns/net {}", path.display()));
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": path})));
    container.set("/process/capabilities", all_capabilities());
    container.sh("echo page >/tmp/index.html; httpd -p 80 -h /tmp; echo up; exec sleep 100000");
    let mut created = container.up();
    created.stdout.expect("up\n");
    // The host's own address is the container's too: pasta gives it the host by the gateway's.
    let outside = connected.page(("127.0.0.1", 18088), "outside\n".to_owned());
    let got = container.exec_sh("timeout 20 wget -q -O - http://198.51.100.1:18088/").success();
    assert_eq!(got.stdout, "outside\n");
    outside.join().unwrap();
    assert_eq!(host(&format!("timeout 20 busybox wget -q -O - http://{HOST}:18090/")), "page\n");
    container.end(&created);
    host(&format!("umount {}", path.display()));
    pasta.signal(rustix::process::Signal::TERM);
    process::signal(owner, rustix::process::Signal::KILL);
    pasta.finish();
}
