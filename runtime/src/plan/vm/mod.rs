//! The virtual machine: its size, or the container whose VM is joined.

mod pod;
mod sandbox;
mod settings;
mod size;

pub use sandbox::{Sandbox, Surroundings, is_possible as may_share_vm, plan as sandbox, process_of};
pub use settings::{HOST_SETTINGS, Setting};
pub use size::{MachinePlan, plan};
