//! Carries out what the lifecycle says. Work that takes a while is a task of its own, and its outcome an event.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::task::spawn_local;

use super::{KILLED, OomNotifier, Server};
use crate::control::Reply;
use crate::monitor::inbox::Ticket;
use crate::monitor::lifecycle::{Action, Answer, Event, Signal, Work};
use crate::monitor::oom_trigger;
use crate::{confinement, ipc, log};

/// How long the monitor may live after SIGKILL: longer than output, other containers and the guest's last writes may take.
const LAST_RESORT: Duration = Duration::from_secs(60);

/// How often, and after what pauses, a cgroup that freezes is looked at.
const FREEZE_ATTEMPTS: usize = 200;
const FREEZE_PAUSE: Duration = Duration::from_millis(10);

impl Server {
    pub(super) fn carry_out(self: &Rc<Self>, action: Action<Ticket>) {
        let (server, vm) = (Rc::clone(self), &self.pod.vm);
        match action {
            Action::Answer(ticket, answer) => ticket.answer(answer.map(|()| vm.gate.pass())),
            Action::CloseGate => vm.gate.close(),
            Action::OpenGate => vm.gate.open(),
            Action::PauseVcpus => vm.running.pause(),
            Action::ResumeVcpus => vm.running.resume(),
            Action::Admit(id, ticket) => ticket.answer(self.pod.enter(id).map(|()| vm.gate.pass())),
            Action::Finish(ending) => drop(self.ending.send_replace(Some(ending))),
            Action::Begin(work) => {
                let pass = (work == Work::Start).then(|| vm.gate.pass());
                drop(spawn_local(async move {
                    let done = server.work(work).await;
                    drop(pass);
                    server.inbox.put(done);
                }));
            }
            Action::Signal(signal, ticket) => {
                let pass = vm.gate.pass();
                drop(spawn_local(async move { ticket.answer(answer(server.signal(signal).await).map(|()| pass)) }));
            }
            Action::Deliver(signals, ticket) => {
                let pass = vm.gate.pass();
                drop(spawn_local(async move {
                    server.deliver(signals).await;
                    ticket.answer(Ok(pass));
                }));
            }
        }
    }

    async fn work(&self, work: Work) -> Event<Ticket> {
        match work {
            Work::Start => Event::StartDone(answer(self.start().await)),
            Work::Quiesce => {
                self.pod.vm.gate.quiesce().await;
                Event::Quiesced
            }
            Work::Freeze => Event::Frozen(answer(self.freeze().await)),
            Work::Thaw => Event::Thawed(answer(self.set_frozen(false).await)),
            Work::ReportOom => {
                self.report_oom().await;
                Event::OomReported
            }
            Work::AwaitEnd => {
                if matches!(self.oom_notifier, OomNotifier::Host(_)) {
                    end_at_last();
                }
                self.kill_patience().await;
                Event::Overdue
            }
        }
    }

    async fn start(&self) -> anyhow::Result<()> {
        self.mark("start asked");
        if let Some(network) = self.network() {
            self.alive(network.update(&self.pod.vm, &self.agent)).await?;
        }
        self.files.start(&self.pod.vm).await?;
        self.alive(self.agent.start()).await?;
        self.mark("started");
        Ok(())
    }

    async fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.alive(self.agent.signal("", signal.number, signal.all)).await
    }

    async fn deliver(&self, signals: Vec<Signal>) {
        for signal in signals {
            // The container is resumed in any case, and whoever sent the signal is gone.
            if let Err(error) = self.signal(signal).await {
                log::warning(&format!("signal {}, sent during the pause: {error:#}", signal.number));
            }
        }
    }

    /// Freezes the container's cgroup; returns when no process in it runs.
    async fn freeze(&self) -> anyhow::Result<()> {
        self.set_frozen(true).await?;
        for _ in 0..FREEZE_ATTEMPTS {
            let events = vec!["cgroup.events".to_owned()];
            let Reply::Files(files) = self.ask(self.agent.read_cgroup(events)).await? else { break };
            if files.iter().any(|(_, text)| text.lines().any(|line| line == "frozen 1")) {
                return Ok(());
            }
            tokio::time::sleep(FREEZE_PAUSE).await;
        }
        self.set_frozen(false).await?;
        bail!("unable to freeze: processes of the container do not stop")
    }

    async fn set_frozen(&self, yes: bool) -> anyhow::Result<()> {
        let file = ("cgroup.freeze".to_owned(), u8::from(yes).to_string());
        self.ask(self.agent.update(vec![file])).await
    }

    async fn report_oom(&self) {
        match &self.oom_notifier {
            OomNotifier::Host(trigger) => oom_trigger::report(trigger.as_ref()).await,
            // A proxy that is gone is noticed on the reading side.
            OomNotifier::JoinProxy(stream) => drop(ipc::send_async(stream, &Reply::OutOfMemory).await),
        }
    }
}

/// Ends this process, whose VM's container was sent SIGKILL, in a while: even if its main thread hangs.
fn end_at_last() {
    let end = || {
        confinement::name_thread("last resort");
        // A wait by a call that threads make anyway.
        let end = Instant::now() + LAST_RESORT;
        while let Some(rest) = end.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(rest);
        }
        // SAFETY: ends the process at once and touches no memory of it.
        unsafe { libc::_exit(KILLED.into()) }
    };
    // Without a thread the deadline of the main thread is left.
    let _ = std::thread::Builder::new().name("last resort".to_owned()).stack_size(64 << 10).spawn(end);
}

fn answer(done: anyhow::Result<()>) -> Answer {
    done.map_err(|error| format!("{error:#}"))
}
