//! A host that is connected to others, as far as programs can tell.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread::JoinHandle;

use crate::command;
use crate::dns::NameServer;

/// Its own address.
pub const HOST: &str = "198.51.100.2";
/// The link with that.
const LINK: &str = "rvtup";

/// A default route and a resolver that knows names below `.test`, by the address 10.4.4.4; until this is dropped.
pub struct Connected {
    resolv_conf: String,
    _resolver: NameServer,
}

impl Connected {
    /// Connects it.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it changes the world: nothing for a default")]
    pub fn new() -> Self {
        sh(&format!(
            "ip link add {LINK} type dummy; ip addr add {HOST}/24 dev {LINK}; ip addr add 2001:db8::2/64 dev {LINK} nodad
            ip link set {LINK} up; ip route add default via 198.51.100.1 dev {LINK}
            ip -6 route add default via 2001:db8::1 dev {LINK}"
        ));
        let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        fs::write("/etc/resolv.conf", format!("nameserver {HOST}\nsearch test\n")).unwrap();
        let _resolver = NameServer::new(None, format!("{HOST}:53").parse().unwrap(), [10, 4, 4, 4]);
        Self { resolv_conf, _resolver }
    }

    /// A page at an address of it, for one request by HTTP; who asked.
    #[track_caller]
    pub fn page(&self, address: (&str, u16), text: String) -> JoinHandle<String> {
        let server = TcpListener::bind(address).unwrap();
        std::thread::spawn(move || {
            let (mut client, from) = server.accept().unwrap();
            let _ = client.read(&mut [0; 1000]);
            client.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
            client.write_all(text.as_bytes()).unwrap();
            from.ip().to_string()
        })
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", LINK]).output();
        let _ = fs::write("/etc/resolv.conf", &self.resolv_conf);
    }
}

#[track_caller]
fn sh(script: &str) {
    command::run(Command::new("sh").args(["-ec", script])).success();
}
