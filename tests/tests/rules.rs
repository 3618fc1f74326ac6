//! Every system call that a filter of the monitor's allows is one that is made: what nobody needs, an attacker does.
//!
//! The host's kernel records the calls of each thread while containers do what containers do. The lists of what the filters
//! allow, which unit tests hold against the tables, say of some calls why they are not seen here.

#[path = "rules/life.rs"]
mod life;
#[path = "rules/trace.rs"]
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::json;
use syscalls::Sysno;
use tests::disk::Disk;
use tests::dns::NameServer;
use tests::netns::Netns;
use tests::unix::Server;
use tests::{Scene, process};

use trace::{Seen, Trace};

/// What each kind of threads may call, and why a call is not seen here, if it is not.
const ALLOWED: [&str; 2] = [
    include_str!("../../runtime/src/monitor/confine/calls.txt"),
    include_str!("../../runtime/src/network/helper/calls.txt"),
];

#[test]
fn vm_what_filters_allow_is_used() {
    let trace = Trace::new("runvm-test");
    let proxy = containers();
    ports();
    judge(&trace.seen(&[proxy]));
}

/// Two containers of one VM, the second of which is stood for by a join proxy, the result.
fn containers() -> i32 {
    let scene = Scene::new();
    let (disk, namespace) = (Disk::new(scene.dir()), Netns::new("runvm-test"));
    let _resolver = NameServer::new(Some(&namespace.path()), "127.0.0.11:53".parse().unwrap(), [10, 1, 2, 3]);
    // On a file system that has all that the file server can ask for.
    let volume = scene.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    let mut files = Disk::new(&volume);
    files.mount_over(&volume, "rw");
    let socket = scene.dir().join("socket");
    let _server = Server::echo(&socket);
    let mut first = life::container(&scene, &disk, &namespace, &socket);
    let up = first.sh("trap 'exit 0' TERM; sleep 100000 & wait $!").create();
    // The engine's link comes late, so that its NIC's thread is started by a main thread that is confined.
    namespace.veth(77, ("rvt0", "eth0"));
    first.start().success();
    let proxy = join(&scene, up.pid);
    life::live(&first, &namespace);
    process::signal(up.pid, rustix::process::Signal::TERM);
    assert_eq!(process::wait_orphan(up.pid), 0);
    first.delete().success();
    proxy
}

/// A container that joins the VM, runs out of memory and gets a signal.
fn join(scene: &Scene, monitor: i32) -> i32 {
    let mut container = scene.container();
    container.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{monitor}/ns/ipc")})));
    container.set("/linux/resources", json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}}));
    let up = container.sh("trap 'exit 0' TERM; while :; do sleep 1; done").create();
    container.start().success();
    container.exec_sh(life::FILL_MEMORY).failure();
    process::signal(up.pid, rustix::process::Signal::TERM);
    assert_eq!(process::wait_orphan(up.pid), 0);
    container.delete().success();
    up.pid
}

/// A container whose ports are published, with a network by passt.
fn ports() {
    let (scene, _uplink) = (Scene::new(), tests::uplink::Connected::new());
    let (mut container, mut up) = life::publishing(&scene);
    container.start().success();
    up.stdout.expect("up\n");
    life::ask();
    assert_eq!(container.end(&up), 137);
}

/// Insists that each call that is allowed is seen, or has a reason why not, and that each that is seen is allowed.
fn judge(seen: &Seen) {
    let (mut unused, mut allowed) = (Vec::new(), BTreeMap::<&str, BTreeSet<&str>>::new());
    for line in ALLOWED.iter().flat_map(|list| list.lines()) {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (call, reason) = rest.split_once(": not seen: ").unwrap_or((rest, ""));
        let name = call.split(' ').next().unwrap();
        allowed.entry(kind).or_default().insert(name);
        let is_seen = seen.get(kind).is_some_and(|calls| calls.iter().any(|call| call.name() == name));
        // What the filter answers in the kernel's place is not recorded.
        if !is_seen && reason.is_empty() && !call.ends_with("(seems to be missing)") {
            unused.push(line);
        }
    }
    for (kind, calls) in &allowed {
        let seen = seen.get(kind).unwrap_or_else(|| panic!("no thread of the kind {kind}"));
        println!("{kind}: {}", seen.iter().map(Sysno::name).collect::<Vec<_>>().join(" "));
        let more: Vec<_> = seen.iter().map(Sysno::name).filter(|name| !calls.contains(name)).collect();
        assert!(more.is_empty(), "{kind} called what it may not call: {more:?}");
    }
    assert!(unused.is_empty(), "allowed, and never called: {unused:#?}");
}
