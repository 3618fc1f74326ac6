//! More processes in a running container.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;
use tests::command::{run, start};
use tests::process::{field, wait_orphan};
use tests::{Container, Reader, Scene, process, stream};

/// `exec --detach` with a pid-file; returns the pid on the host.
#[track_caller]
fn detached(container: &Container, script: &str) -> i32 {
    let pid_file = container.bundle().join("exec.pid");
    let mut command = container.command("exec");
    command.arg("--detach").arg("--pid-file").arg(&pid_file).args([&container.id, "sh", "-c", script]);
    run(&mut command).success();
    std::fs::read_to_string(&pid_file).unwrap().parse().expect("the pid-file holds a number and no more")
}

#[test]
fn exit_codes_and_streams() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    for code in [0, 3, 126, 127, 255] {
        let outcome = container.exec_sh(&format!("echo out; echo err >&2; exit {code}"));
        assert_eq!((outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()), (code, "out\n", "err\n"));
    }
    container.exec_sh("kill -TERM $$").exits(143);
    container.exec_sh("kill -KILL $$").exits(137);
    container.end(&up);
}

#[test]
fn it_is_in_the_containers_namespaces() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let namespaces = "for n in pid net mnt uts ipc cgroup user; do readlink /proc/PID/ns/$n || exit 1; done";
    let (init, own) = (namespaces.replace("PID", "1"), namespaces.replace("PID", "self"));
    // Reading those of process 1 takes the same user and capabilities, which exec has.
    assert_eq!(container.exec_sh(&own).success().stdout, container.exec_sh(&init).success().stdout);
    assert_eq!(container.exec_sh("hostname; cat /proc/1/comm").success().stdout, "guest\nsh\n");
    assert!(container.exec_sh("cat /proc/self/cgroup").success().stdout.lines().all(|line| line.ends_with(":/")));
    container.end(&up);
}

#[test]
fn environment_directory_and_user() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/env", json!(["PATH=/bin:/usr/bin", "FROM=spec"]));
    let up = container.idle();
    let mut command = container.command("exec");
    command.args(["--env", "ADDED=two words", "--env", "MORE=", "--cwd", "/var/tmp", "--user", "1000:1001"]);
    command.args(["--additional-gids", "7"]).arg(&container.id).args(["sh", "-c", "pwd; id -u; id -g; id -G; env"]);
    let outcome = run(&mut command).success();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[..3], ["/var/tmp", "1000", "1001"]);
    assert!(lines[3].split(' ').any(|group| group == "7"), "{lines:?}");
    for expected in ["ADDED=two words", "MORE=", "FROM=spec"] {
        assert!(lines.contains(&expected), "{expected} not in {lines:?}");
    }
    container.end(&up);
}

#[test]
fn the_containers_settings_hold_for_it() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/cwd", json!("/tmp"));
    let up = container.idle();
    let outcome = container.exec_sh("pwd; cat /proc/self/status").success();
    assert!(outcome.stdout.starts_with("/tmp\n"), "{outcome:?}");
    assert_eq!(field(&outcome.stdout, "CapBnd").unwrap(), format!("{:016x}", 1 << 29 | 1 | 1 << 5 | 1 << 10));
    assert_eq!(field(&outcome.stdout, "NoNewPrivs").unwrap(), "1");
    container.end(&up);
}

#[test]
fn a_process_file_says_everything() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let mut process = container.spec["process"].clone();
    process["args"] = json!(["sh", "-c", "id -u; pwd; echo $OWN; ulimit -n; exit 21"]);
    process["user"] = json!({"uid": 1000, "gid": 1000});
    process["cwd"] = json!("/home/app");
    process["env"] = json!(["PATH=/bin:/usr/bin", "OWN=value"]);
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 77}]);
    let file = container.bundle().join("process.json");
    std::fs::write(&file, process.to_string()).unwrap();
    let mut command = container.command("exec");
    let outcome = run(command.arg("--process").arg(&file).arg(&container.id));
    assert_eq!((outcome.code, outcome.stdout.as_str()), (21, "1000\n/home/app\nvalue\n77\n"), "{outcome:?}");
    container.end(&up);
}

