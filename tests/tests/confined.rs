//! What a container's process on the host holds once the container is created: nothing that is worth taking.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tests::Scene;
use tests::process::{field, namespace, status_field};

/// Everything that a process has open, as /proc names it.
fn open_files(pid: i32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect()
}

/// The threads of a process: name, and the value of a line of `status`.
fn threads(pid: i32, line: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let look = |task: PathBuf| {
        let text = fs::read_to_string(task.join("status")).unwrap();
        (field(&text, "Name").unwrap(), field(&text, line).unwrap())
    };
    tasks.map(|task| look(task.unwrap().path())).collect()
}

/// Soft and hard limit of this name in `/proc/PID/limits`.
fn limits(pid: i32, name: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().take(2).map(str::to_owned).collect()
}

#[test]
fn vm_the_monitor() {
    let scene = Scene::new();
    let mut container = scene.container();
    // With a limit it keeps files of its cgroup.
    container.set("/linux/resources", json!({"memory": {"limit": 256 << 20}}));
    let up = container.idle();
    let pid = up.pid;

    let kept = threads(pid, "NoNewPrivs");
    assert!(kept.len() > 4 && kept.iter().all(|(_, value)| value == "1"), "{kept:?}");

    // Processes of the host are out of sight, so they get no signals.
    assert_ne!(namespace(pid, "pid"), namespace("self", "pid"));
    assert!(status_field(pid, "NSpid").unwrap().ends_with(" 1"));

    // A crash leaves nothing of the guest's memory, and a container has as many files as the host permits.
    assert_eq!(limits(pid, "Max core file size"), ["0", "0"]);
    let files = limits(pid, "Max open files");
    assert_eq!(files[0], files[1]);

    let open = open_files(pid);
    assert!(!open.iter().any(|path| path.starts_with("/dev/kvm")), "{open:?}");
    container.end(&up);
}
