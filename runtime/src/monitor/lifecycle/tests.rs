use std::slice::from_ref;

use proptest::prelude::*;

use super::*;

mod random;

const TERM: Signal = Signal { number: 15, all: false };
const KILL: Signal = Signal { number: 9, all: true };

/// The ticket of what comes in a test; those before it have others.
const NOW: u8 = 0;

/// The state after these events, with whether other containers are in the VM meanwhile.
fn after(shared: bool, events: &[Event<u8>]) -> State<u8> {
    let mut state = State::new(true);
    for event in events {
        state.step(event.clone(), shared);
    }
    state
}

fn begin(work: Work) -> Action<u8> {
    Action::Begin(work)
}

fn asked(request: Request) -> Event<u8> {
    Event::Asked(request, NOW)
}

fn before(request: Request) -> Event<u8> {
    Event::Asked(request, 1)
}

/// Every kind of state, by what leads there.
fn states() -> Vec<(&'static str, State<u8>)> {
    let (start, pause, resume) = (before(Request::Start), before(Request::Pause), before(Request::Resume));
    let started = |shared, more: &[Event<u8>]| {
        let started = [start.clone(), Event::StartDone(Ok(()))];
        after(shared, &[&started, more].concat())
    };
    let kill = before(Request::Signal(KILL));
    let paused = [pause.clone(), Event::Quiesced];
    let frozen = [pause.clone(), Event::Frozen(Ok(()))];
    let ended = Event::Ended { code: 7, oom_killed: false };
    let oom_killed = Event::Ended { code: 137, oom_killed: true };
    vec![
        ("created", after(false, &[])),
        ("starting", after(false, from_ref(&start))),
        ("started", started(false, &[])),
        ("pausing VM", started(false, &paused[..1])),
        ("paused VM", started(false, &paused)),
        ("starting, paused VM", after(false, &[from_ref(&start), &paused].concat())),
        ("pausing cgroup", started(true, &frozen[..1])),
        ("paused cgroup", started(true, &frozen)),
        ("thawing", started(true, &[&frozen[..], from_ref(&resume)].concat())),
        ("reporting OOM", started(false, &[Event::OutOfMemory])),
        ("reporting OOM, paused VM", started(false, &[&paused[..], &[Event::OutOfMemory]].concat())),
        ("ended, reporting OOM", started(false, &[oom_killed])),
        ("killed", started(false, from_ref(&kill))),
        ("killed, pausing cgroup", started(true, &[pause.clone(), kill.clone()])),
        ("killed, reporting OOM", started(false, &[kill.clone(), Event::OutOfMemory])),
        ("killed, ended, reporting OOM", started(false, &[Event::OutOfMemory, kill, Event::Overdue])),
        ("ended", started(false, from_ref(&ended))),
        ("ended, starting", after(false, &[start.clone(), ended])),
    ]
}

/// Every kind of event.
fn events() -> Vec<(&'static str, Event<u8>)> {
    let failed = || Err("why".to_owned());
    vec![
        ("Start", asked(Request::Start)),
        ("Exec", asked(Request::Exec)),
        ("Update", asked(Request::Update)),
        ("Query", asked(Request::Query)),
        ("WatchOom", asked(Request::WatchOom)),
        ("TERM", asked(Request::Signal(TERM))),
        ("KILL", asked(Request::Signal(KILL))),
        ("Pause", asked(Request::Pause)),
        ("Resume", asked(Request::Resume)),
        ("Join", asked(Request::Join("b".to_owned()))),
        ("StartDone", Event::StartDone(Ok(()))),
        ("StartDone failed", Event::StartDone(failed())),
        ("Quiesced", Event::Quiesced),
        ("Frozen", Event::Frozen(Ok(()))),
        ("Frozen failed", Event::Frozen(failed())),
        ("Thawed", Event::Thawed(Ok(()))),
        ("Thawed failed", Event::Thawed(failed())),
        ("OutOfMemory", Event::OutOfMemory),
        ("OomReported", Event::OomReported),
        ("Ended", Event::Ended { code: 7, oom_killed: false }),
        ("Ended by OOM", Event::Ended { code: 137, oom_killed: true }),
        ("VmDied", Event::VmDied("reset".to_owned())),
        ("Overdue", Event::Overdue),
    ]
}

fn show(action: &Action<u8>) -> String {
    let whose = |ticket: &u8| if *ticket == NOW { "" } else { " the earlier one" };
    match action {
        Action::Answer(ticket, Ok(())) => format!("answer{}", whose(ticket)),
        Action::Answer(ticket, Err(why)) => format!("refuse{}: {why}", whose(ticket)),
        Action::Signal(signal, _) => format!("signal {}", signal.number),
        Action::Deliver(signals, _) => format!("deliver {:?}", signals.iter().map(|s| s.number).collect::<Vec<_>>()),
        Action::Admit(id, _) => format!("admit {id}"),
        Action::Begin(work) => format!("{work:?}"),
        other => format!("{other:?}"),
    }
}

/// What a step leads to; `None` where nothing happens.
fn outcome(mut state: State<u8>, event: Event<u8>) -> Option<String> {
    let before = format!("{state:?}");
    let done: Vec<String> = state.step(event, false).iter().map(show).collect();
    let status = state.status().as_str();
    match (before == format!("{state:?}"), done.is_empty()) {
        (true, true) => None,
        (false, true) if !state.deferred.is_empty() => Some("waits".to_owned()),
        (_, true) => Some(status.to_owned()),
        _ => Some(format!("{status} → {}", done.join("; "))),
    }
}

