//! A monitor that an attacker owns: whatever a thread of it is told to do to the host is refused, or caught by its filter.
//!
//! The runtime of this area has a feature that no other build has (`confinement/owned.rs`): a signal has a thread make system
//! calls, and the log says what came of them. The same calls of a process that is not confined succeed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;
use tests::disk::Disk;
use tests::netns::Netns;
use tests::{Container, Created, Scene, command, place, process};

/// The signal, and a bit of its value: a call that is caught ends the process.
const SIGNAL: i32 = 43;
const FOR_GOOD: usize = 0x80;
/// The attack that makes a namespace.
const UNSHARE: usize = 4;

/// What the calls are about, where the runtime's feature looks for it.
const GROUND: &str = "/run/runvm-owned";
/// A module of the kernel without parts of others.
const MODULE: &str = "dummy";

/// The threads of a container with a disk and a link, by the names that they have in the log, with the calls that their filters
/// let through to the kernel, which refuses them.
const THREADS: [(&str, &[&str]); 12] = [
    (
        "vcpu",
        &[
            "open a file of the host",
            "open a file of the host from below",
            "open a disk by a node of the guest's",
            "change the owner of a file of the host",
        ],
    ),
    ("vsock", &[]),
    (
        "fs",
        &[
            "open a file of the host",
            "open a file of the host from below",
            "open a disk by a node of the guest's",
            "make a node of a disk",
            "change the owner of a file of the host",
        ],
    ),
    ("net", &[]),
    ("block", &[]),
    ("device", &[]),
    ("main", &[]),
    ("stdout", &[]),
    ("blocking", &[]),
    ("proxy", &[]),
    // Its file system is the container's: what the test has made is not there.
    ("nodes", &["make a node of a disk"]),
    (
        "network-helper",
        &[
            "open a file of the host",
            "open a file of the host from below",
            "open a disk by a node of the guest's",
            "make a raw socket",
        ],
    ),
];

/// A file, a mount point, a module and a link to a node.
struct Ground;

impl Ground {
    fn new(node: &Path) -> Self {
        // A test before this one may have needed it.
        let _ = command::run(Command::new("rmmod").arg(MODULE));
        let at = |name: &str| PathBuf::from(GROUND).join(name);
        fs::create_dir_all(at("mount")).unwrap();
        fs::write(at("secret"), "untouched").unwrap();
        fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        let found = command::run(Command::new("modinfo").args(["-n", MODULE])).success();
        fs::copy(found.line(), at("module.ko")).unwrap();
        std::os::unix::fs::symlink(node, at("disk")).unwrap();
        Self
    }

    fn is_untouched(&self) {
        let secret = fs::metadata(format!("{GROUND}/secret")).unwrap();
        assert_eq!((secret.uid(), secret.gid(), secret.mode() & 0o7777), (0, 0, 0o600));
        assert!(!Path::new(GROUND).join("node").exists());
        assert!(!Path::new("/sys/module").join(MODULE).exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(GROUND), "{mounts}");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let _ = unmount(format!("{GROUND}/mount"), UnmountFlags::DETACH);
        let _ = command::run(Command::new("rmmod").arg(MODULE));
        let _ = fs::remove_dir_all(GROUND);
    }
}

/// A process that a signal ends.
struct Victim(Child);

