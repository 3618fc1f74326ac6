//! A disk of the host's own: a loop device over a file in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, unmount};

use crate::command::run;
use crate::place;

/// Size of the disk in bytes; its blocks take memory only when written.
const SIZE: u64 = 64 << 20;

/// A tmpfs of 1 MiB on the host, unmounted at its end; its user may do so before.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts it at a path that is made.
    pub fn new(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        rustix::mount::mount("shm", &path, "tmpfs", MountFlags::empty(), Some(c"size=1m,mode=1777")).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A disk with an ext4 file system; gone when dropped.
pub struct Disk {
    device: PathBuf,
    volume: PathBuf,
}

impl Disk {
    /// Makes it, with its file in this folder.
    #[track_caller]
    pub fn new(dir: &Path) -> Self {
        Self::made(dir, SIZE, &["-O", "^has_journal"])
    }

    /// The same of another size in bytes and with other flags of `mkfs.ext4`.
    #[track_caller]
    pub fn made(dir: &Path, size: u64, flags: &[&str]) -> Self {
        let file = dir.join("disk");
        fs::File::create(&file).and_then(|file| file.set_len(size)).expect("make the disk's file");
        // Not there yet on a host that has used none.
        let _ = run(Command::new("modprobe").arg("loop"));
        run(Command::new("mkfs.ext4").arg("-q").args(flags).arg(&file)).success();
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&file)).success();
        Self { device: device.line().into(), volume: dir.join("volume") }
    }

    /// Its node.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Has the kernel refuse all writes to it.
    #[track_caller]
    pub fn make_read_only(&self) {
        run(Command::new("blockdev").arg("--setro").arg(&self.device)).success();
    }

    /// Major and minor number.
    #[track_caller]
    pub fn number(&self) -> (u32, u32) {
        let device = rustix::fs::stat(&self.device).expect("look at the disk").st_rdev;
        (rustix::fs::major(device), rustix::fs::minor(device))
    }

    /// Mounts its file system; returns where.
    #[track_caller]
    pub fn mount(&self) -> PathBuf {
        fs::create_dir(&self.volume).expect("make the mount point");
        run(Command::new("mount").args(["-t", "ext4"]).arg(&self.device).arg(&self.volume)).success();
        self.volume.clone()
    }

    /// Mounts its file system over a folder that is there, also over the one that its file is in.
    #[track_caller]
    pub fn mount_over(&mut self, folder: &Path, options: &str) {
        self.volume = folder.to_owned();
        run(Command::new("mount").args(["-t", "ext4", "-o", options]).arg(&self.device).arg(folder)).success();
    }

    /// Lets a user have so many KiB on it at most; it must be mounted with the option `usrquota`.
    #[track_caller]
    pub fn limit_user(&self, user: i32, kib: u64) {
        let device = std::ffi::CString::new(self.device.as_os_str().as_encoded_bytes()).expect("no NUL in a path");
        let command = libc::QCMD(libc::Q_SETQUOTA, libc::USRQUOTA);
        // SAFETY: all zeros are a valid dqblk: no limit is set.
        let mut limits: libc::dqblk = unsafe { std::mem::zeroed() };
        (limits.dqb_bhardlimit, limits.dqb_bsoftlimit, limits.dqb_valid) = (kib, kib, libc::QIF_BLIMITS);
        // SAFETY: the name and the limits live across the call.
        let result = unsafe { libc::quotactl(command, device.as_ptr(), user, (&raw mut limits).cast()) };
        assert_eq!(result, 0, "set a quota: {}", std::io::Error::last_os_error());
    }
}

/// Has an engine give a disk to containers, `run` with a flag `--device=…` and a script; what they write is on it. `name` is
/// that of a folder to be.
#[track_caller]
pub fn is_handed_through(name: &str, run: impl Fn(&str, &str) -> String) {
    let folder = place::work().join(name);
    fs::create_dir(&folder).unwrap();
    let disk = Disk::new(&folder);
    fs::write(disk.device(), "from the host\n").unwrap();
    let script = "head -n 1 /dev/data; echo inside 2>/dev/null >/dev/data || echo refused";
    let inside = |access: &str| run(&format!("--device={}:/dev/data{access}", disk.device().display()), script);
    assert_eq!((inside(":r"), inside("")), ("from the host\nrefused\n".to_owned(), "from the host\n".to_owned()));
    assert!(fs::read(disk.device()).unwrap().starts_with(b"inside\n"));
    drop(disk);
    fs::remove_dir_all(&folder).unwrap();
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a container that failed may still have it.
        let _ = unmount(&self.volume, UnmountFlags::DETACH);
        // A loop device keeps that for the next file.
        let _ = Command::new("blockdev").arg("--setrw").arg(&self.device).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}
