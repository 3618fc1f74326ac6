//! Mirrors the network of a container's namespace on the host into the guest: when the container is created, when it is
//! started, and whenever the network changes after that.
//!
//! ```text
//!  the engine's link ── tc ── tap ── NIC of the VM ── interface of the same name, index and configuration
//! ```
//!
//! The monitor itself makes no socket, tap or filter: the container's [network helper](crate::network::helper) does, and hands
//! over taps and sockets. Here only the helper's answers and the kernel's reports of changes are read.

pub mod datagrams;
pub mod helper;
pub mod passt_relay;
pub mod published_ports;
pub mod resolver;

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use protocol::{KeyValue, Nic, SetNetworkRequest};
use tokio::io::unix::AsyncFd;

use self::helper::{Beginning, NetworkHelper};
use self::resolver::Announcement;
use crate::ipc::Descriptor;
use crate::log::{self, Level};
use crate::monitor::vm::Vm;
use crate::monitor::vm::agent_client::Agent;
use crate::monitor::vm::nics::{NicLease, NicPool};
use crate::network::messages::{NewTap, Sight};
use crate::network::{Changes, Link, mirror};
use crate::plan::NICS;

/// Time to gather changes: engines do several things to a link, one after the other.
const GATHER: Duration = Duration::from_millis(5);

/// How long the helper may take to clean up: nothing that the container can delay.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Time until a change that could not be mirrored is tried again, and most tries without another change.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 10;

/// A container's network that is being opened.
pub struct Opening {
    /// The network helper of the container.
    pub helper: NetworkHelper,
    /// The first answers of the helper.
    pub beginning: Beginning,
    /// Whether the namespace outlives the container, or the monitor does.
    pub stays: bool,
    /// The connection to passt(1), for a user-mode network.
    pub passt: Option<Descriptor>,
    /// To be told when there is a resolver.
    pub resolver: Rc<Announcement>,
}

/// A container's network.
pub struct Network {
    helper: NetworkHelper,
    /// Whether the namespace outlives the container, or the monitor does.
    stays: bool,
    /// Whether the helper is to end.
    leaving: Cell<bool>,
    changes: RefCell<Changes>,
    /// A descriptor that says when there are changes.
    change: AsyncFd<OwnedFd>,
    /// Told when there is a resolver.
    resolver: Rc<Announcement>,
    state: tokio::sync::Mutex<State>,
    /// What was found while the guest booted.
    early: RefCell<Option<Found>>,
}

/// What the guest has been told.
#[derive(Default)]
struct State {
    attached: Vec<Attached>,
    detached: Vec<Detached>,
    resolver: bool,
    /// The container has ended.
    closed: bool,
}

/// A link with a NIC of the VM.
struct Attached {
    link: Link,
    lease: NicLease,
    /// How the guest finds the NIC.
    nic: Nic,
    /// Whether the guest has done all that it was told. Otherwise it is told from the beginning.
    done: bool,
}

/// An interface that the guest is yet to take from the container.
struct Detached {
    index: u32,
    /// The interface's NIC, unless that has another link already.
    lease: Option<NicLease>,
}

/// Differences between two looks at the namespace.
#[derive(Debug, Default)]
struct Steps {
    /// Links that are gone.
    gone: Vec<u32>,
    /// Links that have changed, as they are now.
    changed: Vec<Link>,
    /// Links that are new.
    new: Vec<Link>,
}

/// The differences, with taps for new links, and NICs besides those that become free.
struct Found {
    gone: Vec<u32>,
    changed: Vec<Link>,
    new: Vec<(Link, OwnedFd)>,
    leases: Vec<NicLease>,
    resolver: bool,
}

