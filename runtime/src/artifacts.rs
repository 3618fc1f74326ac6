//! Finds the kernel and the initrd that belong to this binary, with no configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use initrd::Manifest;

/// What a guest is started from.
pub struct Artifacts {
    /// The kernel, an ELF image.
    pub kernel: PathBuf,
    /// The initial RAM disk with the agent.
    pub initrd: PathBuf,
    /// What belongs together.
    pub manifest: Manifest,
    /// Where they lie.
    pub dir: PathBuf,
}

/// Finds them in `guest/` beside the binary (a build tree) or in `../lib/runvm/` (installed), or where
/// `RUNVM_GUEST_DIR` says. Checks cheaply that they are whole and of this version.
pub fn find() -> anyhow::Result<Artifacts> {
    let dir = directory()?;
    let manifest =
        Manifest::load(&dir).context("the guest's files cannot be used; make build or make install makes new ones")?;
    let version = env!("CARGO_PKG_VERSION");
    if manifest.version != version {
        let (theirs, place) = (&manifest.version, dir.display());
        bail!(
            "kernel and initrd in {place} belong to runvm {theirs}, this is runvm {version}: install them from one build"
        );
    }
    let (kernel, initrd) = (dir.join(&manifest.kernel.artifact.file), dir.join(&manifest.initrd.file));
    Ok(Artifacts { kernel, initrd, manifest, dir })
}

fn directory() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("RUNVM_GUEST_DIR") {
        return Ok(dir.into());
    }
    let binary = std::env::current_exe().context("find this binary")?;
    let beside = binary.parent().unwrap_or(Path::new("/"));
    let candidates = [beside.join("guest"), beside.join("../lib/runvm")];
    let found = candidates.iter().find(|dir| dir.join("manifest.json").exists());
    found.cloned().with_context(|| {
        let [first, second] = candidates.map(|dir| dir.display().to_string());
        format!("no guest kernel and initrd in {first} or {second}: run make build or make install")
    })
}
