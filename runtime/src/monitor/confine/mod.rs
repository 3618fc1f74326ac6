//! What the monitor gives up: it parses what a hostile guest says, so it keeps nothing that is worth taking.

mod limits;
mod rights;
mod view;

pub use limits::harden;
pub use rights::leave_the_host;
pub use view::{View, leave_the_hosts_mounts};
