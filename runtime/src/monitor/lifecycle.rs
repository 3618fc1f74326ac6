//! What a container may do next: pure, no I/O.
//!
//! ```text
//!  Created ──start──▶ Running ──end──▶ Ended
//!     └──────────────end───────────────▶
//! ```

/// Where the container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its process waits.
    Created,
    /// Its process was started.
    Running,
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
        (phase, Event::Exec | Event::Kill) => Ok(phase),
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
        ];
        for (phase, event, next) in table {
            assert_eq!(step(phase, event), next, "{phase:?} {event:?}");
        }
    }
}
