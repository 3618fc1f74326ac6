//! What a container may make of the files of its volumes: what its bundle lets its processes do, under any runtime, and no more
//! whatever becomes of the guest's kernel.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::{Container, Scene};

/// What dockerd gives to root.
const DOCKER: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// A container with these capabilities and a volume that anybody may write to, mounted with these options besides.
fn container<'a>(scene: &'a Scene, capabilities: &[&str], options: &[&str]) -> (Container<'a>, PathBuf) {
    let volume = scene.dir().join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::set_permissions(&volume, Permissions::from_mode(0o777)).unwrap();
    let mut container = scene.container();
    container.mount("bind", &volume, "/volume", &[&["rbind"], options].concat());
    let sets = ["bounding", "effective", "permitted"].map(|set| (set.to_owned(), json!(capabilities)));
    container.set("/process/capabilities", Value::Object(sets.into_iter().collect()));
    (container, volume)
}

fn become_user(container: &mut Container) {
    container.set("/process/user", json!({"uid": 1000, "gid": 2000, "additionalGids": [3000]}));
}

/// Owner, group and mode of a file.
fn of(path: &Path) -> (u32, u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid(), meta.mode() & 0o7777)
}

/// An engine's usual root keeps all of it, on volumes with options that keep such files from being used, too.
#[test]
fn root_of_an_engine_makes_what_it_likes() {
    let scene = Scene::new();
    let (mut container, volume) = container(&scene, &DOCKER, &["nosuid", "nodev"]);
    container.set("/process/noNewPrivileges", json!(false));
    let script =
        "cd /volume; mknod disk b 8 0; mknod null c 1 3; mkfifo fifo; touch file; chown 5:6 file; chmod 6755 file
        mkdir dir; chmod 3777 dir";
    container.sh(script).run().success();
    let kind = |name: &str| fs::symlink_metadata(volume.join(name)).unwrap().file_type();
    assert!(kind("disk").is_block_device() && kind("null").is_char_device() && kind("fifo").is_fifo());
    assert_eq!(of(&volume.join("file")), (5, 6, 0o6755));
    assert_eq!(of(&volume.join("dir")).2, 0o3777);
}

#[test]
fn a_user_without_ways_to_more_has_its_own_files() {
    let scene = Scene::new();
    let (mut container, volume) = container(&scene, &[], &["nosuid", "nodev"]);
    fs::write(volume.join("roots"), "").unwrap();
    fs::create_dir(volume.join("shared")).unwrap();
    chown(volume.join("shared"), Some(0), Some(50)).unwrap();
    fs::set_permissions(volume.join("shared"), Permissions::from_mode(0o2777)).unwrap();
    become_user(&mut container);
    // A mount in the volume: its place is made by root, before the container's process runs.
    container.mount("tmpfs", Path::new("tmpfs"), "/volume/below/it", &[]);
    let script = "cd /volume; umask 022; echo text >file; ln -s file link; mkdir dir; mkfifo fifo; chgrp 3000 file
        chmod 640 file; touch shared/file; ln file hard; mv dir moved
        mknod disk b 8 0 && echo made; chmod 777 roots && echo changed; chown 0 file && echo given; id -u; true";
    let outcome = container.sh(script).run().success();
    assert_eq!(outcome.stdout, "1000\n", "{outcome:?}");
    assert_eq!(of(&volume.join("file")), (1000, 3000, 0o640));
    for (name, mode) in [("moved", 0o755), ("fifo", 0o644)] {
        assert_eq!(of(&volume.join(name)), (1000, 2000, mode), "{name}");
    }
    assert_eq!(of(&volume.join("shared/file")), (1000, 50, 0o644));
    assert_eq!(of(&volume.join("below")), (0, 0, 0o755));
}

/// An exec is the host administrator's: what it brings it may do, and so may what it leaves behind.
#[test]
fn an_exec_brings_its_own_rights() {
    let scene = Scene::new();
    let (mut container, volume) = container(&scene, &[], &[]);
    become_user(&mut container);
    let created = container.idle();
    container.exec_sh("touch /volume/users && mkdir /volume/dir").success();
    container.exec_sh("mknod /volume/null c 1 3").failure();
    let exec = |flags: &[&str], script: &str| {
        let mut command = container.command("exec");
        command.args(flags).arg(&container.id);
        tests::command::run(command.args(["sh", "-c", script]))
    };
    exec(&["--user", "0:7"], "cd /volume; echo x >roots; chmod 4755 roots; (sleep 1; touch later) & wait").success();
    assert_eq!(of(&volume.join("users")), (1000, 2000, 0o644));
    assert_eq!(of(&volume.join("roots")), (0, 7, 0o4755));
    assert_eq!(of(&volume.join("later")), (0, 7, 0o644));
    exec(&["--user", "0", "--cap", "CAP_MKNOD", "--cap", "CAP_CHOWN"], "cd /volume; mknod null c 1 3; chown 9:9 roots")
        .success();
    assert!(fs::symlink_metadata(volume.join("null")).unwrap().file_type().is_char_device());
    assert_eq!(of(&volume.join("roots")).0, 9);
    container.end(&created);
}

#[test]
fn a_user_namespace_has_its_own_ids() {
    let scene = Scene::new();
    let (mut container, volume) = container(&scene, &DOCKER, &[]);
    container.set("/process/noNewPrivileges", json!(false));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    container.namespace("user", Some(json!({"type": "user"})));
    container.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping);
    for path in [container.rootfs(), scene.dir().to_owned()] {
        fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    let script = "cd /volume; touch file; chown 5:6 file; chmod 6755 file; mknod null c 1 3 && echo made
        mkdir dir; chown 65535:65535 dir; touch dir/file";
    assert_eq!(container.sh(script).run().success().stdout, "");
    assert_eq!(of(&volume.join("file")), (100_005, 100_006, 0o6755));
    assert_eq!(of(&volume.join("dir")), (165_535, 165_535, 0o755));
    assert_eq!(of(&volume.join("dir/file")), (100_000, 100_000, 0o644));
}
