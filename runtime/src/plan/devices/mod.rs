//! Devices: nodes, the rules of their use as a program, and disks.

mod disks;
mod filter;
mod monitor;
mod nodes;
mod rules;

pub use disks::{Destinations, DiskPlan, Image, MAX_DISKS, NICS, OWN_DEVICES};
pub use monitor::MonitorDevices;
pub use nodes::{plan, pseudo};
