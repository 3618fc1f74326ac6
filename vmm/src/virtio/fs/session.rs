//! What was agreed on with the guest's kernel.

use super::fuse::init;
use crate::virtio::Error;

/// What this server can do. Left out on purpose: `POSIX_LOCKS` and `FLOCK_LOCKS` (locks stay in the
/// guest), `EXPORT_SUPPORT` (it would look up `..`), `WRITEBACK_CACHE` (a write must reach the host),
/// `NO_OPEN_SUPPORT` (saves two requests per file, but then nothing tells when a file is in use, and
/// every host read would have to open), `NO_OPENDIR_SUPPORT` and `CACHE_DIR` (positions in a directory
/// are only valid in one open directory on overlayfs), `ALLOW_IDMAP` (requests would lose their ids).
const OFFERED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::OPEN_AT_ONCE;

/// Version of what [`Session::save`] writes.
const VERSION: u32 = 1;

/// What was agreed on in `INIT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Session {
    open: bool,
    flags: u64,
}

impl Session {
    /// An open session with those of the flags that the guest wants and this server can do.
    pub fn agreed(wanted: u64) -> Self {
        Self { open: true, flags: agree(wanted) }
    }

    /// The bits of [`init`] in force.
    pub fn flags(&self) -> u64 {
        self.flags
    }

    /// Whether `INIT` was done and `DESTROY` wasn't.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether this bit of [`init`] is in force.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Twelve bytes, little-endian: version, then the flags in force, their highest bit set when open.
    pub fn save(&self) -> [u8; 12] {
        let flags = self.flags | u64::from(self.open) << 63;
        let mut state = [0; 12];
        let (version, rest) = state.split_at_mut(4);
        version.copy_from_slice(&VERSION.to_le_bytes());
        rest.copy_from_slice(&flags.to_le_bytes());
        state
    }

    /// Takes back what [`Session::save`] gave.
    pub fn restore(state: &[u8]) -> Result<Self, Error> {
        let wrong = Error::Protocol("not a file system device's state, or of another version");
        let Some((version, flags)) = state.split_at_checked(4) else { return Err(wrong) };
        let flags = <[u8; 8]>::try_from(flags).map(u64::from_le_bytes);
        match flags {
            Ok(flags) if version == VERSION.to_le_bytes() => {
                Ok(Self { open: flags >> 63 == 1, flags: flags & OFFERED })
            }
            _ => Err(wrong),
        }
    }
}

/// What both sides can do. ACLs need that the host applies the umask (a directory's default ACL comes
/// in its place) and that setting one can drop setgid.
fn agree(wanted: u64) -> u64 {
    let flags = wanted & OFFERED;
    let acl_needs = init::DONT_MASK | init::SETXATTR_EXT;
    if flags & acl_needs == acl_needs { flags } else { flags & !init::POSIX_ACL }
}
