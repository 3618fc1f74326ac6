//! An unmodified podman that calls the runtime under test, with a storage of its own for one test program.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::command::{self, Outcome};
use crate::leftovers::Leftovers;
use crate::{place, process};

/// Name of the image that is imported.
pub const IMAGE: &str = "runvm-test";

/// One test's use of podman; checks in the end that nothing is left on the host.
pub struct Podman {
    before: Leftovers,
}

fn dir() -> PathBuf {
    place::work().join("podman")
}

impl Podman {
    /// Podman with its image, imported when it is first asked for.
    #[expect(clippy::new_without_default, reason = "it sets up a storage: nothing for a default")]
    pub fn new() -> Self {
        static READY: OnceLock<()> = OnceLock::new();
        READY.get_or_init(set_up);
        Self { before: Leftovers::now() }
    }

    /// The same with its default network, whose bridge stays once it is there.
    pub fn networked() -> Self {
        static READY: OnceLock<()> = OnceLock::new();
        drop(Self::new());
        READY.get_or_init(|| {
            let flags = ["run", "--rm", "--network", "podman", "--runtime", "crun", IMAGE, "true"];
            command::run(&mut podman(&flags)).success();
        });
        Self { before: Leftovers::now() }
    }

    /// Imports another image than the usual one.
    #[track_caller]
    pub fn import(&self, tar: &str, name: &str) {
        self.run(&["import", "--quiet", tar, name]).success();
    }

    /// `podman ARGS…`
    pub fn command(&self, args: &[&str]) -> Command {
        podman(args)
    }

    /// `podman ARGS…` to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Outcome {
        command::run(&mut podman(args))
    }

    /// `podman run FLAGS… IMAGE ARGS…` without a network.
    pub fn container(&self, flags: &[&str], args: &[&str]) -> Command {
        let mut command = podman(&["run", "--network", "none"]);
        command.args(flags).arg(IMAGE).args(args);
        command
    }

    /// The same with `--rm`, to its end.
    #[track_caller]
    pub fn once(&self, args: &[&str]) -> Outcome {
        command::run(&mut self.container(&["--rm"], args))
    }

    /// A value of `inspect`.
    #[track_caller]
    pub fn inspect(&self, name: &str, what: &str) -> String {
        self.run(&["inspect", "--format", &format!("{{{{{what}}}}}"), name]).success().line().to_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in [&["pod", "rm", "--all", "--force"][..], &["rm", "--all", "--force", "--time", "0"]] {
                let _ = podman(what).output();
            }
        } else {
            self.before.check();
        }
    }
}

fn podman(args: &[&str]) -> Command {
    let mut command = Command::new("podman");
    for (flag, name) in [("--root", "store"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        command.arg(flag).arg(dir().join(name));
    }
    command.arg("--runtime").arg(place::runtime());
    // There is no systemd in the lab, and no journal.
    command.args(["--cgroup-manager=cgroupfs", "--events-backend=file"]).args(args);
    command
}

/// Imports the image, and runs a first container: what podman makes on first use is then no leftover. It
/// asks for a limit since podman probes the host's cgroups for those.
fn set_up() {
    process::become_subreaper();
    // Of another program's tests; podman leaves that mounted.
    let _ = rustix::mount::unmount(dir().join("store/overlay"), rustix::mount::UnmountFlags::DETACH);
    let _ = std::fs::remove_dir_all(dir());
    let tar = std::env::var("TEST_IMAGE").expect("TEST_IMAGE is set by tools/test");
    command::run(&mut podman(&["import", "--quiet", &tar, IMAGE])).success();
    command::run(&mut podman(&["run", "--rm", "--network", "none", "--memory", "256m", IMAGE, "true"])).success();
}
