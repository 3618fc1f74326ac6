//! Tests of the plan as a whole: tables of bundles, and generated ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::plan::facts::{FileId, FileSystemKind, NamespaceId, NetworkFact, Peer, SocketFact, SourceFact, SourceKind};

const HOST: NamespaceId = NamespaceId { device: 4, inode: 1 };
const OTHER: NamespaceId = NamespaceId { device: 4, inode: 2 };

fn source(path: &str, kind: SourceKind, file_system: FileSystemKind) -> (PathBuf, SourceFact) {
    (
        path.into(),
        SourceFact {
            canonical: path.into(),
            id: FileId::default(),
            kind,
            file_system,
            system: "8:1".to_owned(),
            remote: false,
            has_mounts: false,
            tmpfs_size: None,
        },
    )
}

fn socket(carries_messages: bool) -> SourceKind {
    SourceKind::Socket(SocketFact { mode: 0o660, uid: 1, gid: 2, carries_messages })
}

pub fn facts() -> Facts {
    use SourceKind::{BlockDevice, CharDevice, Directory, Fifo, File, Missing};
    let mut sources = BTreeMap::from([
        source("/vol", Directory, FileSystemKind::Ordinary),
        source("/etc/x", File, FileSystemKind::Ordinary),
        source("/b/data", Directory, FileSystemKind::Ordinary),
        source("/s", socket(false), FileSystemKind::Ordinary),
        source("/messages", socket(true), FileSystemKind::Dev),
        source("/fifo", Fifo, FileSystemKind::Ordinary),
        source("/dev/sda", BlockDevice, FileSystemKind::Dev),
        source("/dev/null", CharDevice { major: 1, minor: 3 }, FileSystemKind::Dev),
        source("/dev/kvm", CharDevice { major: 10, minor: 232 }, FileSystemKind::Dev),
        source("/dev", Directory, FileSystemKind::Dev),
        source("/proc/1", Directory, FileSystemKind::Proc),
        source("/sys", Directory, FileSystemKind::Sys),
        source("/sys/kernel", Directory, FileSystemKind::Sys),
        source("/sys/fs/cgroup", Directory, FileSystemKind::Cgroup),
        source("/sys/fs/cgroup/memory", Directory, FileSystemKind::Cgroup),
        source("/gone", Missing("no such file or directory".to_owned()), FileSystemKind::Ordinary),
    ]);
    let (path, mut shm) = source("/engine/shm", Directory, FileSystemKind::Ordinary);
    shm.tmpfs_size = Some(1 << 20);
    sources.insert(path, shm);
    // A link to /proc: what counts is where it leads.
    let (_, procfs) = source("/proc", Directory, FileSystemKind::Proc);
    sources.insert("/link".into(), procfs);
    Facts {
        host_cpus: 4,
        host_memory: 16_000 << 20,
        rootfs: Some(source("/b/rootfs", Directory, FileSystemKind::Ordinary).1),
        sources,
        disks: BTreeMap::new(),
        host_networks: vec![HOST],
        network: NetworkFact::NotGiven,
        peers: vec![],
        limits: vec![],
        settings: vec![],
    }
}

fn config() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}]},
    })
}

fn options() -> Options {
    Options { id: "box".to_owned(), ..Options::default() }
}

fn plan_with(config: Value, facts: &Facts) -> anyhow::Result<Plan> {
    let spec = serde_json::from_value(config)?;
    plan(&Bundle { dir: "/b".into(), spec, unknown_capabilities: vec![] }, facts, &options())
}

fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    if let Some(Value::Object(parent)) = config.pointer_mut(parent) {
        parent.insert(key.to_owned(), value);
    }
}

fn with(pointer: &str, value: Value) -> anyhow::Result<Plan> {
    let mut changed = config();
    set(&mut changed, pointer, value);
    plan_with(changed, &facts())
}

fn error(pointer: &str, value: Value) -> String {
    format!("{:#}", with(pointer, value).map(|_| ()).expect_err(pointer))
}

fn bind(source: &str, destination: &str) -> Value {
    json!([{"destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"]}])
}

#[test]
fn the_smallest_bundle_has_a_plan() {
    let plan = plan_with(config(), &facts()).unwrap();
    assert_eq!(
        plan.machine,
        MachinePlan {
            memory_mib: 3072,
            vcpus: 4,
            nested: false,
            spare_file_systems: 1,
            cmdline: "maxcpus=1".to_owned(),
            settings: vec![]
        }
    );
    assert_eq!(plan.network, NetworkPlan::New);
    let rootfs = SharePlan {
        name: "rootfs".to_owned(),
        source: "/b/rootfs".into(),
        id: FileId::default(),
        read_only: false,
        cache: CachePlan::ROOT,
        tree: Tree::Live { recursive: true },
        role: ShareRole { nosuid: false, gets_devices: true },
        common: CommonPlan::Nothing,
        remote: None,
    };
    assert_eq!(plan.shares, [rootfs]);
    assert_eq!(plan.cgroup.path, "box");
    assert_eq!(plan.hooks, Hooks::default());
    let container = &plan.container;
    assert_eq!((container.container_id.as_str(), container.cgroup_path.as_str()), ("box", "/runvm/box"));
    assert_eq!((container.share.as_str(), container.online_cpus), ("rootfs", 4));
    assert_eq!((container.namespaces.len(), container.process.args.as_slice()), (5, ["true".to_owned()].as_slice()));
}

