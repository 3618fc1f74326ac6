//! What all containers of one virtual machine have in common.
//!
//! Mostly there is one: the one that the machine was made for. Others join it (see `members`), and it ends with the
//! first.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::{Mutex, MutexGuard, watch};

use super::agent_client::Agent;
use super::clock::Clock;
use super::motion::Motion;
use super::server::Server;
use super::vm::Vm;
use crate::log;

/// How long members that are killed have for their last output.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running machine. One thread works on it, so there are no locks but those of conversations.
pub struct Machine {
    /// The machine itself.
    pub vm: Vm,
    motion: Motion,
    /// Held by whoever pauses or resumes.
    turn: Mutex<()>,
    still: Cell<bool>,
    /// Containers that joined, by id, and how many there are.
    members: RefCell<HashMap<String, Rc<Server>>>,
    count: watch::Sender<usize>,
    /// Names of shares are distinct by these.
    joins: Cell<u64>,
    /// The first container has ended: nobody can join.
    closing: Cell<bool>,
}

impl Machine {
    /// A machine with one container.
    pub fn new(vm: Vm) -> Self {
        Self {
            vm,
            motion: Motion::new(),
            turn: Mutex::default(),
            still: Cell::new(false),
            members: RefCell::default(),
            count: watch::Sender::new(0),
            joins: Cell::new(0),
            closing: Cell::new(false),
        }
    }

    /// Waits for the guest's answer, or says why it died.
    pub async fn alive<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        self.vm.or_death(work).await
    }

    /// `alive`, for what takes the guest a moment: the machine is not stopped meanwhile.
    pub async fn ask<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let _asking = self.motion.ask().await;
        self.alive(work).await
    }

    /// Waits for the turn to pause or resume something.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Stops the processors, once nobody waits for an answer.
    pub async fn stop(&self) {
        self.motion.stop().await;
        self.vm.pause();
        self.still.set(true);
    }

    /// Undoes [`Machine::stop`].
    pub fn go_on(&self) {
        self.vm.resume();
        self.still.set(false);
        self.motion.go_on();
    }

    /// Whether the processors stand still.
    pub fn is_still(&self) -> bool {
        self.still.get()
    }

    /// Whether there are other containers than the first.
    pub fn is_shared(&self) -> bool {
        !self.members.borrow().is_empty()
    }

    /// Keeps the guest's clock. It goes wrong otherwise, which is no reason to end the guest.
    pub async fn keep_time(self: Rc<Self>, agent: Agent) {
        let clock = match Clock::new() {
            Ok(clock) => clock,
            Err(error) => return log::warning(&format!("the guest's clock is not kept: {error:#}")),
        };
        while clock.due().await.is_ok() {
            if let Err(error) = self.ask(agent.set_time()).await {
                log::debug(&format!("the guest's clock: {error:#}"));
            }
        }
    }

    /// A number for somebody who joins.
    ///
    /// # Errors
    /// Nobody can join now.
    pub fn admit(&self) -> anyhow::Result<u64> {
        if self.closing.get() {
            bail!("the container that the VM was made for has stopped");
        }
        if self.still.get() {
            bail!("cannot join a paused container: its VM stands still");
        }
        Ok(self.joins.replace(self.joins.get() + 1))
    }

    /// A container has joined.
    pub fn add(&self, id: &str, server: Rc<Server>) {
        self.members.borrow_mut().insert(id.to_owned(), server);
        self.count.send_replace(self.members.borrow().len());
    }

    /// One that joined has ended and left nothing.
    pub fn remove(&self, id: &str) {
        self.members.borrow_mut().remove(id);
        self.count.send_replace(self.members.borrow().len());
    }

    /// Waits until there is no such container here.
    pub async fn left(&self, id: &str) {
        let mut count = self.count.subscribe();
        while self.members.borrow().contains_key(id) {
            // The sender lives as long as `self`.
            let _ = count.changed().await;
        }
    }

    /// Ends those who joined, and waits for what they leave to be delivered.
    pub async fn end_members(&self) {
        self.closing.set(true);
        let members: Vec<Rc<Server>> = self.members.borrow().values().cloned().collect();
        for member in members {
            member.end().await;
        }
        let mut count = self.count.subscribe();
        if tokio::time::timeout(PATIENCE, count.wait_for(|count| *count == 0)).await.is_err() {
            log::warning("containers that share the VM did not end in time");
        }
    }
}
