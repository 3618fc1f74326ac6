//! Whatever comes in whatever order, nobody waits for ever and the mechanisms are never used wrongly.

use std::collections::BTreeSet;

use super::*;

/// What may come next.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        request: Request,
        shared: bool,
    },
    /// One of the actions under way is done, or has failed.
    Done {
        which: usize,
        well: bool,
    },
    Happen(Event<u32>),
}

fn step() -> impl Strategy<Value = Step> {
    let request = prop_oneof![
        Just(Request::Start),
        Just(Request::Exec),
        Just(Request::Update),
        Just(Request::Query),
        Just(Request::WatchOom),
        Just(Request::Signal(TERM)),
        Just(Request::Signal(KILL)),
        Just(Request::Pause),
        Just(Request::Resume),
        Just(Request::Join("b".to_owned())),
    ];
    let ends = prop_oneof![
        any::<bool>().prop_map(|oom_killed| Event::Ended { code: 1, oom_killed }),
        Just(Event::VmDied("reset".to_owned())),
    ];
    prop_oneof![
        12 => (request, any::<bool>()).prop_map(|(request, shared)| Step::Ask { request, shared }),
        8 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, well)| Step::Done { which, well }),
        1 => Just(Step::Happen(Event::OutOfMemory)),
        1 => ends.prop_map(Step::Happen),
    ]
}

/// A server that only notes what it is told to do, and whether that makes sense.
struct Server {
    state: State<u32>,
    shared: bool,
    tickets: u32,
    waiting: BTreeSet<u32>,
    /// The events that end the actions under way, if these go well.
    under_way: Vec<Event<u32>>,
    gate_closed: bool,
    vcpus_paused: bool,
    frozen: bool,
    started: bool,
    reported: bool,
    killed: bool,
    ended: bool,
    finished: bool,
}

impl Server {
    fn new() -> Self {
        Self {
            state: State::new(true),
            shared: false,
            tickets: 0,
            waiting: BTreeSet::new(),
            under_way: Vec::new(),
            gate_closed: false,
            vcpus_paused: false,
            frozen: false,
            started: false,
            reported: false,
            killed: false,
            ended: false,
            finished: false,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Ask { request, shared } => {
                // Nobody is let in while the gate is closed.
                self.shared = shared && !self.gate_closed;
                self.tickets += 1;
                self.waiting.insert(self.tickets);
                self.step(Event::Asked(request, self.tickets));
            }
            Step::Done { .. } if self.under_way.is_empty() => {}
            Step::Done { which, well } => {
                let done = self.under_way.remove(which % self.under_way.len());
                self.done(done, well);
            }
            Step::Happen(event) => {
                self.ended |= !matches!(event, Event::OutOfMemory);
                self.step(event);
            }
        }
    }

    fn done(&mut self, event: Event<u32>, well: bool) {
        let answer = if well { Ok(()) } else { Err("why".to_owned()) };
        let event = match event {
            Event::StartDone(_) => {
                self.started = well;
                Event::StartDone(answer)
            }
            Event::Frozen(_) => {
                self.frozen = well;
                Event::Frozen(answer)
            }
            Event::Thawed(_) => {
                self.frozen = !well;
                Event::Thawed(answer)
            }
            other => other,
        };
        self.ended |= event == Event::Overdue;
        self.step(event);
    }

    fn step(&mut self, event: Event<u32>) {
        let actions = self.state.step(event, self.shared);
        actions.into_iter().for_each(|action| self.carry_out(action));
        self.check();
    }

    fn begin(&mut self, end: Event<u32>) {
        assert!(!self.under_way.contains(&end), "{end:?} twice");
        self.under_way.push(end);
    }

    fn carry_out(&mut self, action: Action<u32>) {
        match action {
            Action::Answer(ticket, _) => assert!(self.waiting.remove(&ticket), "answered twice"),
            Action::Signal(_, ticket) | Action::Deliver(_, ticket) | Action::Admit(_, ticket) => {
                assert!(!self.ended && !self.gate_closed, "the guest is asked while it cannot answer");
                assert!(self.waiting.remove(&ticket), "answered twice");
            }
            Action::Begin(Work::Start) => {
                assert!(!self.ended && !self.started && !self.gate_closed && !self.frozen);
                self.begin(Event::StartDone(Ok(())));
            }
            Action::CloseGate => {
                assert!(!self.ended && !self.shared && !std::mem::replace(&mut self.gate_closed, true));
            }
            Action::Begin(Work::Quiesce) => {
                assert!(self.gate_closed);
                self.begin(Event::Quiesced);
            }
            Action::OpenGate => assert!(std::mem::replace(&mut self.gate_closed, false)),
            Action::PauseVcpus => assert!(!std::mem::replace(&mut self.vcpus_paused, true)),
            Action::ResumeVcpus => assert!(std::mem::replace(&mut self.vcpus_paused, false)),
            Action::Begin(Work::Freeze) => {
                assert!(!self.ended && !self.frozen && !self.gate_closed);
                self.begin(Event::Frozen(Ok(())));
            }
            Action::Begin(Work::Thaw) => {
                assert!(!self.ended && self.frozen && !self.gate_closed);
                self.begin(Event::Thawed(Ok(())));
            }
            Action::Begin(Work::ReportOom) => {
                assert!(!std::mem::replace(&mut self.reported, true), "the host is told twice");
                self.begin(Event::OomReported);
            }
            Action::Begin(Work::AwaitEnd) => {
                assert!(!std::mem::replace(&mut self.killed, true), "two deadlines");
                self.begin(Event::Overdue);
            }
            Action::Finish(_) => assert!(self.ended && !std::mem::replace(&mut self.finished, true)),
        }
    }

    fn check(&self) {
        let is = |event: &Event<u32>| self.under_way.contains(event);
        let reporting = is(&Event::OomReported);
        let paused = self.state.status() == Status::Paused;
        assert_eq!(self.vcpus_paused, reporting || (paused && self.gate_closed), "{:?}", self.state);
        if self.ended {
            assert!(!paused && !self.gate_closed && self.finished != reporting);
            return;
        }
        let pausing = is(&Event::Quiesced) || is(&Event::Frozen(Ok(())));
        assert_eq!(paused || pausing, self.gate_closed || self.frozen || pausing, "{:?}", self.state);
    }
}

proptest! {
    #[test]
    fn no_sequence_is_inconsistent(steps in prop::collection::vec(step(), 0..60)) {
        let mut server = Server::new();
        steps.into_iter().for_each(|step| server.take(step));
        while let Some(event) = server.under_way.pop() {
            server.done(event, true);
        }
        server.check();
        prop_assert!(server.waiting.is_empty(), "nobody answers {:?}", server.waiting);
    }
}
