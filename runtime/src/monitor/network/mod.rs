//! Mirrors the network of a container's namespace on the host into the guest: when the container is created, when it is
//! started, and whenever the network changes after that.
//!
//! ```text
//!  the engine's link ── tc ── tap ── NIC of the VM ── interface of the same name, index and configuration
//! ```
//!
//! The monitor lives in the namespace of the first container of its VM; threads of it enter those of joined containers.
//! Work in a namespace may wait for the kernel's lock of all network configuration, so threads that may wait do it.

mod datagrams;
pub mod passt_relay;
pub mod published_ports;
pub mod resolver;

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use protocol::{KeyValue, Nic, SetNetworkRequest};
use tokio::io::unix::AsyncFd;

use self::resolver::Announcement;
use crate::log::{self, Level};
use crate::monitor::vm::Vm;
use crate::monitor::vm::agent_client::Agent;
use crate::monitor::vm::nics::{NicLease, NicPool};
use crate::network::{AttachedLinks, Changes, Files, Link, NetworkNamespace, mirror};
use crate::plan::NICS;

/// Time to gather changes: engines do several things to a link, one after the other.
const GATHER: Duration = Duration::from_millis(5);

/// Time until a change that could not be mirrored is tried again, and most tries without another change.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 10;

/// A container's network.
pub struct Network {
    place: NetworkNamespace,
    host: Arc<Mutex<AttachedLinks>>,
    /// Whether the namespace outlives the container, or the monitor does.
    stays: bool,
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

impl Network {
    /// Opens the network of a namespace. Needs a running tokio runtime.
    pub fn open(
        place: NetworkNamespace,
        files: Arc<Files>,
        stays: bool,
        resolver: Rc<Announcement>,
    ) -> anyhow::Result<Self> {
        let there = move || Ok((AttachedLinks::open(files)?, Changes::open().context("watch the network")?));
        let (namespace, changes) = place.run(there)?;
        let change = changes.as_fd().try_clone_to_owned().context("watch the network")?;
        // SAFETY: the descriptor is owned by what watches it, and stays the same until that is dropped.
        let change = unsafe { AsyncFd::register(change) }.map_err(std::io::Error::from)?;
        Ok(Self {
            place,
            host: Arc::new(Mutex::new(namespace)),
            stays,
            changes: RefCell::new(changes),
            change,
            resolver,
            state: tokio::sync::Mutex::default(),
            early: RefCell::default(),
        })
    }

    /// Attaches taps to the links that are there already, while the guest boots.
    pub async fn prepare(&self, nics: &NicPool) -> anyhow::Result<()> {
        let found = self.find(&State::default(), nics).await?;
        self.early.replace(Some(found));
        Ok(())
    }

    /// Mirrors the host's network as it is now. The next call tries again what fails.
    pub async fn update(&self, vm: &Vm, agent: &Agent) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        if state.closed {
            return Ok(());
        }
        let early = self.early.take();
        let mut found = match early {
            Some(found) => found,
            None => self.find(&state, &vm.nics.pool).await?,
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
                Err(error) => {
                    self.on_host(move |host| host.detach(link.index)).await?;
                    result = result.and(Err(error).with_context(|| format!("connect link {}", link.name)));
                }
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
            };
            match changed {
                Ok(false) => continue,
                Ok(true) => {}
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

    /// Ends mirroring: a namespace that stays is as it was, and the NICs are free.
    pub async fn end(&self, vm: &Vm) {
        let mut state = self.state.lock().await;
        state.closed = true;
        self.early.take();
        if !self.stays {
            return;
        }
        if let Err(error) = self.on_host(AttachedLinks::detach_all).await {
            log::warning(&format!("clean up the container's network: {error:#}"));
        }
        for attached in state.attached.drain(..) {
            if let Err(error) = vm.nics.detach(&attached.lease).await {
                log::debug(&format!("disconnect link {}: {error:#}", attached.link.name));
            }
        }
        state.detached.clear();
    }

    async fn find(&self, state: &State, pool: &NicPool) -> anyhow::Result<Found> {
        let known: Vec<Link> = state.attached.iter().map(|attached| attached.link.clone()).collect();
        let spare = state.detached.iter().filter(|detached| detached.lease.is_some()).count();
        let pool = pool.clone();
        self.on_host(move |host| find(host, &known, &Free { spare, pool })).await
    }

    async fn on_host<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut AttachedLinks) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (place, host) = (self.place.clone(), Arc::clone(&self.host));
        let work = move || work(&mut host.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(move || place.run(work)).await?
    }
}

/// NICs for new links.
struct Free {
    /// Number of NICs whose link is gone.
    spare: usize,
    /// NICs that no container has.
    pool: NicPool,
}

/// Looks at the namespace, and attaches taps to the links that are new there.
fn find(host: &mut AttachedLinks, known: &[Link], free: &Free) -> anyhow::Result<Found> {
    let links = host.scan()?;
    let resolver = host.resolver()?;
    let steps = Steps::between(known, links.clone());
    let wanted = steps.new.len().saturating_sub(steps.gone.len() + free.spare);
    let leases = free.pool.take(wanted).with_context(|| too_many(&steps.new, links.len()))?;
    steps.gone.iter().try_for_each(|index| host.detach(*index))?;
    steps.changed.iter().try_for_each(|link| host.follow(link))?;
    let mut new = Vec::new();
    let attached = attach(host, steps.new, &mut new).and_then(|()| {
        let mut keep = links.iter().filter(|_| resolver);
        keep.try_for_each(|link| host.keep_replies(link))
    });
    if let Err(error) = attached {
        // All or none, or the next try would find them in use.
        for (link, _) in new {
            host.detach(link.index)?;
        }
        return Err(error);
    }
    Ok(Found { gone: steps.gone, changed: steps.changed, new, leases, resolver })
}

fn too_many(new: &[Link], count: usize) -> String {
    let name = new.last().map_or("", |link| &link.name);
    format!(
        "link {name}: the network namespace has {count} links, and a VM at most {NICS} NICs for all of its containers"
    )
}

/// Attaches taps to links, and enters them in `done` one by one.
fn attach(host: &mut AttachedLinks, links: Vec<Link>, done: &mut Vec<(Link, OwnedFd)>) -> anyhow::Result<()> {
    for link in links {
        let tap = host.attach(&link)?;
        done.push((link, tap));
    }
    Ok(())
}

impl Found {
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
