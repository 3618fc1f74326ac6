//! netlink(7), as little as the agent needs: it executes what the host has composed, moves NICs, and has the kernel
//! translate the address of the network's resolver.

use crate::error::{Context, Result};
use core::num::NonZero;
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RawProtocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// Place of the sequence number in the header.
const SEQUENCE: std::ops::Range<usize> = 8..12;
/// Most of an answer that is looked at: an error comes first, what it is about behind it.
const ANSWER: usize = 256;
/// Attributes of a link (`linux/if_link.h`).
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NEW_IFINDEX: u16 = 49;
/// Protocol number of netfilter, which is not among rustix's.
const NETLINK_NETFILTER: RawProtocol = NonZero::new(libc::NETLINK_NETFILTER as u32).unwrap();

/// A socket in the network namespace of whoever opened it.
pub struct Netlink {
    socket: OwnedFd,
}

/// Destination of an interface.
pub struct NewPlace<'a> {
    /// Network namespace.
    pub namespace: BorrowedFd<'a>,
    /// Name of the interface there; the kernel puts a number for `%d`.
    pub name: &'a str,
    /// Index of the interface there; 0: any.
    pub index: u32,
}

impl Netlink {
    /// Opens a socket for rtnetlink(7) in the caller's namespace.
    pub fn open() -> std::result::Result<Self, Errno> {
        // The protocol of number 0 is NETLINK_ROUTE.
        Self::open_of(None)
    }

    /// Opens a socket to netfilter in the caller's namespace.
    pub fn open_netfilter() -> std::result::Result<Self, Errno> {
        Self::open_of(Some(Protocol::from_raw(NETLINK_NETFILTER)))
    }

    fn open_of(protocol: Option<Protocol>) -> std::result::Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC;
        Ok(Self { socket: rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)? })
    }

    /// Executes one request, or a batch of them that has one answer. The kernel has answered when it has taken the
    /// request; one that asks for no answer is `EINVAL`, though done.
    pub fn execute(&self, request: &[u8]) -> std::result::Result<(), Errno> {
        let mut request = request.to_vec();
        // One request at a time, so all can have the same number.
        request.get_mut(SEQUENCE).ok_or(Errno::INVAL)?.copy_from_slice(&1u32.to_ne_bytes());
        rustix::net::send(&self.socket, &request, SendFlags::empty())?;
        loop {
            let mut answer = [0; ANSWER];
            let received = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::DONTWAIT);
            let (length, _) = received.map_err(|errno| if errno == Errno::AGAIN { Errno::INVAL } else { errno })?;
            if let Some(result) = outcome(answer.get(..length).unwrap_or_default()) {
                return result;
            }
        }
    }

    /// Moves an interface to another namespace, where it is down.
    pub fn move_link(&self, index: u32, to: NewPlace<'_>) -> Result<()> {
        let mut attributes = attribute(IFLA_NET_NS_FD, &to.namespace.as_raw_fd().to_ne_bytes());
        attributes.extend(attribute(IFLA_IFNAME, &[to.name.as_bytes(), b"\0"].concat()));
        if to.index != 0 {
            attributes.extend(attribute(IFLA_NEW_IFINDEX, &to.index.to_ne_bytes()));
        }
        let moved = self.execute(&change_link(index, &attributes));
        moved.context(|| format!("move network interface {index} to another namespace as {}", to.name))
    }
}

/// The result that an answer holds, if it is one to a request.
fn outcome(answer: &[u8]) -> Option<std::result::Result<(), Errno>> {
    let kind = answer.get(4..6)?.first_chunk().map(|kind| u16::from_ne_bytes(*kind))?;
    if i32::from(kind) != libc::NLMSG_ERROR {
        return None;
    }
    let code = answer.get(HEADER..)?.first_chunk().map(|code| i32::from_ne_bytes(*code))?;
    Some(if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code.saturating_neg())) })
}

/// `RTM_NEWLINK` for an interface that there is: down, and with these attributes.
fn change_link(index: u32, attributes: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(0u32.to_ne_bytes());
    body.extend((libc::IFF_UP as u32).to_ne_bytes());
    body.extend(attributes);
    message(libc::RTM_NEWLINK, libc::NLM_F_ACK, &body)
}

/// A request of this kind and body, with these flags besides `NLM_F_REQUEST`.
pub fn message(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// An attribute, padded as its successor needs it.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let message = |kind: i32, code: i32| {
            let mut bytes = vec![0; HEADER];
            bytes[4..6].copy_from_slice(&(kind as u16).to_ne_bytes());
            [bytes, code.to_ne_bytes().to_vec()].concat()
        };
        assert_eq!(outcome(&message(libc::NLMSG_ERROR, 0)), Some(Ok(())));
        assert_eq!(outcome(&message(libc::NLMSG_ERROR, -libc::EEXIST)), Some(Err(Errno::EXIST)));
        assert_eq!(outcome(&message(libc::NLMSG_DONE, 0)), None);
        assert_eq!(outcome(&message(libc::NLMSG_ERROR, 0)[..18]), None);
        assert_eq!(outcome(&[]), None);
    }

    #[test]
    fn the_kernel_takes_what_is_sent() {
        let netlink = Netlink::open().unwrap();
        assert_eq!(netlink.execute(&change_link(u32::MAX >> 1, &attribute(IFLA_IFNAME, b"x\0"))), Err(Errno::NODEV));
        assert_eq!(netlink.execute(b"short"), Err(Errno::INVAL));
        // What comes is no outcome, and nothing more is waited for.
        let show_loopback = [&[0; 4][..], &1u32.to_ne_bytes(), &[0; 8]].concat();
        assert_eq!(netlink.execute(&message(libc::RTM_GETLINK, 0, &show_loopback)), Err(Errno::INVAL));
    }
}
