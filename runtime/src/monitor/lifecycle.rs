//! What a container may do next: pure, no I/O.
//!
//! ```text
//!  Created ──start──▶ Running ──end──▶ Ended
//!     └──────────────end───────────────▶
//!  Created, Running ──pause──▶ Paused ──resume──▶ what it was
//! ```

/// Where the container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its process waits.
    Created,
    /// Its process was started.
    Running,
    /// The whole machine stands still.
    Paused {
        /// Whether it was running rather than created.
        started: bool,
    },
    /// Its process has ended.
    Ended,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `start` was asked for.
    Start,
    /// `exec` was asked for.
    Exec,
    /// `kill` was asked for.
    Kill,
    /// `update` was asked for.
    Update,
    /// Something was asked that only the guest knows.
    Ask,
    /// `pause` was asked for.
    Pause,
    /// `resume` was asked for.
    Resume,
    /// Its process ended.
    End,
}

/// The next phase, or why this is not possible now, in runc's words.
pub fn step(phase: Phase, event: Event) -> Result<Phase, &'static str> {
    match (phase, event) {
        (Phase::Created, Event::Start) => Ok(Phase::Running),
        (Phase::Running, Event::Start) => Err("cannot start an already running container"),
        (Phase::Ended, Event::Start) => Err("cannot start a container that has stopped"),
        (Phase::Ended, Event::Exec) => Err("cannot exec in a stopped container"),
        (Phase::Ended, Event::Kill) => Err("container not running"),
        (Phase::Created, Event::Pause) => Ok(Phase::Paused { started: false }),
        (Phase::Running, Event::Pause) => Ok(Phase::Paused { started: true }),
        (Phase::Paused { .. } | Phase::Ended, Event::Pause) => Err("container not running"),
        (Phase::Paused { started: false }, Event::Resume) => Ok(Phase::Created),
        (Phase::Paused { started: true }, Event::Resume) => Ok(Phase::Running),
        (_, Event::Resume) => Err("container not paused"),
        (Phase::Paused { .. }, Event::Start) => Err("cannot start a container in the paused state"),
        (Phase::Paused { .. }, Event::Exec) => Err("cannot exec in a paused container"),
        (Phase::Paused { .. }, Event::Update) => Err("cannot update a paused container"),
        (Phase::Paused { .. }, Event::Ask) => Err("cannot ask a paused container: its kernel stands still"),
        (Phase::Ended, Event::Update | Event::Ask) => Err("container not running"),
        (phase, Event::Exec | Event::Kill | Event::Update | Event::Ask) => Ok(phase),
        (_, Event::End) => Ok(Phase::Ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_and_event() {
        use Event::*;
        use Phase::*;
        let table = [
            (Created, Start, Ok(Running)),
            (Created, Exec, Ok(Created)),
            (Created, Kill, Ok(Created)),
            (Created, End, Ok(Ended)),
            (Running, Start, Err("cannot start an already running container")),
            (Running, Exec, Ok(Running)),
            (Running, Kill, Ok(Running)),
            (Running, End, Ok(Ended)),
            (Ended, Start, Err("cannot start a container that has stopped")),
            (Ended, Exec, Err("cannot exec in a stopped container")),
            (Ended, Kill, Err("container not running")),
            (Ended, End, Ok(Ended)),
            (Created, Update, Ok(Created)),
            (Running, Update, Ok(Running)),
            (Paused { started: true }, Update, Err("cannot update a paused container")),
            (Ended, Update, Err("container not running")),
            (Created, Ask, Ok(Created)),
            (Paused { started: true }, Ask, Err("cannot ask a paused container: its kernel stands still")),
            (Ended, Ask, Err("container not running")),
            (Created, Pause, Ok(Paused { started: false })),
            (Running, Pause, Ok(Paused { started: true })),
            (Ended, Pause, Err("container not running")),
            (Created, Resume, Err("container not paused")),
            (Running, Resume, Err("container not paused")),
            (Ended, Resume, Err("container not paused")),
            (Paused { started: true }, Start, Err("cannot start a container in the paused state")),
            (Paused { started: true }, Exec, Err("cannot exec in a paused container")),
            (Paused { started: true }, Kill, Ok(Paused { started: true })),
            (Paused { started: true }, Pause, Err("container not running")),
            (Paused { started: false }, Resume, Ok(Created)),
            (Paused { started: true }, Resume, Ok(Running)),
            (Paused { started: true }, End, Ok(Ended)),
        ];
        for (phase, event, next) in table {
            assert_eq!(step(phase, event), next, "{phase:?} {event:?}");
        }
    }
}
