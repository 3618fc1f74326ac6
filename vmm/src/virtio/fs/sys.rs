//! Host system calls on descriptors, as the server needs them: no path but a single checked name.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mount::OpenTreeFlags;
use rustix::path::DecInt;

use super::request::{Errno, Served};

/// Attributes of a host object.
pub(super) type Stat = rustix::fs::Statx;

/// The attributes asked for with every `statx`: one call serves table key, reply and birth time.
fn wanted() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

/// Attributes of what a descriptor stands for.
pub(super) fn stat(fd: BorrowedFd) -> Served<Stat> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted())?)
}

/// Attributes of a directory entry, a symbolic link itself included.
pub(super) fn stat_at(directory: BorrowedFd, name: &CStr) -> Served<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(directory, name, flags, wanted())?)
}

/// The same as the host's kernel knows it: where a mount begins at the entry, nobody who serves it is asked. Exact on file systems of
/// the host's own.
pub(super) fn look_at(directory: BorrowedFd, name: &CStr) -> Served<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    Ok(rustix::fs::statx(directory, name, flags, wanted())?)
}

/// The same of what a descriptor stands for.
pub(super) fn look(fd: BorrowedFd) -> Served<Stat> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted())?)
}

/// `S_IFREG`, `S_IFDIR`, … of attributes.
pub(super) fn kind(stat: &Stat) -> u32 {
    u32::from(stat.stx_mode) & libc::S_IFMT
}

/// Number of the mount that an object was found on; 0 where the host's kernel does not tell (before Linux 5.8).
pub(super) fn mount(stat: &Stat) -> u32 {
    stat.stx_mnt_id as u32
}

/// Permission bits of attributes.
pub(super) fn permissions(stat: &Stat) -> u32 {
    u32::from(stat.stx_mode) & 0o7777
}

/// Setuid and setgid bits of a mode, in a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SetId(u8);

impl SetId {
    /// Those of attributes.
    pub fn of(stat: &Stat) -> Self {
        Self(((u32::from(stat.stx_mode) & (libc::S_ISUID | libc::S_ISGID)) >> 8) as u8)
    }

    /// As they are in a mode.
    pub fn bits(self) -> u32 {
        u32::from(self.0) << 8
    }
}

/// Permission bits for a call.
pub(super) fn mode(bits: u32) -> Mode {
    Mode::from_bits_retain(bits & 0o7777)
}

/// An `O_PATH` descriptor of a directory entry, never following a link.
pub(super) fn open_path(directory: BorrowedFd, name: &CStr) -> Served<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

/// Opens a directory entry with flags that include `O_CREAT | O_EXCL`, or `.` with `O_TMPFILE`.
pub(super) fn create(directory: BorrowedFd, name: &CStr, flags: OFlags, bits: u32) -> Served<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, mode(bits))?)
}

