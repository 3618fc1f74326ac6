//! Requests about names: finding, making, renaming and removing them.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, RenameFlags};

use super::attributes::{ROOT_VALID, decode_device};
use crate::virtio::fs::fuse::{
    ATTR_SUBMOUNT, Attr, BatchForgetIn, EntryOut, ForgetIn, ForgetOne, InHeader, LinkIn, MkdirIn, MknodIn, ROOT_ID,
    Rename2In, RenameIn, init,
};
use crate::virtio::fs::nodes::Node;
use crate::virtio::fs::request::{Errno, Output, Request, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::shares;
use crate::virtio::fs::sys::{self, Stat};
use crate::virtio::fs::table::inode::{Above, Key};

/// Longest target of a symbolic link, its NUL included (`PATH_MAX`).
const TARGET_MAX: usize = libc::PATH_MAX as usize;

impl Server {
    /// `LOOKUP`. The answer for a name that doesn't exist is an error, which the guest doesn't remember, except where nobody
    /// else makes names.
    pub fn lookup(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let name = request.last_name()?;
        match self.find(request.header.nodeid, name) {
            Err(Errno(libc::ENOENT)) if self.absence_valid(request.header.nodeid) > Duration::ZERO => {
                output.put(&EntryOut::nothing(self.absence_valid(request.header.nodeid)))
            }
            found => self.reply_entry(found?, output),
        }
    }

    /// Writes an entry that was counted as a lookup; if there is no room the guest never learns of it.
    pub fn reply_entry(&mut self, entry: EntryOut, output: &mut Output) -> Served {
        output.put(&entry).inspect_err(|_| self.inodes.forget(entry.nodeid, 1))
    }

    /// Finds a name in a directory and counts a lookup of its object. The guest asks for what it does not know, mostly, so the
    /// object is opened first and looked at then.
    pub fn find(&mut self, parent: u64, name: &CStr) -> Served<EntryOut> {
        if shares::is_own(parent) {
            return self.find_share(parent, name);
        }
        let directory = self.inode(parent)?;
        let above = directory.as_above();
        let fd = sys::open_path(directory.fd()?, name)?;
        let stat = self.stat_opened(fd.as_fd())?;
        self.check_mount(&stat, &above)?;
        if let Some(nodeid) = self.inodes.find(&stat, parent, name, &above) {
            return self.found_again(parent, nodeid, name, &stat);
        }
        let nodeid = self.inodes.adopt(fd, &stat, parent, &above)?;
        self.entry_below(parent, nodeid, &stat)
    }

    /// [`Server::find`] for an entry of a listing, which may not be used soon: it is opened where descriptors are plenty.
    pub fn find_lazily(&mut self, parent: u64, name: &CStr) -> Served<EntryOut> {
        if shares::is_own(parent) || !self.inodes.is_warm() {
            return self.find(parent, name);
        }
        let directory = self.inode(parent)?;
        let above = directory.as_above();
        let stat = self.stat_entry(directory.fd()?, name)?;
        self.check_mount(&stat, &above)?;
        if let Some(nodeid) = self.inodes.find(&stat, parent, name, &above) {
            return self.found_again(parent, nodeid, name, &stat);
        }
        let nodeid = self.inodes.add_cold(name, &stat, parent, &above)?;
        self.entry_below(parent, nodeid, &stat)
    }

    /// Attributes of a directory entry. A vCPU's thread asks nobody who serves what may be mounted there.
    fn stat_entry(&self, directory: BorrowedFd, name: &CStr) -> Served<Stat> {
        if self.may_wait { sys::stat_at(directory, name) } else { sys::look_at(directory, name) }
    }

    /// Attributes of what was just opened under a name, likewise.
    fn stat_opened(&self, object: BorrowedFd) -> Served<Stat> {
        if self.may_wait { sys::stat(object) } else { sys::look(object) }
    }

    /// Notes that an object found below a share is on another mount, which a vCPU leaves to the device's thread.
    fn check_mount(&mut self, stat: &Stat, above: &Above) -> Served {
        if Key::new(stat, above).mount != 0 {
            self.takes_long()?;
            self.shares.has_mounts(above.way);
        }
        Ok(())
    }

    /// The entry of an object that is known, and was counted as looked up.
    fn found_again(&mut self, parent: u64, nodeid: u64, name: &CStr, stat: &Stat) -> Served<EntryOut> {
        let above = self.inodes.peek(parent)?.as_above();
        self.meet(nodeid, parent, name, &above).inspect_err(|_| self.inodes.forget(nodeid, 1))?;
        self.entry_below(parent, nodeid, stat)
    }

    /// How long the guest may believe that a name is not in this directory.
    pub fn absence_valid(&self, parent: u64) -> Duration {
        let cache = self.inodes.peek(parent).map(|directory| *self.cache_of(directory.way));
        cache.ok().filter(|cache| cache.exclusive).map_or(Duration::ZERO, |cache| cache.valid)
    }

    fn find_share(&mut self, directory: u64, name: &CStr) -> Served<EntryOut> {
        // The name goes with its container.
        let name_valid = Duration::from_secs(1);
        let Some(share) = self.shares.find(directory, name.to_bytes()) else {
            let found = self.shares.find_directory(name.to_bytes()).filter(|_| directory == ROOT_ID);
            let nodeid = found.ok_or(Errno(libc::ENOENT))?;
            let attr = Attr { flags: self.submount(libc::S_IFDIR), ..Attr::own(nodeid) };
            return Ok(EntryOut::new(nodeid, attr, name_valid, ROOT_VALID));
        };
        let nodeid = share.nodeid;
        if !self.shares.rules(self.inodes.peek(nodeid)?.way).local {
            self.takes_long()?;
        }
        let inode = self.inodes.get_mut(nodeid)?;
        let stat = sys::stat(inode.fd()?)?;
        inode.lookups = inode.lookups.saturating_add(1);
        let (mut attr, attributes) = self.report(nodeid, &stat)?;
        // A directory of shares is a file system of its own, and they are in it.
        attr.flags |= if directory == ROOT_ID { self.submount(sys::kind(&stat)) } else { 0 };
        Ok(EntryOut::new(nodeid, attr, name_valid, attributes))
    }

    /// The entry of an object in a directory. Where another mount begins the guest gets one, too: then
    /// device and inode numbers are as distinct there as they are on the host.
    fn entry_below(&mut self, parent: u64, nodeid: u64, stat: &Stat) -> Served<EntryOut> {
        let directory = self.inodes.peek(parent)?;
        let same = Key::new(stat, &directory.as_above()).same_mount(&directory.key);
        let name = self.cache_of(directory.way).valid;
        let (mut attr, attributes) = self.report(nodeid, stat)?;
        attr.flags |= if same { 0 } else { self.submount(sys::kind(stat)) };
        Ok(EntryOut::new(nodeid, attr, name, attributes))
    }

    fn submount(&self, kind: u32) -> u32 {
        let directory = kind == libc::S_IFDIR;
        if directory && self.session.has(init::SUBMOUNTS) { ATTR_SUBMOUNT } else { 0 }
    }

    /// `FORGET`; there is no reply.
    pub fn forget(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: ForgetIn = request.take()?;
        self.forget_lookups(request.header.nodeid, args.nlookup);
        Ok(())
    }

    /// `BATCH_FORGET`; there is no reply.
    pub fn batch_forget(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: BatchForgetIn = request.take()?;
        for _ in 0..args.count {
            let one: ForgetOne = request.take()?;
            self.forget_lookups(one.nodeid, one.nlookup);
        }
        Ok(())
    }

    /// `READLINK`. The target goes to the guest as it is: only the guest ever follows it.
    pub fn readlink(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let inode = self.inode(request.header.nodeid)?;
        let mut target = [0u8; TARGET_MAX];
        let length = rustix::fs::readlinkat_raw(inode.fd()?, c"", &mut target)?;
        output.bytes(target.get(..length).unwrap_or_default())
    }

    /// `SYMLINK`.
    pub fn symlink(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let (name, target) = (request.name()?, request.string()?);
        request.end()?;
        let directory = self.writable(request.header.nodeid)?;
        {
            let _caller = self.act_as_caller(&request.header, 0)?;
            rustix::fs::symlinkat(target, directory.fd()?, name)?;
        }
        self.reply_made(request, name, output)
    }

    /// `MKNOD`: files, FIFOs, sockets, and devices where the share's policy allows them.
    pub fn mknod(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let (args, name) = (request.take::<MknodIn>()?, request.last_name()?);
        let kind = match args.mode & libc::S_IFMT {
            0 | libc::S_IFREG => FileType::RegularFile,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            libc::S_IFCHR => FileType::CharacterDevice,
            libc::S_IFBLK => FileType::BlockDevice,
            _ => return Err(Errno(libc::EINVAL)),
        };
        self.make_node(&request.header, name, kind, &args)?;
        self.reply_made(request, name, output)
    }

    fn make_node(&self, header: &InHeader, name: &CStr, kind: FileType, args: &MknodIn) -> Served {
        let directory = self.writable(header.nodeid)?;
        let policy = self.policy_of(directory.way);
        let (mode, device) = (policy.new_mode(args.mode), decode_device(args.rdev));
        policy.check_node(kind.as_raw_mode(), device)?;
        let device_node = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) && device != 0;
        if let Some(maker) = self.node_maker.as_deref().filter(|_| device_node) {
            policy.check_maker(header.uid, header.gid)?;
            let (directory, umask, uid, gid) = (directory.fd()?, args.umask & 0o777, header.uid, header.gid);
            return Ok(maker.make(&Node { directory, name, mode, device, umask, uid, gid })?);
        }
        let _caller = self.act_as_caller(header, args.umask)?;
        Ok(rustix::fs::mknodat(directory.fd()?, name, kind, sys::mode(mode), device)?)
    }

    /// `MKDIR`.
    pub fn mkdir(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let (args, name) = (request.take::<MkdirIn>()?, request.last_name()?);
        let directory = self.writable(request.header.nodeid)?;
        {
            let _caller = self.act_as_caller(&request.header, args.umask)?;
            rustix::fs::mkdirat(directory.fd()?, name, sys::mode(args.mode))?;
        }
        self.reply_made(request, name, output)
    }

    fn reply_made(&mut self, request: &Request, name: &CStr, output: &mut Output) -> Served {
        let entry = self.find(request.header.nodeid, name)?;
        self.reply_entry(entry, output)
    }

    /// `UNLINK`.
    pub fn unlink(&mut self, request: &mut Request, _: &mut Output) -> Served {
        self.remove(request, AtFlags::empty())
    }

    /// `RMDIR`.
    pub fn rmdir(&mut self, request: &mut Request, _: &mut Output) -> Served {
        self.remove(request, AtFlags::REMOVEDIR)
    }

    fn remove(&mut self, request: &mut Request, flags: AtFlags) -> Served {
        let name = request.last_name()?;
        let above = self.writable(request.header.nodeid)?.as_above();
        if self.inodes.any_cold() {
            self.inodes.warm_name(request.header.nodeid, name);
        }
        let directory = self.writable(request.header.nodeid)?;
        let stat = self.stat_entry(directory.fd()?, name)?;
        rustix::fs::unlinkat(directory.fd()?, name, flags)?;
        let Some(nodeid) = self.inodes.known_as(&stat, &above) else { return Ok(()) };
        match self.inodes.get_mut(nodeid) {
            // There is no name left to look up.
            Ok(inode) if stat.stx_nlink == 1 => inode.changed(),
            _ => self.changed(nodeid),
        }
        Ok(())
    }

    /// `RENAME`.
    pub fn rename(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: RenameIn = request.take()?;
        self.move_name(request, args.newdir, 0)
    }

    /// `RENAME2`: with `NOREPLACE` or `EXCHANGE`. `WHITEOUT` is refused: whoever wants one can make it.
    pub fn rename2(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args: Rename2In = request.take()?;
        self.move_name(request, args.newdir, args.flags)
    }

    fn move_name(&mut self, request: &mut Request, to: u64, flags: u32) -> Served {
        let (old, new) = (request.name()?, request.last_name()?);
        let flags = RenameFlags::from_bits(flags).filter(|flags| !flags.contains(RenameFlags::WHITEOUT));
        let flags = flags.ok_or(Errno(libc::EINVAL))?;
        let from = request.header.nodeid;
        self.widen(to);
        if self.writable(from)?.files != self.writable(to)?.files {
            return Err(Errno(libc::EXDEV));
        }
        self.inodes.warm(to)?;
        let object = self.inodes.warm_name(from, old);
        let other = self.inodes.warm_name(to, new);
        let rename = |server: &Self| {
            let (from_fd, to_fd) = (server.writable(from)?.fd()?, server.writable(to)?.fd()?);
            Ok(rustix::fs::renameat_with(from_fd, old, to_fd, new, flags)?)
        };
        self.on_one_mount([from, to], rename)?;
        self.inodes.moved(object, to);
        object.into_iter().for_each(|nodeid| self.changed(nodeid));
        if flags.contains(RenameFlags::EXCHANGE) {
            self.inodes.moved(other, from);
        }
        other.into_iter().for_each(|nodeid| self.changed(nodeid));
        Ok(())
    }

    /// `LINK`.
    pub fn link(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let (args, name) = (request.take::<LinkIn>()?, request.last_name()?);
        let (old, to) = (args.oldnodeid, request.header.nodeid);
        self.widen(old);
        self.writable(old)?;
        self.inodes.warm(old)?;
        if self.writable(old)?.files != self.writable(to)?.files {
            return Err(Errno(libc::EXDEV));
        }
        let link = |server: &Self| {
            let (source, directory) = (sys::proc_name(server.writable(old)?.fd()?), server.writable(to)?.fd()?);
            Ok(rustix::fs::linkat(&server.proc_fd, source, directory, name, AtFlags::SYMLINK_FOLLOW)?)
        };
        self.on_one_mount([old, to], link)?;
        self.reply_made(request, name, output)
    }
}