#[test]
fn what_may_be_done_to_files_comes_from_the_bundle() {
    let mut changed = config();
    let bind = |options: &[&str], destination: &str| json!({"destination": destination, "type": "bind", "source": "/vol", "options": options});
    changed["mounts"] = json!([bind(&["rbind"], "/a"), bind(&["rbind", "nosuid"], "/b"), bind(&["rbind"], "/c")]);
    let plan = plan_with(changed.clone(), &facts()).unwrap();
    let roles: Vec<_> = plan.shares.iter().map(|share| (share.role.nosuid, share.role.gets_devices)).collect();
    assert_eq!(roles, [(false, true), (false, false), (true, false)], "one for each rule");
    // No capabilities, but programs that are setuid.
    assert_eq!((plan.file_rights.own(), plan.file_rights.plain), ([None, None], false));
    changed["mounts"] = json!([{"destination": "/dev/", "type": "tmpfs", "source": "tmpfs"}]);
    changed["process"]["noNewPrivileges"] = json!(true);
    changed["process"]["user"] = json!({"uid": 1000, "gid": 5});
    let plan = plan_with(changed.clone(), &facts()).unwrap();
    assert!(!plan.shares[0].role.gets_devices && plan.file_rights.plain && plan.file_rights.known().is_none());
    assert_eq!(plan.file_rights.own(), [Some(vec![1000..=1000]), Some(vec![5..=5])]);
    changed["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 7000, "size": 2000}]);
    (changed["linux"]["uidMappings"], changed["linux"]["gidMappings"]) = (map.clone(), map);
    let rights = plan_with(changed, &facts()).unwrap().file_rights;
    assert_eq!(rights.known(), Some([vec![7000..=8999], vec![7000..=8999]]));
    assert_eq!(rights.own(), [Some(vec![8000..=8000]), Some(vec![7005..=7005])]);
}

#[test]
fn what_breaks_the_rules_is_named() {
    let table = [
        ("/ociVersion", json!("2.0.0"), "unsupported ociVersion \"2.0.0\""),
        ("/process", json!(null), "process property must not be empty"),
        ("/process/args", json!([]), "args must not be empty"),
        ("/process/cwd", json!("tmp"), "Cwd must be an absolute path"),
        ("/root", json!(null), "root must be specified"),
        ("/root/path", json!(""), "root must be specified"),
        ("/hostname", json!("h".repeat(65)), "hostname has 65 bytes"),
        ("/hostname", json!("a\0b"), "hostname contains a zero byte"),
        ("/hooks", json!({"startContainer": [{"path": "/x"}]}), "startContainer hooks"),
        ("/annotations", json!({"io.runvm.nope": "1"}), "unknown annotation io.runvm.nope"),
        ("/annotations", json!({"io.runvm.vcpus": "0"}), "io.runvm.vcpus: \"0\" is not a number from 1 to 64"),
        ("/annotations", json!({"io.runvm.timeline": "yes"}), "io.runvm.timeline: \"yes\" is neither true nor false"),
        ("/annotations", json!({"io.runvm.memory-mib": "2G"}), "io.runvm.memory-mib: \"2G\" is not a number"),
        ("/annotations", json!({"io.runvm.memory-mib": "16001"}), "16001 is more than the 16000 that host and limits"),
        ("/annotations", json!({"io.runvm.vcpus": "5"}), "io.runvm.vcpus: 5 is more than the 4 that host and limits"),
        ("/linux/namespaces", json!([{"type": "pid"}]), "host network is not possible in a VM"),
        ("/linux/namespaces", json!([{"type": "network"}, {"type": "network"}]), "duplicated network namespace"),
        (
            "/linux/namespaces",
            json!([{"type": "network"}, {"type": "pid", "path": "/x"}]),
            "cannot join pid namespace /x",
        ),
        ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 1, "size": 1}]), "user namespace isn't enabled"),
        ("/linux/sysctl", json!({"net/../x": "1"}), "sysctl \"net/../x\" is not a name"),
        ("/linux/timeOffsets", json!({"monotonic": {"secs": 1}}), "time namespace offsets specified"),
        ("/linux/personality", json!({"domain": "LINUX", "flags": ["X"]}), "linux.personality.flags \"X\""),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("/linux/sysctl", json!({"kernel.panic": "1"}), "is not in a separate kernel namespace"),
        ("/linux/resources", json!({"memory": {"limit": 5}}), "linux.resources.memory.limit 5"),
        ("/linux/resources", json!({"devices": [{"allow": true}]}), "linux.resources.devices[0]"),
        ("/process/scheduler", json!({"policy": "SCHED_RR"}), "scheduler.priority 0"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 9}), "ioPriority.Priority: 9"),
        (
            "/process/execCPUAffinity",
            json!({"final": "4"}),
            "process.execCPUAffinity.final \"4\": the VM has CPUs 0 to 3",
        ),
        ("/linux/rootfsPropagation", json!("ro"), "rootfsPropagation=ro is not supported"),
        ("/linux/maskedPaths", json!(["/"]), "maskedPaths names the root"),
        ("/linux/cgroupsPath", json!("/"), "is the root cgroup"),
        ("/linux/devices", json!([{"path": "/dev/sda", "type": "b", "major": 8}]), "device /dev/sda (b 8:0)"),
    ];
    for (pointer, value, expected) in table {
        let error = error(pointer, value);
        assert!(error.contains(expected), "{pointer}: {error}");
    }
}

#[test]
fn a_missing_rootfs_is_named() {
    let mut facts = facts();
    facts.rootfs =
        Some(source("/b/rootfs", SourceKind::Missing("no such file or directory".into()), FileSystemKind::Ordinary).1);
    let text = plan_with(config(), &facts).unwrap_err().to_string();
    assert_eq!(text, "invalid rootfs: stat /b/rootfs: no such file or directory");
    facts.rootfs = Some(source("/b/rootfs", SourceKind::File, FileSystemKind::Ordinary).1);
    assert_eq!(plan_with(config(), &facts).unwrap_err().to_string(), "invalid rootfs: /b/rootfs: not a directory");
}

