//! Makes device nodes for the threads that serve files.
//!
//! Only the host's own root may make nodes of real devices, and the monitor leaves the host's user namespace. So a small
//! process, which can do nothing else, gets a directory and a name, and answers with the number of an error. It comes
//!
//! - with the VM: the monitor forks it before it gives up its rights, where the container may make such nodes;
//! - with a container that joins the VM and may make some: its join proxy brings it along;
//! - with an `exec` whose process may, in a container that may not: the command brings it along.
//!
//! It ends when nobody has the other end of its socket: with the monitor, or with the container that it came with.

pub mod process;

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm::virtio::fs::{MakeNode, Node};

use crate::ipc;
use crate::log::{self, Level};

/// Said where the process has ended before its container, and where there was none to begin with.
const GONE: &str = "a device node is not made: the process that makes them has ended, or root here is not the host's";

/// How often, and after what pauses, a thread tries to ask while another one does.
const ATTEMPTS: usize = 1000;
const PAUSE: Duration = Duration::from_millis(1);

/// The connections to such processes.
#[derive(Clone, Default)]
pub struct NodeMaker {
    processes: Arc<Mutex<Vec<Arc<UnixStream>>>>,
    /// Held by the thread that asks one of them.
    turn: Arc<Mutex<()>>,
}

impl NodeMaker {
    /// Has nodes made by the process that is there.
    pub fn of(process: Option<OwnedFd>) -> Self {
        let maker = Self::default();
        maker.processes().extend(process.map(|process| Arc::new(process.into())));
        maker
    }

    /// Has nodes made by this process, too, until what is returned is dropped: it is one container's.
    pub fn take_on(&self, process: OwnedFd) -> Loan {
        let process = Arc::new(UnixStream::from(process));
        self.processes().push(Arc::clone(&process));
        Loan { maker: self.clone(), process }
    }

    fn newest(&self) -> Option<Arc<UnixStream>> {
        self.processes().last().cloned()
    }

    fn remove(&self, process: &Arc<UnixStream>) {
        self.processes().retain(|other| !Arc::ptr_eq(other, process));
    }

    /// Held for a moment: while a process is asked, the main thread goes on.
    fn processes(&self) -> MutexGuard<'_, Vec<Arc<UnixStream>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to ask. Nothing for a thread for which that takes too long: another one asks for a node on a file system that does not
    /// answer.
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        for _ in 0..ATTEMPTS {
            match self.turn.try_lock() {
                Ok(turn) => return Some(turn),
                Err(TryLockError::Poisoned(turn)) => return Some(turn.into_inner()),
                // A wait by a call that threads make anyway.
                Err(TryLockError::WouldBlock) => std::thread::park_timeout(PAUSE),
            }
        }
        None
    }
}

impl MakeNode for NodeMaker {
    fn make(&self, node: &Node<'_>) -> io::Result<()> {
        let Some(_turn) = self.turn() else { return Err(io::Error::from_raw_os_error(libc::EBUSY)) };
        while let Some(process) = self.newest() {
            match ask(&process, node) {
                // It was killed, or ends with its join proxy.
                Err(_) => self.remove(&process),
                Ok(0) => return Ok(()),
                Ok(error) => return Err(io::Error::from_raw_os_error(error)),
            }
        }
        log::repeated(Level::Warning, GONE);
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// A process that came with a container. Dropped, it is asked no more, and ends.
pub struct Loan {
    maker: NodeMaker,
    process: Arc<UnixStream>,
}

impl Loan {
    /// Whether the process is still there.
    pub fn lives(&self) -> bool {
        // By no event but this one: answers are another thread's.
        let mut fds = [PollFd::new(&*self.process, PollFlags::empty())];
        let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled.is_ok() && !fds[0].revents().contains(PollFlags::HUP)
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.maker.remove(&self.process);
    }
}

/// Has a process make a node; gives the number of an error.
fn ask(process: &UnixStream, node: &Node<'_>) -> io::Result<i32> {
    let request = process::encode(node);
    if ipc::send_fds(process, &request, &[node.directory])? != request.len() {
        return Err(ErrorKind::BrokenPipe.into());
    }
    let mut answer = [0; 4];
    // It came with one call, and is read with one that the thread may make.
    if rustix::io::read(process, &mut answer)? != answer.len() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(i32::from_ne_bytes(answer))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn pair() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    /// Has a node made; gives the number of the error.
    fn error(maker: &NodeMaker) -> Option<i32> {
        let directory = std::fs::File::open("/").unwrap();
        let node = Node {
            directory: directory.as_fd(),
            name: c"node",
            mode: libc::S_IFCHR,
            device: 1,
            umask: 0,
            uid: 0,
            gid: 0,
        };
        maker.make(&node).unwrap_err().raw_os_error()
    }

    fn answer(process: &UnixStream, error: i32) {
        rustix::io::write(process, &error.to_ne_bytes()).unwrap();
    }

    #[test]
    fn a_process_that_is_gone_is_asked_no_more() {
        let ((first, first_process), (second, second_process)) = (pair(), pair());
        let maker = NodeMaker::of(Some(first));
        let loan = maker.take_on(second);
        answer(&first_process, libc::ENOSPC);
        answer(&second_process, libc::EEXIST);
        assert_eq!(error(&maker), Some(libc::EEXIST));
        assert!(loan.lives());
        // Whatever it has said before.
        answer(&second_process, 0);
        drop(second_process);
        assert!(!loan.lives());
        assert_eq!(error(&maker), Some(libc::ENOSPC));
        drop(first_process);
        assert_eq!(error(&maker), Some(libc::EPERM));
    }

    #[test]
    fn a_container_takes_its_process_along() {
        let ((first, first_process), (second, second_process)) = (pair(), pair());
        let maker = NodeMaker::of(Some(first));
        drop(maker.take_on(second));
        let mut byte = [0];
        assert_eq!(rustix::io::read(&second_process, &mut byte).unwrap(), 0, "its socket is closed");
        answer(&first_process, libc::EACCES);
        assert_eq!(error(&maker), Some(libc::EACCES));
    }
}
