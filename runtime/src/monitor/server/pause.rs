//! A container that stands still: its machine does, or where others are in it, its cgroup.

use std::time::Duration;

use anyhow::bail;

use super::Server;
use crate::control::Reply;
use crate::log;
use crate::monitor::lifecycle::{Event, Phase};

/// How often, and after what pauses, a frozen cgroup is looked at.
const FREEZE_ATTEMPTS: usize = 200;
const FREEZE_PAUSE: Duration = Duration::from_millis(10);

impl Server {
    /// Sends a signal. As in a frozen cgroup v2, one that kills does so at once, any other one when it thaws.
    pub(super) async fn kill(&self, signal: u32, all: bool) -> anyhow::Result<Reply> {
        if self.is_paused() && self.machine.is_still() {
            if signal != libc::SIGKILL as u32 {
                self.waiting.borrow_mut().push((signal, all));
                return Ok(Reply::Done);
            }
            // Somebody else may be quicker, or pause it again.
            while self.is_paused() && self.machine.is_still() {
                self.resume().await.ok();
            }
        }
        self.ask(self.agent.signal("", signal, all)).await.map(|()| Reply::Done)
    }

    fn is_paused(&self) -> bool {
        matches!(self.phase.get(), Phase::Paused { .. })
    }

    /// Lets the machine stand still or, where others are in it, only the container's cgroup.
    pub(super) async fn pause(&self) -> anyhow::Result<Reply> {
        let _turn = self.machine.turn().await;
        let before = self.phase.get();
        self.apply(Event::Pause)?;
        if self.machine.is_shared() {
            return self.freeze().await.inspect_err(|_| self.phase.set(before)).map(|()| Reply::Done);
        }
        self.machine.stop().await;
        if self.phase.get() == Phase::Ended {
            self.machine.go_on();
            bail!("container not running");
        }
        Ok(Reply::Done)
    }

    /// Returns when all of its processes stand still.
    async fn freeze(&self) -> anyhow::Result<()> {
        self.ask(self.agent.update(vec![frozen(true)])).await?;
        for _ in 0..FREEZE_ATTEMPTS {
            let events = vec!["cgroup.events".to_owned()];
            let Reply::Files(files) = self.ask(self.agent.read_cgroup(events)).await? else { break };
            if files.iter().any(|(_, text)| text.lines().any(|line| line == "frozen 1")) {
                return Ok(());
            }
            tokio::time::sleep(FREEZE_PAUSE).await;
        }
        self.ask(self.agent.update(vec![frozen(false)])).await?;
        bail!("unable to freeze: processes of the container do not stop")
    }

    pub(super) async fn resume(&self) -> anyhow::Result<Reply> {
        let _turn = self.machine.turn().await;
        let before = self.phase.get();
        self.apply(Event::Resume)?;
        if self.machine.is_still() {
            self.machine.go_on();
        } else {
            let thawed = self.ask(self.agent.update(vec![frozen(false)])).await;
            thawed.inspect_err(|_| self.phase.set(before))?;
        }
        for (signal, all) in self.waiting.take() {
            // The machine goes on in any case, and whoever sent the signal is gone.
            if let Err(error) = self.ask(self.agent.signal("", signal, all)).await {
                log::warning(&format!("signal {signal}, sent during the pause: {error:#}"));
            }
        }
        Ok(Reply::Done)
    }
}

/// A file of its cgroup that freezes or thaws it.
fn frozen(yes: bool) -> (String, String) {
    ("cgroup.freeze".to_owned(), u8::from(yes).to_string())
}
