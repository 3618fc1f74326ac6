//! A small virtual machine monitor.
pub mod event_loop;
pub mod interrupt;
pub mod virtio;
