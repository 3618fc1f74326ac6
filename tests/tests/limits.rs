//! Resource limits of whoever calls, and settings of the host's kernel.

use std::fs;
use std::process::Command;

use serde_json::json;
use tests::command::{self, Outcome};
use tests::unix::{CLIENT, client};
use tests::{Container, Scene, place};

/// Runs a command of the container's with these limits, as options of prlimit(1).
#[track_caller]
fn limited(container: &Container, limits: &[&str], verb: &str, args: &[&str]) -> Outcome {
    let mut command = Command::new("prlimit");
    command.args(limits);
    let runtime = container.named(verb, args);
    command.arg(runtime.get_program()).args(runtime.get_args());
    command::run(&mut command)
}

/// Lines of /proc/PID/limits, without the open files: Go's runtime, in which runc is written, raises that one.
fn lines(text: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().filter(|line| !line.starts_with("Max open files")).map(words).collect()
}

const SOME: [&str; 8] = [
    "--core=4096:8192",
    "--stack=4194304:16777216",
    "--memlock=131072:262144",
    "--nproc=3000:4000",
    "--sigpending=500:600",
    "--msgqueue=65536:65536",
    "--fsize=67108864:134217728",
    "--nofile=3000:4000",
];

#[test]
fn those_that_the_bundle_does_not_name_are_the_callers() {
    let scene = Scene::new();
    let show = ["cat", "/proc/self/limits"];
    let of_host = command::run(Command::new("prlimit").args(SOME).args(show)).success();
    let mut container = scene.container();
    container.set("/process/rlimits", json!([])).args(&show);
    let inside = limited(&container, &SOME, "run", &[]).success();
    assert_eq!(lines(&inside.stdout), lines(&of_host.stdout));
    assert!(inside.stdout.lines().any(|line| line.starts_with("Max open files") && line.contains(" 4000 ")));

    let limit =
        json!([{"type": "RLIMIT_NPROC", "soft": 50, "hard": 60}, {"type": "RLIMIT_FSIZE", "soft": 1, "hard": 2}]);
    let mut container = scene.container();
    container.set("/process/rlimits", limit);
    let created = container.idle();
    let inside = limited(&container, &SOME, "exec", &show).success();
    let expected = of_host.stdout.lines().map(|line| match line {
        line if line.starts_with("Max processes") => "Max processes 50 60 processes",
        line if line.starts_with("Max file size") => "Max file size 1 2 bytes",
        line => line,
    });
    assert_eq!(lines(&inside.stdout), lines(&expected.collect::<Vec<_>>().join("\n")));
    container.end(&created);
}

#[test]
fn file_size_and_time_end_who_uses_them() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.sh("dd if=/dev/zero of=/big bs=64k count=64 seek=1000 2>/dev/null; echo $?; stat -c %s /big; echo alive");
    let outcome = limited(&container, &["--fsize=67108864"], "run", &[]).success();
    assert_eq!(outcome.stdout, "153\n67108864\nalive\n");

    // One that may not have more is ended by SIGXCPU; its monitor has used more already.
    let mut container = scene.container();
    container.sh("sh -c 'while :; do :; done'; echo $?");
    let outcome = limited(&container, &["--cpu=1:60"], "run", &[]).success();
    assert_eq!(outcome.stdout, "152\n");
}

#[test]
fn an_address_space_too_small_for_a_vm_is_no_hindrance() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.sh("ulimit -v; echo alive");
    let outcome = limited(&container, &["--as=1500000000", "--data=1000000000"], "run", &[]).success();
    assert_eq!(outcome.stdout, "1464843\nalive\n");
}

#[test]
fn few_descriptors_of_the_callers_are_no_fewer_of_the_containers() {
    let scene = Scene::new();
    let mut container = scene.container();
    fs::write(scene.dir().join("file"), "").unwrap();
    container.mount("bind", client(), CLIENT, &["bind", "ro"]);
    container.mount("bind", scene.dir(), "/volume", &["bind"]);
    container.set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096}]));
    container.sh(&format!("{CLIENT}/open /volume/file 3000"));
    for limit in ["--nofile=64:524288", "--nofile=256:256"] {
        assert_eq!(limited(&container, &[limit], "run", &[]).success().stdout, "3000\n", "{limit}");
    }
}

/// A setting of the host's kernel that has another value until this is dropped.
struct Setting(String, String);

impl Setting {
    fn new(name: &str, value: &str) -> Self {
        let path = format!("/proc/sys/{name}");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self(path, before)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        fs::write(&self.0, self.1.trim_end()).unwrap();
    }
}

const SETTINGS: [(&str, &str); 16] = [
    ("fs/aio-max-nr", "131072"),
    ("fs/file-max", "345678"),
    ("fs/inotify/max_queued_events", "20000"),
    ("fs/inotify/max_user_instances", "777"),
    ("fs/inotify/max_user_watches", "654321"),
    ("fs/nr_open", "2097152"),
    ("fs/pipe-max-size", "2097152"),
    ("fs/protected_fifos", "2"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_regular", "2"),
    ("fs/protected_symlinks", "1"),
    ("kernel/core_pattern", "|/usr/bin/no-such-program %p"),
    ("kernel/pid_max", "123456"),
    ("kernel/threads-max", "23456"),
    ("vm/max_map_count", "262144"),
    ("vm/overcommit_memory", "1"),
];

#[test]
fn settings_of_the_hosts_kernel_hold() {
    assert!(place::host_is_ours(), "this changes the host's settings");
    let scene = Scene::new();
    let _set = SETTINGS.map(|(name, value)| Setting::new(name, value));
    let mut container = scene.container();
    container.set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 2_000_000, "hard": 2_000_000}]));
    let names = SETTINGS.map(|(name, _)| format!("/proc/sys/{name}")).join(" ");
    let outcome = container.sh(&format!("cat {names}; ulimit -n")).run().success();
    let mut expected = SETTINGS.map(|(_, value)| value).join("\n");
    expected += "\n2000000\n";
    assert_eq!(outcome.stdout, expected);
}

#[test]
fn core_files_are_where_the_host_has_them() {
    assert!(place::host_is_ours(), "this changes the host's settings");
    let scene = Scene::new();
    let crash = "mkdir -p /cores; cd /; sh -c 'kill -SEGV $$'; echo $?; echo /core* /cores/*";
    for (pattern, files) in [("/cores/core.%e", "/cores/core.sh"), ("|/usr/bin/no-such-program %p", "/cores/*")] {
        let _set = Setting::new("kernel/core_pattern", pattern);
        let mut container = scene.container();
        container.sh(crash).set("/process/rlimits", json!([{"type": "RLIMIT_CORE", "soft": 1 << 30, "hard": 1 << 30}]));
        let outcome = container.run().success();
        assert_eq!(outcome.stdout, format!("139\n/cores {files}\n"), "{pattern}");
    }
}
