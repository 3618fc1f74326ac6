//! State of a container on disk: `<root>/<id>/state.json`, written whole and renamed into place.
//!
//! ```text
//!  <root>/<id>/            0700; the directory itself reserves the id and is what commands lock
//!     state.json           what every command reads
//!     control              the monitor's socket
//! ```
//!
//! Whether a container lives is never stored: it does as long as the process `pid` with start time `pid_start`. So a monitor that
//! dies in whatever way reads as a stopped container. Whether a living one was started or is paused only its monitor knows; see
//! [`crate::status`].

use std::collections::HashMap;
use std::fs::{DirBuilder, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::directory;
use crate::host::cgroup::HostCgroup;
use crate::log;
use crate::plan::Hooks;

/// Status of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` has not finished.
    Creating,
    /// The process waits for `start`.
    Created,
    /// The process was started.
    Running,
    /// Nothing in the container runs.
    Paused,
    /// The monitor is gone.
    Stopped,
}

impl Status {
    /// Name of the status in the OCI runtime specification.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// Part of the status that state.json and the monitor's pid tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// `create` has not finished.
    Creating,
    /// The monitor lives.
    Alive,
    /// The monitor is gone.
    Stopped,
}

/// Everything the commands know of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Version of the specification the bundle was written for.
    pub oci_version: String,
    /// Id of the container.
    pub id: String,
    /// Whether `create` has finished. A version without this field wrote `reached`; what it left was finished.
    #[serde(default = "finished")]
    pub complete: bool,
    /// Pid of the monitor; 0 before it was started.
    pub pid: i32,
    /// Start time of the monitor, which with the pid identifies the process.
    pub pid_start: u64,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// The root file system on the host.
    pub rootfs: PathBuf,
    /// Time at which the container was created, RFC 3339.
    pub created: String,
    /// Name of the user who created it.
    pub owner: String,
    /// Annotations of the bundle.
    pub annotations: HashMap<String, String>,
    /// The container's cgroups on the host.
    pub cgroup: Option<HostCgroup>,
    /// Memory of its VM in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs of its VM.
    pub vcpus: u8,
    /// The container whose VM it is in, if it has none of its own.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Network namespace that existed before the container and stays after it.
    #[serde(default)]
    pub network: Option<PathBuf>,
    /// Port range of the host's sockets in that namespace, to be restored.
    #[serde(default)]
    pub ports: Option<String>,
    /// Whether other containers have joined its VM.
    #[serde(default)]
    pub shared: bool,
    /// Whether an exec that may make device nodes has to bring the process that makes them.
    #[serde(default)]
    pub exec_brings_node_maker: bool,
    /// Hooks that are still to run.
    pub hooks: Hooks,
}

fn finished() -> bool {
    true
}

impl State {
    /// Whether the container lives now.
    pub fn life(&self) -> Life {
        match self.pid {
            0 => Life::Creating,
            pid if process_start(pid) != Some(self.pid_start) => Life::Stopped,
            _ if self.complete => Life::Alive,
            _ => Life::Creating,
        }
    }

    /// The state as the OCI specification's JSON, as hooks get it.
    pub fn oci(&self, status: Status) -> serde_json::Value {
        let mut value = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status.as_str(),
            "pid": if status == Status::Stopped { 0 } else { self.pid },
            "bundle": self.bundle,
        });
        if !self.annotations.is_empty() {
            value["annotations"] = serde_json::json!(self.annotations);
        }
        value
    }

    /// The OCI state with what runc adds for people: rootfs, created and owner.
    pub fn for_people(&self, status: Status) -> serde_json::Value {
        let mut value = self.oci(status);
        value["rootfs"] = serde_json::json!(self.rootfs);
        value["created"] = serde_json::json!(self.created);
        value["owner"] = serde_json::json!(self.owner);
        value
    }
}

