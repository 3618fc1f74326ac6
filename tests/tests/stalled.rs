//! Volumes on FUSE file systems of the host, also when their server does not answer: only who asks it waits.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tests::bindfs::Bindfs;
use tests::command::{Running, run, start};
use tests::docker::Docker;
use tests::process::{self, wait_orphan};
use tests::unix::{CLIENT, client};
use tests::{Container, Scene, place};

/// How long a container that was sent SIGKILL may take to end: it is to take two seconds, and an emulated host is slow.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// A FUSE volume with a file, which nobody has read through it.
fn volume(scene: &Scene, name: &str) -> Bindfs {
    let volume = Bindfs::new(scene.dir(), name);
    fs::write(volume.source().join("file"), format!("{name}\n")).unwrap();
    volume
}

/// A local volume with a file.
fn local(scene: &Scene) -> PathBuf {
    let volume = scene.dir().join("local");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("file"), "local\n").unwrap();
    volume
}

fn exec(container: &Container, script: &str) -> Running {
    start(container.named("exec", &["sh", "-c", script]).stdin(std::process::Stdio::null()))
}

/// Kills the container and waits for its end; says how long that took, since that cannot be asserted on an emulated host.
#[track_caller]
fn kill(container: &Container, pid: i32) {
    let began = Instant::now();
    container.kill("KILL").success();
    assert!(process::wait_end(pid, KILL_LIMIT), "it does not end: {}", process::describe(pid));
    println!("killed within {:?}", began.elapsed());
    assert_eq!(wait_orphan(pid), 137);
    assert_eq!(container.status(), "stopped");
}

/// A container that shares namespaces, and so the VM, with the one of this pid.
fn neighbour<'a>(scene: &'a Scene, pid: i32) -> Container<'a> {
    let mut container = scene.container();
    for (kind, name) in [("ipc", "ipc"), ("network", "net")] {
        container.namespace(kind, Some(json!({"type": kind, "path": format!("/proc/{pid}/ns/{name}")})));
    }
    container
}

#[test]
fn a_volume_on_fuse_is_a_file_system() {
    let scene = Scene::new();
    let volume = volume(&scene, "a");
    let mut container = scene.container();
    container.mount("bind", volume.path(), "/a", &["rbind", "rprivate"]);
    container.mount("bind", &volume.path().join("file"), "/one", &["bind"]);
    let script = "set -e; cd /a; cat file; mkdir dir; echo text >dir/new; mv dir/new dir/moved; ln dir/moved link
        chmod 640 link; chown 0:34 link; ln -s link sym; cat sym; stat -c '%a %u %g %h %s' dir/moved; truncate -s 3 link
        echo more >>file; cat /one; CLIENT/lock file posix try </dev/null; rm dir/moved; ls -a dir; mkfifo p; test -p p
        dd if=/dev/zero of=big bs=64k count=40 2>/dev/null; stat -c %s big; df /a >/dev/null; sync; rmdir dir";
    container.mount("bind", client(), CLIENT, &["bind", "ro"]);
    let outcome = container.sh(&script.replace("CLIENT", CLIENT)).run().success();
    assert_eq!(outcome.stdout, "a\ntext\n640 0 34 2 5\na\nmore\nlocked\n.\n..\n2621440\n", "{outcome:?}");
    let there = |name: &str| fs::read_to_string(volume.source().join(name)).unwrap();
    assert_eq!((there("file").as_str(), there("link").as_str()), ("a\nmore\n", "tex"));
    // What the host changes is seen, too.
    fs::write(volume.source().join("file"), "of the host\n").unwrap();
    assert_eq!(container.sh("cat /a/file").run().success().stdout, "of the host\n");
    volume.unmount();
}

