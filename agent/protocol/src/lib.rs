//! The protocol between the monitor on the host and the agent in the guest.
//!
//! ```text
//!  monitor                                   agent (PID 1)
//!     │ ◀──────── Hello ──────── vsock READY_PORT of the host, once after boot, then closed
//!     │ ───────── ttrpc ───────▶ vsock RPC_PORT of the guest: the calls of `proto/agent.proto`
//!     │ ─ StreamHeader, bytes ─▶ vsock STREAM_PORT of the guest: one connection per descriptor
//! ```
//!
//! A process of the container that connects to a socket of the host's reaches a listener of the agent. The agent tells
//! by `AcceptSocket` which one, and the host opens a stream of the id that the agent chose: both directions of the
//! connection, each half-closed at its end. Where the host's socket takes no connection the stream is closed at once.
//! So only the host opens connections, and nothing but the agent can ask for them.
//!
//! For a connection to a published port the host asks first, by `ConnectPort`: the agent connects to the port in the
//! container's network and answers with the id of the stream that the host is to open. One of datagrams carries those of
//! many clients, each with a [`DatagramHeader`] whose tag tells the client; both sides know the [`Clients`] that were
//! heard of last.
//!
//! A stream for stdin is written by the host and half-closed at its end of file; one for stdout or
//! stderr is written by the guest and closed when the last writer is gone.
//!
//! A call is one ttrpc message, 4 MiB at most. A request that creates a container or a process may be longer, as an
//! environment may: the host then sends it ahead, in pieces, and the call itself says no more than that.
//!
//! Errors of calls are ttrpc statuses: the message is the sentence the user sees, in runc's words
//! where runc has some (`exec: "foo": executable file not found in $PATH`); the code is one of
//! `NOT_FOUND` (no such container, process), `FAILED_PRECONDITION` (wrong state),
//! `INVALID_ARGUMENT` and `INTERNAL`.

mod generated {
    #![allow(missing_docs, clippy::all, unused, rustdoc::all)]
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

mod clients;

pub use clients::Clients;
pub use generated::agent::*;
pub use generated::agent_ttrpc::*;

/// Version of everything in this crate; host and guest must agree.
pub const VERSION: u32 = 8;

/// Most bytes of a request that is sent ahead of its call: a process with the largest environment that Linux takes (6 MiB),
/// and the container's mounts.
pub const MAX_SENT_AHEAD: usize = 16 << 20;

/// The guest's context id. Each VM has a vsock device of its own, so all can have the same.
pub const GUEST_CID: u32 = 3;

/// vsock port of the host (CID 2) that the agent connects to when it is ready for calls.
pub const READY_PORT: u32 = 1023;

/// vsock port of the guest where the agent serves ttrpc.
pub const RPC_PORT: u32 = 1024;

/// vsock port of the guest where the agent takes streams.
pub const STREAM_PORT: u32 = 1025;

/// Bit in the ids of streams that are connections to sockets of the host or to published ports; the agent chooses these
/// ids.
pub const SOCKET_STREAM: u64 = 1 << 63;

/// Number of connections to sockets of the host that one container may have at a time. More wait.
pub const MAX_SOCKET_CONNECTIONS: usize = 256;

/// Number, in place of a socket's, for connections by TCP to the resolver of the container's network, which has the
/// address [`RESOLVER`] here and there.
pub const RESOLVER_STREAM: u32 = u32::MAX;

/// Number, in place of a socket's, for a stream that carries datagrams of all processes, each with a [`DatagramHeader`],
/// to the resolver and back.
pub const RESOLVER_DATAGRAMS: u32 = u32::MAX - 1;

/// Address of the resolver of a user-defined network, in a namespace of Docker's.
pub const RESOLVER: std::net::SocketAddrV4 = std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(127, 0, 0, 11), 53);

/// Header before each datagram on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramHeader {
    /// Number of bytes that follow.
    pub length: u16,
    /// Number of the asker or client: an answer has that of its question, all datagrams of one client have the same.
    pub tag: u16,
}

impl DatagramHeader {
    /// Size on the wire in bytes.
    pub const SIZE: usize = 4;

    /// Encodes as length and tag, little endian.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let ([a, b], [c, d]) = (self.length.to_le_bytes(), self.tag.to_le_bytes());
        [a, b, c, d]
    }

    /// Decodes what [`Self::to_bytes`] gave.
    pub fn from_bytes([a, b, c, d]: [u8; Self::SIZE]) -> Self {
        Self { length: u16::from_le_bytes([a, b]), tag: u16::from_le_bytes([c, d]) }
    }
}

/// Message of 16 bytes that the agent sends to [`READY_PORT`] before it closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The agent's [`VERSION`].
    pub version: u32,
    /// `CLOCK_BOOTTIME` in microseconds when the agent's `main` began.
    pub main_us: u32,
    /// `CLOCK_BOOTTIME` in microseconds when the agent was ready for calls.
    pub ready_us: u32,
}

/// First four bytes of a [`Hello`].
const HELLO_MAGIC: [u8; 4] = *b"rvm1";

impl Hello {
    /// Size on the wire in bytes.
    pub const SIZE: usize = 16;

    /// Encodes as magic, version, `main_us`, `ready_us`, little endian.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..4].copy_from_slice(&HELLO_MAGIC);
        out[4..8].copy_from_slice(&self.version.to_le_bytes());
        out[8..12].copy_from_slice(&self.main_us.to_le_bytes());
        out[12..16].copy_from_slice(&self.ready_us.to_le_bytes());
        out
    }

    /// Decodes; `None` when it does not begin with the magic.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        (bytes[0..4] == HELLO_MAGIC).then(|| Self { version: word(4), main_us: word(8), ready_us: word(12) })
    }
}

/// First bytes on a stream connection, which say what stream this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// The id used in [`Process::stdin`], [`Process::stdout`], [`Process::stderr`], or one of a connection to a socket
    /// (see [`SOCKET_STREAM`]); never 0.
    pub id: u64,
}

impl StreamHeader {
    /// Size on the wire in bytes.
    pub const SIZE: usize = 8;

    /// Encodes as a little-endian number.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        self.id.to_le_bytes()
    }

    /// Decodes what [`Self::to_bytes`] gave.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        Self { id: u64::from_le_bytes(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_survives_the_wire() {
        let hello = Hello { version: VERSION, main_us: 7, ready_us: 9 };
        assert_eq!(Hello::from_bytes(hello.to_bytes()), Some(hello));
        assert_eq!(Hello::from_bytes([0; 16]), None);
    }

    #[test]
    fn datagram_header_survives_the_wire() {
        let header = DatagramHeader { length: 0x0102, tag: 0xfffe };
        assert_eq!(DatagramHeader::from_bytes(header.to_bytes()), header);
    }

    #[test]
    fn stream_header_survives_the_wire() {
        let header = StreamHeader { id: 0x0102_0304_0506_0708 };
        assert_eq!(StreamHeader::from_bytes(header.to_bytes()), header);
    }
}
