//! Create, start, state, list, kill, delete and run, as runc has them.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::command::{run, start};
use tests::process::{lives, parent, wait_orphan};
use tests::{Reader, Scene, place, process};

/// A process that tells each signal it gets, and ends with code 7 on TERM.
const TELLS_SIGNALS: &str = "
    trap 'echo got HUP' HUP; trap 'echo got USR1' USR1; trap 'echo got USR2' USR2; trap 'exit 7' TERM
    sleep 100000 & echo up; while :; do wait $!; done";

#[test]
fn run_exits_with_the_containers_code() {
    let scene = Scene::new();
    for code in [0, 3, 126, 127, 255] {
        scene.sh(&format!("exit {code}")).exits(code);
    }
}

#[test]
fn run_passes_output_on_and_leaves_nothing() {
    let scene = Scene::new();
    let outcome = scene.sh("echo to stdout; echo to stderr >&2").success();
    assert_eq!(outcome.stdout, "to stdout\n");
    assert_eq!(outcome.stderr, "to stderr\n");
    scene.check();
}

/// Linux passes 253 descriptors at a time, and each mount is one.
#[test]
fn a_bundle_may_have_hundreds_of_mounts() {
    let scene = Scene::new();
    let mut container = scene.container();
    for number in 0..300 {
        let source = scene.dir().join(format!("source{number}"));
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("name"), format!("{number} ")).unwrap();
        container.mount("bind", &source, &format!("/m/{number}"), &["bind"]);
    }
    let outcome = container.sh("ls /m | wc -l; cat /m/0/name /m/253/name /m/299/name").run().success();
    assert_eq!(outcome.stdout, "300\n0 253 299 ");
    drop(container);
    scene.check();
}

#[test]
fn the_states_of_a_life() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.sh("read line; exit 0").create();
    assert_eq!(container.status(), "created");
    assert!(lives(created.pid));
    container.start().success();
    assert_eq!(container.status(), "running");
    drop(created.stdin);
    process::wait_end(created.pid, tests::PATIENCE);
    assert_eq!(container.status(), "stopped");
    container.delete().success();
    let unknown = run(&mut container.named("state", &[])).failure();
    assert!(unknown.stderr.contains("does not exist"), "{unknown:?}");
}

#[test]
fn nothing_runs_before_start() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh("echo running >/proof; echo done").create();
    assert!(!container.rootfs().join("proof").exists());
    assert!(created.stdout.is_silent() && created.stderr.is_silent(), "create wrote to the container's streams");
    container.start().success();
    created.stdout.expect("done\n");
    assert!(container.rootfs().join("proof").exists());
}

#[test]
fn the_pid_is_the_callers_child_and_its_exit_status_the_containers() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.sh("read line; exit 42").up();
    assert_eq!(parent(created.pid), Some(std::process::id() as i32), "not re-parented to the subreaper");
    assert_eq!(container.state()["pid"], created.pid);
    drop(created.stdin);
    assert_eq!(wait_orphan(created.pid), 42);
    assert_eq!(created.stdout.rest(), "");
}

#[test]
fn all_output_is_there_when_the_pid_has_ended() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.sh("seq 5000; seq 3 >&2").up();
    assert_eq!(wait_orphan(created.pid), 0);
    let expected: String = (1..=5000).map(|n| format!("{n}\n")).collect();
    assert_eq!(created.stdout.rest(), expected);
    assert_eq!(created.stderr.rest(), "1\n2\n3\n");
}

#[test]
fn the_pid_is_in_the_containers_cgroup_before_create_returns() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", created.pid)).unwrap();
    let path = format!(":/{}", container.id);
    let controllers = if place::cgroup_is_unified() { vec!["0:"] } else { vec!["memory:", "pids:", "cpu,cpuacct:"] };
    for controller in controllers {
        let found = cgroups.lines().any(|line| line.contains(controller) && line.ends_with(&path));
        assert!(found, "{controller} not in {path}:\n{cgroups}");
    }
    container.end(&created);
}

