//! Moves bytes between a process and its streams, as fast as the slower side takes them.
//!
//! Pipes are spliced: no byte passes through the agent's memory. A terminal has a small buffer.

use crate::event::Fd;
use crate::sys::is_ready;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::SpliceFlags;
use std::time::Duration;
use tokio::io::Interest;

/// Bytes that one splice moves at most: a whole pipe.
const CHUNK: usize = 64 * 1024;

/// Bytes that a terminal's line discipline gives or takes at once.
const TERMINAL_BUFFER: usize = 4096;

/// The host's stream into a process's stdin pipe, until either side is done.
pub async fn stdin(stream: Fd, pipe: Fd) {
    tokio::select! {
        () = splice_all(&stream, &pipe) => {}
        // The last reader is gone: an error condition on the write end.
        _ = pipe.ready(Interest::ERROR) => {}
    }
}

/// A process's stdout or stderr pipe into its stream to the host, until either side is done.
pub async fn output(pipe: Fd, stream: Fd) {
    tokio::select! {
        () = splice_all(&pipe, &stream) => {}
        () = closed_by_host(&stream) => {}
    }
}

/// The host's stream into a terminal. The end of the stream means nothing to the terminal.
pub async fn terminal_input(stream: &Fd, master: &Fd) {
    copy_all(stream, master).await;
}

/// A terminal into its stream to the host. True when the terminal has ended rather than the host.
pub async fn terminal_output(master: &Fd, stream: &Fd) -> bool {
    tokio::select! {
        () = copy_all(master, stream) => true,
        () = closed_by_host(stream) => false,
    }
}

async fn splice_all(from: &Fd, to: &Fd) {
    loop {
        let (Ok(mut readable), Ok(mut writable)) = (from.readable().await, to.writable().await) else { return };
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match rustix::pipe::splice(from, None, to, None, CHUNK, flags) {
            Ok(0) => return,
            Ok(_) | Err(Errno::INTR) => {}
            // The kernel doesn't say which side made it stop.
            Err(Errno::AGAIN) => {
                let (more, room) = (is_ready(from, PollFlags::IN), is_ready(to, PollFlags::OUT));
                if !more {
                    readable.clear_ready();
                }
                if !room {
                    writable.clear_ready();
                }
                if more && room {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Err(_) => return,
        }
    }
}

async fn copy_all(from: &Fd, to: &Fd) {
    let mut buffer = [0; TERMINAL_BUFFER];
    loop {
        let Ok(mut readable) = from.readable().await else { return };
        match rustix::io::read(from, &mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if write_all(to, buffer.get(..n).unwrap_or_default()).await.is_err() {
                    return;
                }
            }
            Err(Errno::AGAIN) => readable.clear_ready(),
            Err(Errno::INTR) => {}
            // EIO: no process has the terminal open any more.
            Err(_) => return,
        }
    }
}

/// Writes all bytes, as fast as the descriptor takes them.
pub async fn write_all(to: &Fd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let mut writable = to.writable().await.map_err(|_| Errno::IO)?;
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::AGAIN) => writable.clear_ready(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Waits until the host takes no more output. The host sends nothing on such a stream, so it becomes
/// readable only when the host is done sending, or done altogether: an empty message tells which.
async fn closed_by_host(stream: &Fd) {
    while let Ok(mut readable) = stream.readable().await {
        let mut byte = [0];
        match rustix::net::recv(stream, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN) => readable.clear_ready(),
            Err(Errno::INTR) => {}
            Ok((_, 0)) if rustix::net::send(stream, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok() => break,
            Ok((_, 0)) | Err(_) => return,
            // Bytes that nobody asked for: they stay where they are.
            Ok(_) => break,
        }
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::watch;
    use rustix::fd::OwnedFd;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn stream() -> (Fd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (watch(ours.into(), Interest::READABLE | Interest::WRITABLE).unwrap(), theirs)
    }

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap()
    }

    fn run<F: Future>(future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.unwrap() })
    }

    #[test]
    fn output_arrives_whole_and_ends() {
        run(async {
            let (stream, mut host) = stream();
            let (reader, writer) = pipe();
            rustix::io::ioctl_fionbio(&writer, false).unwrap();
            let producer = std::thread::spawn(move || {
                let mut writer = std::fs::File::from(writer);
                (0..64).for_each(|n| writer.write_all(&[n; 10_000]).unwrap());
            });
            let consumer = std::thread::spawn(move || {
                let mut all = Vec::new();
                host.read_to_end(&mut all).unwrap();
                all.len()
            });
            output(watch(reader, Interest::READABLE).unwrap(), stream).await;
            producer.join().unwrap();
            assert_eq!(consumer.join().unwrap(), 640_000);
        });
    }

    #[test]
    fn the_host_closing_ends_output() {
        run(async {
            let (stream, host) = stream();
            let (reader, _writer) = pipe();
            drop(host);
            output(watch(reader, Interest::READABLE).unwrap(), stream).await;
        });
    }

    #[test]
    fn a_half_closed_stream_still_takes_output() {
        run(async {
            let (stream, mut host) = stream();
            let (reader, writer) = pipe();
            host.shutdown(std::net::Shutdown::Write).unwrap();
            let task = tokio::spawn(output(watch(reader, Interest::READABLE).unwrap(), stream));
            tokio::time::sleep(Duration::from_millis(20)).await;
            rustix::io::write(&writer, b"late").unwrap();
            drop(writer);
            task.await.unwrap();
            let mut text = String::new();
            host.read_to_string(&mut text).unwrap();
            assert_eq!(text, "late");
        });
    }

    #[test]
    fn stdin_ends_with_its_reader() {
        run(async {
            let (stream, _host) = stream();
            let (reader, writer) = pipe();
            drop(reader);
            let interest = Interest::WRITABLE | Interest::ERROR;
            stdin(stream, watch(writer, interest).unwrap()).await;
        });
    }
}
