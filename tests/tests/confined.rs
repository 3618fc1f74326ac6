//! What a container's process on the host holds once the container is created: nothing that is worth taking.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use tests::Scene;
use tests::process::{field, namespace, status_field};

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID and SETFCAP.
const FILES: &str = "00000000800000df";

/// Numbers of a file system and a file in it.
fn identity(path: impl AsRef<Path>) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Everything that a process has open, as /proc names it, and what it is.
fn open_files(pid: i32) -> Vec<(PathBuf, Option<(u64, u64)>)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.map(|entry| entry.unwrap().path()).map(|path| (fs::read_link(&path).unwrap(), identity(&path))).collect()
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

    // The guest reaches these threads without anybody in between: each has a filter, and no right but to the files it serves.
    let served = |name: &str| name.starts_with("vcpu") || name.starts_with("virtio-");
    let filtered = threads(pid, "Seccomp").into_iter().filter(|(name, _)| served(name)).collect::<Vec<_>>();
    assert!(filtered.len() >= 5 && filtered.iter().all(|(_, mode)| mode == "2"), "{filtered:?}");
    let capable = threads(pid, "CapPrm").into_iter().filter(|(name, _)| served(name));
    let capable: Vec<_> = capable.filter(|(_, set)| set != "0000000000000000").collect();
    assert_eq!(capable, [("virtio-fs".to_owned(), FILES.to_owned())]);
    // And those rights are over nothing of the host's.
    assert_ne!(namespace(pid, "user"), namespace("self", "user"));
    let bounds = threads(pid, "CapBnd");
    assert!(bounds.iter().all(|(_, set)| set == "0000000000000000"), "{bounds:?}");

    // Processes of the host are out of sight, so they get no signals.
    assert_ne!(namespace(pid, "pid"), namespace("self", "pid"));
    assert!(status_field(pid, "NSpid").unwrap().ends_with(" 1"));

    // A crash leaves nothing of the guest's memory, and a container has as many files as the host permits.
    assert_eq!(limits(pid, "Max core file size"), ["0", "0"]);
    let files = limits(pid, "Max open files");
    assert_eq!(files[0], files[1]);

    let open = open_files(pid);
    let host = |(path, file): &(PathBuf, Option<(u64, u64)>)| {
        ["/dev/kvm", "/dev/net"].iter().any(|place| path.starts_with(place)) || *file == identity("/proc")
    };
    assert!(!open.iter().any(host), "{open:?}");
    container.end(&up);
}