#[test]
fn a_nested_cgroup_path_is_made_and_removed() {
    let scene = Scene::new();
    let mut container = scene.container();
    let path = format!("/{}/inner", container.id);
    container.set("/linux/cgroupsPath", json!(path));
    let created = container.create();
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", created.pid)).unwrap();
    assert!(cgroups.contains(&path), "{cgroups}");
    container.end(&created);
    let base = if place::cgroup_is_unified() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
    assert!(!Path::new(base).join(&path[1..]).exists());
    remove_empty_parents(&container.id);
}

/// Where engines look for it. For runc it is the kernel's own doing.
#[test]
fn lack_of_memory_shows_in_the_hosts_cgroup() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/resources", json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}}));
    let up = container.idle();
    let unified = place::cgroup_is_unified();
    let (base, file) = if unified { ("", "memory.events") } else { ("memory/", "memory.oom_control") };
    let file = format!("/sys/fs/cgroup/{base}{}/{file}", container.id);
    let kills = || {
        let text = std::fs::read_to_string(&file).unwrap();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse::<u32>().unwrap()
    };
    let limit = || {
        let name = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        std::fs::read_to_string(Path::new(&file).with_file_name(name)).unwrap()
    };
    let before = limit();
    assert_eq!(kills(), 0);
    container.exec_sh("head -c 100000000 /dev/zero | tail").failure();
    tests::process::wait_until("the kill to be counted", || kills() > 0);
    // The container itself lives on, with the limit that it had.
    tests::process::wait_until("the limit to be what it was", || limit() == before);
    assert_eq!(container.status(), "running");
    container.exec(&["true"]).success();
    let _ = std::fs::remove_file(scene.log());
    container.end(&up);
}

/// runc leaves the parents that it made; they are not what is tested here.
fn remove_empty_parents(id: &str) {
    let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/{id}"));
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(id));
    }
}

#[test]
fn create_writes_the_pid_file_and_nothing_else() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    assert!(created.stdout.is_silent() && created.stderr.is_silent());
    assert!(scene.errors().is_empty());
    assert!(lives(created.pid));
    assert_eq!(container.end(&created), 137);
}

#[test]
fn a_created_container_can_be_killed() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    container.kill("KILL").success();
    assert_eq!(wait_orphan(created.pid), 137);
    assert_eq!(container.status(), "stopped");
    container.delete().success();
}

#[test]
fn a_created_container_can_be_deleted() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    container.delete().success();
    assert!(!lives(created.pid));
}

#[test]
fn start_twice_is_refused_and_harms_nothing() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.idle();
    let again = container.start();
    scene.refused(&again, &["cannot start an already running container"]);
    assert_eq!(container.status(), "running");
    container.end(&created);
}

#[test]
fn start_of_a_stopped_container_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.up();
    wait_orphan(created.pid);
    let again = container.start();
    scene.refused(&again, &["cannot start a container that has stopped"]);
}

#[test]
fn delete_of_a_running_container_needs_force() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.idle();
    let refused = container.delete();
    scene.refused(&refused, &["that is not stopped", &container.id]);
    assert!(lives(created.pid));
    container.force_delete().success();
    assert!(!lives(created.pid));
    wait_orphan(created.pid);
    drop(container);
    scene.check();
}

#[test]
fn delete_of_an_unknown_container() {
    let scene = Scene::new();
    let mut container = scene.container();
    let refused = container.delete();
    scene.refused(&refused, &["does not exist"]);
    container.force_delete().success();
}

#[test]
fn list_shows_every_container() {
    let scene = Scene::new();
    assert_eq!(list(&scene, &["-q"]), "");
    let (mut first, mut second) = (scene.container(), scene.container());
    let (up, waiting) = (first.idle(), second.create());
    let names = list(&scene, &["-q"]);
    let mut names: Vec<_> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, [&first.id, &second.id]);
    let entries: Value = serde_json::from_str(&list(&scene, &["-f", "json"])).unwrap();
    let entry = |id: &str| entries.as_array().unwrap().iter().find(|entry| entry["id"] == id).unwrap();
    assert_eq!(entry(&first.id)["status"], "running");
    assert_eq!(entry(&first.id)["pid"], up.pid);
    assert_eq!(entry(&first.id)["bundle"], first.bundle().to_str().unwrap());
    assert_eq!(entry(&second.id)["status"], "created");
    assert_eq!(entry(&second.id)["owner"], "root");
    let table = list(&scene, &[]);
    let header: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    first.end(&up);
    second.end(&waiting);
}

