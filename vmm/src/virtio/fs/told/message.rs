//! What the guest is told, as it goes over the wire.

use zerocopy::IntoBytes;

use crate::virtio::fs::fuse::{NOTIFY_EVENT, NotifyEventOut, OutHeader};
use crate::virtio::fs::request::NAME_MAX;

/// Most bytes of a message: with two names.
pub const LONGEST: usize = size_of::<OutHeader>() + size_of::<NotifyEventOut>() + 2 * NAME_MAX;

/// One event for the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What happened (`IN_CREATE`, …), and whether to a directory (`IN_ISDIR`).
    pub mask: u32,
    /// The directory of the name, if it is watched.
    pub parent: u64,
    /// The name there.
    pub name: Vec<u8>,
    /// The object, if it is watched.
    pub child: u64,
    /// The directory of the new name, if that is watched.
    pub new_parent: u64,
    /// The name there.
    pub new_name: Vec<u8>,
}

impl Message {
    /// That events are missing.
    pub fn lost() -> Self {
        Self { mask: libc::IN_Q_OVERFLOW, ..Self::default() }
    }

    /// The message as bytes, at most [`LONGEST`].
    pub fn bytes(&self) -> Vec<u8> {
        let [name, new_name] =
            [&self.name, &self.new_name].map(|name| name.get(..name.len().min(NAME_MAX)).unwrap_or_default());
        let out = NotifyEventOut {
            parent: self.parent,
            child: self.child,
            newparent: self.new_parent,
            mask: self.mask,
            namelen: name.len() as u16,
            newnamelen: new_name.len() as u16,
        };
        let len = size_of::<OutHeader>() + size_of::<NotifyEventOut>() + name.len() + new_name.len();
        let header = OutHeader { len: len as u32, error: NOTIFY_EVENT, unique: 0 };
        [header.as_bytes(), out.as_bytes(), name, new_name].concat()
    }
}