/// Start time of a process in clock ticks since boot; `None` when it is gone or a zombie.
pub fn process_start(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold spaces and parentheses; fields are counted after the last one.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// States of all containers under `root`, the oldest first.
pub fn all(root: &Path) -> anyhow::Result<Vec<State>> {
    check_root(root)?;
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {}", root.display())),
    };
    let mut states = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let loaded = Dir::open(root, &name.to_string_lossy()).and_then(|dir| dir.load());
        match loaded {
            Ok(state) => states.extend(state),
            // One damaged container must not hide the others.
            Err(error) => log::warning(&format!("{}: {error:#}", name.to_string_lossy())),
        }
    }
    states.sort_by(|a, b| a.created.cmp(&b.created));
    Ok(states)
}

/// Refuses a directory that others could put states into: commands do what a state says, as root mostly.
fn check_root(root: &Path) -> anyhow::Result<()> {
    // Where there is none there are no containers.
    let Ok(found) = root.metadata() else { return Ok(()) };
    let (path, owner, mode) = (root.display(), found.uid(), found.mode() & 0o7777);
    if ![0, rustix::process::geteuid().as_raw()].contains(&owner) {
        bail!("state directory {path} belongs to another user (uid {owner}): choose another one (--root)");
    }
    if mode & 0o022 != 0 {
        bail!(
            "others can write to state directory {path} (mode {mode:04o}): chmod go-w it, or choose another one (--root)"
        );
    }
    Ok(())
}

/// Directory with the state of one container.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    /// Reserves an id: of several callers only one succeeds.
    pub fn reserve(root: &Path, id: &str) -> anyhow::Result<Self> {
        let mut builder = DirBuilder::new();
        let make_root = builder.recursive(true).mode(0o711).create(root);
        make_root.with_context(|| format!("create state directory {} (set --root?)", root.display()))?;
        check_root(root)?;
        let path = root.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self { path }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("container with given ID already exists: {id}")
            }
            Err(error) => Err(error).with_context(|| format!("create state directory {}", path.display())),
        }
    }

    /// Opens the directory of an existing container.
    pub fn open(root: &Path, id: &str) -> anyhow::Result<Self> {
        crate::plan::validate_id(id)?;
        check_root(root)?;
        let path = root.join(id);
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => Ok(Self { path }),
            Ok(_) => bail!("{} is not a container's state directory", path.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => bail!("container does not exist: {id}"),
            Err(error) => Err(error).with_context(|| format!("look for container {id} in {}", root.display())),
        }
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the container against other commands until the lock is dropped. Waits for at most `patience`: a stopped (SIGSTOP)
    /// command must not hang every other one.
    ///
    /// # Errors
    /// The container is locked for longer, or was removed meanwhile, as by another `delete`: then the directory of this
    /// name, if there is one, is another container's.
    pub fn lock(&self, patience: Duration) -> anyhow::Result<Lock> {
        let opened = File::open(&self.path);
        let dir = opened.with_context(|| format!("open state directory {}", self.path.display()))?;
        let node = |found: Metadata| (found.dev(), found.ino());
        let deadline = Instant::now() + patience;
        loop {
            match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if self.path.metadata().ok().map(node) != Some(node(dir.metadata()?)) => {
                    bail!("container does not exist: {}", self.id())
                }
                Ok(()) => return Ok(Lock { _dir: dir }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => {
                    let path = self.path.display();
                    return Err(error).with_context(|| format!("another command is still using {path}"));
                }
            }
        }
    }

    /// Reads the state; `None` when `create` died before it wrote any.
    pub fn load(&self) -> anyhow::Result<Option<State>> {
        let file = self.path.join("state.json");
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let state = serde_json::from_slice(&text);
        state
            .map(Some)
            .with_context(|| format!("{} is damaged; remove the container with delete --force", file.display()))
    }

    /// Reads the state of a container that must have one.
    pub fn state(&self) -> anyhow::Result<State> {
        let what = || format!("container {} was not fully created; remove it with delete --force", self.id());
        self.load()?.with_context(what)
    }

    fn id(&self) -> std::path::Display<'_> {
        Path::new(self.path.file_name().unwrap_or_default()).display()
    }

    /// Writes the state, whole.
    pub fn save(&self, state: &State) -> anyhow::Result<()> {
        let file = self.path.join("state.json");
        let written = directory::replace(&file, 0o600, &serde_json::to_vec(state)?);
        written.with_context(|| format!("write {}", file.display()))
    }

    /// Removes the directory, and so frees the id.
    pub fn remove(&self) -> anyhow::Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Lock of a container, released when dropped.
