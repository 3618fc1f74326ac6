//! Podman's networks, of an unmodified podman with CNI plugins.

use std::process::Command;

use tests::command::{Outcome, run};
use tests::podman::{IMAGE, Podman};
use tests::process;
use tests::uplink::{Connected, HOST};

const PAGE: &str = "mkdir -p /www && echo page >/www/index.html && exec httpd -f -p 80 -h /www";

#[track_caller]
fn up(podman: &Podman, name: &str, flags: &[&str], script: &str) {
    let first = ["run", "--detach", "--name", name];
    podman.run(&[&first, flags, &[IMAGE, "sh", "-c", script]].concat()).success();
}

#[track_caller]
fn remove(podman: &Podman, names: &[&str]) {
    for name in names {
        podman.run(&["rm", "--force", "--time", "0", name]).success();
    }
}

/// What the host gets, once the server is there.
#[track_caller]
fn fetch(url: &str) -> String {
    let get = || run(Command::new("timeout").args(["10", "busybox", "wget", "-q", "-O", "-", url]));
    let mut got = None;
    process::wait_until("a page", || {
        got = Some(get()).filter(|outcome: &Outcome| outcome.code == 0);
        got.is_some()
    });
    got.unwrap().stdout
}

#[test]
fn its_bridge_and_published_ports() {
    let podman = Podman::networked();
    let flags = ["--mac-address", "02:00:00:00:77:01", "-p", "8070:80"];
    up(&podman, "one", &flags, PAGE);
    assert_eq!(fetch("http://127.0.0.1:8070/"), "page\n");
    let address = podman.inspect("one", ".NetworkSettings.IPAddress");
    assert_eq!(fetch(&format!("http://{address}/")), "page\n");
    let mac = podman.run(&["exec", "one", "cat", "/sys/class/net/eth0/address"]).success();
    assert_eq!(mac.stdout, "02:00:00:00:77:01\n");
    // From another container, by its address.
    let ask = ["run", "--rm", "--network", "podman", IMAGE, "wget", "-q", "-O", "-"];
    let got = podman.run(&[&ask[..], &[&format!("http://{address}/")]].concat()).success();
    assert_eq!(got.stdout, "page\n");
    remove(&podman, &["one"]);
}

#[test]
fn several_networks_with_addresses_of_the_users_choice() {
    let podman = Podman::networked();
    for (name, subnet) in [("red", "10.211.1.0/24"), ("blue", "10.211.2.0/24")] {
        podman.run(&["network", "create", "--subnet", subnet, name]).success();
    }
    up(
        &podman,
        "both",
        &["--network", "red:ip=10.211.1.50,mac=02:00:00:00:77:02", "--network", "blue:ip=10.211.2.50"],
        PAGE,
    );
    for address in ["10.211.1.50", "10.211.2.50"] {
        assert_eq!(fetch(&format!("http://{address}/")), "page\n");
    }
    let links = podman.run(&["exec", "both", "sh", "-c", "ls /sys/class/net; ip -o -4 addr | grep -c eth"]).success();
    assert_eq!(links.stdout, "eth0\neth1\nlo\n2\n");
    remove(&podman, &["both"]);
    podman.run(&["network", "rm", "red", "blue"]).success();
}

#[test]
fn a_pod_shares_its_network() {
    let podman = Podman::networked();
    let infra = ["--infra-image", IMAGE, "--infra-command", "/bin/sleep 100000"];
    let create = ["pod", "create", "--name", "podded", "--share-parent=false", "-p", "8071:80"];
    podman.run(&[&create[..], &infra].concat()).success();
    up(&podman, "server", &["--pod", "podded"], PAGE);
    assert_eq!(fetch("http://127.0.0.1:8071/"), "page\n");
    let ask = ["run", "--rm", "--pod", "podded", IMAGE, "wget", "-q", "-O", "-", "http://127.0.0.1/"];
    assert_eq!(podman.run(&ask).success().stdout, "page\n");
    podman.run(&["pod", "rm", "--force", "--time", "0", "podded"]).success();
}

/// As rootless podman has them; here as root.
#[test]
fn a_tap_of_slirp4netns() {
    let connected = Connected::new();
    let podman = Podman::new();
    let network = ["--network", "slirp4netns:port_handler=slirp4netns", "-p", "8072:80"];
    up(&podman, "slirping", &network, PAGE);
    assert_eq!(fetch("http://127.0.0.1:8072/"), "page\n");
    let outside = connected.page((HOST, 18088), "outside\n".to_owned());
    let ask = format!("ip route | grep default; timeout 20 wget -q -O - http://{HOST}:18088/");
    let got = podman.run(&["exec", "slirping", "sh", "-c", &ask]).success();
    assert_eq!(got.stdout, "default via 10.0.2.2 dev tap0 \noutside\n");
    outside.join().unwrap();
    remove(&podman, &["slirping"]);
}
