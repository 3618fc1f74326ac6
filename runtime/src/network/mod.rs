//! The host's side of a container's network: the work in the container's network namespace.
//!
//! ```text
//!  engine's link (veth, macvlan, …) ──ingress: u32 + mirred──▶ tap of ours ◀──▶ the guest's network device,
//!                                   ◀──u32 + mirred: ingress──                  with the link's name, number and addresses
//! ```
//!
//! A small process of its own does it, the [network helper](helper), which has the capability that the monitor is not to have. It
//! never changes an engine's link: it only adds an ingress qdisc, and removes it at the end. The monitor gets taps and the links'
//! configuration from the helper, and mirrors that into the guest.

mod attached_links;
mod changes;
mod cleanup;
mod files;
pub mod helper;
mod links;
pub mod messages;
mod mirror;
pub mod namespace;
mod netlink;
mod resolver;
mod tap;
#[cfg(test)]
mod tests;
mod traffic;
mod user_network;

pub use changes::Changes;
pub use cleanup::{clean_after, ports};
pub use links::Link;
pub use mirror::mirror;