#[test]
fn mounts_that_cannot_be_are_refused() {
    let kind = |kind: &str| json!([{"destination": "/x", "type": kind, "source": "a"}]);
    let table = [
        (bind("/gone", "/x"), "mount /x: bind source: stat /gone: no such file or directory"),
        (bind("/s", "/x"), "mount /x: /s is a socket of the host"),
        (bind("/fifo", "/x"), "mount /x: /fifo is a named pipe of the host"),
        (bind("/dev/sda", "/x"), "mount /x: /dev/sda is a device of the host"),
        (bind("/dev/kvm", "/dev/kvm"), "mount /dev/kvm: /dev/kvm is a device of the host"),
        (bind("/dev", "/dev"), "mount /dev: /dev is in the host's /dev"),
        (bind("/proc/1", "/x"), "mount /x: /proc/1 is the host's procfs"),
        (bind("/link", "/x"), "mount /x: /link is the host's procfs"),
        (bind("/sys/kernel", "/sys/kernel"), "mount /sys/kernel: /sys/kernel is the host's sysfs"),
        (bind("/sys", "/elsewhere"), "mount /elsewhere: /sys is the host's sysfs"),
        (bind("/sys/fs/cgroup/memory", "/x"), "mount /x: /sys/fs/cgroup/memory is the host's cgroup"),
        (bind("", "/x"), "mount /x: a bind mount must have a source"),
        (bind("/vol", "/"), "mount /: \"/\" is the root file system itself"),
        (kind("ext4"), "mount /x: type \"ext4\" is not supported in a VM"),
        (kind("overlay"), "mount /x: type \"overlay\" is not supported in a VM"),
        (kind(""), "mount /x: it has no type"),
        (json!([{"destination": "/x", "type": "proc", "options": ["tmpcopyup"]}]), "mount /x: option tmpcopyup"),
    ];
    for (mounts, expected) in table {
        let error = error("/mounts", mounts);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn sockets_are_passed_on_where_the_annotation_says_so() {
    let refused = error("/mounts", bind("/s", "/x"));
    assert!(refused.contains("unless the annotation io.runvm.sockets is \"true\""), "{refused}");
    let mut allowed = config();
    set(&mut allowed, "/annotations", json!({"io.runvm.sockets": "true"}));
    let mut mounts = bind("/s", "/run/docker.sock");
    mounts.as_array_mut().unwrap().extend(bind("/vol", "/vol").as_array().unwrap().clone());
    set(&mut allowed, "/mounts", mounts);
    let plan = plan_with(allowed.clone(), &facts()).unwrap();
    assert_eq!(plan.sockets, [SocketPlan { source: "/s".into(), id: FileId::default() }]);
    assert_eq!(plan.shares.len(), 2);
    let (mount, socket) = (&plan.container.mounts[0], &plan.container.mounts[0].socket);
    assert_eq!(
        (mount.destination.as_str(), mount.source.as_str(), mount.flags),
        ("/run/docker.sock", "", libc::MS_RDONLY)
    );
    assert_eq!((socket.mode, socket.uid, socket.gid), (0o660, 1, 2));
    assert!(plan.container.mounts[1].socket.is_none());
    set(&mut allowed, "/mounts", bind("/messages", "/dev/log"));
    let refused = format!("{:#}", plan_with(allowed, &facts()).unwrap_err());
    assert!(
        refused.starts_with("mount /dev/log: /messages is a datagram or seqpacket socket of the host"),
        "{refused}"
    );
}

#[test]
fn binds_become_shares() {
    let mounts = json!([
        {"destination": "/a", "type": "bind", "source": "/vol", "options": ["rbind", "ro"]},
        {"destination": "b", "type": "none", "source": "/vol", "options": ["bind", "nosuid", "size=1"]},
        {"destination": "/etc/x", "source": "/etc/x", "options": ["rbind", "rprivate"]},
        {"destination": "/c/../d", "type": "bind", "source": "data", "options": ["rbind", "rw"]},
        {"destination": "/e", "type": "bind", "source": "/vol", "options": ["rbind", "ro", "exec"]},
    ]);
    let plan = with("/mounts", mounts).unwrap();
    let shares: Vec<_> = plan.shares.iter().map(|s| (s.name.as_str(), s.source.as_path(), s.read_only)).collect();
    let expected = [
        ("rootfs", Path::new("/b/rootfs"), false),
        ("m0", Path::new("/vol"), true),
        ("m1", Path::new("/vol"), false),
        ("m2", Path::new("/etc/x"), false),
        ("m3", Path::new("/b/data"), false),
    ];
    assert_eq!(shares, expected);
    let trees: Vec<_> = plan.shares.iter().map(|share| share.tree.clone()).collect();
    let copy = |recursive| Tree::Copy { recursive, ids: None };
    let live = |recursive| Tree::Live { recursive };
    assert_eq!(trees, [live(true), live(true), live(false), copy(true), live(true)]);
    let mounts = &plan.container.mounts;
    assert_eq!((mounts[0].share.as_str(), mounts[0].source_is_dir, mounts[0].recursive), ("8:1/m0", true, true));
    assert_eq!((mounts[0].flags, mounts[0].propagation), (libc::MS_RDONLY, 0));
    assert_eq!((mounts[1].destination.as_str(), mounts[1].data.as_str(), mounts[1].recursive), ("/b", "", false));
    assert_eq!((mounts[2].source_is_dir, mounts[2].propagation), (false, libc::MS_PRIVATE | libc::MS_REC));
    assert_eq!((mounts[3].destination.as_str(), mounts[3].clear_flags), ("/d", libc::MS_RDONLY));
    assert_eq!((mounts[4].share.as_str(), mounts[4].clear_flags), ("8:1/m0", libc::MS_NOEXEC));
}

#[test]
fn a_private_namespace_hears_of_nothing() {
    for (propagation, hears) in [("rslave", true), ("rshared", true), ("rprivate", false), ("unbindable", false)] {
        let mut changed = config();
        set(&mut changed, "/mounts", bind("/vol", "/a"));
        set(&mut changed, "/linux/rootfsPropagation", json!(propagation));
        let tree = plan_with(changed, &facts()).unwrap().shares[1].tree.clone();
        assert_eq!(matches!(tree, Tree::Live { .. }), hears, "{propagation}");
    }
}

#[test]
fn ids_of_mounts() {
    let map = |container: u32, host: u32| json!([{"containerID": container, "hostID": host, "size": 10}]);
    let mount = |more: Value| {
        let mut mount = json!({"destination": "/a", "type": "bind", "source": "/vol", "options": ["bind", "idmap"]});
        mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with("/mounts", json!([mount])).map(|plan| plan.shares[1].tree.clone()).map_err(|error| format!("{error:#}"))
    };
    let own = json!({"uidMappings": map(0, 100), "gidMappings": map(0, 200)});
    let ids = Some(["0 100 10\n".to_owned(), "0 200 10\n".to_owned()]);
    assert_eq!(mount(own), Ok(Tree::Copy { recursive: false, ids }));
    for (bad, why) in [
        (json!({}), "linux.uidMappings has 0 entries"),
        (json!({"uidMappings": map(0, 1)}), "gidMappings has 0 entries"),
        (json!({"uidMappings": map(u32::MAX, 1), "gidMappings": map(0, 1)}), "beyond the last id"),
    ] {
        let error = mount(bad).unwrap_err();
        assert!(error.starts_with("mount /a: ") && error.contains(why), "{error}");
    }
    let tmpfs = json!([{"destination": "/a", "type": "tmpfs", "uidMappings": map(0, 1), "gidMappings": map(0, 1)}]);
    assert!(error("/mounts", tmpfs).contains("only bind mounts can have their ids mapped"));
}

#[test]
fn what_every_kernel_has_is_the_guests_own() {
    let mounts = [
        bind("/dev/null", "/etc/masked"),
        bind("/engine/shm", "/dev/shm"),
        bind("/sys/fs/cgroup", "/sys/fs/cgroup"),
        bind("/sys", "/sys"),
    ];
    let mounts: Vec<Value> = mounts.into_iter().flat_map(|mount| mount.as_array().unwrap().clone()).collect();
    let plan = with("/mounts", mounts.into()).unwrap();
    assert_eq!(plan.shares.len(), 1);
    let mounts: Vec<_> =
        plan.container.mounts.iter().map(|m| (m.kind.as_str(), m.source.as_str(), m.data.as_str())).collect();
    let expected = [
        ("bind", "/dev/null", ""),
        ("tmpfs", "shm", "mode=1777,size=1048576"),
        ("cgroup2", "cgroup", ""),
        ("sysfs", "sysfs", ""),
    ];
    assert_eq!(mounts, expected);
    assert!(plan.container.mounts.iter().all(|mount| mount.share.is_empty() && mount.flags == libc::MS_RDONLY));
    // Somebody's data stays data, whatever its destination.
    let plan = with("/mounts", bind("/vol", "/dev/shm")).unwrap();
    assert_eq!(plan.container.mounts[0].share, "8:1/m0");
}

#[test]
fn file_systems_of_the_guest() {
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=64k"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "memory"]},
        {"destination": "/t", "type": "tmpfs", "options": ["tmpcopyup"]},
    ]);
    let plan = with("/mounts", mounts).unwrap();
    let mounts = &plan.container.mounts;
    assert_eq!(
        (mounts[1].data.as_str(), mounts[1].flags),
        ("mode=755,size=64k", libc::MS_NOSUID | libc::MS_STRICTATIME)
    );
    assert_eq!((mounts[2].kind.as_str(), mounts[2].data.as_str()), ("cgroup2", ""));
    assert!(mounts[3].copy_up && !mounts[2].copy_up);
}

