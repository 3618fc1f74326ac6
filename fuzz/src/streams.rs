//! vsock: packets that are nearly right, with real sockets on the host's side.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm::virtio::vsock::{Handle, Listener, Vsock, new};

use crate::input::Input;
use crate::rig::{BUFFERS, Buffer, Rig};

const STEPS: usize = 96;
/// Most streams of the host's at a time.
const STREAMS: usize = 16;
/// Ports that somebody may have: listeners, the guest's, those that the host takes for its own.
const PORTS: [u32; 8] = [1, 2, 1024, 1025, 0xc000_0000, 0xc000_0001, 0xc000_0002, u32::MAX];
const RX: usize = 0;
const TX: usize = 1;

/// The host's side.
struct Host {
    handle: Handle,
    listeners: Vec<Listener>,
    streams: Vec<UnixStream>,
}

fn make() -> (Vsock, Host) {
    let (device, handle) = new(3).unwrap();
    let listen = |port: &u32| {
        let listener = handle.listen(*port).unwrap();
        // SAFETY: the listener is there for as long as its descriptor is borrowed.
        rustix::io::ioctl_fionbio(unsafe { BorrowedFd::borrow_raw(listener.as_raw_fd()) }, true).unwrap();
        listener
    };
    let listeners = PORTS[..2].iter().map(listen).collect();
    (device, Host { handle, listeners, streams: Vec::new() })
}

impl Host {
    fn keep(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        self.streams.push(stream);
        if self.streams.len() > STREAMS {
            self.streams.remove(0);
        }
    }

    fn step(&mut self, input: &mut Input) {
        let number = usize::from(input.byte()).checked_rem(self.streams.len()).unwrap_or(0);
        match (input.byte() % 8, self.streams.get_mut(number)) {
            (0, _) => drop(self.handle.connect(input.pick(&PORTS)).map(|stream| self.keep(stream))),
            (1, _) => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                theirs.set_nonblocking(true).unwrap();
                let _ = self.handle.join(input.pick(&PORTS), Arc::new(theirs), input.bytes(8));
                self.keep(ours);
            }
            (2 | 3, Some(stream)) => {
                let length = input.word() % 4096;
                let _ = stream.write(input.bytes(length.into()));
            }
            (4, Some(stream)) => drop(stream.read(&mut vec![0; input.word().into()])),
            (5, Some(stream)) => drop(stream.shutdown(input.pick(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]))),
            (6, Some(_)) => drop(self.streams.remove(number)),
            _ => {
                let accepted: Vec<_> = self.listeners.iter().filter_map(|listener| listener.accept().ok()).collect();
                accepted.into_iter().for_each(|stream| self.keep(stream));
            }
        }
    }
}

/// `struct virtio_vsock_hdr`.
fn packet(input: &mut Input) -> Vec<u8> {
    let (kind, op) = (input.byte(), u16::from(input.byte() % 9));
    let (host, guest) = (input.pick(&PORTS), input.pick(&PORTS));
    let (source, destination) = if kind & 1 == 0 { (3, 2) } else { (input.quad(), input.quad()) };
    let (flags, allocated, forwarded) = (u32::from(input.byte()), input.long(), input.long());
    let length = usize::from(if kind & 2 == 0 { u16::from(input.byte()) } else { input.word() });
    let data = if op == 5 { input.bytes(length) } else { &[] };
    let said = if kind & 4 == 0 { data.len() as u32 } else { input.long() };
    let socket = if kind & 8 == 0 { 1u16 } else { input.word() };
    let mut bytes = [source, destination].map(u64::to_le_bytes).concat();
    bytes.extend([guest, host, said].map(u32::to_le_bytes).concat());
    bytes.extend([socket, op].map(u16::to_le_bytes).concat());
    bytes.extend([flags, allocated, forwarded].map(u32::to_le_bytes).concat());
    bytes.extend(data);
    bytes
}

/// Drives the device from both sides.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let (device, mut host) = make();
    let mut rig = Rig::new(device, u64::MAX);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0..3 => {
                let packet = packet(&mut input);
                let first = usize::from(input.byte()).min(packet.len());
                rig.write(BUFFERS, &packet);
                let rest = packet.len() - first;
                let buffers = [Buffer::readable(BUFFERS, first), Buffer::readable(BUFFERS + first as u64, rest)];
                rig.offer(
                    TX,
                    if first == 0 || rest == 0 { &buffers[usize::from(first == 0)..][..1] } else { &buffers },
                );
                rig.kick(TX);
            }
            3 => {
                let (count, length) = (input.byte() % 8, input.word().into());
                (0..count).for_each(|_| rig.offer(RX, &[Buffer::writable(BUFFERS + 0x2_0000, length)]));
                rig.kick(RX);
            }
            4 | 5 => host.step(&mut input),
            6 => rig.poll(),
            _ if input.byte() < 32 => {
                let (other, others_host) = make();
                rig.save_and_restore(other);
                host = others_host;
            }
            _ => rig.step(&mut input, || make().0),
        }
    }
}
