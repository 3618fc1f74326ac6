//! A small virtual machine monitor.
