//! The allowed directions between crates and between the rooms of each, the size of files and functions, and what no source
//! file may contain. Runs anywhere.
//!
//! **No circles.** A file uses another one when it names an item that is defined there: by `use`, or by a path in its code. A
//! re-export is followed to where the item is defined, so that `plan/mod.rs` may re-export what `plan/vm/size.rs` defines and
//! `plan/vm/sandbox.rs` may import it from either. Naming a module alone is no use; naming what is in it is. Of what a `mod.rs`
//! or `lib.rs` defines itself, its children can then use nothing that is not below them, as it uses (or re-exports) theirs.
//! Methods of a value that came from elsewhere name nothing and are not seen.

#[path = "architecture/graph.rs"]
mod graph;
#[path = "architecture/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use graph::{Graph, Rooms};
use source::Crate;

/// Which crate of the workspace may use which others.
const ALLOWED: [(&str, &[&str]); 11] = [
    ("runvm", &["vmm", "protocol", "device-filter", "initrd"]),
    ("vmm", &[]),
    ("agent", &["protocol", "device-filter"]),
    ("protocol", &[]),
    ("device-filter", &[]),
    ("initrd", &["protocol"]),
    ("tests", &[]),
    ("posix-cases", &[]),
    ("udp-echo", &[]),
    ("liar", &[]),
    ("fuzz", &["runvm", "vmm"]),
];

/// What must not get into a crate, however deep.
const FORBIDDEN: [(&str, &[&str]); 2] = [
    ("vmm", &["ttrpc", "tokio", "oci-spec", "protocol", "clap", "protobuf", "async-trait", "futures", "mio", "smol"]),
    ("agent", &["oci-spec", "serde_json", "clap", "vmm"]),
];

/// Most lines of a function, without comments and blank ones.
const MAX_FUNCTION: usize = 53;
/// Most lines of a file, without tests.
const MAX_FILE: usize = 400;

