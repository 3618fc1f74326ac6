//! The connection with the host: vsock streams, what moves their bytes, and sockets of the host.

pub mod pump;
pub mod relay;
pub mod sockets;
pub mod streams;
pub mod vsock;
