//! Netlink requests to the kernel's routing and traffic control, one at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};

use crate::log;

/// Most bytes that the kernel puts into one datagram of a dump.
const DATAGRAM: usize = 64 << 10;
/// Most attempts at a dump whose content changes meanwhile.
const ATTEMPTS: usize = 10;

/// A netlink socket, of the network namespace that the opening thread was in.
pub struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Socket {
    /// Opens a socket that receives from the kernel only.
    pub fn open() -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::new() })
    }

    /// Sends a request, and waits until the kernel has done it.
    pub fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, flags | NLM_F_ACK)?;
        loop {
            for (_, payload) in self.receive()? {
                match payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Lists all objects of a kind.
    pub fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..ATTEMPTS {
            match self.dump_once(message.clone()) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "what is listed changes all the time"))
    }

    /// Lists once; none if the list changed meanwhile.
    fn dump_once(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        self.send(message, NLM_F_DUMP)?;
        let (mut found, mut whole) = (Vec::new(), true);
        loop {
            for (header, payload) in self.receive()? {
                whole &= header.flags & NLM_F_DUMP_INTR == 0;
                match payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok(whole.then_some(found)),
                    NetlinkPayload::Done(done) => return Err(io::Error::from_raw_os_error(-done.code)),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = bytes(message, flags, self.sequence);
        while let Err(error) = self.socket.send(&message, 0) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Receives answers to the last request; answers to earlier ones are skipped.
    fn receive(&mut self) -> io::Result<Vec<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)>> {
        receive(&self.socket, &mut self.buffer)?;
        let of_this = |message: &Result<NetlinkMessage<_>, _>| {
            message.as_ref().map_or(true, |message| message.header.sequence_number == self.sequence)
        };
        let known = |message: Result<NetlinkMessage<_>, _>| match message {
            Ok(message) => Some(message.into_parts()),
            Err(error) => {
                log::debug(&format!("passed over a message of the kernel's: {error}"));
                None
            }
        };
        Ok(messages(&self.buffer).filter(of_this).filter_map(known).collect())
    }
}

/// Receives one datagram into the buffer.
pub fn receive(socket: &netlink_sys::Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        buffer.reserve(DATAGRAM);
        match socket.recv(buffer, libc::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
            }
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

type Parsed = Result<NetlinkMessage<RouteNetlinkMessage>, netlink_packet_core::DecodeError>;

/// Messages of a datagram. Newer kernels send some that cannot be parsed; those after them can.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Parsed> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
        let (message, after) = rest.split_at_checked(length)?;
        rest = after.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        Some(NetlinkMessage::deserialize(message))
    })
}

/// Bytes of a request. Their number is a multiple of four, as that of every message of these kinds.
pub fn bytes(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
