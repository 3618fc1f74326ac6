//! The guest's kernel and initrd, found without configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use initrd::Manifest;

/// Environment variable that names the directory, for tests and unusual installations.
const VARIABLE: &str = "RUNVM_GUEST_DIR";
/// The manifest's name in the directory.
const MANIFEST: &str = "manifest.json";

/// Other kernels that containers may ask for, below the directory.
const KERNELS: &str = "kernels";

/// Name of the patch with which a kernel can be told of devices after boot.
const HOTPLUG: &str = "virtio-mmio-plug";

/// Patches whose absence a container can notice, and what it notices.
const NOTICED: [(&str, &str); 3] = [
    ("fuse-locks-of-the-server", "file locks on volumes hold inside one VM only"),
    ("fuse-submount-acls", "POSIX ACLs on volumes have no effect"),
    ("fuse-events-of-the-server", "inotify misses what others do to volumes"),
];

/// A kernel to boot a VM from.
#[derive(Debug)]
pub struct Image {
    /// An uncompressed ELF.
    pub path: PathBuf,
    /// Names of the patches of guest-kernel/patches in it, as far as somebody says.
    patches: Vec<String>,
}

impl Image {
    fn has(&self, patch: &str) -> bool {
        self.patches.iter().any(|name| name == patch)
    }

    /// Whether the kernel can be told of devices after boot.
    pub fn hotplug(&self) -> bool {
        self.has(HOTPLUG)
    }

    /// One sentence on what containers lose for want of patches; none when they lose nothing.
    pub fn losses(&self) -> Option<String> {
        let lost = NOTICED.into_iter().filter(|(patch, _)| !self.has(patch));
        let lost: Vec<String> = lost.map(|(patch, effect)| format!("{effect} (no {patch})")).collect();
        let kernel = self.path.display();
        (!lost.is_empty()).then(|| format!("guest kernel {kernel} lacks runvm patches: {}", lost.join("; ")))
    }
}

/// Files that a VM is booted from.
#[derive(Clone, Debug)]
pub struct Artifacts {
    /// The initial RAM disk with the agent.
    pub initrd: PathBuf,
    /// Names, sizes and hashes of the files, and the patches in the kernel.
    pub manifest: Manifest,
    /// Directory that holds the files.
    pub dir: PathBuf,
}

impl Artifacts {
    /// The usual kernel, or one of those that whoever installed this put into `kernels/`: what is there is allowed, and
    /// taken to have no patch.
    ///
    /// # Errors
    /// No kernel has this name; the message lists the kernels there are.
    pub fn kernel(&self, name: Option<&str>) -> anyhow::Result<Image> {
        let Some(name) = name else {
            let patches = self.manifest.kernel.patches.clone();
            return Ok(Image { path: self.manifest.kernel_path(), patches });
        };
        let directory = self.dir.join(KERNELS);
        let path = directory.join(name);
        if path.is_file() {
            return Ok(Image { path, patches: Vec::new() });
        }
        let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        let known = if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
        bail!("annotation io.runvm.kernel: there is no kernel {name} in {}: {known}", directory.display())
    }
}

/// Looks where `RUNVM_GUEST_DIR` says, else beside this program (`guest/`), else where `make install` puts
/// it (`../lib/runvm/`). Checks presence, sizes, version and protocol; the hashes are left to
/// [`Manifest::verify`].
///
/// # Errors
/// What is missing or does not fit, and what to do.
pub fn find() -> anyhow::Result<Artifacts> {
    load(&directory(&candidates()?)?)
}

fn candidates() -> anyhow::Result<Vec<PathBuf>> {
    if let Some(directory) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return Ok(vec![directory.into()]);
    }
    let program = std::env::current_exe().context("find this program's own file")?;
    let home = program.parent().unwrap_or(Path::new("/"));
    Ok(vec![home.join("guest"), home.join("../lib/runvm")])
}

fn directory(candidates: &[PathBuf]) -> anyhow::Result<PathBuf> {
    if let Some(found) = candidates.iter().find(|directory| directory.join(MANIFEST).exists()) {
        return Ok(found.clone());
    }
    let places: Vec<String> = candidates.iter().map(|directory| directory.display().to_string()).collect();
    let places = places.join(" or ");
    bail!("guest kernel and initrd not found: no {MANIFEST} in {places}; run make build, or install runvm again")
}

