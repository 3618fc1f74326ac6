//! The network device: headers and frames of the guest's, and frames of the network's, with a socket in the tap's stead.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use vmm::virtio::net::Net;

use crate::input::Input;
use crate::rig::{BUFFERS, Buffer, Rig};

const STEPS: usize = 64;
const RX: usize = 0;
const TX: usize = 1;

fn make() -> (Net, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let (device, handle) = Net::new([2, 0, 0, 0, 0, 1]).unwrap();
    handle.attach_socket(theirs).unwrap();
    (device, ours)
}

/// Drives the device from both sides.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let (device, mut network) = make();
    let mut rig = Rig::new(device, input.quad());
    let mut room = vec![0; 70_000];
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0 | 1 => {
                let (length, header) = (usize::from(input.word()), usize::from(input.byte()));
                rig.write(BUFFERS, input.bytes(128));
                let (header, body) = (Buffer::readable(BUFFERS, header), Buffer::readable(BUFFERS + 0x1000, length));
                rig.offer(TX, &[header, body]);
                rig.kick(TX);
            }
            2 => {
                let (count, length) = (input.byte() % 8, input.word().into());
                (0..count).for_each(|_| rig.offer(RX, &[Buffer::writable(BUFFERS + 0x2_0000, length)]));
                rig.kick(RX);
            }
            3 | 4 => {
                let (begin, length) = (input.bytes(32), usize::from(input.word()));
                let mut frame = begin.to_vec();
                frame.resize(length.max(frame.len()), 7);
                let _ = send(&network, &frame, SendFlags::NOSIGNAL);
                rig.poll();
            }
            5 => {
                while recv(&network, &mut room[..], RecvFlags::empty()).is_ok_and(|(_, length)| length > 0) {}
                rig.poll();
            }
            6 if input.byte() < 32 => {
                // The interface is removed.
                network =
                    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap().0;
                rig.poll();
            }
            _ => rig.step(&mut input, || make().0),
        }
    }
}