impl Victim {
    fn new() -> Self {
        Self(Command::new("sleep").arg("100000").spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the runtime with the feature does in a process of its own, by the number of the attack; none after the last.
fn unconfined(index: usize, pid: i32) -> Option<(String, i64)> {
    let mut command = Command::new(place::runtime());
    let outcome = command::run(command.arg("owned-control").arg(index.to_string()).arg(pid.to_string())).success();
    match outcome.line() {
        "that is all" => None,
        // The program that it has become.
        "" => Some(("execute a program".to_owned(), 0)),
        line => line.rsplit_once(": ").map(|(name, result)| (name.to_owned(), result.parse().unwrap())),
    }
}

/// Has a thread make the attacks of these numbers, on this process.
fn attack(thread: Thread, attacks: impl Iterator<Item = usize>, victim: i32) {
    for attack in attacks {
        // SAFETY: a structure of numbers and pointers, for which zeros are good.
        let mut information: libc::siginfo_t = unsafe { std::mem::zeroed() };
        (information.si_signo, information.si_code) = (SIGNAL, libc::SI_QUEUE);
        let value = attack | (victim as usize) << 8;
        // SAFETY: the value of a signal that was queued lies behind pid and uid, 24 bytes from the beginning; the kernel copies
        // the structure.
        let sent = unsafe {
            (&raw mut information).cast::<usize>().add(3).write(value);
            libc::syscall(libc::SYS_rt_tgsigqueueinfo, thread.pid, thread.id, SIGNAL, &raw const information)
        };
        assert_eq!(sent, 0, "{thread:?}: {}", std::io::Error::last_os_error());
    }
}

#[derive(Clone, Copy, Debug)]
struct Thread {
    pid: i32,
    id: i32,
}

/// The threads of a process whose names begin like this.
fn threads(pid: i32, name: &str) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let named =
        tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name)));
    named.map(|task| Thread { pid, id: task.file_name().to_str().unwrap().parse().unwrap() }).collect()
}

/// A thread of the container, by its name in the log.
fn thread(name: &str, up: &Created, proxy: i32) -> Thread {
    let first = |pid: i32| Thread { pid, id: pid };
    let below = |what: &str| {
        let found = process::descendants().into_iter().find(|(_, is)| is.starts_with(what));
        first(found.unwrap_or_else(|| panic!("no {what}: {:?}", process::descendants())).0)
    };
    let comm = match name {
        "main" => return first(up.pid),
        "proxy" => return first(proxy),
        "network-helper" => return below("network-helper"),
        "nodes" => return below("node-maker"),
        "device" => "virtio-rng",
        "blocking" => "tokio",
        "vsock" | "fs" | "net" | "block" => &format!("virtio-{name}"),
        other => other,
    };
    *process::until(comm, || threads(up.pid, comm).first().copied().map(Box::new))
}

/// What the log says of the attacks of a thread: attack and outcome.
fn told(scene: &Scene, thread: &str) -> Vec<(String, String)> {
    let log = fs::read_to_string(scene.log()).unwrap_or_default();
    let begin = format!("\"owned: {thread}: ");
    let lines = log.lines().filter_map(|line| line.split_once(&begin)?.1.strip_suffix("\"}")?.split_once(": "));
    lines.map(|(attack, outcome)| (attack.to_owned(), outcome.to_owned())).collect()
}

/// A container with a disk and a link, whose root may make device nodes, and has made one of the disk.
fn container<'a>(scene: &'a Scene, disk: &Disk, namespace: &Netns) -> (Container<'a>, Created) {
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": namespace.path()})));
    let capabilities = json!(["CAP_MKNOD", "CAP_KILL", "CAP_SYS_ADMIN"]);
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    container.set("/process/capabilities", sets);
    let (major, minor) = disk.number();
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "access": "m"},
        {"allow": true, "type": "b", "major": major, "minor": minor, "access": "rwm"},
    ]);
    container.set("/linux/resources", json!({"devices": rules}));
    container.set("/linux/devices", json!([{"path": "/dev/data", "type": "b", "major": major, "minor": minor}]));
    let mut created = container.sh(&format!("mknod /owned-disk b {major} {minor} && echo up; sleep 100000")).up();
    created.stdout.expect("up\n");
    (container, created)
}

