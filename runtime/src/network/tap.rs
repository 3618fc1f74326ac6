//! Taps, which the guest's network devices read and write.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::links::{Link, TAP_PREFIX, about};
use super::mirror::address_mode;
use super::netlink::Socket;
use crate::directory;
use crate::host::requirements;

/// Largest MTU of a tap; larger packets pass all the same.
const MAX_MTU: u32 = 65521;
/// Packets that wait for the guest.
const QUEUE: u32 = 1000;

/// A tap, which lives as long as its descriptor.
pub struct Tap {
    /// What is read and written.
    pub file: OwnedFd,
    /// Its number.
    pub index: u32,
}

/// Opens the directory of the tun device, for making taps where /dev is not seen.
///
/// # Errors
/// There is none.
pub fn open_devices() -> anyhow::Result<OwnedFd> {
    directory::open("/dev/net").map_err(missing)
}

fn missing(error: Errno) -> anyhow::Error {
    requirements::no_tun(&error.into()).into()
}

/// Makes a tap for a network device in the calling thread's namespace. It is not up.
pub fn make(devices: &OwnedFd, socket: &Socket) -> anyhow::Result<Tap> {
    make_with(devices, socket, &format!("{TAP_PREFIX}%d"), libc::IFF_VNET_HDR)
}

/// Makes a tap with a name, for programs that handle only whole frames with valid checksums.
pub fn make_plain(devices: &OwnedFd, socket: &Socket, name: &str) -> anyhow::Result<Tap> {
    make_with(devices, socket, name, 0)
}

fn make_with(devices: &OwnedFd, socket: &Socket, name: &str, kind: libc::c_int) -> anyhow::Result<Tap> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(devices, "tun", flags, Mode::empty());
    let file = file.map_err(missing)?;
    // SAFETY: a structure of numbers, for which zeros are good.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | kind) as libc::c_short;
    // SAFETY: the request reads and writes one ifreq, which lives across the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error()).context("make a tap");
    }
    let name: Vec<u8> = request.ifr_name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    let name = String::from_utf8(name).context("the name of a tap")?;
    let index = rustix::net::netdevice::name_to_index(socket, &name).with_context(|| format!("find tap {name}"))?;
    Ok(Tap { file, index })
}

/// Sets a tap up to fit a link, without addresses and ARP: the host sends nothing by it.
pub fn set_up(socket: &mut Socket, tap: u32, link: &Link) -> io::Result<()> {
    let quiet = about(tap, vec![address_mode(false)]);
    match socket.request(RouteNetlinkMessage::SetLink(quiet), 0) {
        // A kernel, or a link, without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        done => done?,
    }
    let mtu = LinkAttribute::Mtu(link.mtu.min(MAX_MTU));
    let mut up = about(tap, vec![mtu, LinkAttribute::TxQueueLen(QUEUE)]);
    up.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    up.header.change_mask = LinkFlags::Up | LinkFlags::Noarp;
    socket.request(RouteNetlinkMessage::SetLink(up), 0)
}

/// Removes a tap, even if somebody still has its descriptor.
pub fn remove(socket: &mut Socket, tap: u32) -> io::Result<()> {
    match socket.request(RouteNetlinkMessage::DelLink(about(tap, Vec::new())), 0) {
        Err(error) if error.raw_os_error() != Some(Errno::NODEV.raw_os_error()) => Err(error),
        _ => Ok(()),
    }
}
