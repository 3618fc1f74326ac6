//! Devices: nodes, the rules of their use as a program, and disks.

mod disks;
mod filter;
mod nodes;
mod rules;

pub use disks::{CARDS, Destinations, DiskPlan, Image, MAX_DISKS, OWN_DEVICES};
pub use nodes::{plan, pseudo};
