//! Network and ports without an engine: `--net user`, by passt, and `--publish`, by vsock.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tests::command::{self, Outcome};
use tests::leftovers::Leftovers;
use tests::uplink::{Connected, HOST};
use tests::{Container, Scene, place, process};

#[track_caller]
fn sh(script: &str) -> Outcome {
    command::run(Command::new("sh").args(["-ec", script])).success()
}

/// A web server of the container's with one page, at this port; it says when it listens.
fn serving<'a>(scene: &'a Scene, port: u16, text: &str) -> Container<'a> {
    let mut container = scene.container();
    // Any port, for a server that is not root's.
    container.set(
        "/process/capabilities",
        json!({"bounding": ["CAP_NET_BIND_SERVICE", "CAP_KILL"],
        "effective": ["CAP_NET_BIND_SERVICE", "CAP_KILL"], "permitted": ["CAP_NET_BIND_SERVICE", "CAP_KILL"]}),
    );
    container.sh(&format!("echo {text} >/tmp/index.html; httpd -p {port} -h /tmp; echo up; exec sleep 100000"));
    container
}

#[track_caller]
fn get(url: &str) -> Outcome {
    command::run(Command::new("timeout").args(["20", "busybox", "wget", "-q", "-O", "-", url]))
}

#[test]
fn vm_ports_are_published_without_any_network() {
    let scene = Scene::new();
    let mut container = serving(&scene, 80, "served");
    let mut created = container.create_with(&["-p", "18080:80", "--publish", "127.0.0.1:18081-18082:80-81"]);
    // Nobody serves it yet: as where nobody listens.
    let mut early = TcpStream::connect("127.0.0.1:18080").unwrap();
    assert!(matches!(early.read(&mut [0]), Err(_) | Ok(0)));
    container.start().success();
    created.stdout.expect("up\n");
    assert_eq!(container.exec_sh("ls /sys/class/net | tr '\\n' ' '").stdout, "lo ");
    for url in ["http://127.0.0.1:18080/", "http://[::1]:18080/", "http://127.0.0.1:18081/"] {
        assert_eq!(get(url).success().stdout, "served\n", "{url}");
    }
    // Nobody serves this one.
    get("http://127.0.0.1:18082/").failure();
    // Another container cannot have it; and that one leaves nothing.
    let other = scene.container();
    let refused = command::run(&mut other.named("create", &["--publish", "18080:80"])).failure();
    assert!(scene.errors().concat().contains("publish port 18080/tcp"), "{refused:?} {:?}", scene.errors());
    container.end(&created);
    // And when it is gone nobody listens.
    assert!(TcpStream::connect("127.0.0.1:18080").is_err());
}

#[test]
fn vm_much_goes_through_a_published_port_both_ways() {
    let scene = Scene::new();
    let mut container = scene.container();
    // Port 7000 is 1B58.
    let listens = "until grep -q :1B58 /proc/net/tcp*; do sleep 0.1; done";
    container
        .sh(&format!("mkfifo /tmp/f; (cat /tmp/f | nc -l -p 7000 >/tmp/f) & {listens}; echo up; exec sleep 100000"));
    let mut created = container.create_with(&["-p", "127.0.0.1:17000:7000"]);
    container.start().success();
    created.stdout.expect("up\n");
    let mut client = TcpStream::connect("127.0.0.1:17000").unwrap();
    let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
    let (mut sender, bytes) = (client.try_clone().unwrap(), sent.clone());
    let sending = std::thread::spawn(move || {
        sender.write_all(&bytes).unwrap();
    });
    let mut back = vec![0; sent.len()];
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    client.read_exact(&mut back).unwrap();
    assert!(back == sent);
    sending.join().unwrap();
    container.end(&created);
    // The other end is gone with the container.
    assert!(matches!(client.read(&mut [0]), Err(_) | Ok(0)));
}

