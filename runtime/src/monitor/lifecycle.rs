//! What happens to a container next: pure, no I/O.
//!
//! Everything that a container lives through comes as an [`Event`], one at a time. [`State::step`] makes of it the next
//! state and [`Action`]s for the server to carry out; [`Work`] that takes a while ends with an event of its own.
//!
//! ```text
//!  process   created ──Start──▶ starting ──StartDone──▶ started
//!               └────────────────────┴─────────────────────┴──Ended, VmDied──▶ ended ──▶ Finish
//!  pause     none ──Pause──▶ pausing ──Quiesced or Frozen──▶ paused ──Resume──▶ none
//!                                                              └──Resume──▶ thawing ──Thawed──▶ none
//!  OOM       unreported ──OutOfMemory, or Ended by it──▶ reporting ──OomReported──▶ reported
//!  SIGKILL   none ──Signal──▶ killed ──Overdue, unless it ended before──▶ ended
//! ```
//!
//! Nothing else knows whether a container was started or is paused. The request gate and the virtual CPUs do what
//! this state says of them.
//!
//! SIGKILL is the host's: a guest that does not report the end in time is not waited for longer.

mod action;
mod event;

use std::collections::VecDeque;

pub use action::{Action, Work};
pub use event::{Answer, Ending, Event, Request, Signal};

use crate::state::Status;

/// First of the real-time signals, of which each is delivered; a standard one is pending once.
const FIRST_QUEUED: u32 = 32;

/// Where a container is in its life.
#[derive(Debug)]
pub struct State<T> {
    started: bool,
    /// Ticket of the start that is on its way.
    starting: Option<T>,
    pause: Pause<T>,
    oom: Oom,
    /// Whether the virtual CPUs must not run while the host is told of a lack of memory.
    oom_report_stops_vm: bool,
    /// Whether SIGKILL was sent: the end is near, whatever the guest says.
    killed: bool,
    /// Signals that came while the VM was paused.
    kept_signals: Vec<Signal>,
    /// Requests that wait until a pause or a resume on its way is over.
    deferred: VecDeque<Event<T>>,
    end: End,
}

/// What is stopped to pause a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// The virtual CPUs, where no other container is in the VM.
    Vm,
    /// The container's cgroup in the guest.
    Cgroup,
}

#[derive(Debug)]
enum Pause<T> {
    None,
    Pausing(Scope, T),
    Paused(Scope),
    /// The cgroup is being thawed.
    Thawing(T),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oom {
    Unreported,
    Reporting,
    Reported,
}

#[derive(Debug)]
enum End {
    Alive,
    /// The host is yet to be told that memory ran out.
    Pending(Ending),
    Finished,
}

/// What the state says of the mechanisms of the VM.
#[derive(Clone, Copy)]
struct Mechanisms {
    gate_closed: bool,
    vcpus_paused: bool,
}

impl<T> State<T> {
    /// A created container.
    pub fn new(oom_report_stops_vm: bool) -> Self {
        Self {
            started: false,
            starting: None,
            pause: Pause::None,
            oom: Oom::Unreported,
            oom_report_stops_vm,
            killed: false,
            kept_signals: Vec::new(),
            deferred: VecDeque::new(),
            end: End::Alive,
        }
    }

    /// What `state` prints. A container whose process has ended is what it was until its monitor, the process that
    /// engines watch, has delivered the last output and is gone.
    pub fn status(&self) -> Status {
        match self.pause {
            Pause::Paused(_) | Pause::Thawing(_) => Status::Paused,
            Pause::None | Pause::Pausing(..) if self.started => Status::Running,
            Pause::None | Pause::Pausing(..) => Status::Created,
        }
    }

    /// Takes an event, with whether other containers are in the VM now. Returns what is to be done, in this order.
    pub fn step(&mut self, event: Event<T>, shared: bool) -> Vec<Action<T>> {
        let (mut actions, mut next) = (Vec::new(), Some(event));
        while let Some(event) = next {
            let (before, mut more) = (self.mechanisms(), Vec::new());
            self.apply(event, shared, &mut more);
            // The VM runs before anybody is told so, or asks it something.
            actions.extend(before.changes(self.mechanisms()));
            actions.append(&mut more);
            next = self.deferred.pop_front_if(|_| !self.pause.is_changing());
        }
        actions
    }

