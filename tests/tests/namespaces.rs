//! Namespaces: what a container sees of others, and what its pid shows to the host.

use std::fs;
use std::process::Command;

use serde_json::json;
use tests::command::run;
use tests::{Scene, process};

#[test]
fn the_process_is_number_one() {
    let scene = Scene::new();
    assert_eq!(scene.sh("echo $$").success().line(), "1");
}

#[test]
fn only_its_own_processes_are_visible() {
    let scene = Scene::new();
    let outcome = scene.sh("sleep 100 & for p in /proc/[0-9]*; do cat $p/comm; done").success();
    let mut names: Vec<_> = outcome.stdout.lines().collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.iter().all(|name| ["sh", "sleep", "cat"].contains(name)), "{names:?}");
}

#[test]
fn orphans_are_reaped_by_nobody_but_the_container() {
    let scene = Scene::new();
    // The orphan's new parent is the container's process 1, which is alive and sees it end.
    let outcome =
        scene.sh("(sleep 0.1 & echo $! >/pid); sleep 0.5; cut -d' ' -f4 /proc/$(cat /pid)/stat || echo reaped");
    assert!(["1", "reaped"].contains(&outcome.line()), "{outcome:?}");
}

#[test]
fn processes_left_behind_end_with_the_container() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.sh("setsid sleep 100000 >/dev/null 2>&1 & (setsid sleep 100000 &); exit 4").up();
    assert_eq!(process::wait_orphan(created.pid), 4);
    // Nobody holds the streams any more: the second sleep had them.
    assert_eq!(created.stdout.rest(), "");
}

#[test]
fn the_host_name_is_private() {
    let scene = Scene::new();
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let mut container = scene.container();
    container.set("/hostname", json!("another"));
    assert_eq!(container.sh("hostname; cat /proc/sys/kernel/hostname").run().success().stdout, "another\nanother\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

#[test]
fn the_network_is_a_loopback_that_is_up() {
    let scene = Scene::new();
    let script = "ls /sys/class/net; ip -o addr; ping -c 1 -W 5 127.0.0.1 >/dev/null && echo alive";
    let mut container = scene.container();
    let capabilities = json!(["CAP_NET_RAW"]);
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    let outcome = container.set("/process/capabilities", sets).sh(script).run().success();
    let mut lines = outcome.stdout.lines();
    assert_eq!(lines.next(), Some("lo"));
    assert!(outcome.stdout.contains("127.0.0.1/8"), "{outcome:?}");
    assert_eq!(lines.next_back(), Some("alive"));
}

#[test]
fn the_pids_network_namespace_is_a_new_one() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    assert_ne!(process::namespace(created.pid, "net"), process::namespace("self", "net"));
    container.end(&created);
}

#[test]
fn the_pids_root_is_the_containers() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    assert_ne!(process::namespace(created.pid, "mnt"), process::namespace("self", "mnt"));
    let root = format!("/proc/{}/root", created.pid);
    // What an engine finds there that copies files into a running container.
    let release = fs::read_to_string(format!("{root}/etc/os-release")).unwrap();
    assert!(release.contains("runvm test image"), "{release}");
    fs::write(format!("{root}/root/written"), "by the engine").unwrap();
    assert_eq!(fs::read_to_string(container.rootfs().join("root/written")).unwrap(), "by the engine");
    let mut enter = Command::new("nsenter");
    enter.arg(format!("--mount=/proc/{}/ns/mnt", created.pid)).args(["/bin/busybox", "ls", "/root"]);
    assert_eq!(run(&mut enter).success().stdout, "written\n");
    container.end(&created);
}

#[test]
fn the_pid_is_in_the_network_namespace_of_the_spec() {
    let scene = Scene::new();
    let name = format!("runvm-test-{}", std::process::id());
    run(Command::new("ip").args(["netns", "add", &name])).success();
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": format!("/run/netns/{name}")})));
    let created = container.create();
    let expected = run(Command::new("ip").args(["netns", "exec", &name, "readlink", "/proc/self/ns/net"]));
    assert_eq!(process::namespace(created.pid, "net"), expected.success().line());
    container.end(&created);
    run(Command::new("ip").args(["netns", "del", &name])).success();
}

#[test]
fn vm_the_hosts_network_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.namespace("network", None);
    scene.refused(&container.run(), &["network"]);
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": "/proc/1/ns/net"})));
    scene.refused(&container.run(), &["network"]);
}

#[test]
fn a_user_namespace_maps_ids() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.namespace("user", Some(json!({"type": "user"})));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 5000}]);
    container.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping);
    let dir = container.rootfs().join("writable");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(100_000), Some(100_000)).unwrap();
    let outcome = container.sh("id -u; cat /proc/self/uid_map; touch /writable/file; touch /x").run().failure();
    let words: Vec<_> = outcome.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "5000"]);
    assert!(outcome.stderr.contains("/x: Permission denied"), "{outcome:?}");
    let meta = fs::metadata(dir.join("file")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&meta), 100_000);
}

#[test]
fn sysctls_are_set_in_the_container_alone() {
    let scene = Scene::new();
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).unwrap();
    let before = (read("kernel/msgmax"), read("net/ipv4/ip_default_ttl"));
    let mut container = scene.container();
    container.set("/linux/sysctl", json!({"kernel.msgmax": "4242", "net.ipv4.ip_default_ttl": "42"}));
    let outcome = container.sh("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl").run().success();
    assert_eq!(outcome.stdout, "4242\n42\n");
    assert_eq!((read("kernel/msgmax"), read("net/ipv4/ip_default_ttl")), before);
}

