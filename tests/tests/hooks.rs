//! Hooks: when they run, what they are told, and what their failure does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::process::{namespace, wait_orphan};
use tests::{Container, Scene, place};

/// Writes a program for a hook.
fn program(dir: &Path, name: &str, script: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Adds a hook to config.json.
fn hook(container: &mut Container, kind: &str, entry: Value) {
    let hooks = &mut container.spec["hooks"];
    if hooks.is_null() {
        *hooks = json!({});
    }
    if hooks[kind].is_null() {
        hooks[kind] = json!([]);
    }
    hooks[kind].as_array_mut().unwrap().push(entry);
}

/// Adds a hook that keeps the state it is given, the order, and the pid's network namespace.
fn recorder(scene: &Scene, container: &mut Container, kind: &str) {
    let script = "cat >$DIR/$KIND.json; echo $KIND $1 >>$DIR/order
        pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' $DIR/$KIND.json); readlink /proc/$pid/ns/net >$DIR/$KIND.net; true";
    let path = program(scene.dir(), "recorder", script);
    let env = [format!("DIR={}", scene.dir().display()), format!("KIND={kind}"), "PATH=/bin:/usr/bin".to_owned()];
    hook(container, kind, json!({"path": path, "args": ["recorder", "argument"], "env": env}));
}

fn recorded(scene: &Scene, kind: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(scene.dir().join(format!("{kind}.json"))).unwrap()).unwrap()
}

#[test]
fn each_runs_at_its_time_with_the_state() {
    let scene = Scene::new();
    let mut container = scene.container();
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        recorder(&scene, &mut container, kind);
    }
    container.spec["annotations"] = json!({"key": "value"});
    let order = || fs::read_to_string(scene.dir().join("order")).unwrap_or_default();
    let created = container.create();
    let at_create = "prestart argument\ncreateRuntime argument\n";
    // runc runs its poststart hooks as early as in create.
    assert!(order() == at_create || !place::is_runvm() && order().starts_with(at_create), "{}", order());
    container.start().success();
    assert_eq!(order(), format!("{at_create}poststart argument\n"));
    wait_orphan(created.pid);
    container.delete().success();
    assert_eq!(order().lines().last(), Some("poststop argument"));
    for (kind, status) in
        [("prestart", "creating"), ("createRuntime", "creating"), ("poststart", "running"), ("poststop", "stopped")]
    {
        let state = recorded(&scene, kind);
        assert_eq!(state["id"], container.id.as_str(), "{kind}");
        // See above: for runc's poststart hooks the container is merely created.
        assert!(state["status"] == status || kind == "poststart" && !place::is_runvm(), "{kind}: {state}");
        assert_eq!(state["bundle"], container.bundle().to_str().unwrap(), "{kind}");
        assert_eq!(state["annotations"]["key"], "value", "{kind}");
        assert!(state["ociVersion"].is_string(), "{kind}");
        assert!(kind == "poststop" || state["pid"] == created.pid, "{kind}: {state}");
    }
}

#[test]
fn create_hooks_find_the_containers_network_at_the_pid() {
    let scene = Scene::new();
    let mut container = scene.container();
    for kind in ["prestart", "createRuntime"] {
        recorder(&scene, &mut container, kind);
    }
    let created = container.create();
    let own = namespace(created.pid, "net");
    assert_ne!(own, namespace("self", "net"));
    for kind in ["prestart", "createRuntime"] {
        assert_eq!(fs::read_to_string(scene.dir().join(format!("{kind}.net"))).unwrap().trim(), own, "{kind}");
    }
    container.end(&created);
}

#[test]
fn run_has_them_all() {
    let scene = Scene::new();
    let mut container = scene.container();
    for kind in ["prestart", "poststart", "poststop"] {
        recorder(&scene, &mut container, kind);
    }
    container.run().success();
    let order = fs::read_to_string(scene.dir().join("order")).unwrap();
    assert_eq!(order, "prestart argument\npoststart argument\npoststop argument\n");
}

#[test]
fn their_environment_is_the_specs() {
    let scene = Scene::new();
    let mut container = scene.container();
    let path = program(scene.dir(), "env", &format!("env >{}/env.txt", scene.dir().display()));
    hook(&mut container, "prestart", json!({"path": path, "env": ["ONLY=this"]}));
    container.run().success();
    let seen = fs::read_to_string(scene.dir().join("env.txt")).unwrap();
    assert!(seen.contains("ONLY=this\n") && !seen.contains("TEST_RUNTIME"), "{seen}");
}

#[test]
fn a_failing_one_fails_the_create() {
    let scene = Scene::new();
    for kind in ["prestart", "createRuntime"] {
        let mut container = scene.container();
        let path = program(scene.dir(), "fails", "echo no network today >&2; exit 3");
        hook(&mut container, kind, json!({"path": path}));
        let outcome = container.run();
        scene.refused(&outcome, &["hook", "no network today"]);
        container.sh("true");
    }
    scene.check();
}

#[test]
fn a_missing_one_fails_the_create() {
    let scene = Scene::new();
    let mut container = scene.container();
    hook(&mut container, "prestart", json!({"path": "/no/such/hook"}));
    let outcome = container.run();
    scene.refused(&outcome, &["/no/such/hook"]);
}

#[test]
fn a_slow_one_is_ended() {
    let scene = Scene::new();
    let mut container = scene.container();
    let path = program(scene.dir(), "slow", "exec sleep 100000");
    hook(&mut container, "prestart", json!({"path": path, "timeout": 1}));
    let outcome = container.run();
    scene.refused(&outcome, &["hook"]);
}
