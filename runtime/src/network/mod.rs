//! The host's side of a container's network: the monitor's work in the container's network namespace.
//!
//! ```text
//!  engine's link (veth, macvlan, …) ──ingress: u32 + mirred──▶ tap of ours ◀──▶ the guest's network device,
//!                                   ◀──u32 + mirred: ingress──                  with the link's name, number and addresses
//! ```
//!
//! The monitor never changes an engine's link: it only adds an ingress qdisc, and removes it at the end. It mirrors the link's
//! configuration into the guest. The monitor no longer sees /dev and /proc, and works with descriptors opened before.

mod attached_links;
mod changes;
mod cleanup;
mod files;
mod links;
mod mirror;
mod namespace;
mod netlink;
mod resolver;
mod tap;
#[cfg(test)]
mod tests;
mod traffic;
mod user_network;

pub use attached_links::AttachedLinks;
pub use changes::Changes;
pub use cleanup::{clean_after, ports};
pub use files::Files;
pub use links::Link;
pub use mirror::mirror;
pub use namespace::NetworkNamespace;
pub use user_network::make as make_user_network;
