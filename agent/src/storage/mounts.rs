//! Mounts of the container, made inside its root file system.
//!
//! Destinations are resolved once, inside the root only, to a descriptor; the mount itself then goes
//! through that descriptor's path in /proc, so no symlink can redirect it.

use crate::error::{Context, Result};
use crate::guest_paths::GuestPaths;
use crate::storage::copy_up;
use crate::storage::path::{Leaf, Root};
use crate::sys;
use protocol::Mount;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// Flags that are a mount's own and that a less privileged mount namespace may not take away.
const LOCKABLE: u64 = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Makes the mounts of one container.
pub struct Mounter<'a> {
    /// The container's root file system.
    pub root: &'a Root,
    /// Directories of the guest.
    pub paths: &'a GuestPaths,
    /// Places to be made read-only once everything inside them has been made, with their flags.
    late_readonly: Vec<(OwnedFd, u64)>,
}

impl<'a> Mounter<'a> {
    /// A mounter that has mounted nothing yet.
    pub fn new(root: &'a Root, paths: &'a GuestPaths) -> Self {
        Self { root, paths, late_readonly: Vec::new() }
    }

    /// Makes a mount; `copy` is one of another container's, to be mounted for it.
    pub fn mount(&mut self, mount: &Mount, copy: Option<&OwnedFd>) -> Result<()> {
        let done = match mount.kind.as_str() {
            "bind" => self.bind(mount, copy),
            "cgroup" | "cgroup2" => self.cgroup(mount),
            "tmpfs" => self.tmpfs(mount),
            "sysfs" => self.sysfs(mount),
            _ => self.file_system(mount, &mount.kind, mount.flags),
        };
        done.and_then(|()| self.propagate(mount)).context(|| {
            let source = if mount.share.is_empty() { &mount.source } else { &mount.share };
            format!("error mounting {source:?} to rootfs at {:?}", mount.destination)
        })
    }

    /// Makes those mounts read-only that had to stay writable until now.
    pub fn finish(&mut self) -> Result<()> {
        for (place, flags) in self.late_readonly.drain(..) {
            remount(&place, flags | libc::MS_RDONLY, 0).context(|| "remount read-only")?;
        }
        Ok(())
    }

    fn file_system(&self, mount: &Mount, kind: &str, flags: u64) -> std::result::Result<(), Errno> {
        let place = self.root.ensure(&mount.destination, Leaf::Directory)?;
        let source = if mount.source.is_empty() { kind } else { &mount.source };
        sys::mount(source, &sys::fd_path(&place), kind, flags, &mount.data)
    }

    fn bind(&self, mount: &Mount, copy: Option<&OwnedFd>) -> std::result::Result<(), Errno> {
        if let Some(copy) = copy {
            sys::place_mount(copy, self.root.ensure(&mount.destination, Leaf::Directory)?)?;
        } else {
            let (source, is_dir) = self.bind_source(mount)?;
            let recursive = if mount.recursive { libc::MS_REC } else { 0 };
            self.bind_path(&source, &mount.destination, is_dir, recursive)?;
        }
        if mount.flags == 0 {
            return Ok(());
        }
        remount(&self.root.open_path(&mount.destination)?, mount.flags, mount.clear_flags)
    }

    fn bind_source(&self, mount: &Mount) -> std::result::Result<(String, bool), Errno> {
        if mount.share.is_empty() {
            let stat = rustix::fs::stat(&mount.source)?;
            return Ok((mount.source.clone(), FileType::from_raw_mode(stat.st_mode) == FileType::Directory));
        }
        Ok((self.paths.share(mount.share_device, &mount.share)?, mount.source_is_dir))
    }

    fn bind_path(&self, source: &str, destination: &str, is_dir: bool, flags: u64) -> std::result::Result<(), Errno> {
        let leaf = if is_dir { Leaf::Directory } else { Leaf::File };
        let place = self.root.ensure(destination, leaf)?;
        sys::mount(source, &sys::fd_path(&place), "", libc::MS_BIND | flags, "")
    }

    /// The version 1 layout does not exist in the guest: both kinds give the unified tree.
    fn cgroup(&self, mount: &Mount) -> std::result::Result<(), Errno> {
        let mut unified = mount.clone();
        unified.source = "cgroup".into();
        unified.data = String::new();
        match self.file_system(&unified, "cgroup2", mount.flags) {
            // A user namespace that does not own the cgroup namespace may only see what is there.
            Err(Errno::PERM | Errno::BUSY) => {
                let source = self.paths.cgroup_root.to_string_lossy();
                self.bind_path(&source, &mount.destination, true, libc::MS_REC)?;
                remount(&self.root.open_path(&mount.destination)?, mount.flags, mount.clear_flags)
            }
            result => result,
        }
    }

    /// A user namespace without a network namespace of its own may not mount sysfs.
    fn sysfs(&self, mount: &Mount) -> std::result::Result<(), Errno> {
        match self.file_system(mount, "sysfs", mount.flags) {
            Err(Errno::PERM) => {
                self.bind_path("/sys", &mount.destination, true, libc::MS_REC)?;
                remount(&self.root.open_path(&mount.destination)?, mount.flags, mount.clear_flags)
            }
            result => result,
        }
    }

    /// Writable until [`Mounter::finish`]: devices and the destinations of later mounts go into it.
    fn tmpfs(&mut self, mount: &Mount) -> std::result::Result<(), Errno> {
        let below = self.root.ensure(&mount.destination, Leaf::Directory)?;
        let below =
            rustix::fs::openat(&below, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        self.file_system(mount, "tmpfs", mount.flags & !libc::MS_RDONLY)?;
        let place = self.root.open_with(&mount.destination, OFlags::RDONLY | OFlags::DIRECTORY)?;
        if !mount.data.split(',').any(|option| option.starts_with("mode=")) {
            let mode = rustix::fs::fstat(&below)?.st_mode & 0o7777;
            rustix::fs::fchmod(&place, Mode::from_raw_mode(mode))?;
        }
        if mount.copy_up {
            copy_up::copy_tree(&below, &place)?;
        }
        if mount.flags & libc::MS_RDONLY != 0 {
            self.late_readonly.push((place, mount.flags));
        }
        Ok(())
    }

    fn propagate(&self, mount: &Mount) -> std::result::Result<(), Errno> {
        if mount.propagation == 0 {
            return Ok(());
        }
        let place = self.root.open_path(&mount.destination)?;
        sys::mount("", &sys::fd_path(&place), "", mount.propagation, "")
    }
}

/// Gives a mount (not its superblock) these flags. Where the kernel does not let flags go that the
/// source had, they stay, unless `clear` asks for their absence: then it is the error that it is.
pub fn remount(place: &OwnedFd, flags: u64, clear: u64) -> std::result::Result<(), Errno> {
    let path = sys::fd_path(place);
    let flags = flags | libc::MS_BIND | libc::MS_REMOUNT;
    match sys::mount("", &path, "", flags, "") {
        Err(Errno::PERM) => {
            let present = rustix::fs::fstatvfs(place)?.f_flag.bits() & LOCKABLE & !clear;
            sys::mount("", &path, "", flags | present, "")
        }
        result => result,
    }
}
