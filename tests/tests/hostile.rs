//! Guests that attack their monitor: kernels of our own, one for each attack (tests/hostile), in real containers.
//!
//! Whatever such a guest does, its monitor goes on or ends with one sentence, the host's files outside of the shares stay as
//! they are, the log stays short, and a container beside it notices nothing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;
use tests::{Container, Created, Outcome, Scene, command, process};

/// Most bytes that an attack may have the runtime log: a line for each device and reason.
const LOG: u64 = 16 << 10;
/// Most descriptors of a monitor under attack.
const DESCRIPTORS: usize = 256;
/// Most KiB of a monitor's memory that are not the guest's: heap, stacks and what the kernel accounts to the process.
const HEAP_KIB: u64 = 64 << 10;

/// What an attack must not touch: a folder beside the container's files, and a container.
struct Bystanders<'a> {
    scene: &'a Scene,
    folder: PathBuf,
    container: Container<'a>,
    created: Created,
}

impl<'a> Bystanders<'a> {
    fn new(scene: &'a Scene) -> Self {
        let folder = scene.dir().join("outside");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("secret"), "untouched").unwrap();
        fs::set_permissions(folder.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        let mut container = scene.container();
        let created = container.idle();
        Self { scene, folder, container, created }
    }

    /// Insists that all is as it was, and that the log is short.
    #[track_caller]
    fn are_well(&self) {
        let names: Vec<_> = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        let secret = fs::metadata(self.folder.join("secret")).unwrap();
        assert_eq!((secret.mode() & 0o7777, secret.uid(), secret.nlink()), (0o600, 0, 1));
        assert_eq!(fs::read_to_string(self.folder.join("secret")).unwrap(), "untouched");
        assert_eq!(self.container.exec(&["echo", "well"]).success().line(), "well");
        let log = fs::metadata(self.scene.log()).map_or(0, |log| log.len());
        assert!(log < LOG, "{log} bytes in the log: {:#?}", self.scene.errors());
    }

    fn end(mut self) {
        self.are_well();
        self.container.end(&self.created);
    }
}

/// A container on the kernel that does this.
fn attacker<'a>(scene: &'a Scene, attack: &str) -> Container<'a> {
    let mut container = scene.container();
    container
        .annotate("io.runvm.kernel", &format!("hostile-{attack}"))
        .set("/annotations/io.runvm.memory-mib", json!("256"));
    container
}

/// Insists on one sentence without anything that a terminal would act on.
#[track_caller]
fn one_sentence(outcome: &Outcome) -> &str {
    assert_ne!(outcome.code, 0);
    let sentence = outcome.stderr.trim();
    assert!(!sentence.is_empty() && !sentence.contains("panicked"), "{outcome:?}");
    assert!(sentence.lines().count() == 1 && !sentence.contains(char::is_control), "{outcome:?}");
    sentence
}

/// The number that the kernel said with these words before it ended.
#[track_caller]
fn said(outcome: &Outcome, words: &str) -> i64 {
    let sentence = one_sentence(outcome);
    assert!(
        sentence.contains("attack") && sentence.ends_with("over"),
        "the kernel has not come to its end: {sentence}"
    );
    let after = sentence.split_once(&format!(" {words} ")).unwrap_or_else(|| panic!("{words} is not in {sentence}")).1;
    after.split(';').next().unwrap().parse().unwrap_or_else(|_| panic!("{sentence}"))
}

/// Runs an attack that comes to an end before there is an agent.
#[track_caller]
fn survives(attack: &str) -> Outcome {
    let scene = Scene::new();
    let bystanders = Bystanders::new(&scene);
    let outcome = attacker(&scene, attack).run();
    bystanders.end();
    outcome
}

#[test]
fn vm_any_value_in_any_register() {
    assert_eq!(said(&survives("registers"), "registers"), 6000);
}

#[test]
fn vm_rings_that_make_no_sense() {
    // Sockets, files, entropy, memory, and the NICs of a kernel that finds them at boot.
    assert_eq!(said(&survives("rings"), "devices"), 8);
}

#[test]
fn vm_devices_that_are_reset_again_and_again() {
    assert_eq!(said(&survives("resets"), "resets"), 8 * 150);
}

#[test]
fn vm_a_storm_of_packets() {
    let outcome = survives("storm");
    // The device stops taking packets when too many answers wait, and goes on when they are taken.
    assert!(said(&outcome, "stuck") > 0);
    assert_eq!((said(&outcome, "answers"), said(&outcome, "alive")), (1, 1));
}

#[test]
fn vm_requests_for_files_that_lie() {
    let outcome = survives("files");
    for (words, number) in [("shares", 1), ("file", 1), ("bad names", 0), ("above", 0), ("followed", 0), ("alive", 1)] {
        assert_eq!(said(&outcome, words), number, "{words}: {outcome:?}");
    }
}

#[test]
fn vm_a_kernel_has_no_more_rights_over_a_volume_than_its_container() {
    let scene = Scene::new();
    let bystanders = Bystanders::new(&scene);
    let volume = scene.dir().join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    let mut container = attacker(&scene, "rights");
    container.mount("bind", &volume, "/volume", &["bind", "nosuid", "nodev"]);
    container.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    container.set("/process/capabilities", json!({"bounding": [], "effective": [], "permitted": []}));
    let outcome = container.run();
    // Once for the root file system and once for the volume, each refused.
    assert!(said(&outcome, "node") < 0, "{outcome:?}");
    for folder in [&volume, &container.rootfs()] {
        assert!(!folder.join("node").exists(), "{}", folder.display());
        let Ok(made) = fs::symlink_metadata(folder.join("setuid")) else { continue };
        assert!(made.mode() & 0o6000 == 0, "mode {:o}", made.mode());
    }
    bystanders.end();
}

