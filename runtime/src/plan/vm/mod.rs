//! The virtual machine: whose it is, and its size.

mod pod;
mod sandbox;
mod size;

pub use sandbox::{Sandbox, Surroundings, is_possible as may_share_vm, plan as sandbox, process_of};
pub use size::{MachinePlan, plan};
