//! Bytes between the host and the guest: standard streams of processes, connections to sockets of the host.

pub mod connections;
pub mod host_sockets;
pub mod stdio;
