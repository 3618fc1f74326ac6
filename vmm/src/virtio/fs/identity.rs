//! The identity under which a thread that serves acts on the host.
//!
//! A new object has to belong to the caller from its first moment, so it is created with the caller's
//! `fsuid` and `fsgid`, which Linux keeps per thread. Everything else is done as the monitor: the guest's
//! kernel has already checked the caller's permissions, with groups and capabilities unknown here.
//!
//! Before it serves, the device's own thread and each vCPU's gets, for good:
//! * a file-system context of its own (`CLONE_FS`), so that the `umask` of a request (the host applies
//!   it, or a directory's default ACL instead) and the working directory are this thread's only;
//! * `/proc/self/fd` as that directory: extended attributes have no call with a directory descriptor,
//!   and this works where `/proc` is no longer mounted;
//! * `SECBIT_NO_SETUID_FIXUP`, if it may: then changing `fsuid` keeps the capabilities. Otherwise the
//!   host checks the caller's permissions once more when it creates something, without its groups;
//! * no `CAP_SYS_RESOURCE`, with which writes would go beyond the quotas of the files' owners.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::request::{Errno, Served};
use crate::virtio::Error;

/// `SECBIT_NO_SETUID_FIXUP` of `linux/securebits.h`.
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
/// An argument that is no id: the calls then only return the present one.
const NO_ID: u32 = u32::MAX;

thread_local! {
    /// The identity of this thread, once it is prepared.
    static IDENTITY: Cell<Option<Identity>> = const { Cell::new(None) };
}

/// The identity that a thread has between requests.
#[derive(Clone, Copy, Debug)]
struct Identity {
    uid: u32,
    gid: u32,
    /// The umask now set: what the thread's last request wanted.
    umask: u32,
}

/// Prepares the calling thread, see above; `proc_fd` is `/proc/self/fd` of this process.
pub(super) fn adopt_thread(proc_fd: &OwnedFd) -> Result<(), Error> {
    // SAFETY: plain system calls without pointers; they change this thread's own context only.
    unsafe {
        checked("unshare the file-system context", libc::unshare(libc::CLONE_FS))?;
        checked("enter /proc/self/fd", libc::fchdir(proc_fd.as_raw_fd()))?;
        libc::umask(0);
        let bits = libc::prctl(libc::PR_GET_SECUREBITS);
        if bits >= 0 {
            libc::prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong | SECBIT_NO_SETUID_FIXUP, 0, 0, 0);
        }
    }
    if let Ok(mut sets) = capabilities(None) {
        sets.effective.remove(CapabilitySet::SYS_RESOURCE);
        // Giving one up is always allowed, where the call is: without it quotas are not kept, and no more.
        let _ = set_capabilities(None, sets);
    }
    IDENTITY.set(Some(Identity { uid: set_fsuid(NO_ID), gid: set_fsgid(NO_ID), umask: 0 }));
    Ok(())
}

/// Has this thread act as these ids and with this umask until the guard is dropped. `EPERM` if the host refuses, `EIO` on a thread
/// that was not prepared.
pub(super) fn act_as(uid: u32, gid: u32, umask: u32) -> Served<ActingAs> {
    let own = IDENTITY.get().ok_or(Errno(libc::EIO))?;
    let umask = umask & 0o777;
    if own.umask != umask {
        // SAFETY: umask has no pointers and cannot fail; the mask is this thread's own.
        unsafe { libc::umask(umask) };
        IDENTITY.set(Some(Identity { umask, ..own }));
    }
    let guard = ActingAs { own, changed: (uid, gid) != (own.uid, own.gid), thread: PhantomData };
    if guard.changed {
        set_fsgid(gid);
        set_fsuid(uid);
        if (set_fsuid(NO_ID), set_fsgid(NO_ID)) != (uid, gid) {
            return Err(Errno(libc::EPERM));
        }
    }
    Ok(guard)
}

/// Guard: while it lives its thread acts as a caller.
#[must_use]
pub(super) struct ActingAs {
    own: Identity,
    changed: bool,
    /// It stays on the thread that it is of.
    thread: PhantomData<*const ()>,
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        if self.changed {
            set_fsuid(self.own.uid);
            set_fsgid(self.own.gid);
        }
    }
}

/// Sets this thread's `fsuid` and returns the one before. glibc's wrapper is per thread too, but the
/// raw call says so.
fn set_fsuid(uid: u32) -> u32 {
    // SAFETY: setfsuid has no pointers.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) as u32 }
}

/// Sets this thread's `fsgid` and returns the one before.
fn set_fsgid(gid: u32) -> u32 {
    // SAFETY: setfsgid has no pointers.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) as u32 }
}

fn checked(what: &'static str, result: libc::c_int) -> Result<(), Error> {
    if result < 0 { Err(Error::Host(what, io::Error::last_os_error())) } else { Ok(()) }
}
