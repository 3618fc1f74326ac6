//! An unmodified containerd, and its own client `ctr`, shared by the tests of one program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::Signal;
use serde_json::json;

use crate::command::{self, Outcome};
use crate::daemon::Daemon;
use crate::leftovers::Leftovers;
use crate::{place, process};

/// Name of the image that is imported.
pub const IMAGE: &str = "runvm.test/busybox:latest";

static DAEMON: Daemon = Daemon::new("containerd");

/// One test's use of the daemon; checks in the end that nothing is left on the host.
pub struct Containerd {
    before: Leftovers,
}

impl Containerd {
    /// The daemon, started when it is first asked for.
    #[expect(clippy::new_without_default, reason = "it starts a daemon: nothing for a default")]
    pub fn new() -> Self {
        static STARTED: OnceLock<()> = OnceLock::new();
        STARTED.get_or_init(start);
        Self { before: Leftovers::now() }
    }

    /// `ctr ARGS…`
    pub fn command(&self, args: &[&str]) -> Command {
        client(args)
    }

    /// `ctr ARGS…` to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Outcome {
        command::run(&mut client(args))
    }

    /// `ctr run FLAGS… IMAGE ID ARGS…` with the runtime under test.
    pub fn container(&self, flags: &[&str], id: &str, args: &[&str]) -> Command {
        container(flags, id, args)
    }

    /// `ctr task exec ID ARGS…`, to the process's end.
    #[track_caller]
    pub fn exec(&self, id: &str, args: &[&str]) -> Outcome {
        command::run(client(&["task", "exec", "--exec-id", "an-exec", id]).args(args))
    }

    /// The status of a task, as `task list` tells it.
    #[track_caller]
    pub fn status(&self, id: &str) -> String {
        let list = self.run(&["task", "list"]).success().stdout;
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(id));
        line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or("gone").to_owned()
    }

    /// Waits for a task to stop, removes it and its container; the exit code that was reported.
    #[track_caller]
    pub fn remove(&self, id: &str) -> i32 {
        process::wait_until("the task to stop", || self.status(id) == "STOPPED");
        let outcome = self.run(&["task", "rm", id]).success();
        self.run(&["container", "rm", id]).success();
        // It is in a warning unless it is 0.
        let code = outcome.stderr.split("exit code ").nth(1).map(|rest| rest.trim_end().trim_end_matches('"'));
        code.map_or(0, |code| code.parse().unwrap_or_else(|_| panic!("no exit code: {outcome:?}")))
    }

    /// Kills the daemon, and starts it again.
    pub fn restart(&mut self) {
        DAEMON.end(Signal::KILL);
        up();
        self.before.allow_process(DAEMON.pid());
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the end of containerd's log: {}", DAEMON.log_end());
            let all =
                client(&["container", "list", "--quiet"]).output().map(|output| output.stdout).unwrap_or_default();
            for id in String::from_utf8_lossy(&all).lines() {
                let _ = client(&["task", "rm", "--force", id]).output();
                let _ = client(&["container", "rm", id]).output();
            }
        } else {
            self.before.check();
        }
    }
}

fn dir() -> PathBuf {
    DAEMON.dir()
}

fn client(args: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(dir().join("sock")).args(args);
    command
}

fn container(flags: &[&str], id: &str, args: &[&str]) -> Command {
    let mut command = client(&["run", "--runtime", "io.containerd.runc.v2", "--runc-binary"]);
    command.arg(place::runtime()).arg("--runc-root").arg(dir().join("runtime"));
    command.args(flags).args([IMAGE, id]).args(args);
    command
}

/// Starts the daemon, imports the image, and runs a first container: what is made on first use is then no
/// leftover.
fn start() {
    process::become_subreaper();
    fs::create_dir_all(dir()).unwrap();
    let config = format!(
        "version = 2\nroot = '{0}/root'\nstate = '{0}/state'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n
        [grpc]\naddress = '{0}/sock'\n[ttrpc]\naddress = '{0}/sock.ttrpc'\n",
        dir().display()
    );
    fs::write(dir().join("config.toml"), config).unwrap();
    // SAFETY: the function is what atexit(3) wants, and touches nothing that ends before it.
    unsafe { libc::atexit(stop) };
    up();
    let archive = make_image(&dir().join("image"));
    command::run(client(&["image", "import", "--snapshotter", "overlayfs"]).arg(archive)).success();
    command::run(&mut container(&["--rm"], "first", &["true"])).success();
}

fn up() {
    let mut command = Command::new("containerd");
    command.arg("--config").arg(dir().join("config.toml"));
    DAEMON.start(&mut command, || client(&["version"]).output().is_ok_and(|output| output.status.success()));
}

/// The test image's layer as an image archive of `docker save`'s form.
fn make_image(dir: &Path) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let layer = dir.join("layer.tar");
    fs::copy(std::env::var("TEST_IMAGE").expect("TEST_IMAGE is set by tools/test"), &layer).unwrap();
    let sum = command::run(Command::new("sha256sum").arg(&layer)).success();
    let digest = format!("sha256:{}", sum.stdout.split(' ').next().unwrap_or_default());
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": [path]},
        "rootfs": {"type": "layers", "diff_ids": [digest]}});
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = dir.with_extension("tar");
    let mut pack = Command::new("tar");
    pack.arg("-C").arg(dir).arg("-cf").arg(&archive).args(["config.json", "manifest.json", "layer.tar"]);
    command::run(&mut pack).success();
    archive
}

/// Ends the daemon with this program.
extern "C" fn stop() {
    DAEMON.end(Signal::TERM);
}
