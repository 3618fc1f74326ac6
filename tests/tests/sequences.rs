//! The calls of engines that the lab does not have, as they make them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};
use tests::command::{run, start};
use tests::process::{self, namespace, wait_orphan};
use tests::{Container, Scene};

/// A hook like `libnetwork-setkey`: it keeps the state that it is given and makes a link in the network
/// namespace of the state's pid.
fn add_network_hook(scene: &Scene, container: &mut Container) {
    let path = scene.dir().join("setkey");
    let script = "#!/bin/sh\nset -e\ncat >$DIR/state.json
        pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' $DIR/state.json)
        readlink /proc/$pid/ns/net >$DIR/net
        nsenter --net=/proc/$pid/ns/net ip link add hooked type dummy\n";
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let env = [format!("DIR={}", scene.dir().display()), "PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    container.spec["hooks"] = json!({"prestart": [{"path": path, "args": ["setkey"], "env": env}]});
}

fn hooks_state(scene: &Scene) -> Value {
    serde_json::from_str(&fs::read_to_string(scene.dir().join("state.json")).unwrap()).unwrap()
}

/// A command in the network namespace of a process.
fn in_network(pid: i32, args: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net")).args(args);
    command
}

#[test]
fn a_build_step_of_buildkit() {
    let scene = Scene::new();
    let mut container = scene.container();
    add_network_hook(&scene, &mut container);
    // In the foreground, with the builder's pipes as standard streams; it reads the output to its end.
    let outcome = container.sh("echo made >/made; echo out; echo err >&2; exit 3").run();
    assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (3, "out\n", "err\n"));
    assert_eq!(fs::read_to_string(container.rootfs().join("made")).unwrap(), "made\n");
    let state = hooks_state(&scene);
    assert_eq!((state["id"].as_str(), state["status"].as_str()), (Some(container.id.as_str()), Some("creating")));
    assert_eq!(state["bundle"], container.bundle().to_str().unwrap());
    let seen = fs::read_to_string(scene.dir().join("net")).unwrap();
    assert!(seen.starts_with("net:[") && seen.trim() != namespace("self", "net"), "{seen}");
    // It was not kept.
    run(&mut container.named("state", &[])).failure();
}

#[test]
fn a_kept_container_of_buildkit() {
    let scene = Scene::new();
    let mut container = scene.container();
    add_network_hook(&scene, &mut container);
    container.sh("trap 'exit 9' TERM; touch /up; sleep 100000 & wait $!");
    let mut command = container.command("run");
    command.arg("--keep").arg(&container.id).stdin(std::process::Stdio::null());
    let foreground = start(&mut command);
    let up = container.rootfs().join("up");
    process::wait_until("the container to run", || up.exists());
    let state = container.state();
    assert_eq!(state["status"], "running");
    assert_eq!(hooks_state(&scene)["pid"], state["pid"]);
    let pid = state["pid"].as_i64().unwrap() as i32;
    assert!(run(&mut in_network(pid, &["ip", "link", "show", "hooked"])).success().stdout.contains("hooked"));
    let process = scene.dir().join("process.json");
    let mut exec = container.spec["process"].clone();
    exec["args"] = json!(["sh", "-c", "echo from exec; exit 4"]);
    fs::write(&process, exec.to_string()).unwrap();
    let mut command = container.command("exec");
    let outcome = run(command.arg("--process").arg(&process).arg(&container.id));
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, "from exec\n"), "{outcome:?}");
    container.kill("TERM").success();
    assert_eq!(foreground.finish().code, 9);
    assert_eq!(container.status(), "stopped");
    container.delete().success();
    run(&mut container.named("state", &[])).failure();
}

#[test]
fn newer_mobys_network_between_create_and_start() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh("echo started; sleep 100000").create();
    assert_eq!(container.status(), "created");
    let own = namespace(created.pid, "net");
    assert_ne!(own, namespace("self", "net"));
    // The engine holds the namespace, plugs one end of a pair into it, and configures that from outside.
    let (inside, outside) = ("eth0", format!("runvm{}", created.pid));
    run(Command::new("ip").args(["link", "add", &outside, "type", "veth", "peer", "name", "plugged"])).success();
    run(Command::new("ip").args(["link", "set", "plugged", "netns", &created.pid.to_string()])).success();
    for line in ["link set plugged name eth0", "addr add 10.9.8.7/24 dev eth0", "link set eth0 up", "link set lo up"] {
        let words: Vec<_> = ["ip"].into_iter().chain(line.split(' ')).collect();
        run(&mut in_network(created.pid, &words)).success();
    }
    run(Command::new("ip").args(["link", "set", &outside, "up"])).success();
    container.start().success();
    created.stdout.expect("started\n");
    assert_eq!(namespace(created.pid, "net"), own);
    let links = run(&mut in_network(created.pid, &["ip", "-o", "addr", "show", inside])).success();
    assert!(links.stdout.contains("10.9.8.7/24"), "{links:?}");
    assert_eq!(container.end(&created), 137);
    // The namespace ends with its last process, and with it the pair.
    process::wait_until("the pair's end", || !fs::exists(format!("/sys/class/net/{outside}")).unwrap());
}

#[test]
fn a_life_as_containerds_shim_drives_it() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh("trap 'exit 9' TERM; echo up; sleep 100000 & wait $!").create();
    container.start().success();
    created.stdout.expect("up\n");
    let (process, pid_file) = (scene.dir().join("process.json"), scene.dir().join("exec.pid"));
    let mut exec = container.spec["process"].clone();
    exec["args"] = json!(["sh", "-c", "exit 4"]);
    fs::write(&process, exec.to_string()).unwrap();
    let mut command = container.command("exec");
    command.arg("--process").arg(&process).args(["--detach", "--pid-file"]).arg(&pid_file).arg(&container.id);
    let outcome = run(&mut command).success();
    assert_eq!(outcome.stdout, "", "its standard output is the process's");
    let pid = fs::read_to_string(&pid_file).unwrap().parse().expect("the pid-file holds a number and no more");
    assert_eq!(wait_orphan(pid), 4);
    let mut command = container.command("ps");
    let pids = run(command.args(["--format", "json"]).arg(&container.id)).success().stdout;
    let pids: Vec<i32> = serde_json::from_str(&pids).unwrap();
    assert!(pids.contains(&created.pid), "{pids:?}");
    let mut command = container.command("kill");
    run(command.args(["--all", &container.id, "15"])).success();
    assert!([9, 143].contains(&wait_orphan(created.pid)));
    container.force_delete().success();
    container.force_delete().success();
}
