//! What a container's process on the host holds once the container is created: nothing that is worth taking.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::Signal;
use serde_json::json;
use tests::command::{self, Outcome, run};
use tests::disk::{Disk, Tmpfs};
use tests::process::{self, field, namespace, status_field};
use tests::{Container, Scene, place};

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID and SETFCAP.
const FILES: &str = "00000000800000df";

/// DAC_OVERRIDE.
const CONNECT: &str = "0000000000000002";
const NONE: &str = "0000000000000000";

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

    // Each has a filter; and no right but to the files that it serves, or to connect to sockets of the host.
    let filtered = threads(pid, "Seccomp");
    assert!(filtered.len() >= 8 && filtered.iter().all(|(_, mode)| mode == "2"), "{filtered:?}");
    let served = |name: &str| name.starts_with("vcpu") || name.starts_with("virtio-");
    let rights = threads(pid, "CapPrm");
    let (files, no_files): (Vec<_>, Vec<_>) = rights
        .iter()
        .filter(|(name, _)| served(name))
        .partition(|(name, _)| name.starts_with("vcpu") || name == "virtio-fs");
    assert!(files.len() > 1 && files.iter().all(|(_, set)| set == FILES), "{files:?}");
    assert!(!no_files.is_empty() && no_files.iter().all(|(_, set)| set == NONE), "{no_files:?}");
    let others: Vec<_> = rights.iter().filter(|(name, set)| !served(name) && set != CONNECT).collect();
    assert!(others.is_empty(), "{others:?}");
    // And those rights are over nothing of the host's.
    assert_ne!(namespace(pid, "user"), namespace("self", "user"));
    let bounds = threads(pid, "CapBnd");
    assert!(bounds.iter().all(|(_, set)| set == NONE), "{bounds:?}");

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

#[test]
fn vm_a_join_proxy_has_no_rights_and_few_calls() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let mut second = scene.container();
    second.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", one.pid)})));
    let two = second.idle();
    let of = |line: &str| threads(two.pid, line).into_iter().map(|(_, value)| value).collect::<Vec<_>>();
    assert_eq!(
        (of("Seccomp"), of("CapPrm"), of("CapBnd")),
        (vec!["2".to_owned()], vec![NONE.to_owned()], vec![NONE.to_owned()])
    );
    assert_ne!(namespace(two.pid, "user"), namespace("self", "user"));
    assert_eq!(second.end(&two), 137);
    assert_eq!(first.end(&one), 137);
}

/// The processes that make device nodes.
fn node_makers() -> Vec<i32> {
    let makers = process::descendants().into_iter().filter(|(_, what)| what.starts_with("node-maker ["));
    makers.map(|(pid, _)| pid).filter(|pid| process::lives(*pid)).collect()
}

/// A process that makes device nodes is there where a container may make some, and comes with one that joins and may.
#[test]
fn vm_device_nodes_are_made_where_the_bundle_allows() {
    let makers = || node_makers().len();
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    assert_eq!(makers(), 0);
    let mut second = scene.container();
    second.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", one.pid)})));
    for set in ["bounding", "effective", "permitted"] {
        let pointer = format!("/process/capabilities/{set}");
        second.spec.pointer_mut(&pointer).unwrap().as_array_mut().unwrap().push(json!("CAP_MKNOD"));
    }
    second.set("/linux/resources", json!({"devices": [{"allow": true, "access": "rwm"}]}));
    let two = second.idle();
    assert_eq!(makers(), 1);
    second.exec_sh("mknod /node c 1 3").success();
    let made = fs::symlink_metadata(second.rootfs().join("node")).unwrap();
    assert_eq!((made.rdev(), made.uid()), (rustix::fs::makedev(1, 3), 0));
    assert_eq!(second.end(&two), 137);
    assert_eq!(makers(), 0);
    assert_eq!(first.end(&one), 137);
}

/// `exec` of a process that may make device nodes.
fn exec_with_mknod(container: &Container, script: &str) -> Command {
    let mut command = container.command("exec");
    command.args(["--cap", "CAP_MKNOD"]).arg(&container.id).args(["sh", "-c", script]);
    command
}

/// Insists that a process that makes device nodes has what it needs, and is where the container's process on the host is.
fn is_confined(maker: i32, host: i32, log: &Path) {
    let of = |line: &str| status_field(maker, line).unwrap();
    // DAC_OVERRIDE, SETGID, SETUID, MKNOD.
    assert_eq!((of("CapPrm"), of("CapBnd")), ("00000000080000c2".to_owned(), NONE.to_owned()));
    assert_eq!((of("Seccomp"), of("NoNewPrivs"), of("Threads")), ("2".to_owned(), "1".to_owned(), "1".to_owned()));
    assert!(of("NSpid").split(' ').count() > 1, "processes of the host are out of sight: {}", of("NSpid"));
    for kind in ["mnt", "net"] {
        assert_eq!(namespace(maker, kind), namespace(host, kind), "{kind}");
    }
    let cgroup = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(cgroup(maker), cgroup(host));
    assert_eq!(identity(format!("/proc/{maker}/root")), identity(format!("/proc/{host}/root")));
    // Nothing of a command's, which may be pipes of an engine's.
    let open = open_files(maker);
    let kept = |path: &Path| path == Path::new("/dev/null") || path == log;
    let others: Vec<_> = open.iter().filter(|(path, _)| !kept(path)).collect();
    assert!(others.len() == 1 && others[0].0.to_string_lossy().starts_with("socket:"), "{open:?}");
}

