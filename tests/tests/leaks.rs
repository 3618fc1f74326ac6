//! Many containers and many processes in a row: nothing may pile up.

use std::fs;
use std::process::Command;
use std::time::Duration;

use tests::process::field;
use tests::{Scene, command};

/// What all runs of a test may take in kB of the host's memory: what one guest touches. The host's own figure
/// swings by half of that from one look to the next, with what removed cgroups still hold.
const MEMORY_TOLERANCE: i64 = 64 << 10;

/// The same for the processes of a test and what they hold of a guest, in which nothing else goes on.
const INSIDE_TOLERANCE: i64 = 1 << 10;

/// What processes hold, by names of /proc/meminfo. Not what is free: each processor has a list of free pages that
/// counts as used, and grows to some MB.
const HELD: [&str; 6] = ["AnonPages", "Shmem", "Slab", "KernelStack", "PageTables", "Percpu"];

/// Memory that the host could give to somebody, in kB, once it has dropped what it only remembers.
fn available() -> i64 {
    command::run(Command::new("sync").arg("-f").arg("/run"));
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    number(&fs::read_to_string("/proc/meminfo").unwrap(), "MemAvailable")
}

/// How much less is available than once was. The kernel frees what removed cgroups held in its own time, so this
/// takes the best of some looks.
fn lost_since(before: i64) -> i64 {
    let look = |_| {
        let lost = before - available();
        if lost >= MEMORY_TOLERANCE {
            std::thread::sleep(Duration::from_millis(500));
        }
        lost
    };
    (0..20).map(look).find(|lost| *lost < MEMORY_TOLERANCE).unwrap_or_else(|| before - available())
}

fn number(text: &str, name: &str) -> i64 {
    let value = field(text, name).unwrap_or_else(|| panic!("no {name} in {text}"));
    value.split(' ').next().unwrap().parse().unwrap()
}

/// Open files of the whole host.
fn open_files() -> i64 {
    fs::read_to_string("/proc/sys/fs/file-nr").unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_hundred_runs() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut once = |n: u32| {
        let outcome = container.sh(&format!("echo run {n}; echo last {n}")).run().success();
        assert_eq!(outcome.stdout, format!("run {n}\nlast {n}\n"));
    };
    (0..3).for_each(&mut once);
    let (memory, files) = (available(), open_files());
    (0..100).for_each(&mut once);
    let lost = lost_since(memory);
    assert!(lost < MEMORY_TOLERANCE, "the host has lost {lost} kB in 100 runs");
    // The kernel counts files per CPU and in batches.
    let opened = open_files() - files;
    assert!(opened < 100, "{opened} more open files after 100 runs");
    drop(container);
    scene.check();
}

#[test]
fn a_hundred_processes_in_one_container() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let once = |n: u32| assert_eq!(container.exec(&["echo", &n.to_string()]).success().line(), n.to_string());
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", up.pid)).unwrap().count();
    let threads = || number(&fs::read_to_string(format!("/proc/{}/status", up.pid)).unwrap(), "Threads");
    let inside = || {
        let text = container.exec(&["cat", "/proc/meminfo"]).success().stdout;
        HELD.iter().map(|name| number(&text, name)).sum::<i64>()
    };
    (0..10).for_each(once);
    let before = (descriptors(), threads(), inside());
    (10..110).for_each(once);
    let after = (descriptors(), threads(), inside());
    assert!(after.0 <= before.0 + 2, "descriptors of the pid: {} and then {}", before.0, after.0);
    assert!(after.1 <= before.1 + 2, "threads of the pid: {} and then {}", before.1, after.1);
    assert!(after.2 - before.2 < INSIDE_TOLERANCE, "memory in the container: {} and then {} kB", before.2, after.2);
    container.end(&up);
}

#[test]
fn containers_that_fail_leave_nothing_either() {
    let scene = Scene::new();
    let mut container = scene.container();
    let memory = available();
    for _ in 0..10 {
        container.args(&["no-such-program"]).run().failure();
    }
    let lost = lost_since(memory);
    assert!(lost < MEMORY_TOLERANCE, "the host has lost {lost} kB in 10 failures");
    drop(container);
    scene.check();
}
