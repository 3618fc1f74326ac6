//! Extended attributes, and which of them the guest sees.
//!
//! | in the guest | on the host | why |
//! |---|---|---|
//! | `user.*` | the same | the owner's own |
//! | `security.capability` | the same | file capabilities, as root in a container may set |
//! | `system.posix_acl_*` | the same, if ACLs were agreed on | the guest's kernel checks them |
//! | `trusted.*` | `user.virtiofs.trusted.*` | overlayfs in the guest needs them; on the host they would mean something to the host's overlayfs, and need more rights than this process should have |
//! | `user.virtiofs.*` | nothing | a guest's user would speak as its root |
//! | all others | nothing | labels of the host's security modules are the host's |
//!
//! Only root sees the names of `trusted.*` attributes: Linux does so by `CAP_SYS_ADMIN`, which requests do not show.
//! `user.*` attributes exist on regular files and directories only, hence so do `trusted.*` ones here.

use std::ffi::CStr;

use rustix::fs::XattrFlags;

use crate::virtio::fs::fuse::{GetxattrIn, GetxattrOut, SETXATTR_ACL_KILL_SGID, SetxattrCompatIn, SetxattrIn, init};
use crate::virtio::fs::request::{Errno, NAME_MAX, Output, Request, Served};
use crate::virtio::fs::server::Server;
use crate::virtio::fs::shares;
use crate::virtio::fs::sys;
use crate::virtio::fs::table::inode::Inode;

/// Largest value (`XATTR_SIZE_MAX`) and largest list of names (`XATTR_LIST_MAX`) of Linux.
const MAX_VALUE: usize = 64 << 10;
/// Prefix of names that must not mean to the host what they mean to the guest.
const PRIVATE: &[u8] = b"user.virtiofs.";
const TRUSTED: &[u8] = b"trusted.";
const CAPABILITY: &[u8] = b"security.capability";
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// A name as the host has it, NUL at its end.
type HostName = Vec<u8>;

impl Server {
    /// `GETXATTR`: the value, or its size if none is asked for.
    pub fn getxattr(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: GetxattrIn = request.take()?;
        let name = self.host_name(request.string()?)?;
        request.end()?;
        if shares::is_own(request.header.nodeid) {
            return Err(Errno(libc::ENODATA));
        }
        let mut value = std::mem::take(&mut self.scratch);
        value.resize(MAX_VALUE, 0);
        let result = self.inode(request.header.nodeid).and_then(|inode| {
            let room = value.get_mut(..(args.size as usize).min(MAX_VALUE)).unwrap_or_default();
            let length = get(inode, as_name(&name)?, room)?;
            reply(output, args.size, value.get(..length), length)
        });
        self.scratch = value;
        result
    }

    /// `LISTXATTR`: the names that the guest has, or their size if none are asked for.
    pub fn listxattr(&mut self, request: &mut Request, output: &mut Output) -> Served {
        let args: GetxattrIn = request.take()?;
        request.end()?;
        if shares::is_own(request.header.nodeid) {
            return reply(output, args.size, Some(&[]), 0);
        }
        let mut names = std::mem::take(&mut self.scratch);
        names.resize(MAX_VALUE, 0);
        let result = self.inode(request.header.nodeid).and_then(|inode| {
            let length = rustix::fs::listxattr(sys::proc_name(inode.fd()?), names.as_mut_slice())?;
            let root = request.header.uid == 0;
            let length = self.keep_guest_names(names.get_mut(..length).unwrap_or_default(), root);
            reply(output, args.size, names.get(..length), length)
        });
        self.scratch = names;
        result
    }

    /// `SETXATTR`. An ACL that the caller may not set setgid with drops it.
    pub fn setxattr(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let args = self.setxattr_args(request)?;
        let name = self.host_name(request.string()?)?;
        if request.body.len() != args.size as usize {
            return Err(Errno(libc::EINVAL));
        }
        let inode = self.writable(request.header.nodeid)?;
        let flags = XattrFlags::from_bits(args.flags).ok_or(Errno(libc::EINVAL))?;
        let stat = || sys::stat(inode.fd()?);
        self.policy_of(inode.way).check_xattr(as_bytes(&name), Some(request.body), stat)?;
        let path = sys::proc_name(inode.fd()?);
        rustix::fs::setxattr(path, as_name(&name)?, request.body, flags)?;
        if args.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0 {
            let bits = sys::permissions(&sys::stat(inode.fd()?)?);
            if bits & libc::S_ISGID != 0 {
                sys::set_mode(inode.fd()?, bits & !libc::S_ISGID)?;
            }
        }
        self.changed(request.header.nodeid);
        Ok(())
    }