/// Where the bundle allows no device nodes, an exec that may make some brings the process for it, once and until the
/// container's end.
#[test]
fn vm_an_exec_brings_what_makes_device_nodes() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let mut second = scene.container();
    second.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", one.pid)})));
    let two = second.idle();
    for (container, host) in [(&first, one.pid), (&second, two.pid)] {
        let before = node_makers();
        container.exec(&["true"]).success();
        assert_eq!(node_makers(), before, "an exec with no more rights costs no more");
        // Two at once: both can, and one of their processes is taken.
        let running =
            ["a", "b"].map(|name| command::start(&mut exec_with_mknod(container, &format!("mknod /{name} c 1 3"))));
        running.into_iter().for_each(|exec| drop(exec.finish().success()));
        for name in ["a", "b"] {
            let made = fs::symlink_metadata(container.rootfs().join(name)).unwrap();
            assert_eq!((made.rdev(), made.uid()), (makedev(1, 3), 0));
        }
        process::wait_until("the other one to end", || node_makers().len() == before.len() + 1);
        let maker = node_makers().into_iter().find(|maker| !before.contains(maker)).unwrap();
        is_confined(maker, host, &scene.log());
        // A process that the exec left behind can, too, by the same one.
        container.exec_sh("mknod /c c 1 3").failure();
        run(&mut exec_with_mknod(container, "(sleep 1; mknod /c c 1 3; mknod /d c 1 5) & wait")).success();
        assert!(container.rootfs().join("d").symlink_metadata().is_ok());
        assert_eq!(node_makers().len(), before.len() + 1);
        // One that dies is replaced by the next that comes.
        process::signal(maker, Signal::KILL);
        process::wait_until("its end", || node_makers() == before);
        run(&mut exec_with_mknod(container, "mknod /e c 1 3")).success();
        assert!(container.rootfs().join("e").symlink_metadata().is_ok());
        assert_eq!(node_makers().len(), before.len() + 1);
    }
    assert_eq!(second.end(&two), 137);
    assert_eq!(node_makers().len(), 1);
    run(&mut exec_with_mknod(&first, "mknod /f c 1 3")).success();
    assert_eq!(first.end(&one), 137);
    process::wait_until("the end of what makes nodes", || node_makers().is_empty());
}

/// An exec that is killed before the monitor has heard of it, and one that the monitor refuses, leave nothing behind.
#[test]
fn vm_an_exec_that_is_killed_leaves_nothing_that_makes_nodes() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    process::signal(up.pid, Signal::STOP);
    let mut exec = exec_with_mknod(&container, "sleep 100000").stdin(Stdio::null()).spawn().unwrap();
    process::wait_until("what makes nodes", || node_makers().len() == 1);
    exec.kill().unwrap();
    exec.wait().unwrap();
    process::signal(up.pid, Signal::CONT);
    // Whether the monitor has it or not, nodes are made, by one process.
    run(&mut exec_with_mknod(&container, "mknod /node c 1 3")).success();
    assert!(container.rootfs().join("node").symlink_metadata().is_ok());
    process::wait_until("one of them", || node_makers().len() == 1);
    run(&mut container.named("pause", &[])).success();
    run(&mut exec_with_mknod(&container, "true")).failure();
    process::wait_until("one of them", || node_makers().len() == 1);
    run(&mut container.named("resume", &[])).success();
    container.end(&up);
    process::wait_until("the end of what makes nodes", || node_makers().is_empty());
}

/// The cgroup of a process that says which devices it may use.
fn device_cgroup(pid: i32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (kind, mount) = match place::cgroup_is_unified() {
        true => ("", "/sys/fs/cgroup"),
        false => ("devices", "/sys/fs/cgroup/devices"),
    };
    let path = text.lines().find_map(|line| line.split_once(':')?.1.strip_prefix(kind)?.strip_prefix(":/"));
    Path::new(mount).join(path.unwrap_or_else(|| panic!("no cgroup of {kind:?} in {text}")))
}

/// Has a process, in a cgroup if there is one, open a file for reading, and the null device for writing.
fn open_in(cgroup: Option<&Path>, file: &Path) -> Outcome {
    let script = r#"{ [ -z "$1" ] || echo $$ >"$1/cgroup.procs"; } && exec dd if="$0" of=/dev/null count=0"#;
    let cgroup = cgroup.map(|path| path.as_os_str()).unwrap_or_default();
    run(Command::new("sh").args(["-c", script]).arg(file).arg(cgroup))
}

