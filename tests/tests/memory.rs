//! Memory that comes and goes: what is freed goes back to the host, and limits move both ways.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::command::run;
use tests::{Container, Scene};

const MIB: u64 = 1 << 20;

/// `VmRSS` (what a process has resident) or `VmHWM` (the most it ever had), in MiB.
#[track_caller]
fn resident(pid: i32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("a process that lives").trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Insists that 90 % of a GiB, which was part of `full` MiB, are soon the host's again.
#[track_caller]
fn expect_return(pid: i32, full: u64) {
    let begin = Instant::now();
    while resident(pid, "VmRSS") + 1024 * 9 / 10 > full {
        let (now, elapsed) = (resident(pid, "VmRSS"), begin.elapsed());
        assert!(elapsed < Duration::from_secs(30), "{now} of {full} MiB are resident after {elapsed:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("90 % of 1 GiB back after {:?}", begin.elapsed());
}

#[track_caller]
fn update(container: &Container, flags: &[&str]) {
    let mut command = container.command("update");
    run(command.args(flags).arg(&container.id)).success();
}

/// A process that wants 100 MB at once; whether it got them.
#[track_caller]
fn gets_100_mb(container: &Container) -> bool {
    let outcome = container.exec_sh("dd if=/dev/zero of=/dev/null bs=100000000 count=1");
    assert!([0, 137].contains(&outcome.code), "{outcome:?}");
    outcome.code == 0
}

#[test]
fn vm_memory_of_a_removed_file_goes_back_to_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.mount("tmpfs", Path::new("tmpfs"), "/tank", &["size=1100m"]);
    let up = container.idle();
    let before = resident(up.pid, "VmRSS");
    container.exec_sh("dd if=/dev/zero of=/tank/file bs=1M count=1024").success();
    let full = resident(up.pid, "VmRSS");
    assert!(full >= before + 1024, "{before} MiB, then {full}");
    container.exec_sh("rm /tank/file").success();
    expect_return(up.pid, full);
    // It can be had again.
    container.exec_sh("dd if=/dev/zero of=/tank/file bs=1M count=256").success();
    container.exec_sh("head -c 4096 /tank/file | cmp -n 4096 - /dev/zero").success();
    container.end(&up);
}

#[test]
fn vm_memory_of_a_process_that_ended_goes_back_to_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    container.exec_sh("dd if=/dev/zero of=/dev/null bs=1G count=1").success();
    let most = resident(up.pid, "VmHWM");
    assert!(most >= 1024, "{most} MiB");
    expect_return(up.pid, most);
    container.end(&up);
}

// The host's limit is for the VM as a whole. One that holds its own must never be killed for the memory its kernel keeps at hand.
#[test]
fn a_container_at_its_limit_is_not_killed_by_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.mount("tmpfs", Path::new("tmpfs"), "/tank", &[]);
    container.set("/linux/resources", json!({"memory": {"limit": 200 * MIB, "swap": 200 * MIB}}));
    let up = container.idle();
    let fill = "for i in $(seq 20); do dd if=/dev/zero of=/tank/$i bs=1M count=8 2>/dev/null; done";
    for _ in 0..4 {
        container.exec_sh(&format!("{fill}; rm /tank/*; dd if=/dev/zero of=/dev/null bs=150M count=1")).success();
        // More than there is ends what asked for it, and nothing else.
        container.exec_sh("dd if=/dev/zero of=/dev/null bs=300M count=1").failure();
    }
    assert_eq!(container.status(), "running");
    container.end(&up);
}

#[test]
fn a_raised_limit_is_there_to_be_used_and_a_lowered_one_is_not() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/resources", json!({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}));
    let up = container.idle();
    assert!(!gets_100_mb(&container), "more than the limit of the bundle");
    update(&container, &["--memory", "256m", "--memory-swap", "256m"]);
    assert!(gets_100_mb(&container), "less than the new limit");
    update(&container, &["--memory", "64m", "--memory-swap", "64m"]);
    assert!(!gets_100_mb(&container), "more than the lowered limit");
    container.end(&up);
}
