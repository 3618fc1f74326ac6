//! What the monitor asks of the network helper, and what that answers.
//!
//! Messages are those of [`ipc`](crate::ipc), on one connection, whose other end the command gives to the monitor with the parcel.
//! Each request has one reply, in order.

use serde::{Deserialize, Serialize};

use super::Link;
use crate::ipc::Descriptor;

/// What the monitor asks. It names links by numbers that the helper gave it, and nothing else.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Begin: make the link of a user-mode network, if there is to be one, and watch the namespace.
    Open,
    /// Look at the namespace, attach links that are new and detach those that are gone.
    Look {
        /// Indexes of the links that lead to NICs. Others that were attached are detached, and attached anew.
        attached: Vec<u32>,
        /// Number of NICs for new links, besides those of links that are gone.
        free: usize,
    },
    /// Connect to the resolver of Docker's networks.
    Dial(Transport),
    /// Detach all links of a namespace that stays, and end.
    End,
}

/// How the resolver is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream; it may still be connecting.
    Tcp,
}

/// What the helper answers.
#[derive(Serialize, Deserialize)]
pub enum Reply {
    /// Answer to [`Request::Open`].
    Opened {
        /// Says when the namespace changes: for [`Changes`](super::Changes).
        changes: Descriptor,
        /// The tap that leads to passt(1).
        user_network: Option<Descriptor>,
    },
    /// Answer to [`Request::Look`].
    Seen(Sight),
    /// A socket that does not block.
    Dialed(Descriptor),
    /// Nothing of ours is left.
    Ended,
    /// The request failed; the sentence for the user.
    Failed(String),
}

/// A namespace as it was found.
#[derive(Serialize, Deserialize)]
pub struct Sight {
    /// All links that a guest can have, by index. Each is attached now.
    pub links: Vec<Link>,
    /// The taps of those that were not attached before.
    pub taps: Vec<NewTap>,
    /// Whether there is a resolver.
    pub resolver: bool,
}

/// The tap of a link.
#[derive(Serialize, Deserialize)]
pub struct NewTap {
    /// Index of the link.
    pub link: u32,
    /// For the NIC; closing it removes the tap.
    pub tap: Descriptor,
}
