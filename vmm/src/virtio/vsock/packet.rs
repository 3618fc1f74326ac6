//! The packet header (virtio 1.2, section 5.10.6): read once into a host copy, checked, then only the
//! copy is used.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::virtio::queue::Buffers;

/// The host's context identifier (virtio 1.2, section 5.10.4).
pub const HOST_CID: u64 = 2;
/// Socket type `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;
/// Flag of `SHUTDOWN`: the sender will receive no more data.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of `SHUTDOWN`: the sender will send no more data.
pub const SHUTDOWN_SEND: u32 = 2;
/// Flags of `SHUTDOWN` for both directions.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
/// Bytes of a header.
pub const HEADER_SIZE: usize = size_of::<Header>();
/// `VMADDR_PORT_ANY`, which no packet may carry.
pub const PORT_ANY: u32 = u32::MAX;

/// What a packet does: `enum virtio_vsock_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Accepts a connection.
    Response = 2,
    /// Refuses or ends a connection, or says that there is none.
    Reset = 3,
    /// Says that the sender will not send or not receive any more.
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Says how much buffer space there is.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

impl Op {
    fn parse(op: u16) -> Option<Self> {
        const ALL: [Op; 7] =
            [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest];
        ALL.into_iter().find(|known| *known as u16 == op)
    }
}

/// The two ports that, with the one guest and the one host, name a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Port on the host's side.
    pub host: u32,
    /// Port on the guest's side.
    pub guest: u32,
}

impl Ports {
    /// A number made of both ports, the host's in the upper half.
    pub fn token(self) -> u64 {
        u64::from(self.host) << 32 | u64::from(self.guest)
    }

    /// The reverse of [`Ports::token`].
    pub fn from_token(token: u64) -> Self {
        Self { host: (token >> 32) as u32, guest: token as u32 }
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Context identifier of the sender.
    pub src_cid: U64,
    /// Context identifier of the receiver.
    pub dst_cid: U64,
    /// Port of the sender.
    pub src_port: U32,
    /// Port of the receiver.
    pub dst_port: U32,
    /// Bytes of data after the header.
    pub len: U32,
    /// Socket type.
    pub kind: U16,
    /// Operation; see [`Op`].
    pub op: U16,
    /// Flags of the operation.
    pub flags: U32,
    /// Bytes that the sender can buffer for this connection.
    pub buf_alloc: U32,
    /// Bytes that the sender has taken out of that buffer so far, modulo 2³².
    pub fwd_cnt: U32,
}

impl Header {
    /// Takes a header off the front of a chain; `None` when the chain is too short for one.
    pub fn read(chain: &mut Buffers) -> Option<Self> {
        let mut header = Self::default();
        (chain.read(header.as_mut_bytes()) == HEADER_SIZE).then_some(header)
    }

    /// The operation; `None` when the specification knows none of this number.
    pub fn op(&self) -> Option<Op> {
        Op::parse(self.op.get())
    }

    /// The connection that a packet *from the guest* speaks of.
    pub fn ports(&self) -> Ports {
        Ports { host: self.dst_port.get(), guest: self.src_port.get() }
    }

    /// The `RST` that answers this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: U16::new(Op::Reset as u16),
            ..Self::default()
        }
    }

    /// A packet of a stream from the host to the guest, without data, flags and credit.
    pub fn to_guest(guest_cid: u64, ports: Ports, op: Op) -> Self {
        Self {
            src_cid: U64::new(HOST_CID),
            dst_cid: U64::new(guest_cid),
            src_port: U32::new(ports.host),
            dst_port: U32::new(ports.guest),
            kind: U16::new(TYPE_STREAM),
            op: U16::new(op as u16),
            ..Self::default()
        }
    }
}
