//! Changes that others make on the host, for what the guest watches.
//!
//! ```text
//!  guest: inotify_add_watch ──WATCH──▶ mark on the host's object    host: an editor, docker cp, another machine
//!                                         │ fanotify ◀──────────────────────┘ changes something
//!  guest: forget, then inotify ◀─ queue ──┘ (but for what this process did itself)
//! ```
//!
//! * [`group`]: the host's side, a fanotify group that anybody may make; it says which process did it, so the guest does not
//!   hear of its own changes twice.
//! * [`event`]: what the host says, taken apart.
//! * [`marks`]: which objects the guest watches.
//! * [`message`]: what the guest is told.
//!
//! The host's kernel keeps the events until the guest has a buffer for them. When they are too many it keeps one more, which
//! says so: then the guest forgets what it knows, and whoever watches hears that events are missing.

pub mod event;
pub mod group;
pub mod marks;
pub mod message;

use std::collections::VecDeque;

use event::Event;
use group::Group;
use marks::Marks;
use message::Message;

use crate::virtio::Error;
use crate::virtio::queue::Buffers;

/// Bytes of events that are taken from the host with one call.
const BATCH: usize = 16 << 10;
/// Most events taken between two messages: all that the host keeps, by default.
const MOST: usize = 16 << 10;

/// All that the device has of watching.
#[derive(Default)]
pub struct Told {
    /// Whether the guest's driver takes messages.
    pub offered: bool,
    /// This process.
    pub own: i32,
    /// The host's side, from the first watch on.
    pub group: Option<Group>,
    /// What the guest watches.
    pub marks: Marks,
    /// What the guest has yet to be told.
    pub messages: VecDeque<Message>,
}

impl Told {
    /// Whether there may be anything to tell the guest.
    pub fn is_idle(&self) -> bool {
        self.messages.is_empty()
    }

    /// Tells the guest that nobody knows what has changed, instead of all that it has not been told yet.
    pub fn lost(&mut self) {
        self.messages.clear();
        self.messages.push_back(Message::lost());
    }

    /// Forgets what the guest watches; its objects are in the result.
    pub fn clear(&mut self) -> Vec<u64> {
        self.messages.clear();
        if let Some(group) = &self.group {
            group.flush();
        }
        self.marks.take_all()
    }

    /// Puts as many messages as there is room for into a buffer of the guest's; how many bytes these are.
    pub fn put(&mut self, buffer: &mut Buffers) -> Result<usize, Error> {
        if buffer.len() < message::LONGEST {
            return Err(Error::Protocol("a buffer too short for an event"));
        }
        let mut written = 0;
        while buffer.len() >= message::LONGEST
            && let Some(message) = self.messages.pop_front()
        {
            written += buffer.write(&message.bytes());
        }
        Ok(written)
    }

    /// Takes the events that the host has, without those that this process has caused. `None` when there are none. All of them,
    /// since the last one of a name has to be told from those before.
    pub fn take_events(&mut self) -> Option<Vec<Event>> {
        let group = self.group.as_ref()?;
        let (mut buffer, mut all, mut any) = ([0; BATCH], Vec::new(), false);
        while all.len() < MOST {
            let read = group.read(&mut buffer);
            if read == 0 {
                break;
            }
            any = true;
            let events = event::parse(buffer.get(..read).unwrap_or_default());
            all.extend(events.filter(|event| event.process != self.own));
        }
        any.then_some(all)
    }
}