#[test]
fn sysctls_of_no_namespace_of_its_own_are_refused() {
    let scene = Scene::new();
    let refused = |name: &str, without: Option<&str>, words: &[&str]| {
        let mut container = scene.container();
        container.set("/linux/sysctl", json!({name: "1"}));
        if let Some(kind) = without {
            container.namespace(kind, None);
        }
        scene.refused(&container.try_create(), words);
    };
    refused("vm.swappiness", None, &["sysctl \"vm.swappiness\" is not in a separate kernel namespace"]);
    refused("kernel/panic", None, &["sysctl \"kernel.panic\" is not in a separate kernel namespace"]);
    refused("kernel.msgmax", Some("ipc"), &["sysctl \"kernel.msgmax\" is not allowed in the hosts ipc namespace"]);
    refused("kernel.hostname", None, &["sysctl \"kernel.hostname\" is not allowed as it conflicts with"]);
}

/// runc has time namespaces from 1.2 on.
#[test]
fn vm_the_clocks_of_a_time_namespace() {
    let scene = Scene::new();
    let mut container = scene.container();
    container
        .set("/linux/timeOffsets", json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 7, "nanosecs": 5}}));
    scene.refused(&container.try_create(), &["time namespace isn't enabled"]);
    container.namespace("time", Some(json!({"type": "time"})));
    let up = container.idle();
    let uptime = container.exec_sh("cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets").success().stdout;
    let (uptime, offsets) = uptime.split_once('\n').unwrap();
    assert!((1_000_000..1_100_000).contains(&uptime.parse::<u64>().unwrap()), "{uptime}");
    let words: Vec<_> = offsets.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "7", "5", "boottime", "1000000", "0"]);
    container.end(&up);
    // The first process is in it, not only what it starts.
    let outcome = container.args(&["cut", "-d.", "-f1", "/proc/uptime"]).run().success();
    assert!(outcome.line().parse::<u64>().unwrap() >= 1_000_000, "{outcome:?}");
}

/// runc has it from 1.2 on.
#[test]
fn vm_a_personality_of_32_bits() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/personality", json!({"domain": "LINUX32"}));
    assert_eq!(container.sh("uname -m").run().success().line(), "i686");
    let up = container.idle();
    assert_eq!(container.exec_sh("uname -m").success().line(), "i686");
    container.end(&up);
    container.set("/linux/personality", json!({"domain": "LINUX"}));
    assert_eq!(container.sh("uname -m").run().success().line(), "x86_64");
    container.set("/linux/personality", json!({"domain": "BSD"}));
    scene.refused(&container.try_create(), &["BSD", "config.json"]);
}

/// By the specification; runc gives it to the mounts of the host that it starts from, and the root is private.
#[test]
fn vm_the_roots_propagation() {
    let scene = Scene::new();
    for (propagation, shared) in [("shared", true), ("private", false)] {
        let mut container = scene.container();
        container.set("/linux/rootfsPropagation", json!(propagation));
        let outcome = container.sh("grep ' / / ' /proc/self/mountinfo").run().success();
        assert_eq!(outcome.stdout.contains(" shared:"), shared, "{outcome:?}");
    }
}

#[test]
fn a_propagation_that_does_not_exist_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/rootfsPropagation", json!("everywhere"));
    scene.refused(&container.try_create(), &["rootfsPropagation=everywhere is not supported"]);
}

/// runc learns it from the kernel, and may leave the container's cgroup.
#[test]
fn vm_mappings_that_cannot_be_are_refused() {
    let scene = Scene::new();
    let mapping =
        |container: u32, host: u32, size: u32| json!({"containerID": container, "hostID": host, "size": size});
    let refused = |uids: serde_json::Value, words: &[&str]| {
        let mut container = scene.container();
        container.namespace("user", Some(json!({"type": "user"})));
        container.set("/linux/uidMappings", uids).set("/linux/gidMappings", json!([mapping(0, 1000, 10)]));
        scene.refused(&container.try_create(), words);
    };
    refused(json!([mapping(0, 1000, 10), mapping(9, 5000, 1)]), &["linux.uidMappings[1]", "containerID 9", "overlap"]);
    refused(json!([mapping(0, 4_294_967_290, 10)]), &["linux.uidMappings[0]", "hostID 4294967290"]);
    refused(json!([mapping(0, 1000, 0)]), &["linux.uidMappings[0].size 0"]);
}

#[test]
fn ipc_is_private() {
    let scene = Scene::new();
    fs::write("/dev/shm/runvm-test-visible", "host").unwrap();
    let outcome = scene.sh("ls -A /dev/shm | wc -l; tail -n +2 /proc/sysvipc/shm | wc -l").success();
    fs::remove_file("/dev/shm/runvm-test-visible").unwrap();
    assert_eq!(outcome.stdout, "0\n0\n");
}

#[test]
fn vm_the_kernel_is_another_one() {
    let scene = Scene::new();
    let host = fs::read_to_string("/proc/sys/kernel/version").unwrap();
    let host_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let outcome = scene.sh("cat /proc/sys/kernel/version /proc/sys/kernel/random/boot_id").success();
    let (version, boot) = outcome.stdout.split_once('\n').unwrap();
    assert_ne!(version, host.trim());
    assert_ne!(boot.trim(), host_boot.trim());
}

#[test]
fn vm_the_clock_is_the_hosts() {
    let scene = Scene::new();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    let outcome = scene.sh("date +%s").success();
    let seen: u64 = outcome.line().parse().unwrap();
    assert!((before..=now()).contains(&seen), "{seen} is not between {before} and now");
}

#[test]
fn vm_the_hosts_hardware_is_not_there() {
    let scene = Scene::new();
    let outcome = scene.sh("ls /sys/bus/pci/devices 2>/dev/null | wc -l; ls /dev/kvm /dev/sda /dev/mem").failure();
    assert_eq!(outcome.stdout, "0\n");
}