/// The directory of this process's descriptors, `/proc/self/fd`, as a mount of its own that is attached nowhere: `..` leads
/// nowhere from it. Where the process may not mount, it is the directory as it is.
///
/// # Errors
/// There is no `/proc`.
pub fn own_descriptors() -> rustix::io::Result<OwnedFd> {
    const PATH: &CStr = c"/proc/self/fd";
    let copy = rustix::mount::open_tree(CWD, PATH, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    copy.or_else(|_| rustix::fs::open(PATH, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))
}

/// The name of a descriptor of ours in `/proc/self/fd`.
pub(super) fn proc_name(fd: BorrowedFd) -> DecInt {
    DecInt::from_fd(fd)
}

/// Opens what another descriptor of ours stands for once more, whatever has become of its name.
pub(super) fn reopen(proc_fd: &OwnedFd, fd: BorrowedFd, flags: OFlags) -> Served<OwnedFd> {
    Ok(rustix::fs::openat(proc_fd, proc_name(fd), flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// Birth time in nanoseconds since 1970; 0 where the file system doesn't know.
pub(super) fn birth_time(stat: &Stat) -> i64 {
    stat.stx_btime.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(stat.stx_btime.tv_nsec))
}

/// The path by which the host last knew what a descriptor stands for: only a hint, to be looked up.
/// `proc_fd` is `/proc/self/fd`.
pub(super) fn path_of(proc_fd: &OwnedFd, fd: BorrowedFd) -> Served<Vec<u8>> {
    let mut path = [0u8; libc::PATH_MAX as usize];
    let length = rustix::fs::readlinkat_raw(proc_fd, proc_name(fd), &mut path)?;
    Ok(path.get(..length).unwrap_or_default().to_vec())
}

/// The last component of [`path_of`].
pub(super) fn name_of(proc_fd: &OwnedFd, fd: BorrowedFd) -> Served<CString> {
    let path = path_of(proc_fd, fd)?;
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if matches!(name, b"" | b"." | b"..") {
        return Err(Errno(libc::ESTALE));
    }
    CString::new(name).map_err(|_| Errno(libc::ESTALE))
}

/// Drops setuid, and setgid where the group may execute, as a write by an ordinary user does. `EBADF` if the descriptor
/// is not for writing: the guest may ask for this with any, also in a read-only share.
pub(super) fn drop_suid(file: BorrowedFd) -> Served {
    let bits = permissions(&stat(file)?);
    let group = libc::S_ISGID | libc::S_IXGRP;
    let dropped = libc::S_ISUID | if bits & group == group { libc::S_ISGID } else { 0 };
    if bits & dropped != 0 {
        if rustix::fs::fcntl_getfl(file)? & OFlags::ACCMODE == OFlags::RDONLY {
            return Err(Errno(libc::EBADF));
        }
        set_mode(file, bits & !dropped)?;
    }
    Ok(())
}

/// Changes a file's content for somebody who keeps its setuid and setgid bits. The host asks for CAP_FSETID in its own user
/// namespace, and drops them where this process is in another. `known` says whether there can be any.
pub(super) fn keeping_set_id<T>(file: BorrowedFd, known: SetId, change: impl FnOnce() -> Served<T>) -> Served<T> {
    let before = present_set_id(file, known)?;
    // Also a change that failed may have dropped them.
    let changed = change();
    restore_set_id(file, before)?;
    changed
}

/// The setuid and setgid bits that an object has, looked for only where the guest knows of some: somebody on the host may have
/// taken them away since.
pub(super) fn present_set_id(object: BorrowedFd, known: SetId) -> Served<SetId> {
    if known == SetId::default() { Ok(known) } else { Ok(SetId::of(&stat(object)?)) }
}

/// Gives a file back the setuid and setgid bits that it had.
pub(super) fn restore_set_id(file: BorrowedFd, before: SetId) -> Served {
    if before != SetId::default() {
        let there = permissions(&stat(file)?);
        if before.bits() & !there != 0 {
            set_mode(file, there | before.bits())?;
        }
    }
    Ok(())
}

/// Sets an object's permission bits, whatever its descriptor is for: by its name in `/proc/self/fd`, where the thread is.
pub(super) fn set_mode(object: BorrowedFd, bits: u32) -> Served {
    Ok(rustix::fs::chmodat(CWD, proc_name(object), mode(bits), AtFlags::empty())?)
}

/// Whether a file can only be appended to (`chattr +a` on the host).
pub(super) fn is_append_only(fd: BorrowedFd) -> Served<bool> {
    Ok(stat(fd)?.stx_attributes.contains(rustix::fs::StatxAttributes::APPEND))
}

/// Reads directory entries (`struct linux_dirent64`) from where the descriptor is. 0 at the end.
pub(super) fn getdents(directory: BorrowedFd, out: &mut [u8]) -> Served<usize> {
    // SAFETY: the pointer and length describe `out`, which lives across the call.
    let got = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), out.as_mut_ptr(), out.len()) };
    result(got as isize)
}

/// `lseek`, with the result as the file system gives it: a cookie where it is a directory.
pub(super) fn seek(fd: BorrowedFd, offset: u64, whence: i32) -> Served<u64> {
    let offset = i64::try_from(offset).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: lseek has no pointers.
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) };
    result(at as isize).map(|at| at as u64)
}

/// Turns what a system call returned into its result.
pub(super) fn result(returned: isize) -> Served<usize> {
    usize::try_from(returned).map_err(|_| {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Errno(errno)
    })
}

/// Closes a descriptor and returns the error that its file system gives.
pub(super) fn close(fd: OwnedFd) -> Served {
    // SAFETY: the descriptor was owned and is given up, so it is closed exactly once.
    let returned = unsafe { libc::close(fd.into_raw_fd()) };
    result(returned as isize).map(drop)
}