    fn apply(&mut self, event: Event<T>, shared: bool, actions: &mut Vec<Action<T>>) {
        match event {
            Event::Asked(request, ticket) if self.waits(&request) => {
                self.deferred.push_back(Event::Asked(request, ticket));
            }
            Event::Asked(request, ticket) => match self.refusal(&request) {
                Some(why) => actions.push(Action::Answer(ticket, Err(why.to_owned()))),
                None => self.grant(request, ticket, shared, actions),
            },
            Event::StartDone(answer) => {
                if let Some(ticket) = self.starting.take() {
                    self.started = answer.is_ok();
                    actions.push(Action::Answer(ticket, answer));
                }
            }
            Event::Quiesced => self.paused(Scope::Vm, Ok(()), actions),
            Event::Frozen(answer) => self.paused(Scope::Cgroup, answer, actions),
            Event::Thawed(answer) => self.thawed(answer, actions),
            Event::OutOfMemory if !self.has_ended() => self.report_oom(actions),
            Event::OomReported if self.oom == Oom::Reporting => {
                self.oom = Oom::Reported;
                self.finish(actions);
            }
            Event::OutOfMemory | Event::OomReported => {}
            Event::Ended { code, oom_killed } => self.ended(Ending::Exited(code), oom_killed, actions),
            Event::VmDied(why) => self.ended(Ending::VmDied(why), false, actions),
            Event::Overdue => self.ended(Ending::Overdue, false, actions),
        }
    }

    /// Whether a request has to wait for the end of a pause or a resume.
    fn waits(&self, request: &Request) -> bool {
        match request {
            Request::Pause | Request::Resume => self.pause.is_changing(),
            Request::Signal(signal) => signal.kills() && matches!(self.pause, Pause::Pausing(Scope::Vm, _)),
            _ => false,
        }
    }

    /// Why a request is not possible now, in runc's words.
    fn refusal(&self, request: &Request) -> Option<&'static str> {
        let (ended, paused) = (self.has_ended(), !matches!(self.pause, Pause::None));
        Some(match request {
            Request::Start if ended => "cannot start a container that has stopped",
            Request::Start if paused => "cannot start a container in the paused state",
            Request::Start if self.started || self.starting.is_some() => "cannot start an already running container",
            Request::Exec if ended => "cannot exec in a stopped container",
            Request::Exec if paused => "cannot exec in a paused container",
            Request::Join(_) if ended => "the container that the VM was made for has stopped",
            Request::Join(_) if self.mechanisms().gate_closed => "cannot join a paused container",
            Request::Resume if !paused => "container not paused",
            Request::Start | Request::Exec | Request::Join(_) | Request::Resume => return None,
            _ if ended => "container not running",
            // What is killed does not stop on its way.
            Request::Pause if paused || self.killed => "container not running",
            Request::Update if paused => "cannot update a paused container",
            Request::Query if paused => "cannot query a paused container: nothing in it runs, its kernel included",
            _ => return None,
        })
    }

    /// Does what a request wants, once it is known to be possible.
    fn grant(&mut self, request: Request, ticket: T, shared: bool, actions: &mut Vec<Action<T>>) {
        actions.push(match request {
            Request::Signal(signal) => return self.signal(signal, ticket, actions),
            Request::Start => {
                self.starting = Some(ticket);
                Action::Begin(Work::Start)
            }
            Request::Exec | Request::Update | Request::Query | Request::WatchOom => Action::Answer(ticket, Ok(())),
            Request::Pause => {
                let (scope, work) = if shared { (Scope::Cgroup, Work::Freeze) } else { (Scope::Vm, Work::Quiesce) };
                self.pause = Pause::Pausing(scope, ticket);
                Action::Begin(work)
            }
            Request::Resume => self.resume(ticket),
            Request::Join(id) => Action::Admit(id, ticket),
        });
    }

    /// As in a frozen cgroup of version 2, a signal that kills does so at once, any other one after the pause.
    fn signal(&mut self, signal: Signal, ticket: T, actions: &mut Vec<Action<T>>) {
        if self.mechanisms().gate_closed {
            if !signal.kills() {
                if signal.number >= FIRST_QUEUED || !self.kept_signals.contains(&signal) {
                    self.kept_signals.push(signal);
                }
                return actions.push(Action::Answer(ticket, Ok(())));
            }
            self.pause = Pause::None;
            self.kept_signals.clear();
        }
        actions.push(Action::Signal(signal, ticket));
        if signal.kills() && !std::mem::replace(&mut self.killed, true) {
            actions.push(Action::Begin(Work::AwaitEnd));
        }
    }

