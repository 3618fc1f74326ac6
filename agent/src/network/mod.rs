//! The network of a container: NICs, addresses and routes, published ports, the resolver.

pub mod nat;
pub mod netlink;
pub mod nics;
pub mod ports;
pub mod requests;
pub mod resolver;
pub mod sysctl;
