//! The virtio side: two queues into one server.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::fuse::FEATURE_EVENTS;
use super::identity;
use super::server::Server;
use super::sharing::{self, ChangeReceiver, Sharing};
use super::told::group::Group;
use super::{Counters, MakeNode, Progress, Share};
use crate::virtio::queue::{Outcome, Ring};
use crate::virtio::{AtExit, Context, Device, EnterThread, Error, Event};

/// Bytes of the tag in the configuration space (virtio 1.2, section 5.11.4).
const TAG_SIZE: usize = 36;
/// The high-priority queue (for `FORGET`), the request queue, and one for events. The second bounds a request: Linux puts
/// a page in a descriptor and needs four more, so 512 is the first size that carries 1 MiB.
const QUEUE_SIZES: [u16; 3] = [64, 512, 16];
/// The queue in which the guest has buffers for events. A driver that does not know of it leaves it alone.
const EVENTS: usize = 2;
/// Most requests of a queue between two looks at other events.
const AT_A_TIME: usize = 256;
/// Most requests that a vCPU serves at one exit: others than its own come from other vCPUs, which have time of their own.
const AT_AN_EXIT: usize = 8;
/// The same of messages without a reply. Our guest's kernel notifies of more than 16.
const MESSAGES_AT_AN_EXIT: usize = 32;
/// The high-priority queue: `FORGET`, and `RELEASE` without a reply.
const MESSAGES: usize = 0;
/// Token of the eventfd that wakes the worker for changes of the shares.
const CHANGES: u64 = 0;
/// Token of the host's events.
const HEARD: u64 = 1;

/// The file system device: all shares behind one tag.
pub struct Fs {
    tag: String,
    server: Server,
    sharing: Sharing,
    changes: ChangeReceiver,
    /// What the device's thread is at.
    progress: Arc<Progress>,
    /// Whether the device is in reserve, and served by its own thread alone.
    apart: bool,
    /// Queues that have more to be served.
    later: [bool; QUEUE_SIZES.len()],
    /// The descriptor of the host's events, if it is known to the watcher, and whether it is waited for.
    heard: Option<(RawFd, bool)>,
}

impl Fs {
    /// A device of this tag (1 to 36 bytes, no NUL), whose root directory holds these shares.
    ///
    /// Raise `RLIMIT_NOFILE` first: it bounds how many files the guest can know at a time. Keep the
    /// descriptors open in the process that calls this, since the device uses that process's `/proc/self/fd`.
    /// Fails on bad or repeated names and when `/proc` is not mounted.
    pub fn new(tag: &str, shares: Vec<Share>) -> Result<Self, Error> {
        Self::one_of(tag, shares, 16)
    }

    /// One of several devices of a machine, which gets so many sixteenths of the descriptors.
    ///
    /// # Errors
    /// As [`Fs::new`].
    pub fn one_of(tag: &str, shares: Vec<Share>, sixteenths: usize) -> Result<Self, Error> {
        check_tag(tag)?;
        Self::of(tag, Server::new(shares, sixteenths)?)
    }

    /// Keeps the device in reserve, for shares on file systems that somebody else may have to answer for: no vCPU's thread makes a call
    /// there, and one that does not answer holds up this device's thread alone. What the guest has closed is closed on the host at once,
    /// while the file system still answers: a process that has a file open of one that does not cannot be killed.
    pub fn set_apart(&mut self) {
        self.apart = true;
        self.server.at_once = false;
    }

