//! Relay between the container's link and passt(1): moves frames between a tap and a stream, on a thread of its own.
//!
//! ```text
//!  guest ── NIC ── tap ── tc ── eth0, a tap of ours ◀── this thread ──▶ stream ── passt ── sockets of the host
//! ```
//!
//! On the stream each frame follows its length, four bytes in network order. passt may be as wrong as any program: a
//! length that no frame has ends the relay, and with it the container's network, and nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::log;

/// Bytes of the length before a frame.
const LENGTH: usize = 4;
/// Most bytes of a frame: an Ethernet header and the longest packet.
const FRAME: usize = 14 + 65_535;
/// Bytes read of the stream at a time: more than the longest frame has.
const BUFFER: usize = 256 << 10;
/// Frames of one direction before the other has its turn.
const BATCH: usize = 64;
/// Bytes of the thread's stack: enough for a loop over buffers on the heap.
const STACK: usize = 64 << 10;

/// Relays until one of the two ends.
pub fn start(tap: OwnedFd, stream: OwnedFd) -> anyhow::Result<()> {
    let run = move || {
        let error = Relay::new(tap, stream).run().err();
        let why = error.map_or_else(|| "it has exited".to_owned(), |error| error.to_string());
        log::warning(&format!("the container has no network any more: passt: {why}"));
    };
    let thread = std::thread::Builder::new().name("passt".to_owned()).stack_size(STACK).spawn(run);
    thread.context("start the thread that relays to passt")?;
    Ok(())
}

struct Relay {
    tap: OwnedFd,
    stream: OwnedFd,
    /// A length and the tap's frame.
    out: Vec<u8>,
    /// Part of `out` that passt is yet to take.
    waiting: std::ops::Range<usize>,
    /// Bytes from passt, up to `filled`.
    input: Vec<u8>,
    filled: usize,
}

