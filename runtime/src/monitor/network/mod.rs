//! The network of a container's namespace on the host is made the guest's: when the container is created, when it is
//! started, and whenever it changes after that.
//!
//! ```text
//!  the engine's link ── tc ── tap ── card of the VM ── interface of the same name, index and configuration
//! ```
//!
//! The monitor lives in the namespace of the first container of its VM; those of others are entered by threads. What is
//! done there may wait for the kernel's lock of all network configuration, so it is done on threads that may wait.

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
use crate::log;
use crate::monitor::vm::Vm;
use crate::monitor::vm::agent_client::Agent;
use crate::monitor::vm::nics::{Pool, Slot};
use crate::network::{AttachedLinks, Changes, Files, Link, NetworkNamespace, mirror};
use crate::plan::NICS;

/// Engines do several things to a link, one after the other; they are passed on together.
const GATHER: Duration = Duration::from_millis(5);

/// When a change that could not be followed is tried again, and how often without another change.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 10;

/// A container's network.
pub struct Network {
    place: NetworkNamespace,
    host: Arc<Mutex<AttachedLinks>>,
    /// Whether the namespace outlives the container, or the monitor does.
    stays: bool,
    changes: RefCell<Changes>,
    /// The same, to be waited for.
    change: AsyncFd<OwnedFd>,
    /// Where it is told that there is a resolver.
    resolver: Rc<Announcement>,
    state: tokio::sync::Mutex<State>,
    /// Found while the guest booted.
    early: RefCell<Option<Found>>,
}

/// What the guest was told last.
#[derive(Default)]
struct State {
    wired: Vec<Wired>,
    leaving: Vec<Leaving>,
    resolver: bool,
    /// The container has ended.
    closed: bool,
}

/// A link that a card is connected to.
struct Wired {
    link: Link,
    slot: Slot,
    /// How the guest finds the card.
    card: Nic,
    /// The guest has done all that it was told. Otherwise it is told from the beginning.
    done: bool,
}

/// An interface that the guest is yet to take from the container.
struct Leaving {
    index: u32,
    /// Its card, unless that has another link already.
    slot: Option<Slot>,
}

/// What is to be done.
#[derive(Debug, Default)]
struct Steps {
    /// Links that are gone.
    gone: Vec<u32>,
    /// What links are now.
    changed: Vec<Link>,
    /// Links that are new.
    new: Vec<Link>,
}

/// The same with taps for what is new, and cards besides those that become free.
struct Found {
    gone: Vec<u32>,
    changed: Vec<Link>,
    new: Vec<(Link, OwnedFd)>,
    slots: Vec<Slot>,
    resolver: bool,
}

impl Network {
    /// That of this namespace. Needs a running tokio runtime.
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

    /// Connects what there is already with taps, while the guest boots.
    pub async fn prepare(&self, cards: &Pool) -> anyhow::Result<()> {
        let found = self.find(&State::default(), cards).await?;
        self.early.replace(Some(found));
        Ok(())
    }

    /// Makes the guest's network what the host's is now. What fails is tried again by the next call.
    pub async fn update(&self, vm: &Vm, agent: &Agent) -> anyhow::Result<()> {
        let mut state = self.state.lock().await;
        if state.closed {
            return Ok(());
        }
        let early = self.early.take();
        let mut found = match early {
            Some(found) => found,
            None => self.find(&state, vm.free_cards()).await?,
        };
        let begins = found.resolver && !state.resolver;
        if found.is_nothing() && !begins && state.all_done() {
            return Ok(());
        }
        let (resolver, changed) = (found.resolver, std::mem::take(&mut found.changed));
        let plugged = self.plug(vm, &mut state, found).await;
        let request = state.tell(changed, resolver);
        agent.set_network(request).await?;
        state.leaving.clear();
        state.wired.iter_mut().for_each(|wired| wired.done = true);
        state.resolver = resolver;
        if begins {
            self.resolver.announce();
        }
        plugged
    }

    /// Disconnects cards and connects others. One that cannot be connected leaves its link as it was.
    async fn plug(&self, vm: &Vm, state: &mut State, found: Found) -> anyhow::Result<()> {
        let mut result = Ok(());
        for index in found.gone {
            let Some(at) = state.wired.iter().position(|wired| wired.link.index == index) else { continue };
            let slot = state.wired.remove(at).slot;
            result = result.and(vm.unplug(&slot).await);
            state.leaving.push(Leaving { index, slot: Some(slot) });
        }
        let mut slots = found.slots.into_iter();
        for (link, tap) in found.new {
            let Some(slot) = state.spare().or_else(|| slots.next()) else { break };
            match vm.plug(&slot, tap).await {
                Ok(card) => {
                    let card = Nic { index: link.index, name: link.name.clone(), ..card };
                    state.wired.push(Wired { link, slot, card, done: false });
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
                Err(error) => return log::warning(&format!("changes of the network are not seen any more: {error}")),
            }
            match vm.ask(self.update(&vm, &agent)).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    // Somebody may be in the middle of more.
                    let tell = if failures == 1 { log::debug } else { log::warning };
                    tell(&format!("follow a change of the network: {error:#}"));
                }
            }
        }
    }

    /// Waits until something was done to the namespace's network; whether it may matter.
    async fn changed(&self) -> std::io::Result<bool> {
        let mut ready = self.change.readable().await?;
        tokio::time::sleep(GATHER).await;
        ready.clear_ready();
        self.changes.borrow_mut().drain()
    }

    /// The container has ended: a namespace that stays is as it was, and cards are free.
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
        for wired in state.wired.drain(..) {
            if let Err(error) = vm.unplug(&wired.slot).await {
                log::debug(&format!("disconnect link {}: {error:#}", wired.link.name));
            }
        }
        state.leaving.clear();
    }

    async fn find(&self, state: &State, pool: &Pool) -> anyhow::Result<Found> {
        let known: Vec<Link> = state.wired.iter().map(|wired| wired.link.clone()).collect();
        let spare = state.leaving.iter().filter(|leaving| leaving.slot.is_some()).count();
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
    pool: Pool,
}