    /// What the device's thread is at, to be looked at while the device is in use.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    fn of(tag: &str, server: Server) -> Result<Self, Error> {
        let (sharing, changes) = sharing::channel()?;
        let (progress, apart, later) = (Arc::default(), false, Default::default());
        Ok(Self { tag: tag.to_owned(), server, sharing, changes, progress, apart, later, heard: None })
    }

    /// Serves a queue, and comes back to it after other events where there is still more: a guest that never stops asking must
    /// keep the host neither from its own nor from stopping this thread.
    fn serve(&mut self, index: usize, context: &mut Context) -> Result<(), Error> {
        let Some(ring) = context.rings.get_mut(index) else { return Ok(()) };
        let (mut served, mut later) = (0, false);
        let result = ring.serve(context.memory, |chain| {
            self.changes.apply(&mut self.server);
            self.progress.begin();
            let outcome = if served < AT_A_TIME { self.server.serve(chain) } else { Ok(Outcome::Later) };
            self.progress.end();
            let outcome = outcome?;
            (served, later) = (served + 1, outcome == Outcome::Later);
            Ok(outcome)
        });
        if later {
            self.come_back_to(index)?;
        }
        result
    }

    /// Serves messages that have no reply along with a request: the guest notifies of them only when it makes no request.
    fn serve_messages(&mut self, notified: usize, memory: &GuestMemoryMmap, rings: &mut [Ring]) -> Result<(), Error> {
        let some = rings.get(MESSAGES).is_some_and(|ring| ring.has_chains(memory));
        if notified != MESSAGES && some && self.serve_some(MESSAGES, memory, rings)? == AtExit::Left {
            self.come_back_to(MESSAGES)?;
        }
        Ok(())
    }

    /// Serves a few requests of a queue on a vCPU's thread.
    fn serve_some(&mut self, queue: usize, memory: &GuestMemoryMmap, rings: &mut [Ring]) -> Result<AtExit, Error> {
        let Some(ring) = rings.get_mut(queue) else { return Ok(AtExit::Left) };
        let most = if queue == MESSAGES { MESSAGES_AT_AN_EXIT } else { AT_AN_EXIT };
        let (mut served, mut rest) = (0, AtExit::Served);
        ring.serve(memory, |chain| {
            let outcome = if served < most { self.server.serve(chain)? } else { Outcome::Later };
            served += 1;
            if outcome == Outcome::Later {
                rest = AtExit::Left;
            }
            Ok(outcome)
        })?;
        Ok(rest)
    }

    /// Has the device's thread serve a queue, after other events.
    fn come_back_to(&mut self, index: usize) -> Result<(), Error> {
        if let Some(queue) = self.later.get_mut(index) {
            *queue = true;
            self.changes.wake.write(1).map_err(|error| Error::Host("wake the file-system device", error))?;
        }
        Ok(())
    }

    /// Tells the guest of the host's events, as long as it has buffers for them; the host keeps the others.
    fn tell(&mut self, context: &mut Context) -> Result<(), Error> {
        self.server.hear();
        if let Some(ring) = context.rings.get_mut(EVENTS).filter(|_| self.server.told.offered) {
            ring.serve(context.memory, |chain| {
                self.server.hear();
                let written = self.server.told.put(&mut chain.writable)?;
                Ok(if written == 0 { Outcome::Later } else { Outcome::Used(written as u32) })
            })?;
        }
        self.wait_for_events(context)
    }

    /// Waits for the host's events, unless there are some that the guest has no room for.
    fn wait_for_events(&mut self, context: &mut Context) -> Result<(), Error> {
        let Some(fd) = self.server.told.group.as_ref().map(Group::fd) else { return Ok(()) };
        let wanted = self.server.told.is_idle();
        let events = if wanted { libc::EPOLLIN as u32 } else { 0 };
        let done = match self.heard {
            Some((_, waited)) if waited == wanted => Ok(()),
            Some(_) => context.watcher.modify(fd, HEARD, events),
            None => context.watcher.add(fd, HEARD, events),
        };
        self.heard = Some((fd, wanted));
        done.map_err(|error| Error::Host("wait for events of the host's files", error))
    }

    /// A handle that changes the shares while the device is in use.
    pub fn sharing(&self) -> Sharing {
        self.sharing.clone()
    }

    /// Has device nodes made by somebody else, for a process that may make none itself. To be called before the device is in
    /// use.
    pub fn make_nodes_with(&mut self, maker: Box<dyn MakeNode>) {
        self.server.node_maker = Some(maker);
    }

    /// Number of requests by opcode, to be read while the device is in use.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.server.counters)
    }

    /// The device with tables of these sizes.
    #[cfg(test)]
    pub(super) fn with_limits(shares: Vec<Share>, inodes: usize, handles: usize) -> Result<Self, Error> {
        Self::of("test", Server::with_limits(shares, inodes, handles)?)
    }

    /// The server, to look at its tables.
    #[cfg(test)]
    pub(super) fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

