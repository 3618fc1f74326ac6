//! What a guest is started from: a directory with kernel, initrd and a manifest that belongs to them.
//!
//! ```text
//!  agent ──┐
//!          ├─ pack-guest ─▶ DIR/{vmlinux, initrd, manifest.json} ─ Manifest::load ─▶ runtime
//!  vmlinux ┘
//! ```

mod cpio;
mod manifest;
mod pack;

pub use manifest::{Artifact, Kernel, Manifest};
pub use pack::pack;
