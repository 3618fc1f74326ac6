//! The manifest: which kernel and initrd belong together and to which runtime.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Its name in the directory.
pub const FILE: &str = "manifest.json";

/// Everything a guest is started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The runvm version that it was packed with.
    pub version: String,
    /// [`protocol::VERSION`] that the agent inside speaks.
    pub protocol: u32,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The archive with the agent.
    pub initrd: Artifact,
    /// Where it was loaded from.
    #[serde(skip)]
    directory: PathBuf,
}

/// The guest's kernel: an uncompressed ELF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The file itself.
    #[serde(flatten)]
    pub artifact: Artifact,
    /// What `uname -r` says in the guest.
    pub release: String,
    /// Names of the patches of guest-kernel/patches that are in it.
    pub patches: Vec<String>,
}

/// A file beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Its name in the directory.
    pub file: String,
    /// In bytes.
    pub size: u64,
    /// In lower-case hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// A manifest for files in `directory`, of this version.
    pub(crate) fn new(directory: &Path, kernel: Kernel, initrd: Artifact) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { version, protocol: protocol::VERSION, kernel, initrd, directory: directory.to_owned() }
    }

    /// Reads the manifest of a directory and checks that this version of runvm can use what it names:
    /// the protocol is the same, the files are there and as large as they should be.
    pub fn load(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE);
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut this: Self = serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
        this.directory = directory.to_owned();
        if this.protocol != protocol::VERSION {
            bail!(
                "{}: the guest speaks version {} of the protocol, this runvm {}: install guest files of the same release",
                path.display(),
                this.protocol,
                protocol::VERSION
            );
        }
        [&this.kernel.artifact, &this.initrd].into_iter().try_for_each(|artifact| this.check_size(artifact))?;
        Ok(this)
    }

    /// Hashes the files; an error names the one that is not what the manifest says.
    pub fn verify(&self) -> Result<()> {
        for artifact in [&self.kernel.artifact, &self.initrd] {
            let path = self.path(artifact)?;
            let found = Artifact::of(&path)?;
            if found != *artifact {
                bail!("{}: its contents are not what {FILE} says", path.display());
            }
        }
        Ok(())
    }

    /// Where the kernel is.
    pub fn kernel_path(&self) -> PathBuf {
        self.directory.join(&self.kernel.artifact.file)
    }

    /// Where the initrd is.
    pub fn initrd_path(&self) -> PathBuf {
        self.directory.join(&self.initrd.file)
    }

    fn path(&self, artifact: &Artifact) -> Result<PathBuf> {
        let name = Path::new(&artifact.file);
        if name.file_name() != Some(name.as_os_str()) {
            bail!("{}: {:?} is not a file name", self.directory.join(FILE).display(), artifact.file);
        }
        Ok(self.directory.join(name))
    }

    fn check_size(&self, artifact: &Artifact) -> Result<()> {
        let path = self.path(artifact)?;
        let size = std::fs::metadata(&path).with_context(|| format!("stat {}", path.display()))?.len();
        if size != artifact.size {
            bail!("{}: it has {size} bytes, {FILE} says {}", path.display(), artifact.size);
        }
        Ok(())
    }
}

impl Artifact {
    /// Measures a file.
    pub fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let file = name.with_context(|| format!("{}: not a file name", path.display()))?.to_owned();
        let (size, sha256) = hash(path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { file, size, sha256 })
    }
}

fn hash(path: &Path) -> std::io::Result<(u64, String)> {
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        let n = file.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
        hasher.update(bytes);
        size += n as u64;
    }
    let text = hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    Ok((size, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into();
        assert_eq!(Artifact::of(&path).unwrap(), Artifact { file: "f".into(), size: 3, sha256 });
    }
}
