//! Where things are, as tools/test says in the environment.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::command;

fn path(variable: &str) -> PathBuf {
    let value = std::env::var_os(variable);
    value.map(PathBuf::from).unwrap_or_else(|| panic!("{variable} is not set: run these tests through tools/test"))
}

/// The runtime under test, on a fast file system.
pub fn runtime() -> PathBuf {
    path("TEST_RUNTIME")
}

/// Folder of the programs that tests bring along.
pub fn bin() -> PathBuf {
    path("TEST_BIN")
}

/// An unpacked busybox image: the lower layer of every test's root file system.
pub fn base_rootfs() -> PathBuf {
    path("TEST_ROOTFS")
}

/// An unpacked Debian with a compiler, databases and git: `tests/images/make tools`.
pub fn tools_rootfs() -> PathBuf {
    path("TEST_TOOLS_IMAGE").with_extension("")
}

/// A folder on tmpfs for the tests' own files.
pub fn work() -> PathBuf {
    path("TEST_WORK")
}

/// Whether the runtime is runvm, by its own word.
pub fn is_runvm() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let ask = || command::run(Command::new(runtime()).arg("--version")).stdout.starts_with("runvm ");
    *ANSWER.get_or_init(ask)
}

/// Whether the runtime has sentences of its own instead of runc's.
pub fn has_own_words() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let ask = || command::run(Command::new(runtime()).arg("--version")).stdout.starts_with("crun ");
    *ANSWER.get_or_init(ask)
}

/// Whether this host is the lab's own, where nothing but the tests happens.
pub fn host_is_ours() -> bool {
    std::env::var("LAB_HOST").is_ok_and(|host| host == "emulated")
}

/// Whether the host has one cgroup hierarchy (v2).
pub fn cgroup_is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