impl Opening {
    /// Waits for the helper: taps are attached to the links that are there. Needs a running tokio runtime.
    ///
    /// # Errors
    /// The helper's, or it is gone.
    pub async fn finish(self, pool: &NicPool) -> anyhow::Result<Network> {
        let Self { helper, mut beginning, stays, passt, resolver } = self;
        let opened = beginning.opened().await?;
        if let Some((tap, stream)) = opened.user_network.zip(passt) {
            passt_relay::start(tap, stream.into_owned()?)?;
        }
        let change = opened.changes.try_clone().context("watch the network")?;
        // SAFETY: the descriptor is owned by what watches it, and stays the same until that is dropped.
        let change = unsafe { AsyncFd::register(change) }.map_err(std::io::Error::from)?;
        let early = Found::of(beginning.seen().await?, &State::default(), pool)?;
        Ok(Network {
            helper,
            stays,
            leaving: Cell::new(false),
            changes: RefCell::new(Changes::of(opened.changes)),
            change,
            resolver,
            state: tokio::sync::Mutex::default(),
            early: RefCell::new(Some(early)),
        })
    }
}

impl Network {
    /// Mirrors the host's network as it is now. The next call tries again what fails.
    pub async fn update(&self, vm: &Vm, agent: &Agent) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        if state.closed {
            return Ok(());
        }
        let early = self.early.take();
        let mut found = match early {
            Some(found) => found,
            None => self.look(&state, &vm.nics.pool).await?,
        };
        let begins = found.resolver && !state.resolver;
        if found.is_nothing() && !begins && state.all_done() {
            return Ok(());
        }
        let (resolver, changed) = (found.resolver, std::mem::take(&mut found.changed));
        let attached = self.attach(vm, &mut state, found).await;
        let request = state.tell(changed, resolver);
        agent.set_network(request).await?;
        state.detached.clear();
        state.attached.iter_mut().for_each(|attached| attached.done = true);
        state.resolver = resolver;
        if begins {
            self.resolver.announce();
        }
        attached
    }

    /// Detaches NICs and attaches others. A link whose NIC cannot be attached stays as it was.
    async fn attach(&self, vm: &Vm, state: &mut State, found: Found) -> anyhow::Result<()> {
        let mut result = Ok(());
        for index in found.gone {
            let Some(at) = state.attached.iter().position(|attached| attached.link.index == index) else { continue };
            let lease = state.attached.remove(at).lease;
            result = result.and(vm.nics.detach(&lease).await);
            state.detached.push(Detached { index, lease: Some(lease) });
        }
        let mut leases = found.leases.into_iter();
        for (link, tap) in found.new {
            let Some(lease) = state.spare().or_else(|| leases.next()) else { break };
            match vm.nics.attach(&lease, tap, &vm.running).await {
                Ok(nic) => {
                    let nic = Nic { index: link.index, name: link.name.clone(), ..nic };
                    state.attached.push(Attached { link, lease, nic, done: false });
                }
                // The next look detaches it, as it has no NIC.
                Err(error) => result = result.and(Err(error).with_context(|| format!("connect link {}", link.name))),
            }
        }
        result
    }

    /// Follows changes, for ever.
    pub async fn follow(self: Rc<Self>, vm: Rc<Vm>, agent: Agent) {
        let mut failures = 0u32;
        loop {
            let changed = tokio::select! {
                changed = self.changed() => changed,
                () = tokio::time::sleep(RETRY), if (1..=RETRIES).contains(&failures) => Ok(true),
                () = self.helper.ended() => Err(std::io::Error::other(helper::ENDED)),
            };
            match changed {
                Ok(false) => continue,
                Ok(true) => {}
                Err(_) if self.leaving.get() => return,
                Err(error) => {
                    return log::warning(&format!("changes of the network are not mirrored any more: {error}"));
                }
            }
            match vm.ask(self.update(&vm, &agent)).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    // Somebody may be in the middle of more.
                    let level = if failures == 1 { Level::Debug } else { Level::Warning };
                    log::repeated(level, &format!("mirror a change of the network: {error:#}"));
                }
            }
        }
    }

    /// Waits until something was done to the namespace's network; true if it may matter.
    async fn changed(&self) -> std::io::Result<bool> {
        let mut ready = self.change.readable().await?;
        tokio::time::sleep(GATHER).await;
        ready.clear_ready();
        self.changes.borrow_mut().drain()
    }

    /// Lets the helper of a namespace go that ends with the container, so that nobody has to wait for it.
    pub fn release(&self) {
        if !self.stays && !self.leaving.replace(true) {
            self.helper.dismiss();
        }
    }

    /// Ends mirroring: a namespace that stays is as it was, and the NICs are free.
    pub async fn end(&self, vm: &Vm) {
        self.release();
        let mut state = self.state.lock().await;
        state.closed = true;
        self.early.take();
        if !self.stays {
            return;
        }
        self.leaving.set(true);
        // One that was killed leaves that to `delete`.
        if !self.helper.is_gone() {
            let ended = tokio::time::timeout(END_PATIENCE, self.helper.end()).await;
            if let Err(error) = ended.context("no answer from the network helper").flatten() {
                log::warning(&format!("clean up the container's network: {error:#}"));
            }
        }
        for attached in state.attached.drain(..) {
            if let Err(error) = vm.nics.detach(&attached.lease).await {
                log::debug(&format!("disconnect link {}: {error:#}", attached.link.name));
            }
        }
        state.detached.clear();
    }

    async fn look(&self, state: &State, pool: &NicPool) -> anyhow::Result<Found> {
        let attached = state.attached.iter().map(|attached| attached.link.index).collect();
        let sight = self.helper.look(attached, state.spares() + pool.count()).await?;
        Found::of(sight, state, pool)
    }
}

