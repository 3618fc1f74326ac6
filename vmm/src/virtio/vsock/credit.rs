//! What the guest can still take (virtio 1.2, section 5.10.6.3).

use std::num::Wrapping;

use super::packet::Header;

/// The guest's free buffer space for one connection, as far as the guest reported it.
#[derive(Default)]
pub struct Credit {
    sent: Wrapping<u32>,
    alloc: u32,
    forwarded: Wrapping<u32>,
    /// Whether we asked for more since we last had any.
    asked: bool,
}

impl Credit {
    /// Takes over what a packet of the guest says of its buffer.
    pub fn update(&mut self, packet: &Header) {
        self.alloc = packet.buf_alloc.get();
        self.forwarded = Wrapping(packet.fwd_cnt.get());
        self.asked &= self.is_empty();
    }

    /// Bytes that may be sent. None at all if the guest contradicts itself.
    pub fn free(&self) -> u32 {
        self.alloc.saturating_sub((self.sent - self.forwarded).0)
    }

    /// Whether nothing may be sent.
    pub fn is_empty(&self) -> bool {
        self.free() == 0
    }

    /// Counts bytes sent.
    pub fn spend(&mut self, count: u32) {
        self.sent += count;
    }

    /// Whether to ask the guest for more: once each time that there is none.
    pub fn must_ask(&self) -> bool {
        self.is_empty() && !self.asked
    }

    /// Notes that the guest is being asked.
    pub fn ask(&mut self) {
        self.asked = true;
    }
}
