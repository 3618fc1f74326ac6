//! The containers of the guest: their table, and what creates, joins and ends them.

pub mod cgroup;
pub mod config;
pub mod create;
pub mod exec;
pub mod reaper;
pub mod table;