#[test]
fn networks_of_the_host_are_refused_others_joined() {
    let joined = |network: NetworkFact| {
        let mut config = config();
        set(&mut config, "/linux/namespaces", json!([{"type": "network", "path": "/run/netns/x"}]));
        plan_with(config, &Facts { network, ..facts() }).map(|plan| plan.network).map_err(|error| error.to_string())
    };
    assert_eq!(joined(NetworkFact::Is(OTHER)), Ok(NetworkPlan::Path("/run/netns/x".into())));
    assert!(joined(NetworkFact::Is(HOST)).unwrap_err().starts_with("host network is not possible in a VM"));
    assert!(joined(NetworkFact::NotNamespace).unwrap_err().contains("/run/netns/x: the file is not a namespace"));
    assert!(joined(NetworkFact::Missing("gone".into())).unwrap_err().contains("/run/netns/x: gone"));
}

fn peer(id: &str, pid: i32, sandbox: &str) -> Peer {
    let network = Some(NamespaceId { device: 4, inode: 1000 + pid as u64 });
    Peer { id: id.into(), pid, sandbox: sandbox.into(), network, memory_mib: 512, vcpus: 2 }
}

fn shared(kinds: &[(&str, i32)]) -> Value {
    let mut config = config();
    let entries = kinds.iter().map(|(kind, pid)| json!({"type": kind, "path": format!("/proc/{pid}/ns/{kind}")}));
    set(
        &mut config,
        "/linux/namespaces",
        entries.chain([json!({"type": "network"}), json!({"type": "mount"})]).collect(),
    );
    config
}

#[test]
fn who_shares_namespaces_is_in_one_vm() {
    let peers = vec![peer("a", 7, "a"), peer("b", 8, "a"), peer("c", 9, "c")];
    let facts = Facts { peers, ..facts() };
    let plan = |config: Value| plan_with(config, &facts);
    let member = plan(shared(&[("pid", 7), ("ipc", 8)])).unwrap();
    assert_eq!(
        (member.sandbox.as_deref(), member.machine.memory_mib, member.container.online_cpus),
        (Some("a"), 512, 0)
    );
    let owners: Vec<_> = member.container.namespaces.iter().map(|namespace| namespace.container_id.as_str()).collect();
    assert_eq!(owners, ["a", "b", "", ""]);
    let error = |config: Value| plan(config).unwrap_err().to_string();
    assert_eq!(
        error(shared(&[("pid", 7), ("ipc", 9)])),
        "containers a and c are in different VMs: cannot join namespaces of both"
    );
    assert!(error(shared(&[("user", 7)])).starts_with("cannot join user namespace /proc/7/ns/user of container a"));
    assert!(
        error(shared(&[("pid", 10)])).starts_with("cannot join pid namespace /proc/10/ns/pid: it does not belong to")
    );
    let mut config = shared(&[("pid", 7)]);
    set(&mut config, "/annotations", json!({"io.runvm.vcpus": "1"}));
    assert_eq!(error(config), "annotation io.runvm.vcpus: the container joins the VM of a, which exists already");
    assert_eq!(plan(self::config()).unwrap().sandbox, None);
}

