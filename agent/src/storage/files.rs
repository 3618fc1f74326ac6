//! Files that the agent makes, to be mounted, since the host has none.

use crate::error::{Context, Result};
use protocol::CreateContainerRequest;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Mode of a file that everybody may read and root write.
const MODE: u32 = 0o644;

/// Names are distinct by this.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Files made for one container. Dropping this removes their names; what is mounted stays.
#[derive(Default)]
pub struct Files(Vec<PathBuf>);

impl Files {
    /// Makes a file in `directory` for each mount that has a content, and names it as the mount's source.
    pub fn make(request: &mut CreateContainerRequest, directory: &Path) -> Result<Self> {
        let mut files = Self::default();
        for mount in request.mounts.iter_mut().filter(|mount| !mount.content.is_empty()) {
            let path = directory.join(format!("file{}", NEXT.fetch_add(1, Ordering::Relaxed)));
            files.0.push(path.clone());
            let what = || format!("make a file for {}", mount.destination);
            std::fs::write(&path, &mount.content).context(what)?;
            std::fs::set_permissions(&path, Permissions::from_mode(MODE)).context(what)?;
            mount.source = path.to_string_lossy().into_owned();
        }
        Ok(files)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            // What is left there is a name.
            let _ = rustix::fs::unlink(path);
        }
    }
}
