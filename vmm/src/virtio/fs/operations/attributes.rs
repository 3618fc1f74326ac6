//! Attributes of objects and of file systems.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{AtFlags, Gid, OFlags, StatxTimestamp, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use zerocopy::FromZeros;

use crate::virtio::fs::fuse::{
    ATTR_RECENT, Attr, AttrOut, EntryOut, GETATTR_FH, GetattrIn, SetattrIn, StatfsOut, StatxIn, StatxOut, SxTime, fattr,
};
use crate::virtio::fs::request::{NAME_MAX, Output, Request, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::shares;
use crate::virtio::fs::sys::{self, SetId, Stat};
use crate::virtio::fs::table::handles::Handle;
use crate::virtio::fs::table::inode::Inode;

impl AttrOut {
    fn new(attr: Attr, valid: Duration) -> Self {
        Self { attr_valid: valid.as_secs(), attr_valid_nsec: valid.subsec_nanos(), attr, ..Self::default() }
    }
}

/// How long the attributes of the device's own directories are believed: shares come and go with containers.
pub const ROOT_VALID: Duration = Duration::from_secs(1);
/// Bits of `statx` that are answered: the basic ones and the birth time.
const STATX_MASK: u32 = libc::STATX_BASIC_STATS | libc::STATX_BTIME;

impl Attr {
    /// Attributes as the host has them, with bits like [`ATTR_RECENT`].
    pub fn new(stat: &Stat, flags: u32) -> Self {
        Self {
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: stat.stx_atime.tv_sec as u64,
            mtime: stat.stx_mtime.tv_sec as u64,
            ctime: stat.stx_ctime.tv_sec as u64,
            atimensec: stat.stx_atime.tv_nsec,
            mtimensec: stat.stx_mtime.tv_nsec,
            ctimensec: stat.stx_ctime.tv_nsec,
            mode: u32::from(stat.stx_mode),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: encode_device(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            flags,
        }
    }

    /// Attributes of one of the device's own directories.
    pub fn own(nodeid: u64) -> Self {
        let mode = libc::S_IFDIR | 0o555;
        Self { ino: nodeid, mode, nlink: 2, blksize: 4096, ..Self::default() }
    }
}

impl EntryOut {
    /// The answer to a lookup: how long name and attributes may be believed.
    pub fn new(nodeid: u64, attr: Attr, name: Duration, attributes: Duration) -> Self {
        Self {
            nodeid,
            entry_valid: name.as_secs(),
            entry_valid_nsec: name.subsec_nanos(),
            attr_valid: attributes.as_secs(),
            attr_valid_nsec: attributes.subsec_nanos(),
            attr,
            ..Self::default()
        }
    }

    /// The answer that there is no such name.
    pub fn nothing(valid: Duration) -> Self {
        Self { entry_valid: valid.as_secs(), entry_valid_nsec: valid.subsec_nanos(), ..Self::default() }
    }
}

impl Server {
    /// `GETATTR`.
    pub fn getattr(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: GetattrIn = request.take()?;
        let nodeid = request.header.nodeid;
        if shares::is_own(nodeid) {
            return output.put(&AttrOut::new(Attr::own(nodeid), ROOT_VALID));
        }
        let stat = self.stat(nodeid, (args.flags & GETATTR_FH != 0).then_some(args.fh))?;
        let (attr, valid) = self.report(nodeid, &stat)?;
        output.put(&AttrOut::new(attr, valid))
    }

    /// Notes that the guest gets these attributes of an object; returns them, and how long it may believe them.
    pub fn report(&mut self, nodeid: u64, stat: &Stat) -> Served<(Attr, Duration)> {
        let inode = self.inodes.get_mut(nodeid)?;
        inode.reported(stat);
        let (way, single) = (inode.way, inode.pinned);
        let cache = self.cache_of(way);
        let recent = cache.is_recent(stat, self.inodes.began);
        let valid = cache.attributes_valid(sys::kind(stat), single, recent);
        Ok((Attr::new(stat, if recent { ATTR_RECENT } else { 0 }), valid))
    }

    /// `STATX`: as `GETATTR`, and the birth time.
    pub fn statx(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: StatxIn = request.take()?;
        let nodeid = request.header.nodeid;
        let (mut out, valid) = if shares::is_own(nodeid) {
            (extended_own(nodeid), ROOT_VALID)
        } else {
            let stat = self.stat(nodeid, (args.getattr_flags & GETATTR_FH != 0).then_some(args.fh))?;
            let (attr, valid) = self.report(nodeid, &stat)?;
            (StatxOut { flags: attr.flags, ..extended(&stat) }, valid)
        };
        (out.attr_valid, out.attr_valid_nsec) = (valid.as_secs(), valid.subsec_nanos());
        output.put(&out)
    }

    /// Attributes of an object, asked through its handle where there is one: the same object, but the
    /// file system may know more about it.
    fn stat(&self, nodeid: u64, fh: Option<u64>) -> Served<Stat> {
        match fh.and_then(|fh| self.handles.file(fh).ok()) {
            Some(file) => sys::stat(file),
            None => sys::stat(self.inode(nodeid)?.fd()?),
        }
    }

    /// `SETATTR`. The owner first, for that drops setuid; times last, for truncating changes them.
    pub fn setattr(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: SetattrIn = request.take()?;
        let inode = self.writable(request.header.nodeid)?;
        let mode = self.permitted_mode(inode, &args)?;
        if args.valid & fattr::SIZE != 0 {
            self.takes_long()?;
        }
        if args.valid & (fattr::UID | fattr::GID) != 0 {
            let uid = (args.valid & fattr::UID != 0 && args.uid != u32::MAX).then(|| Uid::from_raw(args.uid));
            let gid = (args.valid & fattr::GID != 0 && args.gid != u32::MAX).then(|| Gid::from_raw(args.gid));
            rustix::fs::chownat(inode.fd()?, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if args.valid & fattr::MODE != 0 {
            sys::set_mode(inode.fd()?, mode)?;
        }
        if args.valid & fattr::SIZE != 0 {
            self.truncate(request.header.nodeid, &args)?;
        }
        if args.valid & (fattr::ATIME | fattr::MTIME) != 0 {
            let name = sys::proc_name(inode.fd()?);
            rustix::fs::utimensat(&self.proc_fd, name, &times(&args), AtFlags::empty())?;
        }
        let stat = sys::stat(inode.fd()?)?;
        let (attr, valid) = self.report(request.header.nodeid, &stat)?;
        output.put(&AttrOut::new(attr, valid))
    }

    /// Checks a change of owner and mode by the share's policy; returns the mode to set.
    fn permitted_mode(&self, inode: &Inode, args: &SetattrIn) -> Served<u32> {
        let policy = self.policy_of(inode.way);
        if args.valid & (fattr::UID | fattr::GID | fattr::MODE) == 0 || !policy.depends_on_owner() {
            return Ok(args.mode);
        }
        policy.check_change(args, &sys::stat(inode.fd()?)?)
    }

    fn truncate(&self, nodeid: u64, args: &SetattrIn) -> Served {
        let opened;
        let (file, policy) = match self.handles.get(args.fh) {
            Ok(Handle::File(file)) if args.valid & fattr::FH != 0 => (file, self.policy_of_open(args.fh)),
            _ => {
                let inode = self.writable(nodeid)?;
                opened = self.reopen(inode, OFlags::WRONLY)?;
                (&opened, self.policy_of(inode.way))
            }
        };
        let kept = if args.valid & fattr::KILL_SUIDGID != 0 || policy.drops_set_id() {
            sys::drop_suid(file.as_fd())?;
            SetId::default()
        } else {
            self.set_id(nodeid)
        };
        sys::keeping_set_id(file.as_fd(), kept, || Ok(rustix::fs::ftruncate(file, args.size)?))
    }

    /// `STATFS`.
    pub fn statfs(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let mut out = StatfsOut { bsize: 4096, frsize: 4096, namelen: NAME_MAX as u32, ..StatfsOut::default() };
        if !shares::is_own(request.header.nodeid) {
            let host = rustix::fs::fstatvfs(self.inode(request.header.nodeid)?.fd()?)?;
            out.blocks = host.f_blocks;
            out.bfree = host.f_bfree;
            out.bavail = host.f_bavail;
            out.files = host.f_files;
            out.ffree = host.f_ffree;
            out.bsize = host.f_bsize as u32;
            out.frsize = host.f_frsize as u32;
            out.namelen = (host.f_namemax as u32).min(NAME_MAX as u32);
        }
        output.put(&out)
    }
}

fn times(args: &SetattrIn) -> Timestamps {
    let time = |set, now, sec: u64, nsec: u32| {
        let tv_nsec = match () {
            () if args.valid & now != 0 => UTIME_NOW,
            () if args.valid & set != 0 => nsec.min(999_999_999).into(),
            () => UTIME_OMIT,
        };
        Timespec { tv_sec: sec as i64, tv_nsec }
    };
    Timestamps {
        last_access: time(fattr::ATIME, fattr::ATIME_NOW, args.atime, args.atimensec),
        last_modification: time(fattr::MTIME, fattr::MTIME_NOW, args.mtime, args.mtimensec),
    }
}

fn extended(stat: &Stat) -> StatxOut {
    StatxOut {
        mask: stat.stx_mask & STATX_MASK,
        blksize: stat.stx_blksize,
        attributes: stat.stx_attributes.bits(),
        attributes_mask: stat.stx_attributes_mask.bits(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mode: stat.stx_mode,
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: sx_time(&stat.stx_atime),
        btime: sx_time(&stat.stx_btime),
        ctime: sx_time(&stat.stx_ctime),
        mtime: sx_time(&stat.stx_mtime),
        rdev_major: stat.stx_rdev_major,
        rdev_minor: stat.stx_rdev_minor,
        dev_major: stat.stx_dev_major,
        dev_minor: stat.stx_dev_minor,
        ..StatxOut::new_zeroed()
    }
}

fn extended_own(nodeid: u64) -> StatxOut {
    let Attr { ino, mode, nlink, blksize, .. } = Attr::own(nodeid);
    let mask = libc::STATX_BASIC_STATS;
    StatxOut { mask, ino, mode: mode as u16, nlink, blksize, ..StatxOut::new_zeroed() }
}

fn sx_time(time: &StatxTimestamp) -> SxTime {
    SxTime { sec: time.tv_sec, nsec: time.tv_nsec, reserved: 0 }
}

/// A device number as FUSE has it: Linux' `new_encode_dev`.
fn encode_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// The device number of the host's calls from the one that FUSE has.
pub fn decode_device(device: u32) -> u64 {
    libc::makedev(device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00)
}

#[cfg(test)]
mod device_numbers {
    use super::*;

    #[test]
    fn survive_the_way_there_and_back() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 256), (4095, 0xf_ffff)] {
            assert_eq!(decode_device(encode_device(major, minor)), libc::makedev(major, minor));
        }
    }
}