#[test]
fn vm_a_monitor_that_does_not_answer_hangs_no_command() {
    let scene = Scene::new();
    let (mut stopped, mut waiting) = (scene.container(), scene.container());
    let (up, created) = (stopped.idle(), waiting.create());
    process::signal(up.pid, Signal::STOP);
    // All that is known of it: its process lives.
    assert_eq!(stopped.status(), "running");
    assert_eq!(stopped.state()["pid"], up.pid);
    let entries: Value = serde_json::from_str(&list(&scene, &["-f", "json"])).unwrap();
    let status =
        |id: &str| entries.as_array().unwrap().iter().find(|entry| entry["id"] == id).unwrap()["status"].clone();
    assert_eq!((status(&stopped.id), status(&waiting.id)), ("running".into(), "created".into()));
    scene.refused(&stopped.kill("TERM"), &["no answer from the container's monitor"]);
    scene.refused(&stopped.delete(), &["not stopped"]);
    stopped.kill("KILL").success();
    assert_eq!(wait_orphan(up.pid), 137);
    assert_eq!(stopped.status(), "stopped");
    stopped.delete().success();
    waiting.end(&created);
    drop((stopped, waiting));
    scene.check();
}

fn list(scene: &Scene, flags: &[&str]) -> String {
    run(scene.runtime().arg("list").args(flags)).success().stdout
}

#[test]
fn state_has_runcs_fields() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.spec["annotations"] = json!({"org.example.key": "value"});
    let created = container.create();
    let state = container.state();
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
    assert_eq!(state["id"], container.id.as_str());
    assert_eq!(state["pid"], created.pid);
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], container.bundle().to_str().unwrap());
    assert_eq!(state["rootfs"], container.rootfs().to_str().unwrap());
    assert!(state["owner"].is_string());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    let when = state["created"].as_str().unwrap();
    assert!(when.starts_with("20") && when.contains('T') && when.ends_with('Z'), "{when}");
    container.end(&created);
    container.create();
    container.kill("KILL").success();
    process::wait_until("the container to stop", || container.state()["status"] == "stopped");
    assert_eq!(container.state()["pid"], 0);
}

#[test]
fn kill_takes_names_and_numbers() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh(TELLS_SIGNALS).up();
    created.stdout.expect("up\n");
    for (signal, name) in [("USR1", "USR1"), ("SIGUSR2", "USR2"), ("10", "USR1"), ("sighup", "HUP"), ("12", "USR2")] {
        container.kill(signal).success();
        created.stdout.expect(&format!("got {name}\n"));
    }
    run(&mut container.named("kill", &[])).success();
    assert_eq!(wait_orphan(created.pid), 7, "the default is TERM");
}

#[test]
fn kill_needs_somebody_to_kill() {
    let scene = Scene::new();
    let mut container = scene.container();
    scene.refused(&container.kill("TERM"), &["does not exist"]);
    let created = container.up();
    wait_orphan(created.pid);
    scene.refused(&container.kill("TERM"), &["container not running"]);
    scene.refused(&container.kill("0"), &["container not running"]);
}

#[test]
fn kill_with_signal_0_asks_whether_the_container_lives() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh(TELLS_SIGNALS).up();
    created.stdout.expect("up\n");
    container.kill("0").success();
    container.kill("USR1").success();
    created.stdout.expect("got USR1\n");
    container.end(&created);
}

#[test]
fn kill_all_reaches_every_process() {
    let scene = Scene::new();
    let mut container = scene.container();
    let script = "(trap 'echo child; exit' USR1; echo c; sleep 100000 & wait $!) &
        trap 'echo init' USR1; echo i; while :; do wait; done";
    let mut created = container.sh(script).up();
    created.stdout.expect("\n");
    created.stdout.expect("\n");
    run(container.named("kill", &["USR1"]).arg("--all")).success();
    let lines = [created.stdout.line(), created.stdout.line()];
    assert!(lines.contains(&"child".to_owned()) && lines.contains(&"init".to_owned()), "{lines:?}");
    container.end(&created);
}

