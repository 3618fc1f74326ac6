//! The directories and files of the host that a container sees, as open descriptors.
//!
//! The command opens them; the monitor only ever holds `O_PATH` descriptors and walks below them.

use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::fs::{Mode, OFlags};

use crate::plan::SharePlan;

/// Opens the root of every share, following symlinks in the path the bundle gave, as mount(2) does.
pub fn open(plans: &[SharePlan]) -> anyhow::Result<Vec<OwnedFd>> {
    let open = |plan: &SharePlan| {
        let opened = rustix::fs::open(&plan.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        opened.with_context(|| format!("open {} to share it with the container", plan.source.display()))
    };
    plans.iter().map(open).collect()
}