/// A volume with two files of root's.
fn volume(scene: &Scene, name: &str) -> PathBuf {
    let volume = scene.dir().join(name);
    fs::create_dir_all(&volume).unwrap();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    for file in ["given", "removed"] {
        fs::write(volume.join(file), "untouched").unwrap();
    }
    volume
}

/// Name, mode, owner, number of links and content of each file.
fn files(folder: &Path) -> Vec<(String, u32, u32, u64, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let look = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        (name(&path), meta.mode(), meta.uid(), meta.nlink(), content)
    };
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| look(entry.unwrap().path())).collect();
    files.sort();
    files
}

/// One kernel serves all containers of a VM, so it can do with the files of each what the bundle of that one allows; and no more,
/// whatever that of the container allows whose kernel it is.
#[test]
fn vm_a_kernel_has_no_more_rights_over_a_joined_containers_files_than_that_one() {
    let scene = Scene::new();
    let bystanders = Bystanders::new(&scene);
    let [own, writable, fixed] = ["own", "writable", "fixed"].map(|name| volume(&scene, name));
    let untouched = files(&fixed);
    let mut first = attacker(&scene, "grabs");
    first.mount("bind", &own, "/volume", &["bind"]);
    let capabilities = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SETUID"]);
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    first.set("/process/capabilities", sets).set("/process/noNewPrivileges", json!(false));
    let one = first.up();
    let mut second = scene.container();
    second.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", one.pid)})));
    second.mount("bind", &writable, "/volume", &["bind", "nosuid"]);
    second.mount("bind", &fixed, "/fixed", &["bind", "ro"]);
    second.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    second.set("/process/capabilities", json!({"bounding": [], "effective": [], "permitted": []}));
    let two = second.up();

    // What it removes and nobody may keep it from says that it has been at all shares meanwhile.
    let victims = [own.join("removed"), writable.join("removed")];
    for _ in 0..3 {
        victims.iter().for_each(|file| fs::write(file, "untouched").unwrap());
        process::wait_until("an attack on all shares", || !victims.iter().any(|file| file.exists()));
    }
    // In its own container it can do all of that.
    let file = |name: &str, mode, uid, links, content: &str| (name.to_owned(), mode, uid, links, content.to_owned());
    let grabbed = ["given", "linked"].map(|name| file(name, 0o100_777, 1000, 2, "grabbed"));
    let [given, linked] = grabbed;
    let made = [file("node", 0o060_600, 0, 1, ""), file("setuid", 0o104_755, 0, 1, "")];
    assert_eq!(files(&own), [vec![given, linked], made.to_vec()].concat());
    // In the other one nothing that its process could not, or its root before it started.
    assert_eq!(files(&fixed), untouched);
    for folder in [&writable, &second.rootfs()] {
        for (name, mode, uid, ..) in files(folder) {
            assert!(mode & 0o6000 == 0 && name != "node" && uid == 0, "{name}: mode {mode:o}, owner {uid}");
        }
    }
    assert_eq!(fs::metadata(writable.join("given")).unwrap().mode() & 0o7777, 0o644);
    assert_eq!(second.end(&two), 137);
    assert_eq!(first.end(&one), 137);
    bystanders.end();
}

#[test]
fn vm_an_agent_that_answers_rubbish() {
    let scene = Scene::new();
    let bystanders = Bystanders::new(&scene);
    // Both at once, since the monitor waits half a minute for an answer.
    let containers = ["says-garbage", "says-too-much"].map(|attack| attacker(&scene, attack));
    let running = containers.each_ref().map(|container| command::start(&mut container.named("run", &[])));
    for running in running {
        let outcome = running.finish();
        assert!(one_sentence(&outcome).len() < 1000, "{outcome:?}");
    }
    bystanders.end();
}

/// KiB of a process that are neither the guest's memory, which is mapped in one piece, nor files.
fn heap_kib(pid: i32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let number = |line: &str| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0);
    let (mut size, mut sum) = (0, 0);
    for line in smaps.lines() {
        match line.split(':').next() {
            Some("Size") => size = number(line),
            Some("Anonymous") if size < 100 << 10 => sum += number(line),
            _ => {}
        }
    }
    sum
}

#[test]
fn vm_a_container_that_is_none_ends_when_it_is_killed() {
    let scene = Scene::new();
    let bystanders = Bystanders::new(&scene);
    let mut container = attacker(&scene, "says-yes");
    let created = container.up();
    // It says that it runs, and attacks for as long as it is let.
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", created.pid)).unwrap().count();
    for _ in 0..5 {
        bystanders.are_well();
        assert!(process::lives(created.pid), "{:?}", scene.errors());
        assert!(descriptors() < DESCRIPTORS, "{} descriptors", descriptors());
        assert!(heap_kib(created.pid) < HEAP_KIB, "{} KiB", heap_kib(created.pid));
    }
    assert_eq!(container.status(), "running");
    assert_eq!(container.end(&created), 137);
    bystanders.end();
}
