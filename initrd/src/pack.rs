//! Writes the three files of a guest. Each appears whole or not at all, the manifest last.

use crate::cpio::Archive;
use crate::manifest::{Artifact, FILE, Kernel, Manifest};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Directories that the agent mounts something on.
const DIRECTORIES: [&str; 5] = ["dev", "proc", "sys", "run", "tmp"];

/// Packs `agent` into an initrd in `out` and puts it beside `kernel`.
pub fn pack(agent: &Path, kernel: &Path, out: &Path) -> Result<Manifest> {
    let (release, patches) = (kernel_release(kernel)?, patches(kernel)?);
    let agent_bytes = fs::read(agent).with_context(|| format!("read {}", agent.display()))?;
    check_static(&agent_bytes).with_context(|| format!("{}", agent.display()))?;
    fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let initrd = replace(out, "initrd", |path| write(path, &archive(&agent_bytes)?))?;
    let kernel = replace(out, "vmlinux", |path| link_or_copy(kernel, path))?;
    let kernel = Kernel { artifact: Artifact::of(&kernel)?, release, patches };
    let manifest = Manifest::new(out, kernel, Artifact::of(&initrd)?);
    let mut json = serde_json::to_vec_pretty(&manifest)?;
    json.push(b'\n');
    replace(out, FILE, |path| write(path, &json))?;
    Ok(manifest)
}

fn archive(agent: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    DIRECTORIES.into_iter().try_for_each(|name| archive.directory(name, 0o755))?;
    // The kernel opens the console before anybody can have mounted a devtmpfs; the Rust runtime
    // wants /dev/null when it could not.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.character_device("dev/null", 0o666, (1, 3))?;
    archive.file("init", 0o755, agent)?;
    archive.finish()
}

/// An agent that needs a dynamic linker would only panic the guest.
fn check_static(elf: &[u8]) -> Result<()> {
    if elf.get(..4) != Some(b"\x7fELF".as_slice()) {
        bail!("not an ELF file");
    }
    let word = |at: usize| elf.get(at..at + 2).map_or(0, |b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let offset = elf.get(32..40).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let headers = elf.get(usize::try_from(offset)?..).unwrap_or_default();
    let interpreter = headers.chunks(word(54).max(1)).take(word(56)).any(|header| header.starts_with(&[3, 0, 0, 0]));
    if interpreter {
        bail!("needs a dynamic linker: build it with -C target-feature=+crt-static");
    }
    Ok(())
}

/// The release in the kernel's banner: `Linux version RELEASE (…`.
fn kernel_release(kernel: &Path) -> Result<String> {
    const BANNER: &[u8] = b"Linux version ";
    let image = fs::read(kernel).with_context(|| format!("read {}", kernel.display()))?;
    let candidates = image.windows(BANNER.len()).enumerate().filter(|(_, window)| *window == BANNER);
    for (at, _) in candidates {
        let rest = image.get(at + BANNER.len()..).unwrap_or_default();
        let release: Vec<u8> = rest.iter().copied().take_while(u8::is_ascii_graphic).take(64).collect();
        if release.first().is_some_and(u8::is_ascii_digit) {
            return Ok(String::from_utf8_lossy(&release).into_owned());
        }
    }
    bail!("{}: no Linux kernel: it has no version banner", kernel.display())
}

/// The file `patches` beside the kernel names the patches in it, one a line; a kernel without that file has none.
fn patches(kernel: &Path) -> Result<Vec<String>> {
    let list = kernel.with_file_name("patches");
    match fs::read_to_string(&list) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", list.display())),
    }
}

/// Makes a file under a temporary name and gives it its own when it is complete.
fn replace(directory: &Path, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let (path, temporary) = (directory.join(name), directory.join(format!(".{name}.{}", std::process::id())));
    let made = make(&temporary).and_then(|()| Ok(fs::rename(&temporary, &path)?));
    // Left after a failure, and where both names are links to one file: then renaming does nothing.
    let _ = fs::remove_file(&temporary);
    made.with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}

fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(File::open(to)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest thing that passes for a static program: an ELF header without program headers.
    fn fake_agent() -> Vec<u8> {
        let mut elf = vec![0; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn packing_again_leaves_nothing_else() {
        let (dir, _) = packed();
        pack(&dir.path().join("agent"), &dir.path().join("kernel"), &dir.path().join("out")).unwrap();
        assert_eq!(names(&dir.path().join("out")), ["initrd", FILE, "vmlinux"]);
    }

    fn packed() -> (tempfile::TempDir, Manifest) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("agent"), fake_agent()).unwrap();
        fs::write(dir.path().join("kernel"), "..Linux version %s\0..Linux version 6.12.1-x (me) #1\0").unwrap();
        let out = dir.path().join("out");
        let manifest = pack(&dir.path().join("agent"), &dir.path().join("kernel"), &out).unwrap();
        (dir, manifest)
    }

    #[test]
    fn a_manifest_reads_back_and_verifies() {
        let (dir, manifest) = packed();
        assert_eq!(manifest.kernel.release, "6.12.1-x");
        assert!(manifest.kernel.patches.is_empty());
        let loaded = Manifest::load(&dir.path().join("out")).unwrap();
        assert_eq!(loaded, manifest);
        loaded.verify().unwrap();
        assert!(loaded.initrd_path().is_file() && loaded.kernel_path().is_file());
    }

    #[test]
    fn patches_beside_the_kernel_are_named() {
        let (dir, _) = packed();
        fs::write(dir.path().join("patches"), "one\ntwo\n").unwrap();
        let out = dir.path().join("out");
        pack(&dir.path().join("agent"), &dir.path().join("kernel"), &out).unwrap();
        assert_eq!(Manifest::load(&out).unwrap().kernel.patches, ["one", "two"]);
    }

    #[test]
    fn other_contents_are_noticed() {
        let (_dir, manifest) = packed();
        let size = fs::metadata(manifest.initrd_path()).unwrap().len();
        fs::write(manifest.initrd_path(), vec![1; size as usize]).unwrap();
        assert!(manifest.verify().unwrap_err().to_string().contains("initrd"));
        fs::write(manifest.initrd_path(), "short").unwrap();
        let out = manifest.initrd_path().parent().unwrap().to_owned();
        assert!(Manifest::load(&out).unwrap_err().to_string().contains("has 5 bytes"));
    }

    #[test]
    fn another_protocol_is_a_clear_error() {
        let (_dir, mut manifest) = packed();
        let out = manifest.initrd_path().parent().unwrap().to_owned();
        manifest.protocol += 1;
        fs::write(out.join(FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert!(Manifest::load(&out).unwrap_err().to_string().contains("speaks version"));
    }

    #[test]
    fn packing_twice_gives_the_same() {
        assert_eq!(packed().1.initrd, packed().1.initrd);
    }

    #[test]
    fn the_initrd_has_an_init_and_what_it_needs_first() {
        let (_dir, manifest) = packed();
        let entries = crate::cpio::entries(&fs::read(manifest.initrd_path()).unwrap());
        let names: Vec<&str> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["dev", "proc", "sys", "run", "tmp", "dev/console", "dev/null", "init"]);
        let find = |wanted: &str| entries.iter().find(|(name, ..)| name == wanted).unwrap();
        assert_eq!(find("init"), &("init".into(), 0o100_755, fake_agent(), (0, 0)));
        assert_eq!(find("dev/console"), &("dev/console".into(), 0o020_600, Vec::new(), (5, 1)));
    }

    #[test]
    fn a_dynamic_agent_is_refused() {
        let mut elf = vec![0; 64 + 56];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[32..40].copy_from_slice(&64u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1u16.to_le_bytes());
        elf[64] = 3;
        assert!(check_static(&elf).unwrap_err().to_string().contains("dynamic linker"));
    }
}
