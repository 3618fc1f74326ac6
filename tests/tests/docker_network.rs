//! Docker's networks, of an unmodified dockerd, with containers of the runtime under test and of Debian's side by side.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use tests::command::{self, Outcome, run};
use tests::dns::NameServer;
use tests::docker::{Docker, IMAGE};
use tests::{place, process};

/// Address of the default bridge.
const GATEWAY: &str = "10.200.0.1";

fn docker() -> Docker {
    let bridge = format!("--bip={GATEWAY}/24");
    let dns = format!("--dns={GATEWAY}");
    let pools = "--default-address-pool=base=10.201.0.0/16,size=24";
    Docker::with(&["--iptables=true", "--bridge=", &bridge, pools, &dns])
}

/// Containers and a network that are gone at the end.
struct Set<'a> {
    docker: &'a Docker,
    names: Vec<String>,
    networks: Vec<String>,
}

impl<'a> Set<'a> {
    fn new(docker: &'a Docker) -> Self {
        Self { docker, names: Vec::new(), networks: Vec::new() }
    }

    #[track_caller]
    fn network(&mut self, name: &str, flags: &[&str]) {
        self.docker.run(&[&["network", "create"], flags, &[name]].concat()).success();
        self.networks.push(name.to_owned());
    }

    /// A container that goes on until it is removed.
    #[track_caller]
    fn up(&mut self, runtime: &str, name: &str, flags: &[&str], script: &str) {
        let first = ["run", "--detach", "--runtime", runtime, "--name", name];
        self.docker.run(&[&first, flags, &[IMAGE, "sh", "-c", script]].concat()).success();
        self.names.push(name.to_owned());
    }

    #[track_caller]
    fn exec(&self, name: &str, script: &str) -> Outcome {
        self.docker.run(&["exec", name, "sh", "-c", script])
    }

    #[track_caller]
    fn remove(&mut self) {
        for name in self.names.drain(..) {
            self.docker.run(&["rm", "--force", "--volumes", &name]).success();
        }
        for name in self.networks.drain(..) {
            self.docker.run(&["network", "rm", &name]).success();
        }
    }
}

impl Drop for Set<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            eprintln!("{name}: {:?}", self.docker.run(&["logs", name]));
            self.docker.run(&["rm", "--force", name]);
        }
        for name in &self.networks {
            self.docker.run(&["network", "rm", name]);
        }
    }
}

/// What serves a page with this text.
fn page(text: &str) -> String {
    format!("mkdir -p /www && echo {text} >/www/index.html && exec httpd -f -p 80 -h /www")
}

