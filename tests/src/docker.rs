//! An unmodified dockerd with the runtime under test as `vm`, shared by the tests of one program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::command::{self, Outcome};
use crate::leftovers::Leftovers;
use crate::{place, process};

/// Name of the image that is imported.
pub const IMAGE: &str = "runvm-test";

/// The daemon's pid, for the end of the program.
static PID: AtomicI32 = AtomicI32::new(0);

/// One test's use of the daemon; checks in the end that nothing is left on the host.
pub struct Docker {
    before: Leftovers,
}

fn dir() -> PathBuf {
    place::work().join("docker")
}

impl Docker {
    /// The daemon, started when it is first asked for.
    #[expect(clippy::new_without_default, reason = "it starts a daemon: nothing for a default")]
    pub fn new() -> Self {
        static STARTED: OnceLock<()> = OnceLock::new();
        STARTED.get_or_init(start);
        Self { before: Leftovers::now() }
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
            eprintln!("the end of dockerd's log: {}", log_end());
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

/// Starts the daemon, imports the image, and runs a first container with the daemon's own runtime: what the
/// daemon makes on first use is then no leftover.
fn start() {
    process::become_subreaper();
    fs::create_dir_all(dir()).unwrap();
    fs::write(dir().join("daemon.json"), "{}").unwrap();
    let log = File::create(dir().join("log")).unwrap();
    let mut command = daemon(&dir());
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    PID.store(command.spawn().expect("dockerd").id() as i32, Ordering::Relaxed);
    // SAFETY: the function is what atexit(3) wants, and touches nothing that ends before it.
    unsafe { libc::atexit(stop) };
    wait_until_ready();
    let tar = std::env::var("TEST_IMAGE").expect("TEST_IMAGE is set by tools/test");
    command::run(&mut client(&["import", &tar, IMAGE])).success();
    command::run(&mut client(&["run", "--rm", "--network", "none", IMAGE, "true"])).success();
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

fn wait_until_ready() {
    // It takes 25 s in the lab; longer than other things may.
    for _ in 0..1200 {
        if dir().join("sock").exists() && client(&["version"]).output().is_ok_and(|output| output.status.success()) {
            return;
        }
        assert!(process::lives(PID.load(Ordering::Relaxed)), "dockerd has ended: {}", log_end());
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("dockerd is not ready: {}", log_end());
}

fn log_end() -> String {
    let text = fs::read_to_string(dir().join("log")).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Ends the daemon with this program.
extern "C" fn stop() {
    let pid = PID.load(Ordering::Relaxed);
    process::signal(pid, Signal::TERM);
    if !process::wait_end(pid, Duration::from_secs(30)) {
        process::signal(pid, Signal::KILL);
    }
}