#[test]
fn one_that_does_not_answer_holds_up_who_asks_it() {
    let scene = Scene::new();
    let (stalled, other, local) = (volume(&scene, "a"), volume(&scene, "b"), local(&scene));
    let mut container = scene.container();
    container.mount("bind", stalled.path(), "/a", &["rbind", "rprivate"]);
    container.mount("bind", other.path(), "/b", &["rbind", "rprivate"]);
    container.mount("bind", &local, "/local", &["rbind", "rprivate"]);
    let created = container.idle();
    stalled.stop();
    let waits = [exec(&container, "cat /a/file"), exec(&container, "echo new >/a/new; cat /a/new")];
    stalled.await_request();
    for _ in 0..3 {
        let outcome = container.exec_sh(
            "cat /etc/passwd | wc -l; cat /b/file; cat /local/file; echo x >/local/x; echo x >/b/x; sync /local/x",
        );
        let outcome = outcome.success();
        assert!(outcome.stdout.ends_with("b\nlocal\n"), "{outcome:?}");
    }
    // A process that may do more than those before, of which the devices have to hear.
    let mut more = container.command("exec");
    more.args(["--cap", "CAP_MKNOD"]).arg(&container.id).args(["cat", "/b/x"]);
    assert_eq!(run(&mut more).success().stdout, "x\n");
    assert_eq!(container.status(), "running");
    run(&mut container.named("ps", &[])).success();
    assert!(stalled.waiting() > 0, "nobody waits any more");
    stalled.go_on();
    let [read, written] = waits.map(|waits| waits.finish().success().stdout);
    assert_eq!((read.as_str(), written.as_str()), ("a\n", "new\n"));
    assert_eq!(fs::read_to_string(stalled.source().join("new")).unwrap(), "new\n");
    assert_eq!(container.exec_sh("cat /a/new").success().stdout, "new\n");
    assert_eq!(container.end(&created), 137);
    stalled.unmount();
}

#[test]
fn a_container_that_waits_for_it_can_be_killed() {
    let scene = Scene::new();
    let stalled = volume(&scene, "a");
    let mut container = scene.container();
    container.mount("bind", stalled.path(), "/a", &["rbind", "rprivate"]);
    let mut created = container.sh("echo up; read line; cat /a/file").up();
    created.stdout.expect("up\n");
    stalled.stop();
    rustix::io::write(created.stdin.as_ref().unwrap(), b"go\n").unwrap();
    stalled.await_request();
    kill(&container, created.pid);
    container.delete().success();
    stalled.go_on();
    process::wait_until("no request to be left", || stalled.waiting() == 0);
    stalled.unmount();
}

#[test]
fn a_container_ends_by_itself_when_nobody_waits_for_it() {
    let scene = Scene::new();
    let stalled = volume(&scene, "a");
    let mut container = scene.container();
    container.mount("bind", stalled.path(), "/a", &["rbind", "rprivate"]);
    let mut created = container.sh("cat /a/file; echo up; read line; exit 3").up();
    created.stdout.expect("a\nup\n");
    stalled.stop();
    rustix::io::write(created.stdin.as_ref().unwrap(), b"go\n").unwrap();
    assert!(process::wait_end(created.pid, KILL_LIMIT), "it does not end: {}", process::describe(created.pid));
    assert_eq!(wait_orphan(created.pid), 3);
    container.delete().success();
    stalled.go_on();
    stalled.unmount();
}

#[test]
fn an_exec_that_waits_for_it_can_be_killed() {
    let scene = Scene::new();
    let stalled = volume(&scene, "a");
    let mut container = scene.container();
    container.mount("bind", stalled.path(), "/a", &["rbind", "rprivate"]);
    let created = container.idle();
    stalled.stop();
    let waits = exec(&container, "exec cat /a/file");
    stalled.await_request();
    waits.signal(Signal::KILL);
    assert_eq!(waits.finish().code, 137);
    assert_eq!(container.exec_sh("echo on").success().stdout, "on\n");
    stalled.go_on();
    let readers = || run(&mut container.named("ps", &[])).success().stdout.matches("cat /a/file").count();
    process::wait_until("the process to be gone", || readers() == 0);
    assert_eq!(container.exec_sh("cat /a/file").success().stdout, "a\n");
    assert_eq!(container.end(&created), 137);
}

