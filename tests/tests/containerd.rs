//! An unmodified containerd whose shim runs containers with the runtime under test.

use std::fs::File;

use serde_json::Value;
use tests::command::{run, run_with_input};
use tests::containerd::Containerd;
use tests::process;

#[test]
fn exit_codes() {
    let containerd = Containerd::new();
    for wanted in [0, 3] {
        let script = format!("echo out; echo err >&2; exit {wanted}");
        let outcome = run(&mut containerd.container(&["--rm"], "codes", &["sh", "-c", &script]));
        assert_eq!((outcome.code, outcome.stdout.as_str()), (wanted, "out\n"), "{outcome:?}");
        assert!(outcome.stderr.contains("err\n"), "{outcome:?}");
    }
    for (program, reason) in
        [("no-such-program", "executable file not found in $PATH"), ("/etc/passwd", "permission denied")]
    {
        let outcome = run(&mut containerd.container(&["--rm"], "codes", &[program])).failure();
        assert!(outcome.stderr.contains(reason), "{outcome:?}");
    }
}

#[test]
fn input_comes_out_again() {
    let containerd = Containerd::new();
    let path = tests::place::work().join("containerd-input");
    let bytes: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    std::fs::write(&path, &bytes).unwrap();
    let mut command = containerd.container(&["--rm"], "input", &["cat"]);
    let outcome = run_with_input(&mut command, File::open(&path).unwrap()).success();
    std::fs::remove_file(&path).unwrap();
    assert!(outcome.stdout == bytes, "what came out is not what went in: {} bytes", outcome.stdout.len());
}

#[test]
fn a_task_is_executed_in_and_stopped() {
    let containerd = Containerd::new();
    let script = "trap 'exit 9' TERM; touch /up; sleep 100000 & wait $!";
    run(&mut containerd.container(&["--detach"], "life", &["sh", "-c", script])).success();
    assert_eq!(containerd.status("life"), "RUNNING");
    process::wait_until("the trap", || containerd.exec("life", &["test", "-e", "/up"]).code == 0);
    let outcome = containerd.exec("life", &["sh", "-c", "echo from exec; echo err >&2; exit 4"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, "from exec\n"), "{outcome:?}");
    assert!(outcome.stderr.contains("err\n"), "{outcome:?}");
    let missing = containerd.exec("life", &["no-such-program"]).failure();
    assert!(missing.stderr.contains("executable file not found in $PATH"), "{missing:?}");
    containerd.run(&["task", "kill", "--signal", "TERM", "life"]).success();
    assert_eq!(containerd.remove("life"), 9);
}

#[test]
fn a_killed_task_is_137() {
    let containerd = Containerd::new();
    run(&mut containerd.container(&["--detach"], "killed", &["sleep", "100000"])).success();
    containerd.run(&["task", "kill", "--signal", "KILL", "killed"]).success();
    assert_eq!(containerd.remove("killed"), 137);
}

#[test]
fn pause_and_resume() {
    let containerd = Containerd::new();
    run(&mut containerd.container(&["--detach"], "paused", &["sleep", "100000"])).success();
    containerd.run(&["task", "pause", "paused"]).success();
    assert_eq!(containerd.status("paused"), "PAUSED");
    containerd.exec("paused", &["true"]).failure();
    containerd.run(&["task", "resume", "paused"]).success();
    assert_eq!(containerd.status("paused"), "RUNNING");
    containerd.exec("paused", &["true"]).success();
    containerd.run(&["task", "kill", "--signal", "KILL", "paused"]).success();
    assert_eq!(containerd.remove("paused"), 137);
}

#[test]
fn figures_of_a_task() {
    let containerd = Containerd::new();
    run(&mut containerd.container(&["--detach"], "figures", &["sleep", "100000"])).success();
    let list = containerd.run(&["task", "list"]).success().stdout;
    let pid = list.lines().find(|line| line.starts_with("figures")).and_then(|line| line.split_whitespace().nth(1));
    let pid = pid.unwrap_or_else(|| panic!("no pid in {list}"));
    let processes = containerd.run(&["task", "ps", "figures"]).success().stdout;
    assert!(processes.lines().any(|line| line.split_whitespace().next() == Some(pid)), "{pid} is not in {processes}");
    let metrics = containerd.run(&["task", "metrics", "--format", "json", "figures"]).success().stdout;
    let metrics: Value = serde_json::from_str(&metrics).unwrap();
    let figure = |pointer: &str| metrics.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    // The whole of it runs in the cgroup that containerd asks for.
    for pointer in ["/memory/usage", "/cpu/usage_usec", "/pids/current"] {
        assert!(figure(pointer) > 0, "{pointer}: {metrics}");
    }
    containerd.run(&["task", "kill", "--signal", "KILL", "figures"]).success();
    containerd.remove("figures");
}

#[test]
fn a_task_outlives_the_daemon() {
    let mut containerd = Containerd::new();
    run(&mut containerd.container(
        &["--detach", "--null-io"],
        "outlives",
        &["sh", "-c", "touch /up; exec sleep 100000"],
    ))
    .success();
    containerd.restart();
    assert_eq!(containerd.status("outlives"), "RUNNING");
    assert_eq!(containerd.exec("outlives", &["sh", "-c", "ls /up; exit 5"]).code, 5);
    containerd.run(&["task", "kill", "--signal", "KILL", "outlives"]).success();
    assert_eq!(containerd.remove("outlives"), 137);
}