#[test]
fn network_and_ports_are_those_of_the_first_container() {
    let facts = Facts { peers: vec![peer("a", 7, "a")], ..facts() };
    let bundle = |config: Value| Bundle {
        dir: "/b".into(),
        spec: serde_json::from_value(config).unwrap(),
        unknown_capabilities: vec![],
    };
    let with_port = Options { publish: vec!["8080:80".to_owned()], ..options() };
    let with_network = Options { user_network: true, ..options() };
    for options in [&with_port, &with_network] {
        let error = plan(&bundle(shared(&[("pid", 7)])), &facts, options).unwrap_err().to_string();
        assert!(error.contains("the container joins the VM of container a"), "{error}");
    }
    let own = plan(&bundle(config()), &facts, &with_port).unwrap();
    assert_eq!((own.ports.len(), own.user_network), (1, false));
    let resolver = |plan: &Plan| plan.container.mounts.iter().any(|mount| !mount.content.is_empty());
    assert!(!resolver(&own) && resolver(&plan(&bundle(config()), &facts, &with_network).unwrap()));
    let mut annotated = config();
    set(&mut annotated, "/annotations", json!({"io.runvm.net": "host", "io.runvm.ports": "8080:80"}));
    let error =
        plan(&bundle(annotated), &facts, &allowing(&["io.runvm.net", "io.runvm.ports"])).unwrap_err().to_string();
    assert!(error.contains("unknown network \"host\""), "{error}");
}

fn allowing(names: &[&str]) -> Options {
    Options { allowed_annotations: names.iter().map(|name| (*name).to_owned()).collect(), ..options() }
}

#[test]
fn what_gives_more_of_the_host_takes_the_administrators_word() {
    let plan = |annotations: &Value, names: &[&str]| {
        let mut config = config();
        set(&mut config, "/linux/resources", json!({"memory": {"limit": 1 << 30}, "cpu": {"quota": 200_000}}));
        set(&mut config, "/annotations", annotations.clone());
        let spec = serde_json::from_value(config).unwrap();
        let bundle = Bundle { dir: "/b".into(), spec, unknown_capabilities: vec![] };
        super::plan(&bundle, &facts(), &allowing(names)).map_err(|error| format!("{error:#}"))
    };
    let reserved = [
        ("io.runvm.kernel", "stock"),
        ("io.runvm.nested", "true"),
        ("io.runvm.net", "user"),
        ("io.runvm.ports", "8080:80"),
        ("io.runvm.memory-mib", "3073"),
        ("io.runvm.vcpus", "3"),
    ];
    for (name, value) in reserved {
        let annotations = json!({name: value});
        for others in [&[][..], &["io.runvm.cache"]] {
            let error = plan(&annotations, others).unwrap_err();
            assert!(error.contains(&format!("--allow-annotations {name}")), "{error}");
        }
        plan(&annotations, &["io.runvm.cache", name]).unwrap();
        plan(&annotations, &["*"]).unwrap();
    }
    let free = json!({"io.runvm.memory-mib": "3072", "io.runvm.vcpus": "2", "io.runvm.cache": "none"});
    assert!(!plan(&free, &[]).unwrap().machine.nested);
    assert!(plan(&json!({"io.runvm.nested": "true"}), &["*"]).unwrap().machine.nested);
    let error = plan(&json!({"io.runvm.kernel": "../x"}), &["*"]).unwrap_err();
    assert!(error.contains("io.runvm.kernel: \"../x\" is not a file name"), "{error}");
    let error = plan(&json!({}), &["io.runvm.nope"]).unwrap_err();
    assert!(error.starts_with("--allow-annotations io.runvm.nope: known are io.runvm.cache, "), "{error}");
}

#[test]
fn limits_of_a_vm_are_those_of_its_first_container() {
    let facts = Facts { peers: vec![peer("a", 7, "a")], ..facts() };
    let mut config = shared(&[("pid", 7)]);
    set(
        &mut config,
        "/linux/resources",
        json!({"memory": {"limit": 1 << 28}, "cpu": {"quota": 1000, "period": 10_000}}),
    );
    let plan = plan_with(config, &facts).unwrap();
    assert_eq!(plan.limits, HostLimits::default());
    let keys: Vec<_> = plan.container.cgroup_files.iter().map(|file| file.key.as_str()).collect();
    assert!(keys.contains(&"memory.max") && keys.contains(&"cpu.max"), "{keys:?}");
}

