//! A state directory that takes nothing, and engines that die at a bad moment.

use std::fs;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tests::Scene;
use tests::process::{self, wait_orphan};

/// A file system of its own under `--root`, while this is there.
struct Root<'a>(&'a Scene);

impl<'a> Root<'a> {
    fn mount(scene: &'a Scene, options: &str) -> Self {
        fs::create_dir_all(scene.root()).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", scene.root(), "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Self(scene)
    }

    fn read_only(&self) {
        rustix::mount::mount_remount(self.0.root(), MountFlags::RDONLY, "").unwrap();
    }

    fn writable(&self) {
        rustix::mount::mount_remount(self.0.root(), MountFlags::empty(), "").unwrap();
    }
}

impl Drop for Root<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0.root(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_root_that_is_read_only() {
    let scene = Scene::new();
    let root = Root::mount(&scene, "mode=755,size=1m");
    let mut container = scene.container();
    root.read_only();
    scene.refused(&container.run(), &["ead-only file system"]);
    root.writable();
    let up = container.idle();
    root.read_only();
    // What writes nothing works.
    assert_eq!(container.status(), "running");
    container.exec(&["true"]).success();
    root.writable();
    container.end(&up);
}

#[test]
fn vm_a_root_that_is_full() {
    let scene = Scene::new();
    let root = Root::mount(&scene, "mode=755,size=64k");
    let mut container = scene.container();
    let ballast = scene.root().join("ballast");
    let fill = || {
        let _ = fs::write(&ballast, vec![0; 1 << 20]);
    };
    fs::create_dir_all(scene.root()).unwrap();
    fill();
    scene.refused(&container.run(), &["No space left on device"]);
    fs::remove_file(&ballast).unwrap();
    let up = container.sh("echo up; sleep 100000").create();
    fill();
    // The container is as it was before the command that could not write down what it did.
    let start = container.start();
    if start.code != 0 {
        scene.refused(&start, &["No space left on device"]);
    }
    assert!(matches!(container.status().as_str(), "created" | "running"));
    container.force_delete().success();
    assert_eq!(wait_orphan(up.pid), 137);
    fs::remove_file(&ballast).unwrap();
    drop((container, root));
    scene.check();
}

#[test]
fn an_engine_that_dies_between_create_and_start() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.sh("echo nobody hears this; echo begun >/mark; sleep 100000").create();
    // Its ends of the pipes go with it.
    let pid = created.pid;
    drop(created);
    assert_eq!(container.status(), "created");
    container.start().success();
    let mark = container.rootfs().join("mark");
    process::wait_until("the process to go on", || mark.exists());
    container.kill("KILL").success();
    assert_eq!(wait_orphan(pid), 137);
    container.delete().success();
}

#[test]
fn an_engine_that_never_comes_back() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.sh("echo up").create();
    let pid = created.pid;
    drop(created);
    // Whoever sweeps up after it deletes what was never started.
    container.delete().success();
    assert_eq!(wait_orphan(pid), 137);
    drop(container);
    scene.check();
}
