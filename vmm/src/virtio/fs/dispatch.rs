//! Takes one request out of a chain, has it served, puts the reply in.

use zerocopy::IntoBytes;

use super::fuse::{InHeader, OutHeader, WriteIn, opcode};
use super::request::{Errno, Output, Request, Served};
use super::server::{Server, Unfinished};
use super::shares;
use crate::virtio::Error;
use crate::virtio::queue::{Buffers, Chain, Outcome};

/// Largest request besides the data of a write: an extended attribute with its name (`XATTR_SIZE_MAX`).
const MAX_BODY: usize = (64 << 10) + 1024;

/// A function that serves one opcode. What it writes to the output is the reply's body if it succeeds.
type Operation = fn(&mut Server, &mut Request, &mut Output) -> Served;

impl Server {
    /// Serves the request of a chain; says how many bytes the reply has (0: none is due), or that the request goes on when
    /// the chain is served again, on a thread where it may wait.
    ///
    /// Fails when there is no whole header, or no room for the header of a reply that is due.
    pub fn serve(&mut self, chain: &mut Chain) -> Result<Outcome, Error> {
        let total = chain.readable.len();
        let mut header = InHeader::default();
        if chain.readable.read(header.as_mut_bytes()) < size_of::<InHeader>() {
            return Err(Error::Protocol("a request shorter than its header"));
        }
        // Others, which come in another queue meanwhile, leave it as it is.
        let goes_on = header.opcode == opcode::FALLOCATE && self.may_wait;
        let begun = if goes_on { self.unfinished.take() } else { None };
        let begun = begun.filter(|begun| begun.unique == header.unique);
        let mut output = Output::new(chain.writable.split_off(size_of::<OutHeader>()));
        let result = if header.len as usize == total && header.total_extlen == 0 {
            self.perform(header, begun, chain, &mut output)
        } else {
            Err(Errno(libc::EINVAL))
        };
        if result == Err(Errno::WOULD_WAIT) {
            return Ok(Outcome::Later);
        }
        self.counters.count(header.opcode);
        if has_no_reply(header.opcode, &chain.writable) {
            return Ok(Outcome::Used(0));
        }
        if header.opcode == opcode::FALLOCATE && self.unfinished.is_some() {
            return Ok(Outcome::Later);
        }
        let (error, written) = match result {
            Ok(()) => (0, output.written()),
            Err(Errno(errno)) => (-errno, 0),
        };
        let len = (size_of::<OutHeader>() + written) as u32;
        let reply = OutHeader { len, error, unique: header.unique };
        if chain.writable.write(reply.as_bytes()) < size_of::<OutHeader>() {
            return Err(Error::Protocol("no room for the header of a reply"));
        }
        Ok(Outcome::Used(len))
    }

    /// Copies the request's body out of guest memory and calls the operation.
    fn perform(
        &mut self,
        header: InHeader,
        begun: Option<Unfinished>,
        chain: &mut Chain,
        output: &mut Output,
    ) -> Served {
        let operation = operation(header.opcode).ok_or(Errno(libc::ENOSYS))?;
        if !self.session.is_open() && header.opcode != opcode::INIT {
            return Err(Errno(libc::ENOTCONN));
        }
        let data = match header.opcode {
            opcode::WRITE => chain.readable.split_off(size_of::<WriteIn>()),
            _ => Default::default(),
        };
        if chain.readable.len() > MAX_BODY {
            return Err(Errno(libc::E2BIG));
        }
        let mut body = std::mem::take(&mut self.body);
        self.inodes.begin();
        body.resize(chain.readable.len(), 0);
        chain.readable.read(&mut body);
        let mut request = Request { header, done: begun.map_or(0, |begun| begun.done), body: &body, data };
        let bytes = body.len() + request.data.len() + output.data.len();
        let result = self
            .check_time(&header, &body, bytes)
            .and_then(|()| self.warm(&header))
            .and_then(|()| operation(self, &mut request, output));
        self.body = body;
        result
    }

    /// Makes the object that a request is about hot, unless the request is about an open file or none.
    fn warm(&mut self, header: &InHeader) -> Served {
        use opcode::*;
        match header.opcode {
            FORGET | BATCH_FORGET | INTERRUPT | INIT | DESTROY | READ | WRITE | READDIR | FLUSH | RELEASE
            | RELEASEDIR | FSYNC | FSYNCDIR | LSEEK | GETLK | SETLK | FALLOCATE | COPY_FILE_RANGE => Ok(()),
            _ if shares::is_own(header.nodeid) => Ok(()),
            SETATTR | SYMLINK | MKNOD | MKDIR | UNLINK | RMDIR | RENAME | RENAME2 | LINK | OPEN | CREATE | TMPFILE
            | SETXATTR | REMOVEXATTR => {
                self.widen(header.nodeid);
                self.inodes.warm(header.nodeid)
            }
            _ => self.inodes.warm(header.nodeid),
        }
    }
}

/// Whether nobody waits to hear what became of a request: never, or where the guest left no room to tell.
fn has_no_reply(code: u32, writable: &Buffers) -> bool {
    match code {
        opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => true,
        opcode::RELEASE | opcode::RELEASEDIR => writable.is_empty(),
        _ => false,
    }
}

/// The function that serves an opcode; `None` for opcodes that are not offered.
fn operation(code: u32) -> Option<Operation> {
    use opcode::*;
    Some(match code {
        INIT => Server::init,
        DESTROY => Server::destroy,
        SYNCFS => Server::syncfs,
        INTERRUPT => |_, _, _| Ok(()),
        LOOKUP => Server::lookup,
        FORGET => Server::forget,
        BATCH_FORGET => Server::batch_forget,
        GETATTR => Server::getattr,
        STATX => Server::statx,
        SETATTR => Server::setattr,
        STATFS => Server::statfs,
        READLINK => Server::readlink,
        SYMLINK => Server::symlink,
        MKNOD => Server::mknod,
        MKDIR => Server::mkdir,
        UNLINK => Server::unlink,
        RMDIR => Server::rmdir,
        RENAME => Server::rename,
        RENAME2 => Server::rename2,
        LINK => Server::link,
        OPEN => Server::open,
        LOOKUP_OPEN => Server::lookup_open,
        CREATE => Server::create,
        TMPFILE => Server::tmpfile,
        READ => Server::read,
        WRITE => Server::write,
        FLUSH => Server::flush,
        RELEASE | RELEASEDIR => Server::release,
        FSYNC | FSYNCDIR => Server::fsync,
        LSEEK => Server::lseek,
        GETLK => Server::getlk,
        SETLK => Server::setlk,
        FALLOCATE => Server::fallocate,
        COPY_FILE_RANGE => Server::copy_file_range,
        OPENDIR => Server::opendir,
        READDIR => Server::readdir,
        READDIRPLUS => Server::readdirplus,
        GETXATTR => Server::getxattr,
        SETXATTR => Server::setxattr,
        LISTXATTR => Server::listxattr,
        REMOVEXATTR => Server::removexattr,
        WATCH => Server::watch,
        _ => return None,
    })
}
