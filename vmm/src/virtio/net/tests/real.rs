//! Real taps, each test in a network namespace of its own: needs root and /dev/net/tun.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4};

use super::lab::*;

/// Most that is sent here at a time.
const TCP: usize = 20_000;

/// Runs a test in a network namespace of its own, which ends with it.
fn apart(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: the call takes no pointer, and only this thread changes its namespace.
        let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(done, 0, "these tests need root: {}", std::io::Error::last_os_error());
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A tap, up, and a packet socket that sees what the host sees of it.
struct Network {
    tap: OwnedFd,
    socket: OwnedFd,
}

fn request(flags: i32) -> libc::ifreq {
    // SAFETY: zeros are a value of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b't' as i8, b'0' as i8]);
    request.ifr_ifru.ifru_flags = flags as i16;
    request
}

fn socket(family: i32, kind: i32) -> OwnedFd {
    // SAFETY: the call takes no pointer, and its result is checked and nobody else's.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: as above.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn tap(flags: i32) -> OwnedFd {
    let tap: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap().into();
    let request = request(flags);
    // SAFETY: the call reads and writes one ifreq, which lives across it.
    let done = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    tap
}

impl Network {
    fn new() -> Self {
        let tap = tap(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        Self::set_up(true);
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW);
        // SAFETY: the name is that of `request`.
        let index = unsafe { libc::if_nametoindex(c"t0".as_ptr()) };
        // SAFETY: zeros are a value of plain data.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        let size = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: pointer and size describe `address`.
        let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        Self { tap, socket }
    }

    fn set_up(up: bool) {
        let request = request(if up { libc::IFF_UP } else { 0 });
        let control = socket(libc::AF_INET, libc::SOCK_DGRAM);
        // SAFETY: the call reads one ifreq, which lives across it.
        let done = unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }

    /// Has the host send a frame out of the interface.
    fn send(&self, bytes: &[u8]) {
        assert_eq!(rustix::io::write(&self.socket, bytes).unwrap(), bytes.len());
    }

    /// The next frame of the guest's; the host's own are left out.
    fn heard(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        loop {
            let got = rustix::io::read(&self.socket, &mut bytes).ok()?;
            if bytes[6..12] == MAC {
                bytes.truncate(got);
                return Some(bytes);
            }
        }
    }
}

/// A frame of a local, experimental protocol.
fn ethernet(from: [u8; 6], payload: usize) -> Vec<u8> {
    [&[0xff; 6][..], &from, &[0x88, 0xb5], &frame(payload)].concat()
}

/// A TCP segment of `TCP` bytes whose checksum, and cutting to 1448 bytes, are left to the host.
fn long_segment() -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend(((20 + 20 + TCP) as u16).to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut tcp = vec![0x10, 0, 0x20, 0];
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    let mut header = vec![VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, VIRTIO_NET_HDR_GSO_TCPV4 as u8];
    for word in [54u16, 1448, 34, 16, 0] {
        header.extend(word.to_le_bytes());
    }
    let ethernet = [&[0xff; 6][..], &MAC, &[8, 0]].concat();
    [header, ethernet, ip, tcp, frame(TCP)].concat()
}

#[test]
fn frames_go_both_ways() {
    apart(|| {
        let network = Network::new();
        let mut lab = Lab::inactive();
        lab.activate(ALL);
        lab.post(4096, 20);
        let tap = network.tap.try_clone().unwrap();
        let tap_handle = lab.tap_handle.clone();
        let asking = std::thread::spawn(move || tap_handle.attach(tap));
        while !asking.is_finished() {
            lab.turn();
        }
        asking.join().unwrap().unwrap();
        let there = ethernet(MAC, 50);
        lab.send(&framed(&there));
        assert_eq!(network.heard().unwrap(), there);
        let back = ethernet([2; 6], 60);
        network.send(&back);
        lab.run();
        assert!(lab.frames().contains(&back));
    });
}

#[test]
fn long_segments_pass_whole_and_malformed_headers_are_dropped() {
    apart(|| {
        let network = Network::new();
        let mut lab = Lab::inactive();
        lab.tap_handle.attach(network.tap.try_clone().unwrap()).unwrap();
        lab.activate(ALL);
        let long = long_segment();
        let mut malformed = [long.clone(), long.clone(), long.clone()];
        malformed[0][1] = 77;
        malformed[1][6..8].copy_from_slice(&60_000u16.to_le_bytes());
        malformed[2][4..6].copy_from_slice(&[0, 0]);
        for bytes in malformed {
            lab.send(&bytes);
        }
        assert_eq!((lab.sent, lab.transmitted().2), (3, 3));
        assert!(network.heard().is_none());
        lab.send(&long);
        assert!(network.heard().unwrap()[..] == long[12..]);
        assert_eq!(lab.transmitted().0, 1);
    });
}

#[test]
fn an_interface_that_is_down_drops_and_works_again_when_up() {
    apart(|| {
        let network = Network::new();
        let mut lab = Lab::inactive();
        lab.tap_handle.attach(network.tap.try_clone().unwrap()).unwrap();
        lab.activate(ALL);
        Network::set_up(false);
        lab.send(&framed(&ethernet(MAC, 50)));
        assert_eq!((lab.sent, lab.transmitted().2), (1, 1));
        Network::set_up(true);
        lab.send(&framed(&ethernet(MAC, 50)));
        assert_eq!(lab.transmitted().0, 1);
    });
}

#[test]
fn an_interface_that_is_gone_is_let_go() {
    apart(|| {
        let network = Network::new();
        let mut lab = Lab::inactive();
        lab.tap_handle.attach(network.tap.try_clone().unwrap()).unwrap();
        lab.activate(ALL);
        lab.run();
        delete_interface();
        lab.run();
        assert!(lab.watcher.wait(0).is_empty(), "the worker is kept busy");
        lab.send(&framed(&ethernet(MAC, 50)));
        assert_eq!((lab.sent, lab.transmitted()), (1, (0, 0, 1)));
    });
}

/// `ip link delete t0`.
fn delete_interface() {
    let netlink = socket(libc::AF_NETLINK, libc::SOCK_RAW);
    // SAFETY: the name is that of `request`.
    let index = unsafe { libc::if_nametoindex(c"t0".as_ptr()) };
    let mut message = 32u32.to_ne_bytes().to_vec();
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 12]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    assert_eq!(rustix::net::send(&netlink, &message, rustix::net::SendFlags::empty()).unwrap(), 32);
}

#[test]
fn other_kinds_of_taps_are_refused() {
    apart(|| {
        let lab = Lab::inactive();
        for flags in [libc::IFF_TAP | libc::IFF_NO_PI, libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR] {
            assert!(lab.tap_handle.attach(tap(flags)).is_err(), "{flags:#x}");
        }
    });
}