#[test]
fn pods_say_so_by_annotations() {
    let facts = Facts { peers: vec![peer("a", 7, "a"), peer("c", 9, "c")], ..facts() };
    let with = |annotations: Value, mut config: Value| {
        set(&mut config, "/annotations", annotations);
        plan_with(config, &facts).map(|plan| plan.sandbox).map_err(|error| error.to_string())
    };
    let containerd =
        |kind: &str, id: &str| json!({"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": id});
    assert_eq!(with(containerd("sandbox", "box"), config()), Ok(None));
    assert_eq!(with(containerd("container", "a"), config()), Ok(Some("a".into())));
    let crio = json!({"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "c"});
    assert_eq!(with(crio, config()), Ok(Some("c".into())));
    let podman = json!({"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "x", "io.container.manager": "libpod"});
    assert_eq!(with(podman, config()), Ok(None));
    assert!(with(containerd("container", "x"), config()).unwrap_err().starts_with("sandbox x of the container's pod"));
    let elsewhere = with(containerd("container", "a"), shared(&[("ipc", 9)])).unwrap_err();
    assert_eq!(elsewhere, "container c is not in pod a: cannot join its namespaces");
}

#[test]
fn the_network_of_a_pod_may_have_another_name() {
    let network = NetworkFact::Is(NamespaceId { device: 4, inode: 1007 });
    let facts = Facts { peers: vec![peer("a", 7, "a"), peer("c", 9, "c")], network, ..facts() };
    let joined = |mut config: Value| {
        let list = config.pointer_mut("/linux/namespaces").unwrap().as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != "network");
        list.insert(0, json!({"type": "network", "path": "/run/netns/pod"}));
        plan_with(config, &facts).unwrap().container.namespaces[0].container_id.clone()
    };
    assert_eq!(joined(shared(&[("ipc", 7)])), "a");
    assert_eq!((joined(shared(&[("ipc", 9)])), joined(config())), (String::new(), String::new()));
}

#[test]
fn who_shares_ipc_shares_dev_shm() {
    let facts = Facts { peers: vec![peer("a", 7, "a")], ..facts() };
    let shm = |mut config: Value| {
        let mount = json!({"destination": "/dev/shm", "type": "bind", "source": "/engine/shm", "options": ["rbind"]});
        set(&mut config, "/mounts", json!([mount]));
        let mount = plan_with(config, &facts).unwrap().container.mounts[0].clone();
        (mount.kind, mount.container_id, mount.source)
    };
    assert_eq!(shm(shared(&[("ipc", 7)])), ("bind".into(), "a".into(), "/dev/shm".into()));
    assert_eq!(shm(shared(&[("pid", 7)])).0, "tmpfs");
}

#[test]
fn names_sysctls_and_users() {
    let mut config = config();
    set(&mut config, "/hostname", json!("h"));
    set(&mut config, "/linux/sysctl", json!({"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}));
    set(
        &mut config,
        "/linux/namespaces",
        json!([{"type": "network"}, {"type": "uts"}, {"type": "ipc"}, {"type": "user"}]),
    );
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    set(&mut config, "/linux/uidMappings", mapping.clone());
    assert!(plan_with(config.clone(), &facts()).unwrap_err().to_string().contains("no gid mappings"));
    set(&mut config, "/linux/gidMappings", mapping);
    let plan = plan_with(config.clone(), &facts()).unwrap();
    assert_eq!(plan.container.hostname, "h");
    assert_eq!(plan.container.uid_mappings[0].host_id, 1000);
    let keys: Vec<_> = plan.container.sysctls.iter().map(|sysctl| sysctl.key.as_str()).collect();
    assert_eq!(keys, ["kernel/shm_rmid_forced", "net/ipv4/ip_forward"]);
    set(&mut config, "/linux/namespaces", json!([{"type": "network"}, {"type": "user"}]));
    let text = plan_with(config, &facts()).unwrap_err().to_string();
    assert_eq!(text, "unable to set hostname without a private UTS namespace");
}

#[test]
fn limits_size_the_vm_and_reach_the_guests_cgroup() {
    let resources = json!({"memory": {"limit": 4294967296u64}, "cpu": {"quota": 150000, "period": 100000}});
    let plan = with("/linux/resources", resources).unwrap();
    assert_eq!((plan.machine.memory_mib, plan.machine.vcpus, plan.container.online_cpus), (4224, 2, 2));
    assert_eq!(plan.container.cgroup_files.len(), 2);
    let plan = with("/linux/resources", json!({"unified": {"memory.max": "4294967296"}})).unwrap();
    assert_eq!(plan.machine.memory_mib, 4224);
    let plan = with("/annotations", json!({"io.runvm.memory-mib": "96", "io.runvm.vcpus": "2"})).unwrap();
    assert_eq!((plan.machine.memory_mib, plan.machine.vcpus), (96, 2));
}

#[test]
fn what_has_no_effect_is_noted() {
    let plan = with("/process/apparmorProfile", json!("docker-default")).unwrap();
    assert!(plan.notes.iter().any(|note| note.starts_with("process.apparmorProfile")));
}

/// Values of every JSON type, with the words that open further doors.
fn any_json() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "bind",
        "rbind",
        "/",
        "",
        "..",
        "/proc",
        "/vol",
        "/dev/null",
        "tmpfs",
        "cgroup",
        "0-3",
        "a\0b",
        "PATH=/bin",
        "b",
        "c",
        "network",
        "user",
        "pid",
        "RLIMIT_CPU",
        "1.0.2",
        "9223372036854775807",
        "-1",
        "io.runvm.vcpus",
        "a.slice:b:c",
        "rwm",
        "SCHED_DEADLINE",
        "LINUX32",
        "net.ipv4.ip_forward",
    ]);
    let numbers = prop_oneof![any::<i64>(), prop::sample::select(vec![-1, 0, 1, 2, i64::MIN, i64::MAX])];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        numbers.prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        words.prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "type",
        "path",
        "source",
        "destination",
        "options",
        "limit",
        "quota",
        "period",
        "cpus",
        "shares",
        "swap",
        "memory",
        "cpu",
        "pids",
        "unified",
        "hugepageLimits",
        "pageSize",
        "devices",
        "allow",
        "major",
        "minor",
        "soft",
        "hard",
        "prestart",
        "timeout",
        "access",
        "weight",
        "rate",
        "secs",
        "policy",
        "priority",
        "domain",
        "memory.max",
        "height",
        "width",
        "hostID",
        "containerID",
        "size",
        "uid",
    ]);
    leaf.prop_recursive(3, 24, 5, move |inner| {
        let map = prop::collection::vec((keys.clone(), inner.clone()), 0..5);
        let map = map.prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()));
        prop_oneof![prop::collection::vec(inner, 0..4).prop_map(Value::from), map]
    })
}