/// Tries until it succeeds: a server may still be starting.
#[track_caller]
fn soon(mut attempt: impl FnMut() -> Outcome) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let outcome = attempt();
        if outcome.code == 0 || Instant::now() > deadline {
            return outcome.success();
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[track_caller]
fn fetch(url: &str) -> String {
    soon(|| run(Command::new("timeout").args(["10", "busybox", "wget", "-q", "-O", "-", url]))).stdout
}

fn address(docker: &Docker, name: &str) -> String {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    docker.run(&["inspect", "--format", format, name]).success().line().to_owned()
}

#[test]
fn the_default_bridge() {
    let docker = docker();
    let mut set = Set::new(&docker);
    set.up("vm", "guest", &["--sysctl", "net.ipv4.ip_default_ttl=77"], &page("vm"));
    set.up("runc", "plain", &[], &page("plain"));
    let (guest, plain) = (address(&docker, "guest"), address(&docker, "plain"));
    assert_eq!(fetch(&format!("http://{guest}/")), "vm\n");
    let from_guest =
        set.exec("guest", &format!("timeout 10 wget -q -O - http://{plain}/; ping -c 1 -W 5 {GATEWAY}")).success();
    assert!(from_guest.stdout.starts_with("plain\n"), "{from_guest:?}");
    assert_eq!(soon(|| set.exec("plain", &format!("timeout 10 wget -q -O - http://{guest}/"))).stdout, "vm\n");
    let inside = set.exec("guest", "cat /proc/sys/net/ipv4/ip_default_ttl; hostname -i");
    assert_eq!(inside.success().stdout, format!("77\n{guest}\n"));
    let stats = docker.run(&["stats", "--no-stream", "--format", "{{.NetIO}}", "guest"]).success();
    assert!(!stats.line().starts_with("0B"), "{stats:?}");
    set.remove();
}

#[test]
fn ports_are_published() {
    let docker = docker();
    let mut set = Set::new(&docker);
    let echo = format!("{}:/udp-echo:ro", place::runtime().parent().unwrap().join("udp-echo").display());
    let ports = ["-p", "8080:80", "-p", "127.0.0.1:8101-8102:81-82", "-p", "5353:53/udp", "-v", &echo];
    let talk = "for p in 81 82; do (while echo port $p | nc -l -p $p; do :; done) & done; /udp-echo 0.0.0.0:53 &";
    set.up("vm", "web", &ports, &format!("{talk}\n{}", page("published")));
    assert_eq!(fetch("http://127.0.0.1:8080/"), "published\n");
    assert_eq!(fetch(&format!("http://{GATEWAY}:8080/")), "published\n");
    for port in [1, 2] {
        let ask = format!("busybox nc -w 5 127.0.0.1 810{port} </dev/null");
        let text = soon(|| {
            let outcome = run(Command::new("sh").args(["-c", &ask]));
            Outcome { code: i32::from(outcome.stdout.is_empty()), ..outcome }
        });
        assert_eq!(text.stdout, format!("port 8{port}\n"));
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    process::wait_until("a datagram to come back", || {
        let mut answer = [0; 100];
        socket.send_to(b"datagram", "127.0.0.1:5353").unwrap();
        socket.recv(&mut answer).is_ok_and(|length| &answer[..length] == b"datagram")
    });
    // A port in use is refused in Docker's words, and nothing of the container stays.
    let second = docker.run(&["run", "--runtime", "vm", "--name", "second", "-p", "8080:80", IMAGE, "true"]).failure();
    assert!(second.stderr.contains("port is already allocated") || second.stderr.contains("address already in use"));
    docker.run(&["rm", "--force", "second"]).success();
    set.remove();
}

/// Three services as compose makes them: a network, names and aliases, the database on another runtime for once.
#[test]
fn services_find_each_other_by_name() {
    let docker = docker();
    let mut set = Set::new(&docker);
    let _upstream = NameServer::new(None, format!("{GATEWAY}:53").parse().unwrap(), [10, 9, 9, 9]);
    set.network("shop", &[]);
    set.up("runc", "shop-db-1", &["--network", "shop", "--network-alias", "db"], &page("rows"));
    let app = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\necho; echo app with $(timeout 10 wget -q -O - http://db/)' \
               >/www/cgi-bin/x; chmod +x /www/cgi-bin/x; exec httpd -f -p 80 -h /www";
    set.up("vm", "shop-app-1", &["--network", "shop", "--network-alias", "app"], app);
    let web =
        "while true; do timeout 10 wget -q -O /tmp/page http://app/cgi-bin/x && nc -l -p 80 </tmp/page; sleep 1; done";
    set.up("vm", "shop-web-1", &["--network", "shop", "--network-alias", "web", "-p", "8090:80"], web);
    let seen = soon(|| {
        let outcome = run(Command::new("sh").args(["-c", "busybox nc -w 5 127.0.0.1 8090 </dev/null"]));
        Outcome { code: i32::from(outcome.stdout.is_empty()), ..outcome }
    });
    assert_eq!(seen.stdout, "app with rows\n");
    for (from, name) in [("shop-app-1", "shop-web-1"), ("shop-web-1", "shop-app-1"), ("shop-db-1", "app")] {
        let wanted = address(&docker, if name == "app" { "shop-app-1" } else { name });
        let found = set.exec(from, &format!("nslookup {name}")).success();
        assert!(found.stdout.contains(&wanted), "{from} asks for {name}: {found:?}");
    }
    // A name of the world outside is asked for by dockerd, from inside of the container's namespace.
    let found = set.exec("shop-app-1", "nslookup outside.test").success();
    assert!(found.stdout.contains("10.9.9.9"), "{found:?}");
    assert_ne!(set.exec("shop-app-1", "nslookup no-such-service").code, 0);
    set.remove();
}

#[test]
fn networks_come_and_go_and_are_apart() {
    let docker = docker();
    let mut set = Set::new(&docker);
    set.network("red", &["--subnet", "10.210.1.0/24"]);
    set.network("blue", &["--subnet", "10.210.2.0/24"]);
    set.up("vm", "one", &["--network", "red", "--ip", "10.210.1.50"], &page("one"));
    set.up("runc", "two", &["--network", "blue"], &page("two"));
    let two = address(&docker, "two");
    assert_eq!(address(&docker, "one"), "10.210.1.50");
    let ask = |set: &Set, what: &str| set.exec("one", &format!("timeout 4 wget -q -O - http://{what}/"));
    assert_ne!(ask(&set, &two).code, 0, "networks are to be apart");
    docker.run(&["network", "connect", "--alias", "first", "blue", "one"]).success();
    assert_eq!(soon(|| ask(&set, "two")).stdout, "two\n");
    assert_eq!(soon(|| set.exec("two", "timeout 4 wget -q -O - http://first/")).stdout, "one\n");
    docker.run(&["network", "disconnect", "blue", "one"]).success();
    assert_ne!(ask(&set, &two).code, 0);
    assert_eq!(set.exec("one", "ls /sys/class/net | grep -c eth").stdout, "1\n");
    set.remove();
}

#[test]
fn names_that_the_user_gives() {
    let docker = docker();
    let mut set = Set::new(&docker);
    let _server = NameServer::new(None, format!("{GATEWAY}:53").parse().unwrap(), [10, 5, 5, 5]);
    set.up("runc", "base", &[], &page("linked"));
    let flags =
        ["--link", "base:other", "--add-host", "fixed.example:10.1.1.1", "--dns", GATEWAY, "--dns-search", "test"];
    set.up("vm", "linking", &flags, "sleep 100000");
    assert_eq!(soon(|| set.exec("linking", "timeout 10 wget -q -O - http://other/")).stdout, "linked\n");
    let hosts = set.exec("linking", "grep fixed.example /etc/hosts; grep ^nameserver /etc/resolv.conf").success();
    assert_eq!(hosts.stdout, format!("10.1.1.1\tfixed.example\nnameserver {GATEWAY}\n"));
    assert!(set.exec("linking", "nslookup name.test").success().stdout.contains("10.5.5.5"));
    set.remove();
}

#[test]
fn a_network_of_another_container_and_none() {
    let docker = docker();
    let mut set = Set::new(&docker);
    set.up("vm", "owner", &[], &page("shared"));
    let flags = ["run", "--rm", "--runtime", "vm", "--network", "container:owner", IMAGE];
    let got = soon(|| docker.run(&[&flags[..], &["wget", "-q", "-O", "-", "http://127.0.0.1/"]].concat()));
    assert_eq!(got.stdout, "shared\n");
    let none = docker.run(&["run", "--rm", "--runtime", "vm", "--network", "none", IMAGE, "ls", "/sys/class/net"]);
    assert_eq!(none.success().stdout, "lo\n");
    set.remove();
}

/// It has the processes of another container, in whose VM it is, and a network of its own.
#[test]
fn a_network_of_its_own_beside_processes_of_another() {
    let docker = docker();
    let mut set = Set::new(&docker);
    set.network("team", &[]);
    set.network("late", &[]);
    set.up("vm", "owner", &[], &page("owner"));
    set.up("runc", "plain", &["--network", "team"], &page("plain"));
    let flags = ["--pid", "container:owner", "--network", "team", "-p", "8080:80"];
    set.up("vm", "member", &flags, &page("member"));
    assert_eq!(fetch("http://127.0.0.1:8080/"), "member\n");
    for (from, to) in [("member", "plain"), ("plain", "member")] {
        let got = soon(|| set.exec(from, &format!("timeout 10 wget -q -O - http://{to}/")));
        assert_eq!(got.stdout, format!("{to}\n"));
    }
    docker.run(&["network", "connect", "late", "member"]).success();
    process::wait_until("the network to come", || {
        set.exec("member", "ls /sys/class/net | grep -c eth").stdout == "2\n"
    });
    docker.run(&["network", "disconnect", "team", "member"]).success();
    process::wait_until("the network to go", || set.exec("member", "ls /sys/class/net | grep -c eth").stdout == "1\n");
    docker.run(&["rm", "--force", &set.names.pop().unwrap()]).success();
    assert_eq!(fetch(&format!("http://{}/", address(&docker, "owner"))), "owner\n");
    set.remove();
}

#[test]
fn vm_the_hosts_network_is_refused_and_not_touched() {
    let docker = docker();
    let all = "ls /sys/class/net; tc qdisc show; ip -o -4 addr; for l in $(ls /sys/class/net); do tc filter show dev $l; done";
    let links = || command::run(Command::new("sh").args(["-c", all])).success().stdout;
    let before = links();
    let outcome = docker.run(&["run", "--rm", "--runtime", "vm", "--network", "host", IMAGE, "true"]).failure();
    assert!(outcome.stderr.contains("host network is not possible in a VM"), "{outcome:?}");
    assert_eq!(links(), before);
}

#[test]
fn ipv6_networks() {
    let docker = docker();
    let mut set = Set::new(&docker);
    set.network("six", &["--ipv6", "--subnet", "fd00:77::/64"]);
    set.up("vm", "guest6", &["--network", "six"], "sleep 100000");
    set.up("runc", "plain6", &["--network", "six"], "sleep 100000");
    let ping = |from: &str, to: &str| set.exec(from, &format!("ping -6 -c 1 -W 5 {to}"));
    soon(|| ping("guest6", "plain6"));
    soon(|| ping("plain6", "guest6"));
    set.remove();
}