/// Rooms of the runtime, from the bottom to the top.
const RUNTIME: &Rooms = &[
    ("bundle", &[]),
    ("plan/annotations", &[]),
    ("plan/facts", &[]),
    ("plan/guest_path", &[]),
    ("plan/nul", &[]),
    ("plan/options", &[]),
    ("plan/hooks", &["plan/nul"]),
    ("plan/validate", &["bundle"]),
    ("plan/limits", &["plan/guest_path", "plan/nul", "plan/options"]),
    ("plan/vm", &["plan/annotations", "plan/facts", "plan/limits"]),
    ("plan/devices", &["plan/annotations", "plan/facts", "plan/guest_path", "plan/nul", "plan/vm"]),
    ("plan/network", &["plan/annotations", "plan/facts", "plan/options", "plan/vm"]),
    ("plan/process", &["bundle", "plan/facts", "plan/limits", "plan/nul", "plan/validate", "plan/vm"]),
    (
        "plan/storage",
        &[
            "bundle",
            "plan/annotations",
            "plan/devices",
            "plan/facts",
            "plan/guest_path",
            "plan/nul",
            "plan/process",
            "plan/vm",
        ],
    ),
    ("plan", &["bundle", "plan/"]),
    ("cli", &[]),
    ("ipc", &[]),
    ("guest_text", &[]),
    ("log", &["cli", "guest_text", "ipc"]),
    ("artifacts", &[]),
    ("directory", &[]),
    ("signals", &[]),
    ("timeline", &[]),
    ("streams", &["ipc"]),
    // Effects on the host, each by itself.
    ("host/mounted", &[]),
    ("host/monitor_namespaces", &["ipc", "log"]),
    ("host/mount_attributes", &["log"]),
    ("host/live_mounts", &["host/mount_attributes"]),
    ("host/requirements", &["host/monitor_namespaces", "log"]),
    ("host/cgroup", &["host/mounted", "host/requirements", "plan/"]),
    ("host/console", &["ipc"]),
    ("host/file_id", &["plan/"]),
    ("host/disks", &["host/file_id", "ipc", "log", "plan/"]),
    ("host/hooks", &["plan/", "signals"]),
    ("host/passt", &["host/cgroup", "ipc", "plan/"]),
    ("host/publish", &["ipc", "plan/"]),
    (
        "host/shares",
        &[
            "host/file_id",
            "host/live_mounts",
            "host/monitor_namespaces",
            "host/mount_attributes",
            "ipc",
            "log",
            "plan/",
        ],
    ),
    ("host/sockets", &["directory", "host/file_id", "ipc", "plan/"]),
    (
        "parcel",
        &[
            "host/disks",
            "host/publish",
            "host/requirements",
            "host/shares",
            "host/sockets",
            "ipc",
            "log",
            "plan/",
            "streams",
            "timeline",
        ],
    ),
    ("state", &["directory", "host/cgroup", "log", "plan/"]),
    ("control", &["directory", "host/monitor_namespaces", "ipc", "state", "streams"]),
    ("host/facts", &["bundle", "host/file_id", "host/mounted", "host/sockets", "plan/", "state"]),
    ("host/spawn", &["control", "ipc", "signals", "streams"]),
    ("host/users", &[]),
    ("host", &[]),
    // What every process of the runtime gives up, whichever it is.
    ("confinement", &["cli", "log"]),
    ("network", &["confinement", "directory", "host/passt", "host/requirements", "ipc", "log", "plan/", "state"]),
    ("host/network_helper", &["host/spawn", "ipc", "log", "network"]),
    ("status", &["control", "ipc", "state"]),
    ("sandbox", &["control", "log", "state", "status"]),
    ("exec_proxy", &["control", "host/console", "ipc", "signals", "streams"]),
    ("monitor/lifecycle", &["state"]),
    ("monitor/oom_trigger", &["log"]),
    (
        "monitor/confine",
        &[
            "confinement",
            "control",
            "directory",
            "host/monitor_namespaces",
            "host/mount_attributes",
            "host/requirements",
            "ipc",
            "log",
            "parcel",
        ],
    ),
    ("monitor/node_maker", &["host/requirements", "host/spawn", "ipc", "log", "monitor/confine"]),
    (
        "host/node_maker",
        &["host/cgroup", "host/requirements", "host/spawn", "ipc", "log", "monitor/node_maker", "state"],
    ),
    ("monitor/host_process", &["control", "host/console", "ipc"]),
    (
        "monitor/vm",
        &[
            "control",
            "guest_text",
            "host/disks",
            "host/shares",
            "log",
            "monitor/confine",
            "parcel",
            "plan/",
            "timeline",
        ],
    ),
    ("monitor/inbox", &["monitor/lifecycle", "monitor/vm"]),
    ("monitor/streams/connections", &["monitor/vm"]),
    (
        "monitor/network",
        &["confinement", "host/publish", "ipc", "log", "monitor/streams/connections", "monitor/vm", "network", "plan/"],
    ),
    (
        "monitor/streams",
        &[
            "confinement",
            "host/console",
            "host/sockets",
            "ipc",
            "log",
            "monitor/network",
            "monitor/streams/connections",
            "monitor/vm",
            "network",
            "streams",
        ],
    ),
    ("monitor/pod", &["log", "monitor/inbox", "monitor/lifecycle", "monitor/node_maker", "monitor/vm", "network"]),
    (
        "monitor/server",
        &[
            "confinement",
            "control",
            "ipc",
            "log",
            "monitor/host_process",
            "monitor/inbox",
            "monitor/lifecycle",
            "monitor/network",
            "monitor/node_maker",
            "monitor/oom_trigger",
            "monitor/pod",
            "monitor/streams",
            "monitor/streams/connections",
            "monitor/vm",
        ],
    ),
    (
        "monitor/pod/joined",
        &[
            "control",
            "host/shares",
            "ipc",
            "log",
            "monitor/inbox",
            "monitor/network",
            "monitor/pod",
            "monitor/server",
            "monitor/streams",
            "monitor/vm",
            "network",
            "parcel",
        ],
    ),
    (
        "monitor/server/requests",
        &["control", "ipc", "log", "monitor/lifecycle", "monitor/pod/joined", "monitor/server"],
    ),
    (
        "monitor/pod/join_proxy",
        &[
            "control",
            "host/console",
            "ipc",
            "log",
            "monitor/confine",
            "monitor/host_process",
            "monitor/oom_trigger",
            "network",
            "parcel",
        ],
    ),
    (
        "monitor",
        &[
            "confinement",
            "host/console",
            "host/requirements",
            "host/sockets",
            "ipc",
            "log",
            "monitor/",
            "parcel",
            "plan/",
        ],
    ),
    (
        "launch",
        &[
            "artifacts",
            "bundle",
            "cli",
            "control",
            "directory",
            "host/",
            "ipc",
            "log",
            "network",
            "parcel",
            "plan/",
            "sandbox",
            "state",
            "streams",
            "timeline",
        ],
    ),
    (
        "commands",
        &[
            "artifacts",
            "bundle",
            "cli",
            "control",
            "exec_proxy",
            "host/",
            "ipc",
            "launch",
            "log",
            "network",
            "plan/",
            "sandbox",
            "signals",
            "state",
            "status",
            "streams",
        ],
    ),
    (
        "fuzz",
        &[
            "bundle",
            "commands",
            "control",
            "host/facts",
            "ipc",
            "monitor/network",
            "monitor/node_maker",
            "monitor/vm",
            "network",
            "parcel",
            "plan/",
        ],
    ),
    ("lib", &["cli", "commands", "confinement", "host/spawn", "log", "monitor", "timeline"]),
];
/// Rooms of the virtual machine monitor. A device of `virtio` knows nothing above it.
const VMM: &Rooms = &[
    ("registers", &[]),
    ("threads", &[]),
    ("timeline", &[]),
    ("event_loop", &[]),
    ("virtio/error", &[]),
    ("error", &["virtio/error"]),
    ("layout", &["registers"]),
    ("spec", &["error", "threads"]),
    ("memory", &["error", "layout", "registers"]),
    ("interrupt", &["registers"]),
    ("virtio", &["virtio/error", "event_loop", "interrupt", "memory", "registers", "threads"]),
    ("vcpu", &["error", "threads", "virtio"]),
    ("boot", &["error", "layout", "memory", "spec"]),
    (
        "machine",
        &[
            "boot",
            "error",
            "interrupt",
            "layout",
            "memory",
            "registers",
            "spec",
            "threads",
            "timeline",
            "vcpu",
            "virtio",
        ],
    ),
    ("probe", &["error", "layout", "memory", "threads", "vcpu"]),
    ("lib", &["error", "layout", "machine", "spec", "threads", "timeline", "vcpu"]),
];
/// Rooms of the agent.
const AGENT: &Rooms = &[
    ("error", &[]),
    ("guest_paths", &[]),
    ("log", &[]),
    ("sys", &[]),
    ("event", &["error"]),
    ("boot", &["guest_paths", "log", "sys"]),
    ("guest", &["error", "log", "sys"]),
    ("storage", &["error", "guest_paths", "sys"]),
    ("host", &["error", "event", "log", "sys"]),
    ("process", &["error", "event", "guest", "host", "log", "sys"]),
    ("network", &["error", "event", "host", "log", "process", "sys"]),
    ("container", &["error", "event", "guest_paths", "host", "log", "network", "process", "storage", "sys"]),
    ("sent_ahead", &["error"]),
    ("service", &["container", "error", "guest", "guest_paths", "host", "network", "process", "sent_ahead"]),
    ("lib", &["container", "error", "guest_paths", "service"]),
];

