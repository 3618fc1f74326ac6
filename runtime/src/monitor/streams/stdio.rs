//! Pumps between descriptors of the host and streams of the guest, one thread each.
//!
//! The descriptors are the engine's: pipes, files, sockets or terminals whose open file description is
//! shared with others. So they are never made non-blocking; a thread blocks instead. What is in flight is
//! bounded by one buffer here and the socket's: a slow reader slows the writer down.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use protocol::{STREAM_PORT, StreamHeader};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::sync::oneshot;
use vmm::virtio::vsock::Handle;

use crate::confinement;
use crate::host::console;
use crate::streams::Streams;

const BUFFER: usize = 64 << 10;

/// Enough for a loop over a buffer on the heap.
const STACK: usize = 64 << 10;

/// Ids of streams; 0 means none.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The attached descriptors of one process.
pub struct Stdio {
    ids: [u64; 3],
    streams: Vec<Arc<UnixStream>>,
    outputs: Vec<oneshot::Receiver<()>>,
    /// What the pump of stderr, or of a terminal, writes in the end.
    last_words: Arc<OnceLock<String>>,
}

/// Standard output or error.
struct Output {
    /// Its number, as a descriptor's.
    index: usize,
    name: &'static str,
    last_words: Arc<OnceLock<String>>,
}

impl Stdio {
    /// Opens a stream to the guest for each file, starts its pump, and writes the streams' ids and the terminal's size into
    /// the message that describes the process.
    pub fn attach(vsock: &Handle, streams: Streams, process: &mut protocol::Process) -> anyhow::Result<Self> {
        if let Some(terminal) = streams.terminal() {
            console::note_size(terminal, process);
        }
        let mut stdio = Self { ids: [0; 3], streams: Vec::new(), outputs: Vec::new(), last_words: Arc::default() };
        let terminal = process.terminal;
        let [input, output, error] = streams.into_files().context("take the process's streams")?;
        let words = Arc::clone(&stdio.last_words);
        let last_words = if terminal { Arc::clone(&words) } else { Arc::default() };
        let output_stream = stdio.open_output(vsock, output, Output { index: 1, name: "stdout", last_words })?;
        stdio.open_output(vsock, error, Output { index: 2, name: "stderr", last_words: words })?;
        if let Some(file) = input {
            let stream = stdio.open(vsock, 0)?;
            // When a terminal hangs up, its output is over as well: so the guest's terminal hangs up.
            let also = output_stream.filter(|_| terminal);
            spawn("stdin", move || pump_in(&file, &stream, also.as_deref()))?;
        }
        [process.stdin, process.stdout, process.stderr] = stdio.ids;
        Ok(stdio)
    }

    /// Ends the output with a line of our own, where who started the process looks for its errors. Only for when the
    /// guest will not write any more.
    pub async fn end_with(&mut self, words: String) {
        let _ = self.last_words.set(words);
        self.end().await;
    }

    /// Takes no more of the guest's, and waits until what it wrote before has been delivered.
    pub async fn end(&mut self) {
        self.close();
        self.drained().await;
    }

    /// Waits until everything the process wrote has been delivered.
    pub async fn drained(&mut self) {
        for output in self.outputs.drain(..) {
            // An error says that the pump is gone, which is as good.
            let _ = output.await;
        }
    }

    fn close(&self) {
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn open(&mut self, vsock: &Handle, index: usize) -> anyhow::Result<Arc<UnixStream>> {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let stream = vsock.connect(STREAM_PORT).context("open a stream to the guest")?;
        (&stream).write_all(&StreamHeader { id }.to_bytes()).context("open a stream to the guest")?;
        let stream = Arc::new(stream);
        self.streams.push(Arc::clone(&stream));
        self.ids[index] = id;
        Ok(stream)
    }

    fn open_output(
        &mut self,
        vsock: &Handle,
        file: Option<OwnedFd>,
        output: Output,
    ) -> anyhow::Result<Option<Arc<UnixStream>>> {
        let Some(file) = file else { return Ok(None) };
        let Output { index, name, last_words } = output;
        let stream = self.open(vsock, index)?;
        let (done, drained) = oneshot::channel();
        self.outputs.push(drained);
        let pumped = Arc::clone(&stream);
        spawn(name, move || {
            pump_out(&pumped, &file);
            if let Some(words) = last_words.get() {
                let _ = write_all(&file, words.as_bytes());
            }
            drop(file);
            let _ = done.send(());
        })?;
        Ok(Some(stream))
    }
}

impl Drop for Stdio {
    /// Ends the pumps: nobody waits for them any more.
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(name: &'static str, pump: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK);
    let named = move || {
        confinement::name_thread(name);
        pump();
    };
    thread.spawn(named).map(|_| ()).with_context(|| format!("start the thread for {name}"))
}

/// Host to guest, until the host's end of file, or until the guest closes the stream. Reads nothing
/// once nobody would get it: what is left belongs to whoever reads that descriptor next.
fn pump_in(file: &OwnedFd, stream: &UnixStream, also: Option<&UnixStream>) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(true) = readable(file, stream) {
        match rustix::io::read(file, &mut buffer) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(0) | Err(_) => {
                let _ = stream.shutdown(Shutdown::Write);
                let _ = also.map(|stream| stream.shutdown(Shutdown::Both));
                break;
            }
            Ok(got) if { stream }.write_all(buffer.get(..got).unwrap_or_default()).is_err() => break,
            Ok(_) => {}
        }
    }
}

/// Waits for input; `false` when the guest has closed the stream instead.
fn readable(file: &OwnedFd, stream: &UnixStream) -> rustix::io::Result<bool> {
    loop {
        let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(file, PollFlags::IN), PollFd::new(stream, PollFlags::RDHUP)];
        match rustix::event::poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            polled => polled?,
        };
        if fds[1].revents().intersects(closed) {
            return Ok(false);
        }
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
    }
}

/// Guest to host, until the guest's end of file. When the reader on the host is gone, so is the stream:
/// the guest's process gets EPIPE.
fn pump_out(mut stream: &UnixStream, file: &OwnedFd) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let got = match stream.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => return,
            Ok(got) => got,
        };
        if write_all(file, buffer.get(..got).unwrap_or_default()).is_err() {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Err(Errno::INTR) => {}
            // Somebody else made the shared description non-blocking.
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT)];
                rustix::event::poll(&mut fds, None)?;
            }
            written => bytes = bytes.get(written?..).unwrap_or_default(),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_ends_with_a_half_close() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let pump = std::thread::spawn(move || pump_in(&read, &host, None));
        std::fs::File::from(write).write_all(b"hello").unwrap();
        let mut text = String::new();
        guest.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        pump.join().unwrap();
    }

    #[test]
    fn input_is_left_alone_once_the_guest_has_closed() {
        let (host, guest) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(guest);
        let left = read.try_clone().unwrap();
        rustix::io::write(&write, b"next").unwrap();
        pump_in(&read, &host, None);
        let mut buffer = [0; 8];
        assert_eq!(rustix::io::read(&left, &mut buffer).unwrap(), 4);
    }

    #[test]
    fn output_whose_reader_is_gone_closes_the_stream() {
        let (host, mut guest) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(read);
        guest.write_all(b"x").unwrap();
        pump_out(&host, &write);
        assert!(guest.write_all(b"y").is_err());
    }
}