    fn setxattr_args(&self, request: &mut Request) -> Served<SetxattrIn> {
        if self.session.has(init::SETXATTR_EXT) {
            return request.take();
        }
        let SetxattrCompatIn { size, flags } = request.take()?;
        Ok(SetxattrIn { size, flags, ..SetxattrIn::default() })
    }

    /// `REMOVEXATTR`.
    pub fn removexattr(&mut self, request: &mut Request, _: &mut Output) -> Served {
        let name = self.host_name(request.string()?)?;
        request.end()?;
        let inode = self.writable(request.header.nodeid)?;
        let stat = || sys::stat(inode.fd()?);
        self.policy_of(inode.way).check_xattr(as_bytes(&name), None, stat)?;
        rustix::fs::removexattr(sys::proc_name(inode.fd()?), as_name(&name)?)?;
        self.changed(request.header.nodeid);
        Ok(())
    }

    /// The host's name for a guest's, see the table above. `EOPNOTSUPP` where there is none.
    fn host_name(&self, name: &CStr) -> Served<HostName> {
        let bytes = name.to_bytes();
        if bytes.len() > NAME_MAX {
            return Err(Errno(libc::ERANGE));
        }
        if bytes.starts_with(TRUSTED) {
            let host = [PRIVATE, name.to_bytes_with_nul()].concat();
            return if host.len() > NAME_MAX + 1 { Err(Errno(libc::ERANGE)) } else { Ok(host) };
        }
        if self.is_shown(bytes) { Ok(name.to_bytes_with_nul().to_vec()) } else { Err(Errno(libc::EOPNOTSUPP)) }
    }

    /// Whether the guest has this host name under the same name.
    fn is_shown(&self, name: &[u8]) -> bool {
        let user = name.starts_with(b"user.") && !name.starts_with(PRIVATE);
        user || name == CAPABILITY || ACLS.contains(&name) && self.session.has(init::POSIX_ACL)
    }

    /// Turns a list of host names into one of the guest's, in place; returns its length. Only `root` sees trusted ones.
    fn keep_guest_names(&self, list: &mut [u8], root: bool) -> usize {
        let (mut from, mut to) = (0, 0);
        while let Some(length) = list.get(from..).and_then(|rest| rest.iter().position(|&byte| byte == 0)) {
            let end = from + length;
            let name = list.get(from..end).unwrap_or_default();
            let private = name.strip_prefix(PRIVATE).filter(|name| root && name.starts_with(TRUSTED));
            let start = match private {
                Some(_) => from + PRIVATE.len(),
                None if self.is_shown(name) => from,
                None => end + 1,
            };
            list.copy_within(start..end + 1, to);
            to += end + 1 - start;
            from = end + 1;
        }
        to
    }
}

fn as_name(name: &HostName) -> Served<&CStr> {
    CStr::from_bytes_with_nul(name).map_err(|_| Errno(libc::EINVAL))
}

fn as_bytes(name: &HostName) -> &[u8] {
    name.strip_suffix(b"\0").unwrap_or(name)
}

/// Reads a value; only its size when there is no room at all.
fn get(inode: &Inode, name: &CStr, room: &mut [u8]) -> Served<usize> {
    let path = sys::proc_name(inode.fd()?);
    if room.is_empty() {
        return Ok(rustix::fs::getxattr_query(path, name)?);
    }
    Ok(rustix::fs::getxattr(path, name, room)?)
}

/// Replies with bytes if the guest asked for any, `ERANGE` if they are too many, or with their size.
fn reply(output: &mut Output, asked: u32, bytes: Option<&[u8]>, length: usize) -> Served {
    match bytes {
        _ if asked == 0 => output.put(&GetxattrOut { size: length as u32, padding: 0 }),
        Some(bytes) if length <= asked as usize => output.bytes(bytes),
        _ => Err(Errno(libc::ERANGE)),
    }
}