/// What `plan` may name of other crates. Nothing of it does input or output.
const PLAN_MAY_NAME: [&str; 18] = [
    "anyhow",
    "oci_spec",
    "protocol",
    "serde",
    "serde_json",
    "syscalls",
    "std::collections",
    "std::fmt",
    "std::iter",
    "std::net::IpAddr",
    "std::net::Ipv4Addr",
    "std::net::Ipv6Addr",
    "std::ops",
    "std::path",
    "std::str",
    "std::mem",
    "std::cmp",
    "std::ffi",
];
/// Methods of paths that look at the host.
const LOOKS: [&str; 11] = [
    "exists",
    "try_exists",
    "canonicalize",
    "metadata",
    "symlink_metadata",
    "read_dir",
    "read_link",
    "is_dir",
    "is_file",
    "is_symlink",
    "spawn",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a package needs to run: name → names of its normal dependencies, for the whole graph.
fn graph() -> (BTreeMap<String, BTreeSet<String>>, BTreeSet<String>) {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let names: BTreeMap<String, String> =
        list(&metadata["packages"]).iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let from = edges.entry(names[&text(&node["id"])].clone()).or_default();
        for dependency in list(&node["deps"]) {
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                from.insert(names[&text(&dependency["pkg"])].clone());
            }
        }
    }
    let members = list(&metadata["workspace_members"]).iter().map(|id| names[&text(id)].clone()).collect();
    (edges, members)
}

