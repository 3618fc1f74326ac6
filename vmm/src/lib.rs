//! A small virtual machine monitor.
pub mod interrupt;
pub mod virtio;
