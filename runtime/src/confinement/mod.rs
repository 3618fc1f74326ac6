//! How processes and threads of this runtime give up what they do not need: system calls, capabilities, traces of their memory.
//!
//! What each keeps is said where it is started: in `monitor/confine` and in `network/helper/confine`.

mod calls;
mod capabilities;
mod filter;
pub mod groups;
mod line;
mod memory;
#[cfg(feature = "owned")]
mod owned;
mod program;
mod violation;

pub use calls::{Call, absent, any, one_of, unseen, without};
#[cfg(test)]
pub use calls::{When, list};
pub use capabilities::{empty_bounding_set, fix_capabilities, keep};
pub use filter::{Filter, prepare};
pub use line::name_thread;
pub use memory::{bound_arenas, hide_memory};
#[cfg(feature = "owned")]
pub use owned::control;
pub use program::Program;
