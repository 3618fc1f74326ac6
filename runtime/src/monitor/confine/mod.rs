//! What the monitor gives up: it parses what a hostile guest says, so it keeps as little as it can that is worth taking.

mod limits;
mod rights;
mod tables;
#[cfg(test)]
mod tests;
mod threads;
mod view;

pub use limits::harden;
pub use rights::leave_the_host;
pub use threads::{confine_main, confine_proxy, make_nodes_only, on_thread};
pub use view::{View, leave_the_hosts_mounts};