/// Looks at the namespace, and attaches taps to the links that are new there.
fn find(host: &mut AttachedLinks, known: &[Link], free: &Free) -> anyhow::Result<Found> {
    let links = host.scan()?;
    let resolver = host.resolver()?;
    let steps = Steps::between(known, links.clone());
    let wanted = steps.new.len().saturating_sub(steps.gone.len() + free.spare);
    let slots = free.pool.take(wanted).with_context(|| too_many(&steps.new, links.len()))?;
    steps.gone.iter().try_for_each(|index| host.detach(*index))?;
    steps.changed.iter().try_for_each(|link| host.follow(link))?;
    let mut new = Vec::new();
    let wired = wire(host, steps.new, &mut new).and_then(|()| {
        let mut keep = links.iter().filter(|_| resolver);
        keep.try_for_each(|link| host.keep_replies(link))
    });
    if let Err(error) = wired {
        // All or none, or the next try would find them in use.
        for (link, _) in new {
            host.detach(link.index)?;
        }
        return Err(error);
    }
    Ok(Found { gone: steps.gone, changed: steps.changed, new, slots, resolver })
}

fn too_many(new: &[Link], count: usize) -> String {
    let name = new.last().map_or("", |link| &link.name);
    format!(
        "link {name}: the network namespace has {count} links, and a VM at most {NICS} cards for all of its containers"
    )
}

fn wire(host: &mut AttachedLinks, links: Vec<Link>, done: &mut Vec<(Link, OwnedFd)>) -> anyhow::Result<()> {
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
    /// A card whose link is gone.
    fn spare(&mut self) -> Option<Slot> {
        self.leaving.iter_mut().find_map(|leaving| leaving.slot.take())
    }

    fn all_done(&self) -> bool {
        self.leaving.is_empty() && self.wired.iter().all(|wired| wired.done)
    }

    /// What the guest has to do for cards that go and that are new, and for links that have changed.
    fn tell(&mut self, changed: Vec<Link>, resolver: bool) -> SetNetworkRequest {
        let removed_nics = self.leaving.iter().map(|leaving| leaving.index).collect();
        let mut request = SetNetworkRequest { removed_nics, resolver, ..Default::default() };
        let mut before = Vec::new();
        for link in changed {
            let Some(wired) = self.wired.iter_mut().find(|wired| wired.link.index == link.index) else { continue };
            let old = std::mem::replace(&mut wired.link, link);
            before.extend(wired.done.then_some(old));
        }
        self.wired.iter().filter(|wired| !wired.done).for_each(|wired| wired.begin(&mut request));
        for old in before {
            let Some(wired) = self.wired.iter_mut().find(|wired| wired.link.index == old.index) else { continue };
            request.sysctls.extend(ipv6_switch(old.no_ipv6, &wired.link));
            request.messages.extend(mirror(Some(&old), &wired.link));
            // Until the guest has answered.
            wired.done = false;
        }
        request
    }
}

impl Wired {
    fn begin(&self, request: &mut SetNetworkRequest) {
        request.added_nics.push(Nic { name: self.link.name.clone(), ..self.card.clone() });
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

    fn wired(index: u32, pool: &Pool) -> Wired {
        let slot = pool.take(1).unwrap().remove(0);
        Wired { link: link(index, 1500), slot, card: Nic { index, ..Default::default() }, done: true }
    }

    #[test]
    fn an_interface_that_goes_is_told_until_the_guest_has_answered() {
        let pool = Pool::default();
        let mut state = State { wired: vec![wired(2, &pool)], ..State::default() };
        assert!(state.all_done());
        let slot = state.wired.remove(0).slot;
        state.leaving.push(Leaving { index: 2, slot: Some(slot) });
        for _ in 0..2 {
            assert!(!state.all_done());
            assert_eq!(state.tell(Vec::new(), false).removed_nics, [2]);
            assert!(pool.take(NICS).is_none(), "somebody else could get the card");
        }
        // A new link of the same container can: the guest does the one before the other.
        let slot = state.spare().unwrap();
        state.wired.push(Wired { slot, ..wired(3, &pool) });
        state.wired[0].done = false;
        let request = state.tell(Vec::new(), false);
        assert_eq!((request.removed_nics, request.added_nics[0].index), (vec![2], 3));
        assert!(state.spare().is_none());
    }
}