#[test]
fn run_forwards_signals() {
    let scene = Scene::new();
    let mut container = scene.container();
    let (read, write) = tests::stream::pipe();
    let mut command = container.sh(TELLS_SIGNALS).named("run", &[]);
    let mut child = command.stdin(std::process::Stdio::null()).stdout(write).spawn().unwrap();
    drop(command);
    let mut output = Reader::new(read);
    output.expect("up\n");
    process::signal(child.id() as i32, Signal::USR1);
    output.expect("got USR1\n");
    process::signal(child.id() as i32, Signal::TERM);
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE));
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn run_detached_returns_while_the_container_runs() {
    let scene = Scene::new();
    let mut container = scene.container();
    let pid_file = container.bundle().join("pid");
    container.sh("sleep 100000").write();
    let mut command = container.command("run");
    run(command.arg("--detach").arg("--pid-file").arg(&pid_file).arg(&container.id)).success();
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(container.status(), "running");
    assert_eq!(container.state()["pid"], pid);
    container.force_delete().success();
    assert_eq!(wait_orphan(pid), 137);
}

#[test]
fn run_keep_leaves_the_container_to_delete() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.sh("exit 5").write();
    let mut command = container.command("run");
    assert_eq!(run(command.arg("--keep").arg(&container.id)).code, 5);
    assert_eq!(container.status(), "stopped");
    container.delete().success();
}

#[test]
fn flags_that_engines_give_are_taken() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create_with(&["--no-pivot", "--no-new-keyring", "--preserve-fds", "0"]);
    container.end(&created);
}

#[test]
fn names_may_hold_these_characters() {
    let scene = Scene::new();
    let long = "l".repeat(128);
    for id in ["A.b_c-d+e", "0", long.as_str()] {
        tests::Container::new(&scene, id).run().success();
    }
}

#[test]
fn the_log_is_json_lines() {
    let scene = Scene::new();
    let outcome = start(scene.runtime().args(["state", "nobody"])).finish();
    scene.refused(&outcome, &["does not exist"]);
}

#[test]
fn the_log_is_text_unless_asked_for() {
    let scene = Scene::new();
    let mut command = Command::new(place::runtime());
    let outcome = run(command.arg("--root").arg(scene.root()).args(["state", "nobody"])).failure();
    assert!(outcome.stderr.contains("does not exist"), "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
}

#[test]
fn version_is_what_engines_parse() {
    let outcome = run(Command::new(place::runtime()).arg("--version")).success();
    let (first, rest) = outcome.stdout.split_once('\n').expect("more than one line");
    assert!(first.split(' ').nth(1) == Some("version") && first.split(' ').count() == 3, "{first}");
    assert!(rest.lines().any(|line| line.starts_with("spec: 1.")), "{rest}");
}

#[test]
fn features_is_the_specs_json() {
    let outcome = run(Command::new(place::runtime()).arg("features")).success();
    let features: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string());
    let has = |list: &str, what: &str| {
        let list = features.pointer(list).and_then(Value::as_array);
        assert!(list.is_some_and(|list| list.iter().any(|entry| entry == what)), "{what} missing in {features}");
    };
    has("/hooks", "prestart");
    has("/hooks", "createRuntime");
    has("/mountOptions", "rbind");
    for namespace in ["pid", "network", "mount", "ipc", "uts", "user", "cgroup"] {
        has("/linux/namespaces", namespace);
    }
    has("/linux/capabilities", "CAP_SYS_ADMIN");
}

#[test]
fn spec_writes_a_bundle_that_runs() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut command = Command::new(place::runtime());
    run(command.arg("spec").current_dir(container.bundle())).success();
    let config = container.bundle().join("config.json");
    container.spec = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    assert_eq!(container.spec["process"]["args"], json!(["sh"]));
    container.set("/process/terminal", json!(false));
    container.sh("exit 9").run().exits(9);
    run(Command::new(place::runtime()).arg("spec").arg("--bundle").arg(container.bundle())).failure();
}