#[test]
fn vm_devices_are_out_of_reach_in_its_cgroup() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    // The cgroup of the first one's monitor, and that of a join proxy.
    let mut first = scene.container();
    let first_up = first.idle();
    let mut second = scene.container();
    second.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", first_up.pid)})));
    let second_up = second.idle();

    // Whoever makes a node of a device that is there has another way to it.
    let (made, (major, minor)) = (scene.dir().join("made"), disk.number());
    mknodat(CWD, &made, FileType::BlockDevice, Mode::RUSR, makedev(major, minor)).unwrap();
    let devices = [disk.device(), &made, Path::new("/dev/kvm"), Path::new("/dev/zero")];
    for device in devices {
        open_in(None, device).success();
    }
    for pid in [first_up.pid, second_up.pid] {
        let cgroup = device_cgroup(pid);
        open_in(Some(&cgroup), Path::new("/dev/null")).success();
        for device in devices {
            let refused = open_in(Some(&cgroup), device).failure();
            assert!(refused.stderr.contains("Operation not permitted"), "{}: {refused:?}", device.display());
        }
    }
    second.end(&second_up);
    first.end(&first_up);
}

/// Directories of the host that are none of a container's, but above what it has.
fn above(dir: &Path) -> Vec<(u64, u64)> {
    dir.ancestors().chain(["/proc", "/sys/fs/cgroup"].map(Path::new)).filter_map(identity).collect()
}

/// Ways that lead up from what a process has open to one of these directories, and how many directories it has open.
fn ways_up(pid: i32, host: &[(u64, u64)]) -> (Vec<String>, usize) {
    let (mut ways, mut directories) = (Vec::new(), 0);
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let fd = entry.unwrap().path();
        let mut path = fd.join(".");
        directories += usize::from(fs::metadata(&path).is_ok());
        for _ in 0..16 {
            path.push("..");
            if identity(&path).is_some_and(|found| host.contains(&found)) {
                ways.push(format!("{}, {:?}", path.display(), fs::read_link(&fd)));
            }
        }
    }
    (ways, directories)
}

/// Insists that there is none; returns how many directories the process has open.
fn no_way_leads_up(pid: i32, host: &[(u64, u64)]) -> usize {
    let (ways, directories) = ways_up(pid, host);
    assert!(ways.is_empty(), "{ways:#?}");
    directories
}

#[test]
fn vm_no_way_leads_up_from_its_files() {
    let scene = Scene::new();
    let mut volumes = Vec::new();
    let mut volume = |name: &str| {
        let path = scene.dir().join("volumes").join(name);
        fs::create_dir_all(path.join("later")).unwrap();
        volumes.push(path.clone());
        path
    };
    // Copies of mounts, and mounts that hear of the host's.
    let mut first = scene.container();
    first.mount("bind", &volume("one"), "/copy", &["rbind", "rprivate"]);
    first.mount("bind", &volume("two"), "/live", &["rbind", "rslave"]);
    let one = first.idle();
    let mut second = scene.container();
    second.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", one.pid)})));
    second.mount("bind", &volume("three"), "/copy", &["rbind", "rprivate"]);
    second.mount("bind", &volume("four"), "/live", &["rbind", "rslave"]);
    let two = second.idle();

    let host = above(&scene.dir().join("volumes"));
    assert!(host.len() > 4 && host.contains(&identity("/").unwrap()));
    // From the same directories, open among the host's mounts, ways lead up to all of them but /proc and the cgroups.
    let opened = volumes.iter().map(|path| fs::File::open(path).unwrap()).collect::<Vec<_>>();
    let (ways, _) = ways_up(std::process::id() as i32, &host);
    let of = |file: &fs::File| format!("/proc/{}/fd/{}/", std::process::id(), file.as_raw_fd());
    for file in &opened {
        let found = ways.iter().filter(|way| way.starts_with(&of(file))).count();
        assert!(found >= host.len() - 2, "{found} of {}: {ways:#?}", host.len());
    }
    drop(opened);
    // The roots of both containers' shares are the monitor's.
    let open = no_way_leads_up(one.pid, &host);
    assert!(open >= 6, "{open} directories");
    no_way_leads_up(two.pid, &host);

    // What the host mounts later comes where the bundle asks for it.
    let later: Vec<_> = volumes.iter().map(|path| Tmpfs::new(path.join("later"))).collect();
    later.iter().for_each(|mounted| fs::write(mounted.path().join("file"), "there\n").unwrap());
    for container in [&first, &second] {
        assert_eq!(container.exec_sh("cat /live/later/file; ls /copy/later").success().stdout, "there\n");
    }
    drop(later);
    second.end(&two);
    first.end(&one);
}