impl Relay {
    fn new(tap: OwnedFd, stream: OwnedFd) -> Self {
        Self { tap, stream, out: vec![0; LENGTH + FRAME], waiting: 0..0, input: vec![0; BUFFER], filled: 0 }
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let (tap, stream) = self.wait()?;
            if stream.contains(PollFlags::OUT) && !self.waiting.is_empty() {
                self.send()?;
            }
            if tap.contains(PollFlags::IN) {
                self.outward()?;
            }
            if !stream.intersection(PollFlags::IN | PollFlags::HUP | PollFlags::ERR).is_empty() && !self.inward()? {
                return Ok(());
            }
        }
    }

    /// Waits for the tap and the stream. While passt takes no more, frames stay in the tap's queue.
    fn wait(&self) -> io::Result<(PollFlags, PollFlags)> {
        let full = !self.waiting.is_empty();
        let (tap, stream) =
            if full { (PollFlags::empty(), PollFlags::IN | PollFlags::OUT) } else { (PollFlags::IN, PollFlags::IN) };
        let mut fds = [PollFd::new(&self.stream, stream), PollFd::new(&self.tap, tap)];
        // poll(2) reports errors of a descriptor even if it is asked for no event, again and again.
        let watched = if full { 1 } else { 2 };
        match rustix::event::poll(fds.get_mut(..watched).unwrap_or_default(), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [stream, tap] = fds;
        if tap.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Err(io::Error::other("its link is gone"));
        }
        Ok((tap.revents(), stream.revents()))
    }

    fn outward(&mut self) -> io::Result<()> {
        for _ in 0..BATCH {
            let Some(room) = self.out.get_mut(LENGTH..) else { return Ok(()) };
            let length = match rustix::io::read(&self.tap, room) {
                Ok(length) => length,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let header = u32::try_from(length).unwrap_or_default().to_be_bytes();
            self.out.iter_mut().zip(header).for_each(|(to, from)| *to = from);
            self.waiting = 0..LENGTH + length;
            self.send()?;
            if !self.waiting.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        while let Some(rest) = self.out.get(self.waiting.clone()).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(self.stream.as_fd(), rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => self.waiting.start += sent,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.waiting = 0..0;
        Ok(())
    }

    /// Moves frames from passt to the tap; false at the stream's end.
    fn inward(&mut self) -> io::Result<bool> {
        let room = self.input.get_mut(self.filled..).unwrap_or_default();
        match rustix::net::recv(&self.stream, room, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Ok(false),
            Ok((_, received)) => self.filled += received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
        let whole = deliver(self.input.get(..self.filled).unwrap_or_default(), |frame| {
            // What the tap does not take is lost, as on any network.
            let _ = rustix::io::write(&self.tap, frame);
        })?;
        self.input.copy_within(whole..self.filled, 0);
        self.filled -= whole;
        Ok(true)
    }
}

/// Gives away the frames that are whole; how many bytes that were.
pub fn deliver(bytes: &[u8], mut give: impl FnMut(&[u8])) -> io::Result<usize> {
    let mut rest = bytes;
    while let Some((header, behind)) = rest.split_first_chunk::<LENGTH>() {
        let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if !(1..=FRAME).contains(&length) {
            return Err(io::Error::other(format!("it sent a frame of {length} bytes")));
        }
        let Some((frame, next)) = behind.split_at_checked(length) else { break };
        give(frame);
        rest = next;
    }
    Ok(bytes.len() - rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes(), frame].concat()
    }

    #[test]
    fn frames_are_told_apart_and_the_rest_waits() {
        let bytes = [framed(b"one"), framed(b"three"), vec![0, 0, 0, 9, 1]].concat();
        let mut frames = Vec::new();
        let whole = deliver(&bytes, |frame| frames.push(frame.to_vec())).unwrap();
        assert_eq!((frames, bytes.len() - whole), (vec![b"one".to_vec(), b"three".to_vec()], 5));
        for length in [0u32, FRAME as u32 + 1, u32::MAX] {
            assert!(deliver(&length.to_be_bytes(), |_| {}).unwrap_err().to_string().contains("a frame of"));
        }
    }

    /// A tap keeps frames apart, as a socket for datagrams does.
    fn relay() -> (UnixDatagram, UnixStream, std::thread::JoinHandle<io::Result<()>>) {
        let ((tap, guest), (stream, passt)) = (UnixDatagram::pair().unwrap(), UnixStream::pair().unwrap());
        tap.set_nonblocking(true).unwrap();
        let mut relay = Relay::new(tap.into(), stream.into());
        (guest, passt, std::thread::spawn(move || relay.run()))
    }

    #[test]
    fn frames_go_both_ways_until_the_end() {
        let (guest, mut passt, thread) = relay();
        // In pieces, as streams may.
        for byte in framed(b"hello") {
            passt.write_all(&[byte]).unwrap();
        }
        let mut frame = [0; 100];
        assert_eq!(guest.recv(&mut frame).unwrap(), 5);
        assert_eq!(&frame[..5], b"hello");
        guest.send(b"answer").unwrap();
        let mut answer = [0; 10];
        passt.read_exact(&mut answer).unwrap();
        assert_eq!(answer.to_vec(), framed(b"answer"));
        drop(passt);
        assert!(thread.join().unwrap().is_ok());
    }

    #[test]
    fn a_slow_reader_gets_all_of_it() {
        let (guest, mut passt, thread) = relay();
        let sender = std::thread::spawn(move || {
            (0..200u8).for_each(|number| assert_eq!(guest.send(&vec![number; 9000]).unwrap(), 9000));
            guest
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        for number in 0..200u8 {
            let mut bytes = vec![0; LENGTH + 9000];
            passt.read_exact(&mut bytes).unwrap();
            assert!(bytes == framed(&vec![number; 9000]), "frame {number}");
        }
        let _guest = sender.join().unwrap();
        drop(passt);
        assert!(thread.join().unwrap().is_ok());
    }

    #[test]
    fn nonsense_ends_it() {
        let (_guest, mut passt, thread) = relay();
        passt.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(thread.join().unwrap().is_err());
    }
}