#[test]
fn every_state_and_event() {
    let mut table = String::new();
    for at in 0..states().len() {
        table += &format!("{}\n", states()[at].0);
        for (event, what) in events() {
            if let Some(outcome) = outcome(states().swap_remove(at).1, what) {
                table += &format!("  {event}: {outcome}\n");
            }
        }
    }
    assert!(table == include_str!("table.txt"), "the table is not the one in table.txt any more:\n{table}");
}

#[test]
fn where_the_vm_is_shared_a_pause_freezes_the_cgroup() {
    assert_eq!(after(true, &[]).step(asked(Request::Pause), true), [begin(Work::Freeze)]);
    assert_eq!(after(true, &[]).step(asked(Request::Pause), false), [Action::CloseGate, begin(Work::Quiesce)]);
    // Whoever shared the VM may have gone meanwhile.
    let mut frozen = after(true, &[before(Request::Pause), Event::Frozen(Ok(()))]);
    assert_eq!(frozen.step(asked(Request::Resume), false), [begin(Work::Thaw)]);
    // What waits is decided when its turn comes.
    assert_eq!(frozen.step(Event::Asked(Request::Pause, 2), true), []);
    let resumed = Action::Answer(NOW, Ok(()));
    assert_eq!(frozen.step(Event::Thawed(Ok(())), false), [resumed, Action::CloseGate, begin(Work::Quiesce)]);
}

#[test]
fn signals_of_a_pause_are_delivered_in_their_order() {
    let usr1 = Signal { number: 10, all: true };
    let paused = [before(Request::Pause), Event::Quiesced];
    let kept = [asked(Request::Signal(TERM)), asked(Request::Signal(usr1))];
    let actions = after(false, &[paused, kept].concat()).step(asked(Request::Resume), false);
    let deliver = Action::Deliver(vec![TERM, usr1], NOW);
    assert_eq!(actions, [Action::ResumeVcpus, Action::OpenGate, deliver]);
}

#[test]
fn what_waits_for_a_pause_comes_after_it() {
    let mut state = after(false, &[before(Request::Pause), asked(Request::Signal(KILL))]);
    let paused = Action::Answer(1, Ok(()));
    let killed = [Action::ResumeVcpus, Action::OpenGate, Action::Signal(KILL, NOW), begin(Work::AwaitEnd)];
    assert_eq!(state.step(Event::Quiesced, false), [&[Action::PauseVcpus, paused.clone()], &killed[..]].concat());
    assert_eq!(state.status(), Status::Created);
    let resumed_twice = [before(Request::Pause), asked(Request::Resume), Event::Asked(Request::Resume, 2)];
    let mut state = after(true, &resumed_twice);
    assert_eq!(state.step(Event::Frozen(Ok(())), true), [paused, begin(Work::Thaw)]);
    let refused = Action::Answer(2, Err("container not paused".to_owned()));
    assert_eq!(state.step(Event::Thawed(Ok(())), true), [Action::Answer(NOW, Ok(())), refused]);
}

#[test]
fn a_pause_that_waits_for_a_resume_closes_the_gate_again() {
    let mut state = after(false, &[before(Request::Pause), asked(Request::Resume), Event::Asked(Request::Pause, 2)]);
    let (paused, resumed) = (Action::Answer(1, Ok(())), Action::Answer(NOW, Ok(())));
    let again = [Action::ResumeVcpus, Action::OpenGate, resumed, Action::CloseGate, begin(Work::Quiesce)];
    assert_eq!(state.step(Event::Quiesced, false), [&[Action::PauseVcpus, paused], &again[..]].concat());
    let paused_again = [Action::PauseVcpus, Action::Answer(2, Ok(()))];
    assert_eq!(state.step(Event::Quiesced, false), paused_again);
}

#[test]
fn a_container_without_a_limit_on_the_host_runs_while_oom_is_reported() {
    let mut state = State::<u8>::new(false);
    assert_eq!(state.step(Event::OutOfMemory, false), [begin(Work::ReportOom)]);
    assert_eq!(state.step(Event::OomReported, false), []);
}

#[test]
fn a_standard_signal_is_kept_once_during_a_pause_and_a_real_time_one_each_time() {
    let real_time = Signal { number: 40, all: false };
    let mut state = after(false, &[before(Request::Pause), Event::Quiesced]);
    for signal in [TERM, real_time, TERM, real_time, TERM] {
        state.step(before(Request::Signal(signal)), false);
    }
    let actions = state.step(asked(Request::Resume), false);
    assert!(actions.contains(&Action::Deliver(vec![TERM, real_time, real_time], NOW)), "{actions:?}");
}

#[test]
fn the_guest_has_one_deadline_however_often_it_is_killed() {
    let mut state = after(true, &[before(Request::Signal(KILL))]);
    let one = Signal { all: false, ..KILL };
    assert_eq!(state.step(asked(Request::Signal(one)), false), [Action::Signal(one, NOW)]);
    assert_eq!(state.step(Event::Overdue, false), [Action::Finish(Ending::Overdue)]);
    assert_eq!(state.step(Event::Ended { code: 0, oom_killed: true }, false), []);
    let mut ended = after(true, &[before(Request::Signal(KILL)), Event::Ended { code: 137, oom_killed: false }]);
    assert_eq!(ended.step(Event::Overdue, false), []);
}
