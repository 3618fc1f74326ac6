//! Tests of the plan as a whole: a table of specs, and generated ones.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cgroup::Hierarchy;
use crate::facts::Kind;

fn facts() -> Facts {
    let sources =
        [("/b/rootfs", Kind::Directory), ("/vol", Kind::Directory), ("/etc/x", Kind::File), ("/s", Kind::Socket)];
    Facts {
        cpus: 4,
        memory_mib: 16_000,
        sources: BTreeMap::from(sources.map(|(path, kind)| (path.into(), kind))),
        shm_size: Some(1 << 20),
        network_is_hosts: false,
        cgroups: Hierarchy { unified: Some("/sys/fs/cgroup".into()), legacy: Vec::new() },
    }
}

fn config() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}, {"type": "uts"}]},
    })
}

fn try_plan(config: Value) -> anyhow::Result<Plan> {
    let bundle = Bundle { dir: "/b".into(), spec: serde_json::from_value(config)? };
    plan(&bundle, &facts(), &Options { id: "c".into(), systemd_cgroup: false })
}

fn with(pointer: &str, value: Value) -> anyhow::Result<Plan> {
    let mut changed = config();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    changed.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(key.to_owned(), value);
    try_plan(changed)
}

#[test]
fn the_smallest_bundle_has_a_plan() {
    let plan = try_plan(config()).unwrap();
    assert_eq!(plan.machine, MachinePlan { memory_mib: 2048, vcpus: 4, cmdline: "maxcpus=1".to_owned() });
    assert_eq!(plan.network, NetworkPlan::New);
    assert_eq!(plan.shares.len(), 1);
    assert_eq!(plan.cgroup.path.to_str(), Some("c"));
}

#[test]
fn what_breaks_the_rules_is_named() {
    let table = [
        ("/ociVersion", json!("2.0.0"), "ociVersion \"2.0.0\""),
        ("/process/args", json!([]), "process.args must not be empty"),
        ("/process/cwd", json!("tmp"), "process.cwd: \"tmp\" must be an absolute path"),
        ("/root/path", json!("nope"), "rootfs /b/nope does not exist"),
        ("/linux/namespaces", json!([{"type": "pid"}]), "host network is not possible"),
        (
            "/linux/namespaces",
            json!([{"type": "network"}, {"type": "pid", "path": "/x"}]),
            "joining the pid namespace /x",
        ),
        ("/mounts", json!([{"destination": "/x", "type": "bind", "source": "/gone"}]), "/gone: no such file"),
        ("/mounts", json!([{"destination": "/x", "type": "bind", "source": "/s"}]), "/s is a socket"),
        ("/mounts", json!([{"destination": "/x", "type": "bind", "source": "/proc/1"}]), "/proc/1 belongs to the host"),
        ("/hooks", json!({"startContainer": [{"path": "/x"}]}), "hooks.startContainer"),
        ("/annotations", json!({"io.runvm.nope": "1"}), "annotation io.runvm.nope is not known"),
        ("/annotations", json!({"io.runvm.vcpus": "0"}), "io.runvm.vcpus: 0 is not between"),
        ("/linux/devices", json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]), "/dev/sda is a device"),
        ("/linux/uidMappings", json!([{"containerID": 1, "hostID": 4294967295u32, "size": 2}]), "uidMappings"),
        ("/linux/resources", json!({"memory": {"limit": 100, "swap": 50}}), "swap 50 below limit 100"),
    ];
    for (pointer, value, expected) in table {
        let error = with(pointer, value).map(|_| ()).map_err(|error| format!("{error:#}")).unwrap_err();
        assert!(error.contains(expected), "{pointer}: {error}");
    }
    let mut config = config();
    config.as_object_mut().unwrap().insert("hostname".into(), json!("h"));
    config["linux"]["namespaces"] = json!([{"type": "network"}]);
    assert!(try_plan(config).unwrap_err().to_string().contains("private UTS namespace"));
}

#[test]
fn binds_become_shares() {
    let plan = with(
        "/mounts",
        json!([
            {"destination": "/a", "type": "bind", "source": "/vol", "options": ["rbind", "ro"]},
            {"destination": "/b", "type": "none", "source": "/vol", "options": ["bind", "nosuid"]},
            {"destination": "/etc/x", "type": "bind", "source": "/etc/x", "options": ["rbind"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/vol", "options": ["rbind"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        ]),
    )
    .unwrap();
    let names: Vec<_> = plan.shares.iter().map(|share| (share.name.as_str(), share.read_only)).collect();
    assert_eq!(names, [("rootfs", false), ("m0", false), ("m1", false)]);
    let mounts = &plan.container.mounts;
    assert_eq!((mounts[0].share.as_str(), mounts[0].source_is_dir, mounts[0].recursive), ("m0", true, true));
    assert_eq!(mounts[0].flags, libc::MS_RDONLY);
    assert_eq!((mounts[2].share.as_str(), mounts[2].source_is_dir), ("m1", false));
    assert_eq!((mounts[3].kind.as_str(), mounts[3].data.as_str()), ("tmpfs", "mode=1777,size=1048576"));
    assert_eq!(mounts[4].kind, "cgroup2");
}

#[test]
fn limits_size_the_vm_and_reach_the_guests_cgroup() {
    let resources = json!({"memory": {"limit": 268435456, "swap": 536870912}, "cpu": {"quota": 150000, "period": 100000},
        "pids": {"limit": 100}});
    let plan = with("/linux/resources", resources).unwrap();
    assert_eq!((plan.machine.memory_mib, plan.machine.vcpus), (320, 2));
    let files: Vec<_> = plan.container.cgroup_files.iter().map(|f| (f.key.as_str(), f.value.as_str())).collect();
    let expected = [
        ("memory.max", "268435456"),
        ("memory.swap.max", "268435456"),
        ("cpu.max", "150000 100000"),
        ("pids.max", "100"),
    ];
    assert_eq!(files, expected);
}

/// Values of every JSON type, small enough to be tried often.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z/.:=0-9]{0,12}".prop_map(Value::from),
        Just(json!("bind")),
        Just(json!("/")),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::from))
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
    "/process/user/uid",
    "/process/terminal",
    "/process/consoleSize",
    "/process/capabilities",
    "/process/rlimits",
    "/process/oomScoreAdj",
    "/hostname",
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
    "/linux/sysctl",
    "/linux/maskedPaths",
    "/linux/rootfsPropagation",
    "/linux/seccomp",
];

proptest! {
    #[test]
    fn any_config_gives_a_plan_or_an_error(changes in prop::collection::vec((prop::sample::select(FIELDS), any_json()), 1..4)) {
        let mut generated = config();
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            if let Some(object) = generated.pointer_mut(parent).and_then(Value::as_object_mut) {
                object.insert(key.to_owned(), value);
            }
        }
        let _ = try_plan(generated);
    }

    #[test]
    fn absurd_numbers_give_a_plan_or_an_error(limit in any::<i64>(), swap in any::<i64>(), quota in any::<i64>(),
        period in any::<u64>(), shares in any::<u64>(), pids in any::<i64>()) {
        let resources = json!({"memory": {"limit": limit, "swap": swap, "reservation": swap},
            "cpu": {"quota": quota, "period": period, "shares": shares}, "pids": {"limit": pids}});
        let _ = with("/linux/resources", resources);
    }

    #[test]
    fn any_id_is_judged(id in ".*") {
        let ok = validate_id(&id).is_ok();
        prop_assert!(!ok || (!id.contains('/') && id != ".."));
    }
}