impl Found {
    /// What the helper has seen, with NICs for what is new there.
    fn of(sight: Sight, state: &State, pool: &NicPool) -> anyhow::Result<Self> {
        let Sight { links, taps, resolver } = sight;
        let known: Vec<Link> = state.attached.iter().map(|attached| attached.link.clone()).collect();
        let count = links.len();
        let Steps { gone, changed, new } = Steps::between(&known, links);
        let wanted = new.len().saturating_sub(gone.len() + state.spares());
        // Another container of the VM may have been faster.
        let too_many = || {
            format!("the network namespace has {count} links, and a VM at most {NICS} NICs for all of its containers")
        };
        let leases = pool.take(wanted).with_context(too_many)?;
        let mut taps = taps.into_iter();
        let with_tap = |link: Link| {
            let tap = taps.by_ref().find(|new| new.link == link.index).map(|NewTap { tap, .. }| tap.into_owned());
            let tap = tap.with_context(|| format!("the network helper has no tap for link {}", link.name))??;
            Ok((link, tap))
        };
        let new = new.into_iter().map(with_tap).collect::<anyhow::Result<_>>()?;
        Ok(Self { gone, changed, new, leases, resolver })
    }

    fn is_nothing(&self) -> bool {
        self.gone.is_empty() && self.changed.is_empty() && self.new.is_empty()
    }
}

impl Steps {
    fn between(known: &[Link], links: Vec<Link>) -> Self {
        let is_gone = |known: &&Link| !links.iter().any(|link| link.index == known.index);
        let mut steps = Self { gone: known.iter().filter(is_gone).map(|link| link.index).collect(), ..Self::default() };
        for link in links {
            match known.iter().find(|known| known.index == link.index) {
                None => steps.new.push(link),
                Some(known) if *known != link => steps.changed.push(link),
                Some(_) => {}
            }
        }
        steps
    }
}

impl State {
    /// Number of NICs whose link is gone.
    fn spares(&self) -> usize {
        self.detached.iter().filter(|detached| detached.lease.is_some()).count()
    }

    /// A NIC whose link is gone.
    fn spare(&mut self) -> Option<NicLease> {
        self.detached.iter_mut().find_map(|detached| detached.lease.take())
    }

    fn all_done(&self) -> bool {
        self.detached.is_empty() && self.attached.iter().all(|attached| attached.done)
    }

