//! Both directions of a connection between two sockets, each of which ends on its own.

use crate::error::{Context, Result};
use crate::event::{Fd, watch};
use crate::host::pump::write_all;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};
use tokio::io::Interest;

/// Bytes read at a time, which is all that is ever held of one direction.
const BUFFER: usize = 16 << 10;

/// Reason for which nothing goes in a direction any more.
enum End {
    /// The sender has said that this was all.
    OfInput,
    /// The receiver takes no more.
    OfOutput,
}

/// Moves bytes between a process's connection and its stream to the host until both directions are over.
pub async fn both_ways(client: OwnedFd, stream: OwnedFd) -> Result<()> {
    // Of the same socket, but known to the event loop on its own: told of a hang-up and of nothing else.
    let gone = rustix::io::fcntl_dupfd_cloexec(&client, 3).context(|| "connection to a socket of the host")?;
    let gone = watch(gone, Interest::PRIORITY)?;
    let both = Interest::READABLE | Interest::WRITABLE;
    let (client, stream) = (watch(client, both)?, watch(stream, both)?);
    let outward = forward(&client, &stream);
    let inward = async {
        forward(&stream, &client).await;
        // A host that is gone altogether takes nothing either; one that half-closed the stream still does.
        if rustix::net::send(&stream, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_err() {
            shut(&client, Shutdown::Both);
        }
    };
    let talk = async { tokio::join!(outward, inward) };
    let hang_up = async {
        // Until it happens nobody else would notice: a client that only waited for an answer is at its end of input.
        if gone.ready(Interest::PRIORITY).await.is_ok() {
            shut(&stream, Shutdown::Read);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = talk => {}
        () = hang_up => {}
    }
    Ok(())
}

/// Relays one direction, and passes its end on.
async fn forward(from: &Fd, to: &Fd) {
    match copy(from, to).await {
        End::OfInput => shut(to, Shutdown::Write),
        End::OfOutput => shut(from, Shutdown::Read),
    }
}

async fn copy(from: &Fd, to: &Fd) -> End {
    let mut buffer = vec![0; BUFFER];
    loop {
        let Ok(mut readable) = from.readable().await else { return End::OfInput };
        match rustix::io::read(from, &mut buffer) {
            Ok(0) => return End::OfInput,
            Ok(n) => {
                if write_all(to, buffer.get(..n).unwrap_or_default()).await.is_err() {
                    return End::OfOutput;
                }
            }
            Err(Errno::AGAIN) => readable.clear_ready(),
            Err(Errno::INTR) => {}
            // Reset: what was sent before has been read.
            Err(_) => return End::OfInput,
        }
    }
}

/// Shuts a socket down; a peer that is gone needs no telling.
fn shut(socket: &Fd, how: Shutdown) {
    let _ = rustix::net::shutdown(socket, how);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec};
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn pair() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours.into(), theirs)
    }

    /// Runs a relay, and what happens at its far ends on another thread.
    fn between(act: impl FnOnce(UnixStream, UnixStream) + Send + 'static) {
        let ((client, process), (stream, host)) = (pair(), pair());
        let acting = std::thread::spawn(move || act(process, host));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), both_ways(client, stream)).await.unwrap().unwrap();
        });
        acting.join().unwrap();
    }

    fn rest(stream: &mut UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn each_direction_ends_on_its_own() {
        between(|mut process, mut host| {
            process.write_all(b"question").unwrap();
            process.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(rest(&mut host), b"question");
            host.write_all(b"answer").unwrap();
            host.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(rest(&mut process), b"answer");
        });
        between(|mut process, mut host| {
            host.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(rest(&mut process), b"");
            process.write_all(b"late").unwrap();
            drop(process);
            assert_eq!(rest(&mut host), b"late");
        });
    }

    #[test]
    fn much_goes_through_while_both_send() {
        between(|process, host| {
            let send = |mut stream: UnixStream, byte: u8| {
                std::thread::spawn(move || {
                    stream.write_all(&vec![byte; 1 << 20]).unwrap();
                    stream.shutdown(std::net::Shutdown::Write).unwrap();
                })
            };
            let sending = [send(process.try_clone().unwrap(), 1), send(host.try_clone().unwrap(), 2)];
            let (mut process, mut host) = (process, host);
            let reading = std::thread::spawn(move || rest(&mut host));
            assert!(rest(&mut process) == vec![2; 1 << 20]);
            assert!(reading.join().unwrap() == vec![1; 1 << 20]);
            sending.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn a_process_that_is_gone_is_not_written_to() {
        between(|mut process, mut host| {
            process.write_all(b"bye").unwrap();
            drop(process);
            assert_eq!(rest(&mut host), b"bye");
            // Not only half closed: the relay lets go without having been written to.
            let mut fds = [PollFd::new(&host, PollFlags::empty())];
            let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1);
            assert_eq!(host.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn a_host_that_takes_no_more_is_the_processs_broken_pipe() {
        between(|mut process, host| {
            host.shutdown(std::net::Shutdown::Read).unwrap();
            let error = std::iter::repeat_with(|| process.write(b"x")).find_map(|wrote| wrote.err()).unwrap();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            (&host).write_all(b"still").unwrap();
            drop(host);
            let mut text = [0; 5];
            process.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"still");
        });
    }
}