#[test]
fn vm_datagrams_find_back_to_each_client() {
    let scene = Scene::new();
    let mut container = scene.container();
    let echo = place::runtime().parent().unwrap().join("udp-echo");
    container.mount("bind", &echo, "/udp-echo", &["bind", "ro"]).args(&["/udp-echo", "0.0.0.0:7000"]);
    let created = container.create_with(&["-p", "17000:7000/udp"]);
    container.start().success();
    let clients: Vec<UdpSocket> = (0..20)
        .map(|_| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect("127.0.0.1:17000").unwrap();
            client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            client
        })
        .collect();
    let ask = |client: &UdpSocket, text: &[u8]| {
        let mut answer = vec![0; 65_536];
        client.send(text).unwrap();
        let length = client.recv(&mut answer).ok()?;
        Some(answer[..length].to_vec())
    };
    process::until("an echo", || ask(&clients[0], b"up"));
    for round in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let text = format!("{round} {number}");
            assert_eq!(ask(client, text.as_bytes()).as_deref(), Some(text.as_bytes()));
        }
    }
    let long = vec![7; 60_000];
    assert!(ask(&clients[3], &long).unwrap() == long);
    container.end(&created);
}

#[test]
fn vm_a_network_by_passt() {
    let connected = Connected::new();
    let scene = Scene::new();
    // More than anything on the way holds.
    let page = connected.page((HOST, 18088), "x".repeat(3_000_000));
    // What is only for the host itself.
    let _private = TcpListener::bind("127.0.0.1:18089").unwrap();
    let mut container = serving(&scene, 80, "served");
    let mut created = container.create_with(&["--net", "user", "-p", "18080:80"]);
    container.start().success();
    created.stdout.expect("up\n");
    let address = container.exec_sh("ip -o -4 addr show eth0; ip route; cat /etc/resolv.conf").success().stdout;
    for wanted in ["10.0.2.100/24", "default via 10.0.2.2 dev eth0", "nameserver 10.0.2.3", "search test"] {
        assert!(address.contains(wanted), "{wanted}: {address}");
    }
    let size = container.exec_sh(&format!("timeout 60 wget -q -O - http://{HOST}:18088/ | wc -c")).success();
    assert_eq!(size.line(), "3000000");
    assert_eq!(page.join().unwrap(), HOST, "passt speaks for the container with the host's address");
    let found = container.exec_sh("nslookup db.test").success().stdout;
    assert!(found.contains("10.4.4.4"), "{found}");
    assert_eq!(get("http://127.0.0.1:18080/").success().stdout, "served\n");
    // By a router's announcement.
    process::wait_until("an IPv6 address", || container.exec_sh("ip -6 addr show eth0").stdout.contains("2001:db8:"));
    for hidden in ["10.0.2.2", "10.0.2.3"] {
        container.exec_sh(&format!("timeout 5 wget -q -O - http://{hidden}:18089/")).failure();
    }
    container.end(&created);
}

#[test]
fn vm_the_network_ends_with_the_monitor() {
    let _connected = Connected::new();
    let scene = Scene::new();
    let mut container = scene.container();
    container.sh("exec sleep 100000");
    let created = container.create_with(&["--net", "user", "-p", "18080:80"]);
    container.start().success();
    let passt = || command::run(Command::new("pgrep").args(["-x", "passt.*"])).stdout;
    let found = passt();
    assert!(!found.is_empty());
    let (of_passt, of_monitor) = (format!("/proc/{}/cgroup", found.trim()), format!("/proc/{}/cgroup", created.pid));
    assert_eq!(fs::read_to_string(of_passt).unwrap(), fs::read_to_string(of_monitor).unwrap());
    process::signal(created.pid, rustix::process::Signal::KILL);
    process::wait_orphan(created.pid);
    process::wait_until("passt to end", || {
        process::reap();
        passt().is_empty()
    });
    assert!(TcpStream::connect("127.0.0.1:18080").is_err());
    container.delete().success();
}

