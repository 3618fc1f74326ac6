//! The host's side of a container's network: what the monitor does in the container's network namespace.
//!
//! ```text
//!  engine's link (veth, macvlan, …) ──ingress: u32 + mirred──▶ tap of ours ◀──▶ the guest's network device,
//!                                   ◀──u32 + mirred: ingress──                  with the link's name, number and addresses
//! ```
//!
//! An engine's link is never changed: it only gets an ingress qdisc, and that is taken off again. What is configured on it is
//! repeated in the guest. The monitor sees neither /dev nor /proc any more; it works with descriptors opened before.

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