    /// What the guest has to do for NICs that go and that are new, and for links that have changed.
    fn tell(&mut self, changed: Vec<Link>, resolver: bool) -> SetNetworkRequest {
        let removed_nics = self.detached.iter().map(|detached| detached.index).collect();
        let mut request = SetNetworkRequest { removed_nics, resolver, ..Default::default() };
        let mut before = Vec::new();
        for link in changed {
            let Some(attached) = self.attached.iter_mut().find(|attached| attached.link.index == link.index) else {
                continue;
            };
            let old = std::mem::replace(&mut attached.link, link);
            before.extend(attached.done.then_some(old));
        }
        self.attached.iter().filter(|attached| !attached.done).for_each(|attached| attached.begin(&mut request));
        for old in before {
            let Some(attached) = self.attached.iter_mut().find(|attached| attached.link.index == old.index) else {
                continue;
            };
            request.sysctls.extend(ipv6_switch(old.no_ipv6, &attached.link));
            request.messages.extend(mirror(Some(&old), &attached.link));
            // Until the guest has answered.
            attached.done = false;
        }
        request
    }
}

impl Attached {
    fn begin(&self, request: &mut SetNetworkRequest) {
        request.added_nics.push(Nic { name: self.link.name.clone(), ..self.nic.clone() });
        request.sysctls.extend(ipv6_switch(false, &self.link));
        request.messages.extend(mirror(None, &self.link));
    }
}

/// There is no message for that.
fn ipv6_switch(was_off: bool, link: &Link) -> Option<KeyValue> {
    let key = format!("net/ipv6/conf/{}/disable_ipv6", link.name);
    let value = u8::from(link.no_ipv6).to_string();
    (was_off != link.no_ipv6).then(|| KeyValue { key, value, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, mtu: u32) -> Link {
        Link { index, name: format!("eth{index}"), mtu, ..Link::default() }
    }

    /// Links that are gone, have changed, and are new.
    type Seen = (Vec<u32>, Vec<u32>, Vec<u32>);

    fn between(known: &[u32], links: Vec<Link>) -> Seen {
        let known: Vec<Link> = known.iter().map(|index| link(*index, 1500)).collect();
        let steps = Steps::between(&known, links);
        let indexes = |links: Vec<Link>| links.iter().map(|link| link.index).collect();
        (steps.gone, indexes(steps.changed), indexes(steps.new))
    }

    #[test]
    fn links_are_told_apart_by_their_numbers() {
        let as_before = || vec![link(2, 1500), link(5, 1500)];
        assert_eq!(between(&[2, 5], as_before()), (vec![], vec![], vec![]));
        assert_eq!(between(&[], as_before()), (vec![], vec![], vec![2, 5]));
        let mixed = vec![link(5, 1400), link(7, 1500)];
        assert_eq!(between(&[2, 5], mixed), (vec![2], vec![5], vec![7]));
        assert_eq!(between(&[2, 5], vec![]), (vec![2, 5], vec![], vec![]));
    }

    fn attached(index: u32, pool: &NicPool) -> Attached {
        let lease = pool.take(1).unwrap().remove(0);
        Attached { link: link(index, 1500), lease, nic: Nic { index, ..Default::default() }, done: true }
    }

    #[test]
    fn an_interface_that_goes_is_told_until_the_guest_has_answered() {
        let pool = NicPool::default();
        let mut state = State { attached: vec![attached(2, &pool)], ..State::default() };
        assert!(state.all_done());
        let lease = state.attached.remove(0).lease;
        state.detached.push(Detached { index: 2, lease: Some(lease) });
        for _ in 0..2 {
            assert!(!state.all_done());
            assert_eq!(state.tell(Vec::new(), false).removed_nics, [2]);
            assert!(pool.take(NICS).is_none(), "another container could get the NIC");
        }
        // A new link of the same container can: the guest does the one before the other.
        let lease = state.spare().unwrap();
        state.attached.push(Attached { lease, ..attached(3, &pool) });
        state.attached[0].done = false;
        let request = state.tell(Vec::new(), false);
        assert_eq!((request.removed_nics, request.added_nics[0].index), (vec![2], 3));
        assert!(state.spare().is_none());
    }
}
