//! Another container's virtual machine, as the commands see it.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;

use crate::control::{self, Request};
use crate::state::{Dir, State, Status};
use crate::status;

/// How long the VM's monitor may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects to the monitor of the container that the VM was made for.
pub fn connect(root: &Path, id: &str) -> anyhow::Result<UnixStream> {
    let dir = Dir::open(root, id)?;
    match status::of(&dir, &dir.state()?) {
        Status::Created | Status::Running => control::connect(dir.path(), PATIENCE),
        Status::Paused => bail!("cannot join container {id}, which is paused"),
        status => bail!("cannot join container {id}, which is {}", status.as_str()),
    }
}

/// Notes that there is another container in the VM. The memory that the first one's cgroup allows on the host would not
/// do for both: from now on only the VM's size limits them together, and the guest each of them.
pub fn share(root: &Path, id: &str) -> anyhow::Result<()> {
    let dir = Dir::open(root, id)?;
    let _lock = dir.lock(PATIENCE)?;
    let mut state = dir.state()?;
    if state.shared {
        return Ok(());
    }
    if let Some(cgroup) = &state.cgroup {
        cgroup.lift_memory_limit()?;
    }
    state.shared = true;
    dir.save(&state)
}

/// Waits until a container that joined a VM is detached from it. A VM that is gone has nothing of it.
pub fn wait_detached(dir: &Dir, state: &State) {
    let root = dir.path().parent();
    let sandbox = state.sandbox.as_ref().zip(root).and_then(|(id, root)| Dir::open(root, id).ok());
    let Some(dir) = sandbox else { return };
    if let Err(error) = control::call(dir.path(), &Request::WaitDetached(state.id.clone()), PATIENCE) {
        crate::log::debug(&format!("wait for container {} to be detached from its VM: {error:#}", state.id));
    }
}
