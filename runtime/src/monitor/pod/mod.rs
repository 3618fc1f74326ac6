//! What all containers of one virtual machine have in common.
//!
//! Mostly there is one: the one that the machine was made for. Others join it (see `joined`), and it ends with the
//! first.

pub mod join_proxy;
pub mod joined;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::log;
use crate::monitor::server::Server;
use crate::monitor::vm::Vm;
use crate::monitor::vm::agent_client::Agent;
use crate::monitor::vm::clock::Clock;
use crate::monitor::vm::request_gate::Motion;
use crate::network::Files;

/// How long a container may take to be gone after its end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// How long members that are killed have for their last output.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running machine. One thread works on it, so there are no locks but those of conversations.
pub struct Machine {
    /// The machine itself.
    pub vm: Vm,
    /// The host's, for containers that join.
    pub files: Arc<Files>,
    motion: Motion,
    /// Held by whoever pauses or resumes.
    turn: Mutex<()>,
    still: Cell<bool>,
    /// Containers that joined, by id; without a server those that are still being made.
    members: RefCell<HashMap<String, Option<Rc<Server>>>>,
    /// How many there are.
    count: watch::Sender<usize>,
    /// Names of shares are distinct by these.
    joins: Cell<u64>,
    /// The first container has ended: nobody can join.
    closing: Cell<bool>,
}

impl Machine {
    /// A machine with one container.
    pub fn new(vm: Vm, files: Arc<Files>) -> Self {
        Self {
            vm,
            files,
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
        self.still.set(true);
        self.motion.stop().await;
        self.vm.pause();
    }

    /// Undoes [`Machine::stop`].
    pub fn go_on(&self) {
        self.vm.resume();
        self.still.set(false);
        self.motion.go_on();
    }

    /// Whether the processors stand still, or are about to.
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

    /// Makes room for a container, from now until the membership is dropped. Waits for one of its name to be gone, and for
    /// whoever pauses the machine.
    ///
    /// # Errors
    /// It cannot join now.
    pub async fn admit(self: &Rc<Self>, id: &str) -> anyhow::Result<Membership> {
        let _turn = loop {
            if tokio::time::timeout(LEAVE_PATIENCE, self.left(id)).await.is_err() {
                bail!("container {id} is still in this VM");
            }
            let turn = self.turn().await;
            if !self.members.borrow().contains_key(id) {
                break turn;
            }
        };
        if self.is_closing() {
            bail!("the container that the VM was made for has stopped");
        }
        if self.still.get() {
            bail!("cannot join a paused container: its VM stands still");
        }
        self.set(id, Some(None));
        let number = self.joins.replace(self.joins.get() + 1);
        Ok(Membership { machine: Rc::clone(self), id: id.to_owned(), number })
    }

    fn set(&self, id: &str, member: Option<Option<Rc<Server>>>) {
        let mut members = self.members.borrow_mut();
        match member {
            Some(member) => drop(members.insert(id.to_owned(), member)),
            None => drop(members.remove(id)),
        }
        self.count.send_replace(members.len());
    }

    /// Whether the first container has ended, and the machine is about to.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
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
        let members: Vec<Rc<Server>> = self.members.borrow().values().flatten().cloned().collect();
        for member in members {
            member.end().await;
        }
        self.members_gone().await;
    }

    /// Waits until there are none, for a while.
    pub async fn members_gone(&self) {
        let mut count = self.count.subscribe();
        if tokio::time::timeout(PATIENCE, count.wait_for(|count| *count == 0)).await.is_err() {
            log::warning("containers that share the VM did not end in time");
        }
    }
}

/// A container's place in a machine that it joins.
pub struct Membership {
    machine: Rc<Machine>,
    id: String,
    /// Which one it is; no other has the same.
    pub number: u64,
}

impl Membership {
    /// It is made, and served by this.
    pub fn complete(&self, server: Rc<Server>) {
        self.machine.set(&self.id, Some(Some(server)));
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.machine.set(&self.id, None);
    }
}
