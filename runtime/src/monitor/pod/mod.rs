//! The containers of one VM.
//!
//! Mostly there is one: the one that the VM was made for. Others join it (see `joined`), and the VM ends with the first.

pub mod join_proxy;
pub mod joined;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::bail;
use tokio::sync::watch;

use super::inbox::Inbox;
use super::lifecycle::{Answer, Request, Signal};
use super::node_maker::NodeMaker;
use super::vm::Vm;
use crate::log;

/// How long a container may take to be gone after its end.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// How long joined containers that are killed have for their last output.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running VM and who is in it. One thread works on it, so there are no locks but those of conversations.
pub struct Pod {
    /// The VM.
    pub vm: Rc<Vm>,
    /// Who makes device nodes.
    pub nodes: NodeMaker,
    /// The container that the VM was made for.
    first: Inbox,
    /// Joined containers, by id; without an inbox while one is being made.
    joined: RefCell<HashMap<String, Option<Inbox>>>,
    /// Number of joined containers.
    count: watch::Sender<usize>,
    /// Number of joins so far; names of shares are distinct by it.
    joins: Cell<u64>,
    /// The first container has ended: whoever joins now is killed.
    closing: Cell<bool>,
}

impl Pod {
    /// A VM with one container.
    pub fn new(vm: Rc<Vm>, nodes: NodeMaker, first: Inbox) -> Self {
        Self {
            vm,
            nodes,
            first,
            joined: RefCell::default(),
            count: watch::Sender::new(0),
            joins: Cell::new(0),
            closing: Cell::new(false),
        }
    }

    /// Whether there are other containers than the first.
    pub fn is_shared(&self) -> bool {
        !self.joined.borrow().is_empty()
    }

    /// Makes room for a container, until the guard is dropped. Waits for one of its name to be gone.
    ///
    /// # Errors
    /// The first container is paused or has ended, or one of this name stays.
    pub async fn admit(self: &Rc<Self>, id: &str) -> anyhow::Result<JoinGuard> {
        if tokio::time::timeout(DETACH_PATIENCE, self.detached(id)).await.is_err() {
            bail!("container {id} is still in this VM");
        }
        drop(self.first.ask(Request::Join(id.to_owned())).await?);
        let number = self.joins.replace(self.joins.get() + 1);
        Ok(JoinGuard { pod: Rc::clone(self), id: id.to_owned(), number })
    }

    /// Enters a container that may join.
    pub fn enter(&self, id: String) -> Answer {
        if self.joined.borrow().contains_key(&id) {
            return Err(format!("container {id} is still in this VM"));
        }
        self.set(&id, Some(None));
        Ok(())
    }

    fn set(&self, id: &str, container: Option<Option<Inbox>>) {
        let mut joined = self.joined.borrow_mut();
        match container {
            Some(container) => drop(joined.insert(id.to_owned(), container)),
            None => drop(joined.remove(id)),
        }
        self.count.send_replace(joined.len());
    }

    /// Waits until there is no such container here.
    pub async fn detached(&self, id: &str) {
        let mut count = self.count.subscribe();
        while self.joined.borrow().contains_key(id) {
            // The sender lives as long as `self`.
            let _ = count.changed().await;
        }
    }

    /// Kills the joined containers, and waits for their last output to be delivered.
    pub async fn end_joined(&self) {
        self.closing.set(true);
        self.joined.borrow().values().flatten().for_each(kill);
        self.joined_gone().await;
    }

    /// Waits for a while until no joined container is left.
    pub async fn joined_gone(&self) {
        let mut count = self.count.subscribe();
        if tokio::time::timeout(PATIENCE, count.wait_for(|count| *count == 0)).await.is_err() {
            log::warning("containers that share the VM did not end in time");
        }
    }
}

fn kill(container: &Inbox) {
    container.signal(Signal { number: libc::SIGKILL as u32, all: true });
}

/// The presence of a container in the VM that it joined.
pub struct JoinGuard {
    pod: Rc<Pod>,
    id: String,
    /// Number of this join; no other has the same.
    pub number: u64,
}

impl JoinGuard {
    /// The container is made, and served from this inbox.
    pub fn complete(&self, container: Inbox) {
        if self.pod.closing.get() {
            kill(&container);
        }
        self.pod.set(&self.id, Some(Some(container)));
    }
}

impl Drop for JoinGuard {
    fn drop(&mut self) {
        self.pod.set(&self.id, None);
    }
}