fn check_tag(tag: &str) -> Result<(), Error> {
    if tag.is_empty() || tag.len() > TAG_SIZE || tag.contains('\0') {
        return Err(Error::Protocol("the tag of a file system has 1 to 36 bytes"));
    }
    Ok(())
}

impl Device for Fs {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        // What is apart is on file systems whose events are not heard.
        if self.apart { 0 } else { FEATURE_EVENTS }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Tag, padded with NUL, and the number of request queues (`struct virtio_fs_config`).
    fn config(&self) -> Vec<u8> {
        let mut config = self.tag.clone().into_bytes();
        config.resize(TAG_SIZE, 0);
        config.extend_from_slice(&1u32.to_le_bytes());
        config
    }

    fn enter_thread(&mut self) -> Result<(), Error> {
        self.server.told.own = std::process::id() as i32;
        identity::adopt_thread(&self.server.proc_fd)
    }

    fn enter_vcpu(&self) -> Option<EnterThread> {
        if self.apart {
            return None;
        }
        let proc_fd = Arc::clone(&self.server.proc_fd);
        Some(Arc::new(move || identity::adopt_thread(&proc_fd)))
    }

    fn in_reserve(&self) -> bool {
        self.apart
    }

    /// Serves requests that end at once, see `at_exit`.
    fn serve_at_exit(&mut self, queue: usize, memory: &GuestMemoryMmap, rings: &mut [Ring]) -> Result<AtExit, Error> {
        if queue == EVENTS {
            // Room for what there is to tell.
            return Ok(if self.server.told.is_idle() { AtExit::Served } else { AtExit::Left });
        }
        self.server.may_wait = false;
        let result = self.serve_messages(queue, memory, rings).and_then(|()| self.serve_some(queue, memory, rings));
        self.server.may_wait = true;
        result
    }

    fn activate(&mut self, features: u64, context: &mut Context) -> Result<(), Error> {
        self.server.told.offered = features & FEATURE_EVENTS != 0;
        self.wait_for_events(context)?;
        let watched = context.watcher.add(self.changes.wake.as_raw_fd(), CHANGES, libc::EPOLLIN as u32);
        watched.map_err(|error| Error::Host("watch for changes of the shares", error))
    }

    fn deactivate(&mut self, context: &mut Context) {
        // Not watched where activation failed.
        let _ = context.watcher.remove(self.changes.wake.as_raw_fd());
        if let Some((fd, _)) = self.heard.take() {
            let _ = context.watcher.remove(fd);
        }
    }

    fn handle(&mut self, event: Event, context: &mut Context) -> Result<(), Error> {
        match event {
            Event::Queue(EVENTS) | Event::Fd(HEARD, _) => self.tell(context),
            Event::Queue(index) => self.serve(index, context).and_then(|()| self.wait_for_events(context)),
            Event::Fd(..) => {
                self.changes.woken(&mut self.server);
                let later = std::mem::take(&mut self.later);
                (0..later.len())
                    .filter(|&index| later.get(index) == Some(&true))
                    .try_for_each(|index| self.serve(index, context))
                    .and_then(|()| self.wait_for_events(context))
            }
        }
    }

    fn reset(&mut self) {
        self.server.forget_guest();
    }

    /// What the guest knows and has open; see the module's page. Fails when it has something open that has
    /// no name to find it by again.
    fn save(&self) -> Result<Vec<u8>, Error> {
        self.server.save()
    }

    /// Fails on a state that is malformed, when a share is missing that the guest uses, and when the host
    /// refuses to open again what was open. What has changed meanwhile is `ESTALE` to the guest.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        self.server.restore(state)?;
        // Nobody knows what the guest watches, and what has changed meanwhile.
        self.server.told.lost();
        Ok(())
    }
}
