//! systemd in a container as podman starts one, and on the host, where it keeps the cgroups.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::command::Outcome;
use tests::podman::Podman;
use tests::process::wait_until;
use tests::{Scene, place};

const IMAGE: &str = "runvm-test-systemd";
const NAME: &str = "runvm-test-systemd-box";
const HOST: &str = "runvm-test-systemd-host";

/// Waits until systemd has started everything; what it says then.
#[track_caller]
fn settled(podman: &Podman, name: &str) -> String {
    let deadline = Instant::now() + tests::PATIENCE;
    loop {
        let state = podman.run(&["exec", name, "systemctl", "is-system-running", "--wait"]).line().to_owned();
        // Before it listens, its client has nothing to say.
        if !["", "offline"].contains(&state.as_str()) || Instant::now() > deadline {
            return state;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn import(podman: &Podman) {
    podman.import(&std::env::var("TEST_SYSTEMD_IMAGE").expect("TEST_SYSTEMD_IMAGE is set by tools/test"), IMAGE);
}

/// A host with systemd, which the lab is not: an ordinary container with all of the lab's devices. The runtime is in it.
struct Host<'a> {
    podman: &'a Podman,
    scene: &'a Scene,
}

impl<'a> Host<'a> {
    fn boot(podman: &'a Podman, scene: &'a Scene) -> Self {
        let volume = |dir: &std::path::Path| format!("{0}:{0}", dir.display());
        let volumes = [volume(scene.dir()), volume(place::runtime().parent().unwrap())];
        let flags = ["--runtime", "crun", "run", "--detach", "--privileged", "--systemd=always", "--network", "none"];
        let more = ["--name", HOST, "--volume", &volumes[0], "--volume", &volumes[1], IMAGE, "/sbin/init"];
        podman.run(&[&flags[..], &more].concat()).success();
        assert_eq!(settled(podman, HOST), "running", "{:?}", podman.run(&["exec", HOST, "systemctl", "--failed"]));
        Self { podman, scene }
    }

    /// A command on it.
    fn run(&self, args: &[&str]) -> Outcome {
        self.podman.run(&[&["exec", HOST][..], args].concat())
    }

    /// `runtime --systemd-cgroup ARGS…` on it.
    fn runtime(&self, args: &[&str]) -> Outcome {
        let (program, root) = (place::runtime().display().to_string(), self.scene.root().display().to_string());
        let log = self.scene.log().display().to_string();
        self.run(&[&[&*program, "--root", &root, "--log", &log, "--systemd-cgroup"][..], args].concat())
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.run(&["systemctl", "show", "--property", name, "--value", unit]).success().line().to_owned()
    }
}

#[test]
fn scopes_are_units_of_systemd() {
    let (podman, scene) = (Podman::new(), Scene::new());
    import(&podman);
    let mut container = scene.container();
    let (id, bundle) = (container.id.clone(), container.bundle().display().to_string());
    let (unit, slice) = (format!("test-{id}.scope"), "own-part.slice");
    container.args(&["sleep", "1000"]).set("/linux/cgroupsPath", json!(format!("{slice}:test:{id}")));
    container.set("/linux/resources/memory", json!({"limit": 64 << 20}));
    container.set("/linux/resources/cpu", json!({"shares": 512, "quota": 50000, "period": 100_000}));
    container.write();
    let host = Host::boot(&podman, &scene);

    host.run(&[
        "sh",
        "-c",
        &format!(
            "{} --root {} --systemd-cgroup create --bundle {bundle} {id} >/dev/null 2>{bundle}/said </dev/null",
            place::runtime().display(),
            scene.root().display()
        ),
    ])
    .success();
    host.runtime(&["start", &id]).success();
    assert_eq!(host.property(&unit, "ActiveState"), "active");
    assert_eq!((host.property(&unit, "Slice"), host.property(&unit, "Delegate")), (slice.to_owned(), "yes".to_owned()));
    assert_eq!(host.property(&unit, "ControlGroup"), format!("/own.slice/{slice}/{unit}"));
    assert_eq!(
        (host.property(&unit, "CPUQuotaPerSecUSec"), host.property(&unit, "CPUWeight")),
        ("500ms".to_owned(), "20".to_owned())
    );
    let file = |name: &str| {
        host.run(&["cat", &format!("/sys/fs/cgroup/own.slice/{slice}/{unit}/{name}")]).success().line().to_owned()
    };
    let limit = file("memory.max");
    assert_eq!(host.property(&unit, "MemoryMax"), limit);
    assert!(limit.parse::<u64>().unwrap() >= 64 << 20, "{limit}");

    // No process in there opens a device, be it before systemd applies its own settings or after that.
    assert_eq!(host.property(&unit, "DevicePolicy"), "strict");
    let open = |device: &str| {
        let enter = format!("echo $$ >/sys/fs/cgroup/own.slice/{slice}/{unit}/cgroup.procs");
        host.run(&["sh", "-c", &format!("{enter} && exec dd if={device} of=/dev/null count=0")])
    };
    let devices_are_out_of_reach = || {
        open("/dev/null").success();
        let refused = open("/dev/kvm").failure();
        assert!(refused.stderr.contains("Operation not permitted"), "{refused:?}");
    };
    devices_are_out_of_reach();

    // What systemd applies anew is what was asked for.
    host.runtime(&["update", "--cpu-quota", "20000", "--cpu-period", "100000", &id]).success();
    host.run(&["systemctl", "daemon-reload"]).success();
    assert_eq!((file("cpu.max"), file("memory.max")), ("20000 100000".to_owned(), limit));
    devices_are_out_of_reach();
    assert_eq!(host.runtime(&["exec", &id, "echo", "inside"]).success().line(), "inside");

    // systemd's own way to end it, and ours.
    host.run(&["systemctl", "stop", &unit]).success();
    host.runtime(&["delete", &id]).success();
    let again = host.runtime(&["run", "--bundle", &bundle, "--detach", &id]);
    again.success();
    host.runtime(&["delete", "--force", &id]).success();
    // systemd forgets a unit when it has time for that.
    wait_until("the unit is forgotten", || host.property(&unit, "LoadState") == "not-found");
    host.run(&["sh", "-c", &format!("! ls -d /sys/fs/cgroup/own.slice/{slice}/{unit}")]).success();

    podman.run(&["rm", "--force", "--time", "0", HOST]).success();
    podman.run(&["rmi", IMAGE]).success();
}

#[test]
fn without_systemd_there_are_no_scopes() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/cgroupsPath", json!(format!("system.slice:test:{}", container.id)));
    container.write();
    let mut command = scene.runtime();
    command.args(["--systemd-cgroup", "create", "--bundle"]).arg(container.bundle()).arg(&container.id);
    let outcome = tests::command::run(&mut command).failure();
    scene.refused(&outcome, &["systemd not running on this host, cannot use systemd cgroups manager"]);
}

#[test]
fn systemd_is_its_first_process() {
    let podman = Podman::new();
    import(&podman);
    let flags = ["--detach", "--network", "none", "--systemd=always", "--name", NAME, IMAGE, "/sbin/init"];
    podman.run(&[&["run"][..], &flags].concat()).success();
    assert_eq!(settled(&podman, NAME), "running", "{:?}", podman.run(&["exec", NAME, "systemctl", "--failed"]));
    let inside = |args: &[&str]| podman.run(&[&["exec", NAME][..], args].concat());

    // A unit has a cgroup of its own, with its limits, in the part of the tree that is systemd's.
    let limits = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max /proc/self/cgroup";
    let unit = ["systemd-run", "--quiet", "--wait", "--pipe", "--unit=limited", "--property=MemoryMax=64M"];
    let unit = inside(&[&unit[..], &["sh", "-c", limits]].concat()).success();
    assert_eq!(unit.stdout, "67108864\n0::/system.slice/limited.service\n");
    inside(&["systemd-run", "--quiet", "--wait", "sh", "-c", "exit 3"]).exits(3);

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