#[test]
fn crates_use_only_what_is_below_them() {
    let (edges, members) = graph();
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    for member in &members {
        let may = allowed.get(member.as_str());
        let may = may.unwrap_or_else(|| panic!("{member} is new: say here what it may use"));
        let uses: Vec<_> = edges[member].intersection(&members).collect();
        for used in uses {
            assert!(may.contains(&used.as_str()), "{member} may not use {used}");
        }
    }
}

#[test]
fn what_must_stay_out_of_a_crate_stays_out() {
    let (edges, _) = graph();
    for (name, forbidden) in FORBIDDEN {
        let mut reached = BTreeSet::new();
        let mut open = vec![name.to_owned()];
        while let Some(package) = open.pop() {
            for used in edges.get(&package).into_iter().flatten() {
                if reached.insert(used.clone()) {
                    open.push(used.clone());
                }
            }
        }
        assert!(!reached.is_empty(), "{name} is not in the graph");
        let found: Vec<_> = forbidden.iter().filter(|name| reached.contains(**name)).collect();
        assert!(found.is_empty(), "{name} pulls in {found:?}");
    }
}

/// A crate of this repository, by its folder.
fn read(folder: &str) -> Crate {
    let sources = root().join(folder).join("src");
    let read = |file: &str| fs::read_to_string(sources.join(file)).ok();
    Crate::read(if read("lib.rs").is_some() { "lib.rs" } else { "main.rs" }, &read)
}

#[test]
fn no_files_use_each_other() {
    let mut wrong = Vec::new();
    for folder in ["runtime", "vmm", "agent", "agent/protocol", "device-filter", "initrd"] {
        let graph = Graph::of(&read(folder));
        wrong.extend(graph.circles().into_iter().map(|circle| (folder, graph.uses_among(&circle))));
    }
    assert!(wrong.is_empty(), "files use each other: {wrong:#?}");
}

#[test]
fn rooms_use_only_what_they_may() {
    for (folder, rooms) in [("runtime", RUNTIME), ("vmm", VMM), ("agent", AGENT)] {
        for (index, (room, allowed)) in rooms.iter().enumerate() {
            for allowed in *allowed {
                let meant = rooms.iter().enumerate().filter(|(_, (other, _))| graph::stands_for(allowed, other));
                let last = meant.map(|(index, _)| index).filter(|other| *other != index).max();
                let is_above = last.is_some_and(|last| last < index);
                assert!(is_above, "{folder}: {room} may use {allowed}, which must be listed above it");
            }
        }
        let wrong = Graph::of(&read(folder)).forbidden(rooms);
        assert!(wrong.is_empty(), "{folder}: {wrong:#?}");
    }
}