fn load(directory: &Path) -> anyhow::Result<Artifacts> {
    const HELP: &str = "guest kernel and initrd cannot be used; run make build, or install runvm again";
    let manifest = Manifest::load(directory).context(HELP)?;
    let (theirs, ours) = (&manifest.version, env!("CARGO_PKG_VERSION"));
    if theirs != ours {
        bail!("{HELP}: those in {} are of version {theirs}, this runvm is {ours}", directory.display());
    }
    Ok(Artifacts { initrd: manifest.initrd_path(), manifest, dir: directory.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(version: &str, protocol: u32, size: u64) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, size| serde_json::json!({"file": name, "size": size, "sha256": "", "release": "6.12", "patches": [HOTPLUG]});
        let manifest = serde_json::json!({
            "version": version, "protocol": protocol, "kernel": file("vmlinux", size), "initrd": file("initrd", 3)
        });
        std::fs::write(directory.path().join(MANIFEST), manifest.to_string()).unwrap();
        std::fs::write(directory.path().join("vmlinux"), "abcd").unwrap();
        std::fs::write(directory.path().join("initrd"), "abc").unwrap();
        directory
    }

    fn error(directory: &Path) -> String {
        format!("{:#}", load(directory).unwrap_err())
    }

    #[test]
    fn what_fits_is_found() {
        let directory = guest(env!("CARGO_PKG_VERSION"), protocol::VERSION, 4);
        let artifacts = load(directory.path()).unwrap();
        assert_eq!(artifacts.kernel(None).unwrap().path, directory.path().join("vmlinux"));
        assert_eq!(artifacts.initrd, directory.path().join("initrd"));
        assert!(artifacts.manifest.verify().is_err(), "its hashes are not those of the files");
    }

    #[test]
    fn what_does_not_fit_is_said_with_what_to_do() {
        let version = env!("CARGO_PKG_VERSION");
        for (directory, what) in [
            (guest("9.9.9", protocol::VERSION, 4), "are of version 9.9.9"),
            (guest(version, protocol::VERSION + 1, 4), "protocol"),
            (guest(version, protocol::VERSION, 5), "4 bytes"),
        ] {
            let text = error(directory.path());
            assert!(text.contains(what) && text.contains("make build"), "{text}");
        }
        let directory = guest(version, protocol::VERSION, 4);
        std::fs::remove_file(directory.path().join("initrd")).unwrap();
        assert!(error(directory.path()).contains("initrd: No such file"));
        std::fs::write(directory.path().join(MANIFEST), "{").unwrap();
        assert!(error(directory.path()).contains("manifest.json"));
    }

    #[test]
    fn what_a_kernel_lacks_is_said() {
        let directory = guest(env!("CARGO_PKG_VERSION"), protocol::VERSION, 4);
        let artifacts = load(directory.path()).unwrap();
        std::fs::create_dir(directory.path().join(KERNELS)).unwrap();
        std::fs::write(directory.path().join("kernels/stock"), "").unwrap();
        let (own, stock) = (artifacts.kernel(None).unwrap(), artifacts.kernel(Some("stock")).unwrap());
        assert!(own.hotplug() && !stock.hotplug());
        assert!(stock.losses().unwrap().contains("kernels/stock lacks runvm patches: file locks on volumes"));
        let patches = NOTICED.map(|(patch, _)| patch.to_owned()).to_vec();
        assert_eq!(Image { patches, ..stock }.losses(), None);
        assert!(artifacts.kernel(Some("other")).unwrap_err().to_string().ends_with("it has stock"));
    }

    #[test]
    fn the_first_directory_with_a_manifest_counts() {
        let (empty, full) = (tempfile::tempdir().unwrap(), guest("1", 1, 1));
        let candidates = [empty.path().to_owned(), full.path().to_owned()];
        assert_eq!(directory(&candidates).unwrap(), full.path());
        let text = directory(&candidates[..1]).unwrap_err().to_string();
        assert!(text.starts_with("guest kernel and initrd not found: no manifest.json in "), "{text}");
    }
}