#[test]
fn vm_a_container_outlives_its_network() {
    let _connected = Connected::new();
    let scene = Scene::new();
    let mut container = scene.container();
    container.sh("trap 'exit 3' TERM; echo up; while true; do sleep 1; done");
    let mut created = container.create_with(&["--net", "user"]);
    container.start().success();
    created.stdout.expect("up\n");
    sh("pkill -KILL -x 'passt.*'");
    process::wait_until("a warning", || {
        fs::read_to_string(scene.log()).unwrap().contains("the container has no network any more: passt")
    });
    assert_eq!(container.exec_sh("echo alive").stdout, "alive\n");
    container.kill("TERM").success();
    assert_eq!(process::wait_orphan(created.pid), 3);
    container.delete().success();
}

#[test]
fn vm_annotations_take_the_administrators_leave() {
    let scene = Scene::new();
    let before = Leftovers::now();
    for (name, value, flag) in [("io.runvm.ports", "18080:80", "--publish"), ("io.runvm.net", "user", "--net")] {
        let mut container = scene.container();
        container.set("/annotations", json!({name: value}));
        container.run().failure();
        let errors = scene.errors().concat();
        assert!(errors.contains(&format!("annotation {name}: not allowed by the host's administrator")), "{errors}");
        assert!(errors.contains(&format!("runvm run has {flag}")), "{errors}");
    }
    before.check();
    let _connected = Connected::new();
    let mut container = serving(&scene, 80, "by annotation");
    container.set("/annotations", json!({"io.runvm.net": "user", "io.runvm.ports": "18080:80,18081:80/tcp"}));
    container.write();
    let mut command = scene.runtime();
    command
        .args(["--allow-annotations", "io.runvm.net,io.runvm.ports", "run", "--detach", "--bundle"])
        .arg(container.bundle())
        .arg(&container.id);
    command::run(&mut command).success();
    for port in [18080, 18081] {
        let page =
            process::until("a page", || Some(get(&format!("http://127.0.0.1:{port}/"))).filter(|got| got.code == 0));
        assert_eq!(page.stdout, "by annotation\n");
    }
    assert!(container.exec_sh("ip route").stdout.contains("default via 10.0.2.2"));
    container.force_delete().success();
}

#[test]
fn vm_what_cannot_be_is_told() {
    let scene = Scene::new();
    let refused = |flags: &[&str], change: &dyn Fn(&mut Container)| {
        let mut container = scene.container();
        change(&mut container);
        let mut command = container.command("run");
        command::run(command.args(flags).arg(&container.id)).failure();
        scene.errors().last().cloned().unwrap_or_default()
    };
    let unchanged = |_: &mut Container| {};
    let error = refused(&["-p", "80"], &unchanged);
    assert!(error.contains("--publish 80: the host's port is missing"), "{error}");
    let error = refused(&["-p", "99999:80"], &unchanged);
    assert!(error.contains("\"99999\" is not a port"), "{error}");
    let error = refused(&["-p", "203.0.113.9:80:80"], &unchanged);
    assert!(error.contains("publish port 203.0.113.9:80/tcp"), "{error}");
    let error = refused(&["--net", "user"], &|container| {
        container.namespace("network", Some(json!({"type": "network", "path": "/proc/1/ns/net"})));
    });
    assert!(error.contains("network"), "{error}");
    // No default route: passt says so.
    let error = refused(&["--net", "user"], &unchanged);
    assert!(error.contains("--net user: passt:"), "{error}");
    let container = scene.container();
    let mut command = container.command("run");
    command.env("PATH", "/nowhere").args(["--net", "user"]).arg(&container.id);
    command::run(&mut command).failure();
    let error = scene.errors().last().cloned().unwrap_or_default();
    assert!(error.contains("passt is not installed (Debian: apt install passt)"), "{error}");
}
