//! Reads bundles and process files; what they say is judged by `plan`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;

/// A configuration larger than this is an attack or a mistake.
const MAX_SIZE: u64 = 16 << 20;

/// A bundle as it was read.
pub struct Bundle {
    /// Its directory, absolute and without symlinks.
    pub dir: PathBuf,
    /// Its config.json.
    pub spec: Spec,
}

/// Reads the bundle in a directory.
pub fn load(dir: &Path) -> anyhow::Result<Bundle> {
    let found = dir.canonicalize().with_context(|| format!("bundle {}", dir.display()))?;
    if !found.is_dir() {
        bail!("bundle {} is not a directory", found.display());
    }
    let config = found.join("config.json");
    if config.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        bail!("JSON specification file config.json not found in bundle {}", found.display());
    }
    Ok(Bundle { spec: read(&config)?, dir: found })
}

/// Reads the description of a process, as engines give it to `exec`.
pub fn load_process(path: &Path) -> anyhow::Result<Process> {
    read(path)
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let name = path.display();
    let file = path.metadata().with_context(|| format!("read {name}"))?;
    if !file.is_file() || file.len() > MAX_SIZE {
        bail!("{name} is not a regular file of at most {MAX_SIZE} bytes");
    }
    let text = std::fs::read(path).with_context(|| format!("read {name}"))?;
    serde_json::from_slice(&text).with_context(|| format!("{name} is not valid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(config: Option<&str>) -> String {
        let dir = tempfile::tempdir().unwrap();
        if let Some(text) = config {
            std::fs::write(dir.path().join("config.json"), text).unwrap();
        }
        load(dir.path()).map(|_| ()).map_err(|error| format!("{error:#}")).unwrap_err()
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(error(None).starts_with("JSON specification file config.json not found"));
        assert!(error(Some("{")).contains("config.json is not valid: EOF while parsing"));
        assert!(error(Some(r#"{"ociVersion": 1}"#)).contains("line 1 column 16"));
        let missing = format!("{:#}", load(Path::new("/no/such/bundle")).err().unwrap());
        assert!(missing.contains("/no/such/bundle: No such file or directory"), "{missing}");
    }
}
