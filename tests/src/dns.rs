//! A name server for tests: knows every name below `.test`, by one address.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// One that serves until it is dropped.
pub struct NameServer {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl NameServer {
    /// Serves at an address of a network namespace (a path), or of the host's, by UDP and TCP.
    pub fn new(namespace: Option<&str>, address: SocketAddr, answer: [u8; 4]) -> Self {
        let namespace = namespace.map(|path| File::open(path).unwrap());
        let stop: Arc<AtomicBool> = Arc::default();
        // Both are made in a thread that may stay in the namespace.
        let bind = std::thread::spawn(move || {
            if let Some(namespace) = namespace {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            }
            (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap())
        });
        let (udp, tcp) = bind.join().unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (one, other) = (stop.clone(), stop.clone());
        let threads = vec![
            std::thread::spawn(move || datagrams(&udp, answer, &one)),
            std::thread::spawn(move || connections(&tcp, answer, &other)),
        ];
        Self { stop, threads }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn datagrams(socket: &UdpSocket, address: [u8; 4], stop: &AtomicBool) {
    let mut question = [0; 1500];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, asker)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&answer(&question[..length], address), asker);
        }
    }
}

fn connections(listener: &TcpListener, address: [u8; 4], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        let mut length = [0; 2];
        let mut question = vec![0; 1500];
        let asked = stream.read_exact(&mut length).is_ok()
            && stream.read_exact(&mut question[..usize::from(u16::from_be_bytes(length))]).is_ok();
        if asked {
            let answer = answer(&question[..usize::from(u16::from_be_bytes(length))], address);
            let _ = stream.write_all(&[&(answer.len() as u16).to_be_bytes(), &answer[..]].concat());
        }
    }
}

/// The address for a question of type A about a name below `.test`; an answer without one for other types, and that
/// there is no such name for others.
fn answer(question: &[u8], address: [u8; 4]) -> Vec<u8> {
    let body = question.get(12..).unwrap_or_default();
    let end = body.iter().position(|&byte| byte == 0).map_or(body.len(), |zero| zero + 5).min(body.len());
    let (asked, known) = (&body[..end], body[..end].windows(6).any(|part| part == b"\x04test\0"));
    let is_a = known && asked.len() > 4 && asked[asked.len() - 3] == 1;
    let status = if known { 0x80 } else { 0x83 };
    let mut answer = [&question[..2], &[0x81, status, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0], asked].concat();
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address);
    }
    answer
}
