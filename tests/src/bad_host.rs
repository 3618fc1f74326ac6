//! Hosts and guests that are broken on purpose.

use std::fs;
use std::os::unix::process::CommandExt;
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

/// Has a command run in a mount namespace of its own that a shell script has changed.
pub fn with_mounts(script: &str, command: &Command) -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{script} && exec \"$@\""), "sh"]);
    outer.arg(command.get_program()).args(command.get_args());
    outer
}

/// Has the kernel refuse a system call to a command, and to all that it starts, as one does that is built without it.
pub fn without_call(mut command: Command, call: libc::c_long, error: i32) -> Command {
    // linux/filter.h: load the number; compare; refuse, allow.
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, (jt, jf), k| libc::sock_filter { code, jt, jf, k };
    let filter = [
        step(LOAD, (0, 0), 0),
        step(EQUAL, (0, 1), call as u32),
        step(RETURN, (0, 0), libc::SECCOMP_RET_ERRNO | error.unsigned_abs()),
        step(RETURN, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let set = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the program lives across the call, and the kernel only reads it.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes a system call.
    unsafe { command.pre_exec(set) };
    command
}

/// A host that permits no user namespaces, until this is dropped.
pub struct NoUserNamespaces(String);

impl NoUserNamespaces {
    const MOST: &str = "/proc/sys/user/max_user_namespaces";

    /// Forbids them from now on.
    #[expect(clippy::new_without_default, reason = "it changes the world: nothing for a default")]
    pub fn new() -> Self {
        let before = fs::read_to_string(Self::MOST).unwrap();
        fs::write(Self::MOST, "0").unwrap();
        Self(before)
    }
}

impl Drop for NoUserNamespaces {
    fn drop(&mut self) {
        fs::write(Self::MOST, &self.0).unwrap();
    }
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