/// Where generated values are put: every field the plan reads.
const FIELDS: &[&str] = &[
    "/ociVersion",
    "/root",
    "/root/path",
    "/root/readonly",
    "/process",
    "/process/args",
    "/process/cwd",
    "/process/env",
    "/process/user",
    "/process/terminal",
    "/process/consoleSize",
    "/process/capabilities",
    "/process/rlimits",
    "/process/oomScoreAdj",
    "/process/scheduler",
    "/process/ioPriority",
    "/process/execCPUAffinity",
    "/process/noNewPrivileges",
    "/hostname",
    "/domainname",
    "/mounts",
    "/hooks",
    "/annotations",
    "/linux",
    "/linux/namespaces",
    "/linux/uidMappings",
    "/linux/gidMappings",
    "/linux/devices",
    "/linux/cgroupsPath",
    "/linux/resources",
    "/linux/resources/memory",
    "/linux/resources/cpu",
    "/linux/resources/unified",
    "/linux/resources/devices",
    "/linux/resources/blockIO",
    "/linux/resources/hugepageLimits",
    "/linux/resources/pids",
    "/linux/timeOffsets",
    "/linux/personality",
    "/linux/intelRdt",
    "/linux/readonlyPaths",
    "/linux/mountLabel",
    "/linux/sysctl",
    "/linux/maskedPaths",
    "/linux/rootfsPropagation",
    "/linux/seccomp",
];

/// One mount whose every field is likely to be understood.
fn any_mount() -> impl Strategy<Value = Value> {
    let text = || {
        prop_oneof![
            prop::sample::select(vec!["/vol", "/s", "/gone", "/link", "/dev/null", "/", "x"]),
            "\\PC{0,8}".prop_map(|s| &*s.leak())
        ]
    };
    let kind = prop::sample::select(vec!["bind", "none", "tmpfs", "proc", "cgroup", "ext4", ""]);
    let options = prop::collection::vec(
        prop_oneof![prop::sample::select(vec!["bind", "ro", "rro", "idmap", "tmpcopyup", "rshared"]), text()],
        0..4,
    );
    (text(), kind, text(), options)
        .prop_map(|(destination, kind, source, options)| json!({"destination": destination, "type": kind, "source": source, "options": options}))
}

/// A bundle with something in every section, which has a plan.
fn full_config() -> Value {
    let mut config = config();
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 10}, {"containerID": 10, "hostID": 0, "size": 9}]);
    let disk = json!([{"major": 8, "minor": 0, "rate": 1000}]);
    let namespaces =
        ["pid", "network", "mount", "uts", "ipc", "user", "cgroup", "time"].map(|kind| json!({"type": kind}));
    config["process"] = json!({
        "args": ["a"], "cwd": "/w", "env": ["PATH=/bin"], "terminal": true, "consoleSize": {"height": 1, "width": 2},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]}, "noNewPrivileges": true, "oomScoreAdj": 5,
        "capabilities": {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]}, "apparmorProfile": "a", "selinuxLabel": "s",
        "rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}],
        "scheduler": {"policy": "SCHED_FIFO", "priority": 1, "nice": 0, "flags": ["SCHED_FLAG_RECLAIM"]},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 1},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
    });
    config["hostname"] = json!("h");
    config["domainname"] = json!("d");
    config["mounts"] = json!([
        {"destination": "/a", "type": "bind", "source": "/vol", "options": ["rbind", "ro"]},
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1k", "tmpcopyup"]},
    ]);
    config["hooks"] = json!({"prestart": [{"path": "/h", "args": ["h"], "env": ["A=b"], "timeout": 1}]});
    config["annotations"] = json!({"io.runvm.memory-mib": "200", "io.runvm.vcpus": "2", "other": "x"});
    config["linux"] = json!({
        "namespaces": namespaces, "uidMappings": mapping, "gidMappings": mapping, "cgroupsPath": "/a/b",
        "sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "2", "fs/mqueue/msg_max": "3"},
        "timeOffsets": {"boottime": {"secs": 1, "nanosecs": 2}}, "personality": {"domain": "LINUX32"},
        "maskedPaths": ["/m"], "readonlyPaths": ["/r"], "mountLabel": "l", "rootfsPropagation": "rslave",
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 1, "gid": 2}],
    });
    config["linux"]["resources"] = json!({
        "memory": {"limit": 100_000_000, "swap": 200_000_000, "reservation": 5, "swappiness": 60, "disableOOMKiller": true},
        "cpu": {"shares": 5, "quota": 20_000, "period": 10_000, "burst": 6, "cpus": "0-1", "mems": "0", "idle": 0,
                "realtimeRuntime": 1, "realtimePeriod": 2},
        "pids": {"limit": 5}, "hugepageLimits": [{"pageSize": "2MB", "limit": 5}], "unified": {"io.max": "8:0 rbps=1"},
        "devices": [{"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
        "blockIO": {"weight": 10, "leafWeight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 11}],
                    "throttleReadBpsDevice": disk, "throttleWriteBpsDevice": disk,
                    "throttleReadIOPSDevice": disk, "throttleWriteIOPSDevice": disk},
        "network": {"classID": 1}, "rdma": {"x": {"hcaHandles": 1}},
    });
    config
}

/// The JSON pointers of everything in a value.
fn pointers(value: &Value, here: &str, all: &mut Vec<String>) {
    let mut enter = |key: &str, child: &Value| {
        let pointer = format!("{here}/{}", key.replace('~', "~0").replace('/', "~1"));
        pointers(child, &pointer, all);
        all.push(pointer);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, child)| enter(key, child)),
        Value::Array(list) => list.iter().enumerate().for_each(|(n, child)| enter(&n.to_string(), child)),
        _ => {}
    }
}

/// What may happen to a part of a bundle.
#[derive(Clone, Debug)]
enum Change {
    Remove,
    Repeat,
    Replace(Value),
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![Just(Change::Remove), Just(Change::Repeat), any_json().prop_map(Change::Replace)]
}

