//! The event loop of a device worker: epoll over a stop event, queue notifications and the descriptors
//! that the device asked for.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Events taken from the kernel with one call.
const BATCH: usize = 16;

/// What the user data of an epoll event says, in its upper half; the lower half is a queue index or a
/// descriptor. Tokens of the device stay in a table: they may use all 64 bits.
const STOP: u64 = 0;
const QUEUE: u64 = 1;
const DESCRIPTOR: u64 = 2;

/// What became ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// The stop event was written.
    Stop,
    /// The queue of this index was notified.
    Queue(usize),
    /// The descriptor with this token has these epoll events.
    Descriptor(u64, u32),
}

/// How a device has descriptors watched by its worker. Tokens are the device's own; level-triggered.
pub trait Watcher {
    /// Watches `fd` for `events` (`EPOLLIN`, …). Fails if `fd` is already watched.
    fn add(&mut self, fd: RawFd, token: u64, events: u32) -> io::Result<()>;
    /// Changes what `fd` is watched for; 0 keeps it known but silent except for errors and hang-up.
    fn modify(&mut self, fd: RawFd, token: u64, events: u32) -> io::Result<()>;
    /// Stops watching `fd`. Call it before `fd` is closed.
    fn remove(&mut self, fd: RawFd) -> io::Result<()>;
}

/// An epoll instance and the tokens of the descriptors in it.
pub struct EventLoop {
    epoll: Epoll,
    /// Notifications of queues that are watched.
    queues: Vec<RawFd>,
    tokens: HashMap<RawFd, u64>,
    /// Events not yet handed out, last one first.
    batch: Vec<EpollEvent>,
}

impl EventLoop {
    /// A loop that watches `stop` and nothing else yet.
    pub fn new(stop: &EventFd) -> io::Result<Self> {
        let event_loop = Self { epoll: Epoll::new()?, queues: Vec::new(), tokens: HashMap::new(), batch: Vec::new() };
        event_loop.control(ControlOperation::Add, stop.as_raw_fd(), EventSet::IN, STOP)?;
        Ok(event_loop)
    }

    /// Watches the notifications of these queues as well.
    pub fn watch_queues<'a>(&mut self, queues: impl Iterator<Item = (usize, &'a EventFd)>) -> io::Result<()> {
        for (index, notified) in queues {
            // Edge-triggered: every notification is one edge, and nobody has to read the counter.
            let (fd, events) = (notified.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED);
            self.control(ControlOperation::Add, fd, events, (QUEUE << 32) | index as u64)?;
            self.queues.push(fd);
        }
        Ok(())
    }

    /// Watches nothing but `stop` again, as a new loop does.
    pub fn clear(&mut self) {
        let watched = self.queues.drain(..).chain(self.tokens.drain().map(|(fd, _)| fd));
        for fd in watched {
            // Whatever was closed meanwhile is not watched any more.
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        self.batch.clear();
    }

    /// Waits until something is ready. Descriptors that were removed since are skipped.
    pub fn next_ready(&mut self) -> io::Result<Ready> {
        loop {
            while let Some(event) = self.batch.pop() {
                if let Some(ready) = self.ready(&event) {
                    return Ok(ready);
                }
            }
            self.wait()?;
        }
    }

    fn ready(&self, event: &EpollEvent) -> Option<Ready> {
        let value = event.data() & u64::from(u32::MAX);
        match event.data() >> 32 {
            STOP => Some(Ready::Stop),
            QUEUE => Some(Ready::Queue(value as usize)),
            _ => self.tokens.get(&(value as RawFd)).map(|&token| Ready::Descriptor(token, event.events())),
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); BATCH];
        match self.epoll.wait(-1, &mut events) {
            Ok(count) => self.batch.extend(events.iter().take(count).rev()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn control(&self, operation: ControlOperation, fd: RawFd, events: EventSet, data: u64) -> io::Result<()> {
        self.epoll.ctl(operation, fd, EpollEvent::new(events, data))
    }

    fn watch(&mut self, operation: ControlOperation, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        let events = EventSet::from_bits_truncate(events);
        self.control(operation, fd, events, (DESCRIPTOR << 32) | fd as u32 as u64)?;
        self.tokens.insert(fd, token);
        Ok(())
    }
}

impl Watcher for EventLoop {
    fn add(&mut self, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        self.watch(ControlOperation::Add, fd, token, events)
    }

    fn modify(&mut self, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        self.watch(ControlOperation::Modify, fd, token, events)
    }

    fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        self.tokens.remove(&fd);
        self.control(ControlOperation::Delete, fd, EventSet::empty(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_what_is_ready_and_skips_what_was_removed() {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (stop, kick, own) = (event(), event(), event());
        let mut event_loop = EventLoop::new(&stop).unwrap();
        event_loop.watch_queues([(3, &kick)].into_iter()).unwrap();
        event_loop.add(own.as_raw_fd(), u64::MAX, libc::EPOLLIN as u32).unwrap();
        assert!(event_loop.add(own.as_raw_fd(), 1, 0).is_err());

        own.write(1).unwrap();
        assert_eq!(event_loop.next_ready().unwrap(), Ready::Descriptor(u64::MAX, libc::EPOLLIN as u32));
        kick.write(1).unwrap();
        let both = [event_loop.next_ready().unwrap(), event_loop.next_ready().unwrap()];
        assert!(both.contains(&Ready::Queue(3)));

        // Both in one batch: the second is gone by the time its turn comes.
        kick.write(1).unwrap();
        while event_loop.next_ready().unwrap() != Ready::Queue(3) {}
        event_loop.remove(own.as_raw_fd()).unwrap();
        stop.write(1).unwrap();
        assert_eq!(event_loop.next_ready().unwrap(), Ready::Stop);
    }

    #[test]
    fn cleared_it_is_as_new() {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (stop, kick, own, closed) = (event(), event(), event(), event());
        let mut event_loop = EventLoop::new(&stop).unwrap();
        event_loop.watch_queues([(3, &kick)].into_iter()).unwrap();
        for (token, fd) in [&own, &closed].into_iter().enumerate() {
            event_loop.add(fd.as_raw_fd(), token as u64, libc::EPOLLIN as u32).unwrap();
            fd.write(1).unwrap();
        }
        kick.write(1).unwrap();
        // The others are in the same batch.
        event_loop.next_ready().unwrap();
        drop(closed);
        event_loop.clear();
        stop.write(1).unwrap();
        assert_eq!(event_loop.next_ready().unwrap(), Ready::Stop);
        stop.read().unwrap();
        // What came before is news to whoever watches from now on.
        event_loop.watch_queues([(1, &kick)].into_iter()).unwrap();
        assert_eq!(event_loop.next_ready().unwrap(), Ready::Queue(1));
        event_loop.add(own.as_raw_fd(), 9, libc::EPOLLIN as u32).unwrap();
        assert_eq!(event_loop.next_ready().unwrap(), Ready::Descriptor(9, libc::EPOLLIN as u32));
    }
}
