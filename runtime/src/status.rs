//! What a container is doing: its monitor says that, as long as there is one.
//!
//! A monitor answers at once, whatever its guest does. One that does not is stopped itself (SIGSTOP), or its host is
//! overloaded beyond use. Its container is then called running, which is all that is known: the process that stands for it
//! on the host is there.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::control::{self, Reply, Request};
use crate::ipc;
use crate::state::{Dir, Life, State, Status};

/// How long monitors have to answer, all together.
const PATIENCE: Duration = Duration::from_secs(2);

/// Monitors that are asked at a time: each is an open descriptor.
const AT_A_TIME: usize = 128;

/// The status of a container now.
pub fn of(dir: &Dir, state: &State) -> Status {
    Question::ask(dir.path(), state).answer(Instant::now() + PATIENCE)
}

/// The status of each of these containers now.
pub fn of_all(root: &Path, states: &[State]) -> Vec<Status> {
    let some = |states: &[State]| {
        let asked: Vec<_> = states.iter().map(|state| Question::ask(&root.join(&state.id), state)).collect();
        let deadline = Instant::now() + PATIENCE;
        asked.into_iter().map(|question| question.answer(deadline)).collect::<Vec<_>>()
    };
    states.chunks(AT_A_TIME).flat_map(some).collect()
}

/// A monitor that is being asked, unless the answer is known.
struct Question<'a> {
    state: &'a State,
    stream: anyhow::Result<UnixStream>,
}

impl<'a> Question<'a> {
    /// Does not wait.
    fn ask(dir: &Path, state: &'a State) -> Self {
        let ask = || {
            if state.life() != Life::Alive {
                bail!("there is no monitor to ask");
            }
            let stream = control::connect(dir, Duration::ZERO)?;
            ipc::send(&stream, &Request::Status)?;
            Ok(stream)
        };
        Self { state, stream: ask() }
    }

    fn answer(self, deadline: Instant) -> Status {
        let patience = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let told = self.stream.and_then(|stream| {
            stream.set_read_timeout(Some(patience))?;
            ipc::receive(&stream)
        });
        match (self.state.life(), told) {
            (Life::Alive, Ok(Some(Reply::Status(status)))) => status,
            (Life::Alive, _) => Status::Running,
            (Life::Creating, _) => Status::Creating,
            (Life::Stopped, _) => Status::Stopped,
        }
    }
}
