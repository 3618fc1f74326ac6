//! A container that systemd runs, as podman starts one.

use std::time::{Duration, Instant};

use tests::podman::Podman;

const IMAGE: &str = "runvm-test-systemd";
const NAME: &str = "runvm-test-systemd-box";

/// Waits until systemd has started everything; what it says then.
#[track_caller]
fn settled(podman: &Podman) -> String {
    let deadline = Instant::now() + tests::PATIENCE;
    loop {
        let state = podman.run(&["exec", NAME, "systemctl", "is-system-running", "--wait"]).line().to_owned();
        // Before it listens, its client has nothing to say.
        if !["", "offline"].contains(&state.as_str()) || Instant::now() > deadline {
            return state;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn systemd_is_its_first_process() {
    let podman = Podman::new();
    podman.import(&std::env::var("TEST_SYSTEMD_IMAGE").expect("TEST_SYSTEMD_IMAGE is set by tools/test"), IMAGE);
    let flags = ["--detach", "--network", "none", "--systemd=always", "--name", NAME, IMAGE, "/sbin/init"];
    podman.run(&[&["run"][..], &flags].concat()).success();
    assert_eq!(settled(&podman), "running", "{:?}", podman.run(&["exec", NAME, "systemctl", "--failed"]));
    let inside = |args: &[&str]| podman.run(&[&["exec", NAME][..], args].concat());

    // A unit has a cgroup of its own, with its limits, in the part of the tree that is systemd's.
    let limits = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max /proc/self/cgroup";
    let unit = ["systemd-run", "--quiet", "--wait", "--pipe", "--unit=limited", "--property=MemoryMax=64M"];
    let unit = inside(&[&unit[..], &["sh", "-c", limits]].concat()).success();
    assert_eq!(unit.stdout, "67108864\n0::/system.slice/limited.service\n");
    assert_eq!(inside(&["systemd-run", "--quiet", "--wait", "sh", "-c", "exit 3"]).code, 3);

    // The journal holds what a unit wrote.
    inside(&["systemd-run", "--quiet", "--wait", "--unit=speaks", "echo", "words of a unit"]).success();
    let journal = inside(&["journalctl", "--quiet", "--output=cat", "--unit=speaks"]).success();
    assert!(journal.stdout.contains("words of a unit"), "{journal:?}");

    // Podman's stop signal for systemd has it end everything in order.
    podman.run(&["stop", "--time", "60", NAME]).success();
    assert_eq!(
        (podman.inspect(NAME, ".State.Status"), podman.inspect(NAME, ".State.ExitCode")),
        ("exited".to_owned(), "0".to_owned())
    );
    podman.run(&["rm", NAME]).success();
    podman.run(&["rmi", IMAGE]).success();
}
