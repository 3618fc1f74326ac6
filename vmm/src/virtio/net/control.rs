//! The control queue (virtio 1.2, section 5.1.6.5). Its one command is how many pairs of queues the driver uses.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};

use crate::virtio::queue::Buffers;

/// Class and command.
const HEADER: usize = 2;
/// Bytes of the whole: behind those a number of pairs.
const PAIRS_SET: usize = HEADER + size_of::<u16>();
/// The answers.
pub const OK: u8 = VIRTIO_NET_OK as u8;
pub const ERR: u8 = VIRTIO_NET_ERR as u8;

/// What a driver that took these features has of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Pairs.
    pub pairs: u16,
    /// Index of the control queue, which follows them.
    pub control: Option<usize>,
}

impl Layout {
    /// Of a device that offers so many pairs. The feature for several of them is nothing without the queue.
    pub fn of(features: u64, offered: u16) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let (controlled, several) = (has(VIRTIO_NET_F_CTRL_VQ), has(VIRTIO_NET_F_MQ));
        let pairs = if controlled && several { offered } else { 1 };
        Self { pairs, control: controlled.then_some(2 * usize::from(pairs)) }
    }
}

/// How many pairs a command asks for, if that is what it does and there are as many.
pub fn pairs_wanted(command: &mut Buffers, most: u16) -> Option<u16> {
    let mut bytes = [0; PAIRS_SET];
    let whole = command.read(&mut bytes) == PAIRS_SET && command.is_empty();
    let [class, command, pairs @ ..] = bytes;
    let known = (u32::from(class), u32::from(command)) == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
    let pairs = u16::from_le_bytes(pairs);
    (whole && known && most > 1 && (1..=most).contains(&pairs)).then_some(pairs)
}
