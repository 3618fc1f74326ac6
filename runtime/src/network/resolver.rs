//! Docker's resolver at 127.0.0.11 of a container's namespace.
//!
//! Docker's resolver asks other name servers from inside of the namespace, with the link's own address. Their replies arrive by the
//! link; a filter tells them from the guest's packets by the port: the host's sockets get ports that a guest's never get by
//! themselves.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Context;

/// Port range for the host's sockets in the namespace: 0xff00 to 0xffff.
pub const PORTS: &str = "65280\t65535";
/// Port range of a new namespace.
pub const DEFAULT: &str = "32768\t60999";
/// File with the port range; belongs to the namespace of whoever opens it.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// File with the UDP sockets of the opening thread's namespace.
const SOCKETS: &str = "/proc/thread-self/net/udp";
/// 127.0.0.11 as the kernel prints it.
const ADDRESS: &str = "0B00007F:";
/// Bytes read at a time.
const BUFFER: usize = 16 << 10;

/// Opens the list of the UDP sockets of the calling thread's namespace.
///
/// # Errors
/// /proc is not there.
pub fn open_sockets() -> anyhow::Result<File> {
    File::open(SOCKETS).with_context(|| format!("open {SOCKETS}"))
}

/// Opens the port range of the calling thread's namespace. One that must not be written is no error before it has to be.
///
/// # Errors
/// /proc is not there.
pub fn open_range() -> anyhow::Result<File> {
    let opened = File::options().read(true).write(true).open(RANGE).or_else(|_| File::open(RANGE));
    opened.with_context(|| format!("open {RANGE}"))
}

/// Whether a socket is bound to the resolver's address.
///
/// # Errors
/// The sockets cannot be listed.
pub fn is_there(sockets: &File) -> anyhow::Result<bool> {
    let sockets = read(sockets).with_context(|| format!("read {SOCKETS}"))?;
    let local = |line: &str| line.split_whitespace().nth(1).is_some_and(|address| address.starts_with(ADDRESS));
    Ok(sockets.lines().any(local))
}

/// Port range of the namespace.
///
/// # Errors
/// The setting cannot be read.
pub fn ports(range: &File) -> anyhow::Result<String> {
    let ports = current(range)?;
    // Left by somebody who could not give it back.
    Ok(if ports == PORTS { DEFAULT.to_owned() } else { ports })
}

/// Sets the port range for the host's sockets; returns the previous one.
///
/// # Errors
/// The setting cannot be read or written.
pub fn set_apart(range: &File) -> anyhow::Result<String> {
    let old = ports(range)?;
    write(range, PORTS).map(|()| old)
}

/// Undoes [`set_apart`]. Somebody else's change since then stays.
///
/// # Errors
/// The setting cannot be read or written.
pub fn give_back(range: &File, old: &str) -> anyhow::Result<()> {
    if current(range)? == PORTS { write(range, old) } else { Ok(()) }
}

fn current(range: &File) -> anyhow::Result<String> {
    Ok(read(range).with_context(|| format!("read {RANGE}"))?.trim().to_owned())
}

fn write(file: &File, range: &str) -> anyhow::Result<()> {
    file.write_all_at(range.as_bytes(), 0).with_context(|| format!("write {range:?} to {RANGE}"))
}

/// Reads a file of /proc from its beginning, whoever has read it before.
fn read(file: &File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read_at(&mut buffer, bytes.len() as u64)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            length => bytes.extend_from_slice(buffer.get(..length).unwrap_or_default()),
        }
    }
}
