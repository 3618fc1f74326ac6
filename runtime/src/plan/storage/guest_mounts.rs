//! Mounts as messages to the agent, and those that need nothing of the host.

use std::path::Path;

use oci_spec::runtime::Mount;

use super::mount_options::MountOptions;
use crate::plan::devices;
use crate::plan::facts::{FileSystemKind, SourceFact, SourceKind};
use crate::plan::nul;

/// File systems of the guest's kernel that need no source.
pub const KINDS: [&str; 15] = [
    "proc",
    "sysfs",
    "tmpfs",
    "devpts",
    "mqueue",
    "devtmpfs",
    "ramfs",
    "hugetlbfs",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "fusectl",
    "binfmt_misc",
    "configfs",
];

/// Size in bytes of a /dev/shm whose size on the host is unknown: what engines give.
const SHM_SIZE: u64 = 64 << 20;

/// The guest's own mount for a source that exists in every kernel and does not mean "the one of this host".
pub fn of_the_guest(fact: &SourceFact, destination: &str, options: &MountOptions) -> Option<protocol::Mount> {
    if let SourceKind::CharDevice { major, minor } = fact.kind {
        let source = devices::pseudo(major, minor)?.to_owned();
        return Some(protocol::Mount { source, ..bind(destination, options) });
    }
    if fact.kind != SourceKind::Directory {
        return None;
    }
    let whole = fact.canonical.to_str() == Some(destination);
    match (fact.file_system, destination) {
        (FileSystemKind::Cgroup, _) if fact.canonical == Path::new("/sys/fs/cgroup") => {
            Some(own(destination, "cgroup2", "cgroup", options))
        }
        (FileSystemKind::Sys, "/sys") if whole => Some(own(destination, "sysfs", "sysfs", options)),
        (FileSystemKind::Proc, "/proc") if whole => Some(own(destination, "proc", "proc", options)),
        (FileSystemKind::Dev, "/dev/mqueue") if whole => Some(own(destination, "mqueue", "mqueue", options)),
        (_, "/dev/shm") if fact.tmpfs_size.is_some() => {
            let size = fact.tmpfs_size.filter(|&size| size > 0).unwrap_or(SHM_SIZE);
            let mut shm = own(destination, "tmpfs", "shm", options);
            shm.data = format!("mode=1777,size={size}");
            Some(shm)
        }
        _ => None,
    }
}

/// A mount of a file system of the guest's kernel.
pub fn own(destination: &str, kind: &str, source: &str, options: &MountOptions) -> protocol::Mount {
    let kind = kind.to_owned();
    protocol::Mount { kind, source: source.to_owned(), recursive: false, ..bind(destination, options) }
}

/// A bind mount without its source.
pub fn bind(destination: &str, options: &MountOptions) -> protocol::Mount {
    protocol::Mount {
        destination: destination.to_owned(),
        kind: "bind".to_owned(),
        flags: options.flags & !libc::MS_REMOUNT,
        clear_flags: options.clear,
        propagation: options.propagation,
        recursive: options.recursive,
        ..Default::default()
    }
}

/// A mount of a file system that needs nothing of the host.
///
/// # Errors
/// Source or options contain a zero byte.
pub fn file_system(
    mount: &Mount,
    kind: &str,
    destination: &str,
    options: &MountOptions,
) -> anyhow::Result<protocol::Mount> {
    let source = mount.source().as_deref().map(|source| nul::path("source", source)).transpose()?;
    let mut message = own(destination, kind, &source.unwrap_or_default(), options);
    message.flags = options.flags;
    message.data = nul::checked("options", &options.data.join(","))?;
    message.copy_up = options.copy_up;
    Ok(message)
}
