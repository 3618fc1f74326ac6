//! Every system call that a filter of the monitor's allows is one that is made: what nobody needs, an attacker does.
//!
//! The host's kernel counts the calls of each thread while containers do what containers do. The lists of what the filters allow,
//! which unit tests hold against the tables, say of some calls why they are not seen here.

#[path = "rules/counts.rs"]
mod counts;
#[path = "rules/life.rs"]
mod life;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use syscalls::Sysno;
use tests::disk::Disk;
use tests::dns::NameServer;
use tests::netns::Netns;
use tests::unix::Server;
use tests::{Scene, process};

use counts::{Counter, Seen, threads};

/// What each kind of threads may call, and why a call is not seen here, if it is not.
const ALLOWED: [&str; 2] = [
    include_str!("../../runtime/src/monitor/confine/calls.txt"),
    include_str!("../../runtime/src/network/helper/calls.txt"),
];

/// Kinds that are counted only once they are confined: what they call is allowed.
const CONFINED: [&str; 2] = ["main", "proxy"];

#[test]
fn vm_what_filters_allow_is_used() {
    let mut seen = Seen::default();
    containers(&mut seen);
    ports(&mut seen);
    judge(&seen);
}

/// Two containers of one VM.
fn containers(seen: &mut Seen) {
    let scene = Scene::new();
    let (disk, namespace) = (Disk::new(scene.dir()), Netns::new("runvm-test"));
    let _resolver = NameServer::new(Some(&namespace.path()), "127.0.0.11:53".parse().unwrap(), [10, 1, 2, 3]);
    let socket = scene.dir().join("socket");
    let _server = Server::echo(&socket);
    let all = Counter::new("runvm-all", &[]);
    let mut first = life::container(&scene, &disk, &namespace, &socket);
    let up = first.sh("trap 'exit 0' TERM; sleep 100000 & wait $!").create();
    let main = Counter::new("runvm-main", &[up.pid]);
    // The engine's link comes late, so that its NIC's thread is started by a main thread that is confined.
    namespace.veth(77, ("rvt0", "eth0"));
    first.start().success();
    join(&scene, up.pid, seen);
    life::live(&first, &namespace);
    let threads = threads(&up);
    process::signal(up.pid, rustix::process::Signal::TERM);
    assert_eq!(process::wait_orphan(up.pid), 0);
    seen.add_each(&all.calls(), &threads);
    seen.add_main(&main.calls(), &threads);
    first.delete().success();
}

/// A container that joins the VM, runs out of memory and gets a signal.
fn join(scene: &Scene, monitor: i32, seen: &mut Seen) {
    let mut container = scene.container();
    container.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{monitor}/ns/ipc")})));
    container.set("/linux/resources", json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}}));
    let up = container.sh("trap 'exit 0' TERM; while :; do sleep 1; done").create();
    let counter = Counter::new("runvm-proxy", &[up.pid]);
    container.start().success();
    container.exec_sh(life::FILL_MEMORY).failure();
    process::signal(up.pid, rustix::process::Signal::TERM);
    assert_eq!(process::wait_orphan(up.pid), 0);
    counter.calls().values().for_each(|calls| seen.add("proxy", Some(calls)));
    container.delete().success();
}

/// A container whose ports are published, with a network by passt.
fn ports(seen: &mut Seen) {
    let (scene, _uplink) = (Scene::new(), tests::uplink::Connected::new());
    let (mut container, mut up) = life::publishing(&scene);
    let counter = Counter::new("runvm-ports", &[up.pid]);
    container.start().success();
    up.stdout.expect("up\n");
    life::ask();
    let threads = threads(&up);
    assert_eq!(container.end(&up), 137);
    seen.add_main(&counter.calls(), &threads);
}

/// Insists that what is allowed is seen, or has a reason why not.
fn judge(seen: &Seen) {
    let (mut unused, mut allowed) = (Vec::new(), BTreeMap::<&str, BTreeSet<&str>>::new());
    for line in ALLOWED.iter().flat_map(|list| list.lines()) {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (call, reason) = rest.split_once(": not seen: ").unwrap_or((rest, ""));
        let name = call.split(' ').next().unwrap();
        allowed.entry(kind).or_default().insert(name);
        let is_seen = seen.0.get(kind).is_some_and(|calls| calls.iter().any(|call| call.name() == name));
        if !is_seen && reason.is_empty() {
            unused.push(line);
        }
    }
    for (kind, calls) in &seen.0 {
        println!("{kind}: {}", calls.iter().map(Sysno::name).collect::<Vec<_>>().join(" "));
    }
    for kind in CONFINED {
        let more: Vec<_> = seen.0[kind].iter().map(Sysno::name).filter(|name| !allowed[kind].contains(name)).collect();
        assert!(more.is_empty(), "{kind} called what it may not call: {more:?}");
    }
    assert!(unused.is_empty(), "allowed, and never called: {unused:#?}");
}