#[test]
fn input_goes_through() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let (read, write) = stream::pipe();
    let mut command = container.named("exec", &["cat"]);
    let exec = start(command.stdin(read));
    drop(command);
    let text: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    File::from(write).write_all(text.as_bytes()).unwrap();
    assert!(exec.finish().success().stdout == text, "what came back is not what was written");
    container.end(&up);
}

#[test]
fn detached_it_is_our_child_with_its_own_exit_code() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let pid = detached(&container, "exit 33");
    assert_ne!(pid, up.pid);
    assert_eq!(wait_orphan(pid), 33);
    container.end(&up);
}

#[test]
fn detached_its_output_goes_where_execs_went() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let (read, write) = stream::pipe();
    let pid_file = container.bundle().join("exec.pid");
    let mut command = container.command("exec");
    command.arg("--detach").arg("--pid-file").arg(&pid_file).arg(&container.id);
    command.args(["sh", "-c", "sleep 0.2; echo late output"]);
    let status = command.stdin(Stdio::null()).stdout(write).status().unwrap();
    drop(command);
    assert!(status.success());
    assert_eq!(Reader::new(read).rest(), "late output\n");
    assert_eq!(wait_orphan(std::fs::read_to_string(&pid_file).unwrap().parse().unwrap()), 0);
    container.end(&up);
}

#[test]
fn killing_the_hosts_pid_kills_the_process() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let pid = detached(&container, "exec sleep 54321");
    // One sleep is the container's own.
    let sleeps = || container.exec_sh("cat /proc/[0-9]*/comm").stdout.matches("sleep\n").count();
    process::wait_until("the process to be a sleep", || sleeps() == 2);
    process::signal(pid, Signal::KILL);
    assert_eq!(wait_orphan(pid), 137);
    process::wait_until("the process in the container to be gone", || sleeps() == 1);
    assert_eq!(container.status(), "running");
    container.end(&up);
}

#[test]
fn a_signal_to_the_hosts_pid_reaches_the_process() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let script = "trap 'exit 44' TERM; touch /ready; sleep 100000 & while :; do wait $!; done";
    let pid = detached(&container, script);
    process::wait_until("the trap to be set", || container.rootfs().join("ready").exists());
    process::signal(pid, Signal::TERM);
    assert_eq!(wait_orphan(pid), 44);
    container.end(&up);
}

#[test]
fn it_ends_with_the_container() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let pid = detached(&container, "sleep 100000");
    container.kill("KILL").success();
    // In this order: without a VM, process 1 is not gone before its namespace is empty.
    assert_eq!(wait_orphan(pid), 137);
    assert_eq!(wait_orphan(up.pid), 137);
    container.delete().success();
}

#[test]
fn in_a_created_container() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.sh("cat /mark").create();
    container.exec_sh("echo from exec >/mark").success();
    container.start().success();
    assert_eq!(created.stdout.rest(), "from exec\n");
    assert_eq!(wait_orphan(created.pid), 0);
}

#[test]
fn in_a_stopped_container_it_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.up();
    wait_orphan(created.pid);
    scene.refused(&container.exec(&["true"]), &["cannot exec", "stopped"]);
}

#[test]
fn in_an_unknown_container_it_is_refused() {
    let scene = Scene::new();
    scene.refused(&scene.container().exec(&["true"]), &["does not exist"]);
}

#[test]
fn what_cannot_be_executed_is_named_in_runcs_words() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let missing = container.exec(&["no-such-program"]);
    scene.refused(&missing, &["exec: \"no-such-program\": executable file not found in $PATH"]);
    let missing = container.exec(&["/no/such/program"]);
    scene.refused(&missing, &["exec: \"/no/such/program\": ", "no such file or directory"]);
    let denied = container.exec(&["/etc/passwd"]);
    scene.refused(&denied, &["exec: \"/etc/passwd\": permission denied"]);
    assert_eq!(container.status(), "running");
    container.end(&up);
}

#[test]
fn detached_the_failure_is_told_before_exec_returns() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let mut command = container.command("exec");
    let outcome = run(command.args(["--detach", &container.id, "no-such-program"]));
    scene.refused(&outcome, &["executable file not found in $PATH"]);
    container.end(&up);
}

#[test]
fn without_a_command_it_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    assert_ne!(container.exec(&[]).code, 0);
    container.end(&up);
}