#[test]
fn other_containers_of_the_vm_go_on() {
    let scene = Scene::new();
    let (stalled, other) = (volume(&scene, "a"), local(&scene));
    let mut first = scene.container();
    let one = first.idle();
    let mut second = neighbour(&scene, one.pid);
    second.mount("bind", stalled.path(), "/a", &["rbind", "rprivate"]);
    let mut two = second.sh("echo up; read line; cat /a/file").up();
    two.stdout.expect("up\n");
    stalled.stop();
    rustix::io::write(two.stdin.as_ref().unwrap(), b"go\n").unwrap();
    stalled.await_request();
    assert_eq!(first.exec_sh("cat /etc/hostname >/dev/null; echo on").success().stdout, "on\n");
    let mut third = neighbour(&scene, one.pid);
    third.mount("bind", &other, "/local", &["rbind", "rprivate"]);
    assert_eq!(third.sh("cat /local/file").run().success().stdout, "local\n");
    kill(&second, two.pid);
    second.delete().success();
    assert_eq!(third.sh("cat /local/file").run().success().stdout, "local\n");
    stalled.go_on();
    process::wait_until("no request to be left", || stalled.waiting() == 0);
    // The VM, which goes on, has nothing of it any more.
    stalled.unmount();
    assert_eq!(first.exec_sh("echo on").success().stdout, "on\n");
    assert_eq!(first.end(&one), 137);
}

/// One file of the host is one file, whichever container of the VM has brought the file system.
#[test]
fn containers_of_a_vm_share_what_is_on_it() {
    let scene = Scene::new();
    let volume = volume(&scene, "a");
    let mut first = scene.container();
    first.mount("bind", volume.path(), "/a", &["rbind", "rprivate"]);
    let one = first.idle();
    let mut second = neighbour(&scene, one.pid);
    second.mount("bind", volume.path(), "/b", &["rbind", "rprivate"]);
    let two = second.idle();
    first.exec_sh("mkfifo /a/pipe").success();
    let reader = exec(&second, "cat /b/pipe");
    first.exec_sh("echo through >/a/pipe").success();
    assert_eq!(reader.finish().success().stdout, "through\n");
    assert_eq!(second.end(&two), 137);
    assert_eq!(first.exec_sh("cat /a/file").success().stdout, "a\n");
    assert_eq!(first.end(&one), 137);
    volume.unmount();
}

#[test]
fn a_create_that_waits_for_it_can_be_killed() {
    let scene = Scene::new();
    let stalled = volume(&scene, "a");
    let mut container = scene.container();
    container.mount("bind", stalled.path(), "/a", &["rbind", "rprivate"]);
    stalled.stop();
    let create = start(container.named("create", &[]).stdin(std::process::Stdio::null()));
    stalled.await_request();
    create.signal(Signal::KILL);
    assert_eq!(create.finish().code, 137);
    // Runc says that there is no such container.
    let deleted = container.force_delete();
    assert!(deleted.code == 0 || !place::is_runvm(), "{deleted:?}");
    stalled.go_on();
    process::wait_until("no request to be left", || stalled.waiting() == 0);
    stalled.unmount();
}

#[test]
fn dockers_container_can_be_removed() {
    let docker = Docker::new();
    let dir = place::work().join("stalled-docker");
    fs::create_dir_all(&dir).unwrap();
    let stalled = Bindfs::new(&dir, "a");
    fs::write(stalled.source().join("file"), "a\n").unwrap();
    let name = "runvm-test-stalled";
    let volume = format!("{}:/a", stalled.path().display());
    let script = "echo up; while ! test -e /go; do sleep 0.2; done; cat /a/file";
    docker.run(&["run", "-d", "--name", name, "-v", &volume, tests::docker::IMAGE, "sh", "-c", script]).success();
    stalled.stop();
    docker.run(&["exec", name, "touch", "/go"]).success();
    stalled.await_request();
    docker.run(&["exec", name, "echo", "on"]).success();
    let mut remove: Command = docker.command(&["rm", "-f", name]);
    remove.stdin(std::process::Stdio::null());
    let began = Instant::now();
    start(&mut remove).finish_within(KILL_LIMIT * 3).success();
    println!("removed within {:?}", began.elapsed());
    stalled.go_on();
    process::wait_until("no request to be left", || stalled.waiting() == 0);
    stalled.unmount();
}