    fn resume(&mut self, ticket: T) -> Action<T> {
        if matches!(self.pause, Pause::Paused(Scope::Cgroup)) {
            self.pause = Pause::Thawing(ticket);
            return Action::Begin(Work::Thaw);
        }
        self.pause = Pause::None;
        match std::mem::take(&mut self.kept_signals) {
            none if none.is_empty() => Action::Answer(ticket, Ok(())),
            signals => Action::Deliver(signals, ticket),
        }
    }

    /// A pause is over, unless the container's end was quicker.
    fn paused(&mut self, scope: Scope, answer: Answer, actions: &mut Vec<Action<T>>) {
        match std::mem::replace(&mut self.pause, Pause::None) {
            Pause::Pausing(wanted, ticket) if wanted == scope => {
                self.pause = if answer.is_ok() { Pause::Paused(scope) } else { Pause::None };
                actions.push(Action::Answer(ticket, answer));
            }
            other => self.pause = other,
        }
    }

    fn thawed(&mut self, answer: Answer, actions: &mut Vec<Action<T>>) {
        match std::mem::replace(&mut self.pause, Pause::None) {
            Pause::Thawing(ticket) => {
                self.pause = if answer.is_ok() { Pause::None } else { Pause::Paused(Scope::Cgroup) };
                actions.push(Action::Answer(ticket, answer));
            }
            other => self.pause = other,
        }
    }

    /// Tells the host that memory ran out, once.
    fn report_oom(&mut self, actions: &mut Vec<Action<T>>) {
        if self.oom == Oom::Unreported {
            self.oom = Oom::Reporting;
            actions.push(Action::Begin(Work::ReportOom));
        }
    }

    fn ended(&mut self, ending: Ending, oom_killed: bool, actions: &mut Vec<Action<T>>) {
        if self.has_ended() {
            return;
        }
        match std::mem::replace(&mut self.pause, Pause::None) {
            Pause::Pausing(_, ticket) | Pause::Thawing(ticket) => {
                actions.push(Action::Answer(ticket, Err("container not running".to_owned())));
            }
            Pause::None | Pause::Paused(_) => {}
        }
        self.kept_signals.clear();
        self.end = End::Pending(ending);
        if oom_killed {
            self.report_oom(actions);
        }
        self.finish(actions);
    }

    /// The end, once the host knows of everything that it has to: engines read the cgroup when the monitor is gone.
    fn finish(&mut self, actions: &mut Vec<Action<T>>) {
        if self.oom == Oom::Reporting {
            return;
        }
        match std::mem::replace(&mut self.end, End::Finished) {
            End::Pending(ending) => actions.push(Action::Finish(ending)),
            other => self.end = other,
        }
    }

    fn has_ended(&self) -> bool {
        !matches!(self.end, End::Alive)
    }

    fn mechanisms(&self) -> Mechanisms {
        let reporting = self.oom_report_stops_vm && self.oom == Oom::Reporting;
        Mechanisms {
            gate_closed: matches!(self.pause, Pause::Pausing(Scope::Vm, _) | Pause::Paused(Scope::Vm)),
            vcpus_paused: reporting || matches!(self.pause, Pause::Paused(Scope::Vm)),
        }
    }
}

impl<T> Pause<T> {
    fn is_changing(&self) -> bool {
        matches!(self, Self::Pausing(..) | Self::Thawing(_))
    }
}

impl Mechanisms {
    fn changes<T>(self, next: Self) -> impl Iterator<Item = Action<T>> {
        let vcpus = match (self.vcpus_paused, next.vcpus_paused) {
            (false, true) => Some(Action::PauseVcpus),
            (true, false) => Some(Action::ResumeVcpus),
            _ => None,
        };
        let gate = match (self.gate_closed, next.gate_closed) {
            (false, true) => Some(Action::CloseGate),
            (true, false) => Some(Action::OpenGate),
            _ => None,
        };
        vcpus.into_iter().chain(gate)
    }
}

#[cfg(test)]
mod tests;