#[test]
fn planning_does_no_input_or_output() {
    let source = read("runtime");
    let wrong = impure(&source, "plan");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the files of a room name of other crates and may not, and methods that look at the host.
fn impure(source: &Crate, room: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let here = |file: &str| file.strip_prefix(room).is_some_and(|rest| rest.starts_with(['/', '.']));
    for (path, module) in source.modules.iter().filter(|(_, module)| here(&module.file)) {
        let imports = module.imports.iter().map(|(_, path)| path);
        let named = imports.chain(&module.paths).chain(&module.globs);
        let outside = named.filter(|named| leaves_crate(source, path, named)).filter(|named| !is_pure(named));
        wrong.extend(outside.map(|named| format!("{}: {}", module.file, named.join("::"))));
    }
    for (file, members) in source.members.iter().filter(|(file, _)| here(file)) {
        let looks = LOOKS.iter().filter(|look| members.contains(**look));
        wrong.extend(looks.map(|look| format!("{file}: .{look}")));
    }
    wrong
}

/// Whether a path begins with the name of another crate: neither a type nor a name of this crate.
fn leaves_crate(source: &Crate, from: &[String], path: &[String]) -> bool {
    const PRIMITIVE: [&str; 14] =
        ["bool", "char", "str", "f32", "f64", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "usize"];
    let first = path.first().map(String::as_str).unwrap_or_default();
    let named = !first.starts_with(char::is_uppercase) && !PRIMITIVE.contains(&first);
    let imported = source
        .modules
        .get(from)
        .is_some_and(|module| module.imports.iter().any(|(name, whole)| name == first && whole.as_slice() != [first]));
    named && !imported && source.resolve(from, path).is_empty()
}

fn is_pure(path: &[String]) -> bool {
    // Of libc only constants.
    if path.first().is_some_and(|first| first == "libc") {
        return path
            .last()
            .is_some_and(|last| last.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    }
    let path = format!("{}::", path.join("::"));
    PLAN_MAY_NAME.iter().any(|may| path.starts_with(&format!("{may}::")))
}

#[test]
fn files_and_functions_stay_short() {
    let mut wrong = Vec::new();
    for folder in ["runtime", "vmm", "agent", "device-filter", "initrd", "fuzz"] {
        let source = read(folder);
        let files = source.lines.iter().filter(|(_, lines)| **lines > MAX_FILE);
        wrong.extend(files.map(|(file, lines)| format!("{folder}/src/{file} has {lines} lines, more than {MAX_FILE}")));
        for function in &source.functions {
            let place = format!("{folder}/src/{}", function.place);
            if function.lines > MAX_FUNCTION {
                wrong.push(format!("{place}: {} lines, more than {MAX_FUNCTION}", function.lines));
            }
            if function.takes_tuple_apart {
                wrong.push(format!("{place}: a parameter takes a tuple apart: make it a struct"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A crate of made-up files, the first of which is its root.
fn made_up(files: &[(&str, &str)]) -> Crate {
    let read = |file: &str| files.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned());
    Crate::read(files.first().map(|(name, _)| *name).unwrap_or_default(), &read)
}

fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    Graph::of(&made_up(files)).circles().into_iter().map(|circle| circle.into_iter().collect()).collect()
}

#[test]
fn a_circle_is_found() {
    let root = ("lib.rs", "mod a; mod b; mod c;");
    let c = ("c.rs", "use crate::a::A; pub struct C(A);");
    let by_use =
        circles(&[root, ("a.rs", "use super::b::B; pub struct A;"), ("b.rs", "use crate::c::C; pub struct B;"), c]);
    assert_eq!(by_use, [["a.rs", "b.rs", "c.rs"]]);
    let by_path = circles(&[
        root,
        ("a.rs", "pub fn a() { let _ = vec![crate::b::b()]; }"),
        ("b.rs", "pub fn b() { super::c::c() }"),
        c,
    ]);
    assert_eq!(by_path, [["a.rs", "b.rs", "c.rs"]]);
    let by_module = circles(&[
        root,
        ("a.rs", "use crate::{b as other}; pub struct A; fn f() { other::b() }"),
        ("b.rs", "use super::c; pub fn b() { c::c() }"),
        c,
    ]);
    assert_eq!(by_module, [["a.rs", "b.rs", "c.rs"]]);
}

#[test]
fn a_child_that_uses_its_parent_is_a_circle_only_where_the_parent_defines_it() {
    let child = ("room/child.rs", "use super::{Below, other}; pub struct Child(Below); fn f() { other::g() }");
    let (other, below) = (("room/other.rs", "pub fn g() {}"), ("room/below.rs", "pub struct Below;"));
    let root = ("lib.rs", "mod room;");
    let plain = ("room/mod.rs", "mod below; mod child; mod other; pub use below::Below; pub use child::Child;");
    assert!(circles(&[root, plain, child, other, below]).is_empty());
    let defines = ("room/mod.rs", "mod child; mod other; pub struct Below; pub use child::Child;");
    assert_eq!(circles(&[root, defines, child, other]), [["room/child.rs", "room/mod.rs"]]);
}

#[test]
fn tests_and_what_is_no_code_use_nothing() {
    let root = ("lib.rs", "mod a; mod b;");
    let a = "//! crate::b::B\nuse crate::b::B; pub struct A(B);";
    let b = "pub struct B; // crate::a::A\nconst S: &str = \"crate::a::A\";\n#[cfg(test)]\nuse crate::a::A;\n\
             #[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n";
    let files = [root, ("a.rs", a), ("b.rs", b)];
    assert!(circles(&files).is_empty());
    assert_eq!(made_up(&files).lines["b.rs"], 2);
}

#[test]
fn directions_are_those_of_the_table() {
    let root = ("lib.rs", "mod low; mod high;");
    let files = [
        root,
        ("low/mod.rs", "mod one; mod two;"),
        ("low/one.rs", "pub struct One;"),
        ("low/two.rs", "use super::one::One; use crate::high::High;"),
        ("high.rs", "use crate::low::one::One; pub struct High;"),
    ];
    let graph = Graph::of(&made_up(&files));
    let rooms: &Rooms = &[("lib", &[]), ("low", &[]), ("high", &["low"])];
    assert_eq!(graph.forbidden(rooms), ["low/two.rs (low) may not use high.rs (high)"]);
    let rooms: &Rooms = &[("lib", &[]), ("low", &["high"]), ("low/one", &[]), ("high", &["low/one"])];
    assert_eq!(graph.forbidden(rooms), ["low/two.rs (low) may not use low/one.rs (low/one)"]);
    assert_eq!(
        graph.forbidden(&[("low", &["high"]), ("high", &["low"])]),
        ["lib.rs is in no room: say which it may use"]
    );
}

#[test]
fn input_and_output_are_seen() {
    let plan = "use std::collections::BTreeMap; use std::{fs, path::Path}; use std::net::{IpAddr, TcpStream};
        const A: u64 = libc::MS_RDONLY; fn f(path: &Path) { libc::getpid(); rustix::fs::stat(path); fs::read(path); path.exists(); }
        fn g() { helper::h(u32::from(1u8)); anyhow::bail!(\"\") } mod helper { pub fn h(_: u32) {} }";
    let source = made_up(&[("main.rs", "mod plan;"), ("plan.rs", plan)]);
    let wrong = ["std::fs", "std::net::TcpStream", "libc::getpid", "rustix::fs::stat", ".exists"];
    assert_eq!(impure(&source, "plan"), wrong.map(|name| format!("plan.rs: {name}")));
}

#[test]
fn lengths_and_patterns_are_measured() {
    let text = "/// Says.\npub fn f(\n    (a, b): (u8, u8),\n) -> u8 {\n    // Why.\n\n    a + b\n}\nfn g(pair: (u8, u8)) {}\n\
                impl X {\n    fn h(&self, mut n: u8, (a, _): (u8, u8)) {}\n}\n";
    let source = made_up(&[("lib.rs", text)]);
    let measured: Vec<_> = source.functions.iter().map(|f| (f.place.as_str(), f.lines, f.takes_tuple_apart)).collect();
    assert_eq!(measured, [("lib.rs:2", 5, true), ("lib.rs:9", 1, false), ("lib.rs:11", 1, true)]);
    assert_eq!(source.lines["lib.rs"], 12);
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // Put together here, so that this file passes too.
    let words = [["/wo", "rk/"].concat(), ["../sha", "red"].concat()];
    for file in files_below(&root()) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (number, line) in text.lines().enumerate() {
            for word in &words {
                let found = line.find(word.as_str()).is_some_and(|at| begins_path(line, at));
                assert!(!found, "{}:{}: {word}", file.display(), number + 1);
            }
        }
    }
}

/// Whether a path begins here, rather than going on.
fn begins_path(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_.-}$/".contains(c))
}

/// Every file of ours below a folder.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy().into_owned();
        if path.is_symlink() || name == "target" || name.starts_with('.') && name != ".ci" {
            continue;
        }
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
