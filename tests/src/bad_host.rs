//! Hosts and guests that are broken on purpose.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::{Scene, command, place};

/// What is wrong with a host's KVM.
#[derive(Clone, Copy, Debug)]
pub enum Kvm {
    /// There is no /dev/kvm.
    Missing,
    /// /dev/kvm opens and is something else.
    Useless,
}

/// Has a command run where KVM is broken, in a mount namespace of its own.
pub fn with_kvm(broken: Kvm, dir: &Path, command: &Command) -> Command {
    let script = match broken {
        Kvm::Missing => {
            "mkdir -p $0/dev && mount -t tmpfs -o mode=755 dev $0/dev && mkdir $0/dev/pts $0/dev/shm &&
            cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/ptmx $0/dev/ &&
            mount --bind /dev/pts $0/dev/pts && mount --rbind $0/dev /dev && exec \"$@\""
        }
        Kvm::Useless => "mount --bind /dev/null /dev/kvm && exec \"$@\"",
    };
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(dir);
    outer.arg(command.get_program()).args(command.get_args());
    outer
}

/// A copy of the runtime's guest files, to be damaged.
pub struct Guest {
    dir: PathBuf,
}

impl Guest {
    /// Copies the good ones into a scene's folder.
    pub fn copy(scene: &Scene) -> Self {
        let (from, dir) = (place::runtime().with_file_name("guest"), scene.dir().join("guest"));
        fs::create_dir(&dir).unwrap();
        for entry in fs::read_dir(&from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
            }
        }
        Self { dir }
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Has a command use this guest.
    pub fn apply(&self, command: &mut Command) {
        command.env("RUNVM_GUEST_DIR", &self.dir);
    }

    /// Changes the manifest.
    pub fn edit_manifest(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.file("manifest.json");
        let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut manifest);
        fs::write(&path, manifest.to_string()).unwrap();
    }

    /// Puts other bytes in a file's place and makes the manifest agree with its new size.
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        fs::write(self.file(name), bytes).unwrap();
        let key = if name == "vmlinux" { "kernel" } else { "initrd" };
        self.edit_manifest(|manifest| manifest[key]["size"] = bytes.len().into());
    }

    /// Replaces the initrd by one with busybox and this shell script as `/init`.
    pub fn set_init(&self, script: &str) {
        let root = self.dir.join("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("dev")).unwrap();
        fs::copy(place::base_rootfs().join("bin/busybox"), root.join("bin/busybox")).unwrap();
        fs::write(root.join("init"), format!("#!/bin/busybox sh\n{script}\n")).unwrap();
        let pack = "chmod 755 init && mknod dev/console c 5 1 && find . | cpio -o -H newc --quiet >../packed";
        command::run(Command::new("sh").args(["-c", pack]).current_dir(&root)).success();
        self.replace("initrd", &fs::read(self.file("packed")).unwrap());
    }
}