#[derive(Debug)]
pub struct Lock {
    _dir: File,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(other: serde_json::Value) -> State {
        let mut value = serde_json::json!({
            "oci_version": "1.0.2", "id": "a", "bundle": "/", "rootfs": "/", "created": "", "owner": "root",
            "annotations": {}, "cgroup": null, "memory_mib": 128, "vcpus": 1, "hooks": Hooks::default(),
        });
        value.as_object_mut().unwrap().extend(other.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_state_of_the_version_before_is_understood() {
        let pid = std::process::id() as i32;
        let old =
            serde_json::json!({"reached": "running", "paused": false, "pid": pid, "pid_start": process_start(pid)});
        assert_eq!(state(old).life(), Life::Alive);
        assert_eq!(state(serde_json::json!({"reached": "creating", "pid": 0, "pid_start": 0})).life(), Life::Creating);
    }

    #[test]
    fn a_lock_on_a_directory_that_is_gone_is_none() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::reserve(root.path(), "a").unwrap();
        let held = dir.lock(Duration::ZERO).unwrap();
        let path = root.path().to_owned();
        let waiting = std::thread::spawn(move || {
            let dir = Dir::open(&path, "a").unwrap();
            dir.lock(Duration::from_secs(10)).unwrap_err().to_string()
        });
        std::thread::sleep(Duration::from_millis(50));
        dir.remove().unwrap();
        let again = Dir::reserve(root.path(), "a").unwrap();
        drop(held);
        assert_eq!(waiting.join().unwrap(), "container does not exist: a");
        again.lock(Duration::ZERO).unwrap();
    }

    #[test]
    fn an_id_is_reserved_once() {
        let root = tempfile::tempdir().unwrap();
        let first = Dir::reserve(root.path(), "a").unwrap();
        let again = Dir::reserve(root.path(), "a").unwrap_err().to_string();
        assert_eq!(again, "container with given ID already exists: a");
        first.remove().unwrap();
        Dir::reserve(root.path(), "a").unwrap();
    }

    #[test]
    fn a_root_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        Dir::reserve(root.path(), "a").unwrap();
        for mode in [0o777, 0o1777, 0o720, 0o702] {
            std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let errors = [
                Dir::open(root.path(), "a").unwrap_err(),
                Dir::reserve(root.path(), "b").unwrap_err(),
                all(root.path()).unwrap_err(),
            ];
            for error in errors.map(|error| error.to_string()) {
                assert!(error.starts_with("others can write to state directory "), "{error}");
            }
        }
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Dir::open(root.path(), "a").is_ok());
    }

    #[test]
    fn a_root_of_another_user_is_refused() {
        let root = tempfile::tempdir().unwrap();
        // Only root can give it away.
        if std::os::unix::fs::chown(root.path(), Some(12345), None).is_ok() {
            let error = Dir::reserve(root.path(), "a").unwrap_err().to_string();
            assert!(error.contains("belongs to another user (uid 12345)"), "{error}");
        }
    }

    #[test]
    fn an_unknown_id_is_named_in_runcs_words() {
        let root = tempfile::tempdir().unwrap();
        let error = Dir::open(root.path(), "nope").unwrap_err().to_string();
        assert!(error.starts_with("container does not exist"), "{error}");
    }

    #[test]
    fn a_process_is_its_pid_and_start_time() {
        let pid = std::process::id() as i32;
        assert!(process_start(pid).is_some());
        assert_eq!(process_start(-1), None);
    }

    #[test]
    fn a_second_lock_waits_and_gives_up() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::reserve(root.path(), "a").unwrap();
        let held = dir.lock(Duration::ZERO).unwrap();
        assert!(dir.lock(Duration::from_millis(20)).is_err());
        drop(held);
        dir.lock(Duration::ZERO).unwrap();
    }
}