#[test]
fn vm_nothing_of_the_hosts_is_reached_by_any_thread() {
    let scene = Scene::new();
    let (disk, namespace) = (Disk::new(scene.dir()), Netns::new("runvm-test"));
    namespace.veth(77, ("rvt0", "eth0"));
    let (mut first, up) = container(&scene, &disk, &namespace);
    let ground = Ground::new(&first.rootfs().join("owned-disk"));
    let mut joined = scene.container();
    joined.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", up.pid)})));
    let proxy = joined.idle();

    // What the attacks are, and that they work.
    let mut attacks = Vec::new();
    while let Some((attack, result)) = {
        let victim = Victim::new();
        unconfined(attacks.len(), victim.pid())
    } {
        assert!(result >= 0, "not confined: {attack}: {result}");
        attacks.push(attack);
    }
    assert!(attacks.len() >= 20, "{attacks:?}");
    drop(ground);

    let ground = Ground::new(&first.rootfs().join("owned-disk"));
    let (mut caught, mut refused) = (0, 0);
    for (name, let_through) in THREADS {
        if name == "blocking" {
            // A process of more rights has the policies of files changed, by such a thread.
            let mut more = first.command("exec");
            command::run(more.args(["--cap", "CAP_SETFCAP", &first.id, "true"])).success();
        }
        // The attacks on a process are on the other container's.
        let victim = if name == "proxy" { up.pid } else { proxy.pid };
        attack(thread(name, &up, proxy.pid), 0..attacks.len(), victim);
        process::wait_until(name, || told(&scene, name).len() == attacks.len());
        for (attack, outcome) in told(&scene, name) {
            let expected = if let_through.contains(&attack.as_str()) { "refused " } else { "caught " };
            assert!(outcome.starts_with(expected), "{name}: {attack}: {outcome}");
            if expected == "caught " { caught += 1 } else { refused += 1 }
        }
    }
    println!("{caught} calls caught by filters, {refused} refused by the kernel, none done");
    assert_eq!(caught + refused, THREADS.len() * attacks.len());
    ground.is_untouched();
    for pid in [up.pid, proxy.pid] {
        assert_eq!(process::status_field(pid, "TracerPid").as_deref(), Some("0"));
    }
    assert_eq!(joined.end(&proxy), 137);
    assert_eq!(first.end(&up), 137);
}

#[test]
fn vm_a_call_that_is_caught_ends_the_vm_and_is_named() {
    for name in ["main", "fs", "stdout"] {
        let scene = Scene::new();
        let mut container = scene.container();
        let up = container.idle();
        attack(thread(name, &up, 0), std::iter::once(UNSHARE | FOR_GOOD), 0);
        assert_eq!(process::wait_orphan(up.pid), 255);
        let log = fs::read_to_string(scene.log()).unwrap();
        let expected = format!("thread {name} made system call 272 (unshare), which is not one of its own");
        assert_eq!(log.matches(&expected).count(), 1, "{log}");
        container.delete().success();
    }
}

#[test]
fn vm_a_network_helper_that_is_caught_ends_alone() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let helper = thread("network-helper", &up, 0);
    attack(helper, std::iter::once(UNSHARE | FOR_GOOD), 0);
    assert!(process::wait_end(helper.pid, command::PATIENCE));
    let log = || fs::read_to_string(scene.log()).unwrap();
    assert_eq!(log().matches("thread network-helper made system call").count(), 1, "{}", log());
    process::wait_until("the monitor to notice", || log().contains("changes of the network are not mirrored any more"));
    assert_eq!(container.exec(&["echo", "well"]).success().line(), "well");
    container.end(&up);
}

#[test]
fn vm_what_makes_device_nodes_ends_alone_when_it_is_caught() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let exec = |script: &str| {
        let mut more = container.command("exec");
        command::run(more.args(["--cap", "CAP_MKNOD"]).arg(&container.id).args(["sh", "-c", script]))
    };
    exec("mknod /one c 1 3").success();
    let maker = thread("nodes", &up, 0);
    attack(maker, std::iter::once(UNSHARE | FOR_GOOD), 0);
    assert!(process::wait_end(maker.pid, command::PATIENCE));
    let log = fs::read_to_string(scene.log()).unwrap();
    assert_eq!(log.matches("thread nodes made system call 272 (unshare)").count(), 1, "{log}");
    // The next one brings another.
    exec("mknod /two c 1 3").success();
    assert!(container.rootfs().join("two").symlink_metadata().is_ok());
    container.end(&up);
}
