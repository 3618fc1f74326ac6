//! An unmodified dockerd with the runtime under test as `vm`, shared by the tests of one program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::Signal;

use crate::command::{self, Outcome};
use crate::daemon::Daemon;
use crate::leftovers::Leftovers;
use crate::{place, process};

/// Name of the image that is imported.
pub const IMAGE: &str = "runvm-test";

static DAEMON: Daemon = Daemon::new("docker");

/// The flags that the daemon was started with, besides those that it always has.
static FLAGS: OnceLock<Vec<String>> = OnceLock::new();

/// One test's use of the daemon; checks in the end that nothing is left on the host.
pub struct Docker {
    before: Leftovers,
}

fn dir() -> PathBuf {
    DAEMON.dir()
}

impl Docker {
    /// The daemon, started when it is first asked for.
    #[expect(clippy::new_without_default, reason = "it starts a daemon: nothing for a default")]
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// The same with more flags, which all tests of one program must give.
    pub fn with(flags: &[&str]) -> Self {
        let given = FLAGS.get_or_init(|| {
            let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
            start(&flags);
            flags
        });
        assert_eq!(given, flags, "there is one daemon for all tests of a program");
        Self { before: Leftovers::now() }
    }

    /// Ends the daemon as its service manager would, and starts it again.
    pub fn restart(&mut self) {
        DAEMON.end(Signal::TERM);
        up(FLAGS.get().expect("there is a daemon"));
        for (pid, what) in process::descendants() {
            if what.starts_with("dockerd") || what.starts_with("containerd [") {
                self.before.allow_process(pid);
            }
        }
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        dir().join("sock")
    }

    /// `docker ARGS…`
    pub fn command(&self, args: &[&str]) -> Command {
        client(args)
    }

    /// `docker ARGS…` to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Outcome {
        command::run(&mut client(args))
    }

    /// `docker run FLAGS… IMAGE ARGS…` with the runtime under test and no network.
    pub fn container(&self, flags: &[&str], args: &[&str]) -> Command {
        let mut command = client(&["run", "--runtime", "vm", "--network", "none"]);
        command.args(flags).arg(IMAGE).args(args);
        command
    }

    /// The same with `--rm`, to its end.
    #[track_caller]
    pub fn once(&self, args: &[&str]) -> Outcome {
        command::run(&mut self.container(&["--rm"], args))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of dockerd's log: {}", DAEMON.log_end());
            let all = client(&["ps", "--all", "--quiet"]).output().map(|output| output.stdout).unwrap_or_default();
            for id in String::from_utf8_lossy(&all).lines() {
                let _ = client(&["rm", "--force", id]).output();
            }
        } else {
            self.before.check();
        }
    }
}

fn client(args: &[&str]) -> Command {
    let mut command = Command::new("docker");
    command.arg("--host").arg(format!("unix://{}", dir().join("sock").display()));
    command.arg("--config").arg(dir().join("client")).args(args);
    command
}

/// Starts the daemon, imports the image, and runs a first container with Debian's runtime: what the
/// daemon makes on first use is then no leftover.
fn start(flags: &[String]) {
    process::become_subreaper();
    // Of another program's tests.
    let _ = fs::remove_dir_all(dir());
    fs::create_dir_all(dir()).unwrap();
    fs::write(dir().join("daemon.json"), "{}").unwrap();
    // SAFETY: the function is what atexit(3) wants, and touches nothing that ends before it.
    unsafe { libc::atexit(stop) };
    up(flags);
    let tar = std::env::var("TEST_IMAGE").expect("TEST_IMAGE is set by tools/test");
    command::run(&mut client(&["import", &tar, IMAGE])).success();
    command::run(&mut client(&["run", "--rm", "--runtime", "runc", "--network", "none", IMAGE, "true"])).success();
}

fn up(flags: &[String]) {
    let answers = || client(&["version"]).output().is_ok_and(|output| output.status.success());
    DAEMON.start(daemon(&dir()).args(flags), || dir().join("sock").exists() && answers());
}

fn daemon(dir: &Path) -> Command {
    let mut command = Command::new("dockerd");
    for (flag, name) in
        [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid"), ("--config-file", "daemon.json")]
    {
        command.arg(flag).arg(dir.join(name));
    }
    command.arg("--host").arg(format!("unix://{}", dir.join("sock").display()));
    command.arg("--add-runtime").arg(format!("vm={}", place::runtime().display()));
    command.args(["--storage-driver", "overlay2", "--iptables=false", "--ip6tables=false", "--bridge=none"]);
    command
}

/// Ends the daemon with this program.
extern "C" fn stop() {
    DAEMON.end(Signal::TERM);
    // It leaves that mounted.
    let _ = rustix::mount::unmount(dir().join("exec/netns/default"), rustix::mount::UnmountFlags::DETACH);
}