fn apply(config: &mut Value, pointer: &str, change: Change) {
    let Some((parent, key)) = pointer.rsplit_once('/') else { return };
    match (config.pointer_mut(parent), change) {
        (Some(Value::Object(map)), Change::Remove) => drop(map.remove(key)),
        (Some(Value::Array(list)), Change::Repeat) => list.extend(list.first().cloned()),
        (Some(_), Change::Replace(value)) => {
            config.pointer_mut(pointer).into_iter().for_each(|place| *place = value.clone());
        }
        _ => {}
    }
}

#[test]
fn a_bundle_with_everything_has_a_plan() {
    let plan = plan_with(full_config(), &facts()).unwrap();
    assert!(!plan.container.device_filter.is_empty() && plan.container.process.scheduler.is_some());
    assert_eq!((plan.limits.one_of.len(), plan.container.personality), (2, 8));
}

fn numbers() -> impl Strategy<Value = Value> {
    let number = prop_oneof![any::<i64>(), prop::sample::select(vec![-1, 0, 1, 4096, i64::MIN, i64::MAX])];
    let field = prop::sample::select(vec![
        "memory/limit",
        "memory/swap",
        "memory/reservation",
        "cpu/shares",
        "cpu/quota",
        "cpu/period",
        "cpu/burst",
        "cpu/idle",
        "pids/limit",
    ]);
    prop::collection::vec((field, number), 0..6).prop_map(|fields| {
        let mut all = json!({"memory": {}, "cpu": {}, "pids": {}});
        fields.into_iter().for_each(|(field, number)| set(&mut all, &format!("/{field}"), number.into()));
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bundle_makes_it_panic(changes in prop::collection::vec((prop::sample::select(FIELDS), any_json()), 1..4)) {
        let mut config = config();
        changes.into_iter().for_each(|(field, value)| set(&mut config, field, value));
        let _ = plan_with(config, &facts());
    }

    #[test]
    fn no_change_of_a_whole_bundle_makes_it_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_change()), 1..6),
    ) {
        let mut config = full_config();
        for (index, change) in changes {
            let mut all = Vec::new();
            pointers(&config, "", &mut all);
            if !all.is_empty() {
                apply(&mut config, index.get::<String>(&all), change);
            }
        }
        if let Ok(plan) = plan_with(config, &facts()) {
            prop_assert!(plan.container.device_filter.len() % 8 == 0);
            prop_assert!(plan.container.sysctls.iter().all(|sysctl| !sysctl.key.contains("..")));
        }
    }

    #[test]
    fn no_mount_makes_it_panic(mounts in prop::collection::vec(any_mount(), 0..4)) {
        if let Ok(plan) = with("/mounts", mounts.into()) {
            // Nothing of the host but what was asked for, and every mount below the root.
            prop_assert!(plan.shares.iter().skip(1).all(|share| share.source == Path::new("/vol")));
            prop_assert!(plan.container.mounts.iter().all(|mount| mount.destination.len() > 1 && mount.destination.starts_with('/')));
        }
    }

    #[test]
    fn no_limit_makes_it_panic(resources in numbers()) {
        if let Ok(plan) = with("/linux/resources", resources) {
            prop_assert!((3072..=16_000).contains(&plan.machine.memory_mib) && (1..=4).contains(&plan.machine.vcpus));
        }
    }

    #[test]
    fn no_id_makes_it_panic(id in "\\PC{0,300}") {
        let _ = validate_id(&id);
    }
}

#[test]
fn shares_say_which_file_system_somebody_else_may_have_to_answer_for() {
    let mut changed = config();
    changed["mounts"] = json!([
        {"destination": "/far", "type": "bind", "source": "/far", "options": ["bind"]},
        {"destination": "/near", "type": "bind", "source": "/near", "options": ["bind"]},
    ]);
    let mut facts = facts();
    for (path, system, remote) in [("/far", "0:45", true), ("/near", "8:1", false)] {
        let (path, mut fact) = source(path, SourceKind::Directory, FileSystemKind::Ordinary);
        (fact.system, fact.remote) = (system.to_owned(), remote);
        facts.sources.insert(path, fact);
    }
    let plan = plan_with(changed, &facts).unwrap();
    let remote: Vec<_> = plan.shares.iter().map(|share| share.remote.as_deref()).collect();
    assert_eq!(remote, [None, Some("0:45"), None]);
}

#[test]
fn volumes_of_one_file_system_have_files_in_common() {
    let mut changed = config();
    let bind = |source: &str, options: &[&str], destination: &str| json!({"destination": destination, "type": "bind", "source": source, "options": options});
    let private = &["rbind", "rprivate"];
    changed["mounts"] = json!([
        bind("/vol", private, "/a"),
        bind("/file", private, "/b"),
        bind("/nested", private, "/c"),
        bind("/vol", &["rbind"], "/d")
    ]);
    let mut facts = facts();
    let at = |path: &str, kind| {
        let (path, mut fact) = source(path, kind, FileSystemKind::Ordinary);
        (fact.system, fact.has_mounts) = ("8:2".to_owned(), path.ends_with("nested"));
        (path, fact)
    };
    facts.sources.extend([
        at("/vol", SourceKind::Directory),
        at("/file", SourceKind::File),
        at("/nested", SourceKind::Directory),
    ]);
    let plan = plan_with(changed.clone(), &facts).unwrap();
    let system = || "8:2".to_owned();
    let common: Vec<_> = plan.shares.iter().map(|share| share.common.clone()).collect();
    let all = CommonPlan::All(system());
    let wanted = [CommonPlan::Nothing, all.clone(), all, CommonPlan::Files(system()), CommonPlan::Live(system())];
    assert_eq!(common, wanted);
    let places: Vec<_> = plan.container.mounts.iter().map(|mount| mount.share.as_str()).collect();
    assert_eq!(places, ["8:2/m0", "8:2/m1", "8:2/m2", "8:2/m3"]);
    assert_eq!(plan.container.share, "rootfs");
    // A root file system on the same one is beside them.
    facts.rootfs.as_mut().unwrap().system = "8:2".to_owned();
    assert_eq!(plan_with(changed, &facts).unwrap().container.share, "8:2/rootfs");
}
