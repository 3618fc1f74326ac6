//! The connection with the host: vsock streams, what moves their bytes, sockets of the host, and devices that come later.

pub mod devices;
pub mod pump;
pub mod relay;
pub mod sockets;
pub mod streams;
pub mod vsock;
