//! The network of the container's namespace on the host is made the guest's: when the container is created, when it is
//! started, and whenever it changes after that.
//!
//! ```text
//!  the engine's link ── tc ── tap ── card of the VM ── interface of the same name, index and configuration
//! ```
//!
//! The monitor lives in that namespace. What it does there may wait for the kernel's lock of all network
//! configuration, so it is done on threads that may wait.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use protocol::{Card, KeyValue, SetNetworkRequest};
use tokio::io::unix::AsyncFd;

use super::agent_client::Agent;
use super::machine::Machine;
use super::resolver::Announcement;
use super::vm::Vm;
use crate::log;
use crate::network::{self, Changes, Link, Namespace, mirror};
use crate::plan::CARDS;

/// Engines do several things to a link, one after the other; they are passed on together.
const GATHER: Duration = Duration::from_millis(5);

/// When a change that could not be followed is tried again, and how often without another change.
const RETRY: Duration = Duration::from_secs(1);
const RETRIES: u32 = 10;

/// The container's network.
pub struct Network {
    host: Arc<Mutex<Namespace>>,
    /// Whether the namespace outlives the container.
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
    /// What each card is connected to.
    cards: [Option<Wired>; CARDS],
    resolver: bool,
    /// The container has ended.
    closed: bool,
}

/// A link that a card is connected to.
struct Wired {
    link: Link,
    /// How the guest finds the card.
    card: Card,
    /// The guest has done all that it was told. Otherwise it is told from the beginning.
    done: bool,
}

/// What is to be done.
#[derive(Debug, Default)]
struct Steps {
    /// Cards whose links are gone.
    gone: Vec<usize>,
    /// Cards and what their links are now.
    changed: Vec<(usize, Link)>,
    /// Cards that are free, for links that are new.
    new: Vec<(usize, Link)>,
}

/// The same with taps for what is new.
struct Found {
    gone: Vec<usize>,
    changed: Vec<(usize, Link)>,
    new: Vec<(usize, Link, OwnedFd)>,
    resolver: bool,
}

impl Network {
    /// That of the namespace that this process is in. Before it leaves the host's files.
    pub fn open(proc: &OwnedFd, stays: bool, resolver: Rc<Announcement>) -> anyhow::Result<Self> {
        let namespace =
            Namespace::open(network::open_devices(), proc.try_clone().context("copy the descriptor of /proc")?, CARDS)?;
        let changes = Changes::open().context("watch the network")?;
        let change = changes.as_fd().try_clone_to_owned().context("watch the network")?;
        // SAFETY: the descriptor is owned by what watches it, and stays the same until that is dropped.
        let change = unsafe { AsyncFd::register(change) }.map_err(std::io::Error::from)?;
        Ok(Self {
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
    pub async fn prepare(&self) -> anyhow::Result<()> {
        let found = self.find([const { None }; CARDS]).await?;
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
        let found = match early {
            Some(found) => found,
            None => self.find(state.links()).await?,
        };
        let begins = found.resolver && !state.resolver;
        if found.is_nothing() && !begins && state.all_done() {
            return Ok(());
        }
        let mut request = SetNetworkRequest { resolver: found.resolver, ..Default::default() };
        let plugged = self.plug(vm, &mut state, (found.gone, found.new), &mut request).await;
        state.tell(found.changed, &mut request);
        agent.set_network(request).await?;
        state.cards.iter_mut().flatten().for_each(|wired| wired.done = true);
        state.resolver = found.resolver;
        if begins {
            self.resolver.announce();
        }
        plugged
    }

    /// Disconnects cards and connects others. One that cannot be connected leaves its link as it was.
    async fn plug(
        &self,
        vm: &Vm,
        state: &mut State,
        (gone, new): (Vec<usize>, Vec<(usize, Link, OwnedFd)>),
        request: &mut SetNetworkRequest,
    ) -> anyhow::Result<()> {
        let mut result = Ok(());
        for card in gone {
            result = result.and(vm.unplug(card).await);
            request.unplugged.extend(state.cards.get_mut(card).and_then(Option::take).map(|wired| wired.link.index));
        }
        for (number, link, tap) in new {
            match (vm.plug(number, tap).await, state.cards.get_mut(number)) {
                (Ok(card), Some(place)) => {
                    let card = Card { index: link.index, name: link.name.clone(), ..card };
                    *place = Some(Wired { link, card, done: false });
                }
                (plugged, _) => {
                    self.on_host(move |host| host.unwire(link.index)).await?;
                    result = result.and(plugged.map(drop).with_context(|| format!("connect link {}", link.name)));
                }
            }
        }
        result
    }

    /// Follows changes, for ever.
    pub async fn follow(self: Rc<Self>, machine: Rc<Machine>, agent: Agent) {
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
            match machine.ask(self.update(&machine.vm, &agent)).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    log::warning(&format!("follow a change of the network: {error:#}"));
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

    /// The container has ended: a namespace that stays is as it was.
    pub async fn end(&self) {
        self.state.lock().await.closed = true;
        if self.stays
            && let Err(error) = self.on_host(Namespace::unwire_all).await
        {
            log::warning(&format!("clean up the container's network: {error:#}"));
        }
    }

    async fn find(&self, cards: [Option<Link>; CARDS]) -> anyhow::Result<Found> {
        self.on_host(move |host| find(host, &cards)).await
    }

    async fn on_host<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Namespace) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let host = Arc::clone(&self.host);
        let work = move || work(&mut host.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(work).await?
    }
}

fn find(host: &mut Namespace, cards: &[Option<Link>; CARDS]) -> anyhow::Result<Found> {
    let links = host.scan()?;
    let resolver = host.resolver()?;
    let steps = Steps::between(cards, links.clone())?;
    for index in steps.gone.iter().filter_map(|&card| cards.get(card)?.as_ref()).map(|link| link.index) {
        host.unwire(index)?;
    }
    steps.changed.iter().try_for_each(|(_, link)| host.follow(link))?;
    let mut new = Vec::new();
    let wired = wire(host, steps.new, &mut new).and_then(|()| {
        let mut keep = links.iter().filter(|_| resolver);
        keep.try_for_each(|link| host.keep_replies(link))
    });
    if let Err(error) = wired {
        // All or none, or the next try would find them in use.
        for (_, link, _) in new {
            host.unwire(link.index)?;
        }
        return Err(error);
    }
    Ok(Found { gone: steps.gone, changed: steps.changed, new, resolver })
}

fn wire(host: &mut Namespace, links: Vec<(usize, Link)>, done: &mut Vec<(usize, Link, OwnedFd)>) -> anyhow::Result<()> {
    for (card, link) in links {
        let tap = host.wire(&link)?;
        done.push((card, link, tap));
    }
    Ok(())
}

impl Found {
    fn is_nothing(&self) -> bool {
        self.gone.is_empty() && self.changed.is_empty() && self.new.is_empty()
    }
}

impl Steps {
    fn between(cards: &[Option<Link>; CARDS], links: Vec<Link>) -> anyhow::Result<Self> {
        let mut steps = Self::default();
        let count = links.len();
        for (card, known) in cards.iter().enumerate() {
            let Some(known) = known else { continue };
            match links.iter().find(|link| link.index == known.index) {
                None => steps.gone.push(card),
                Some(link) if link != known => steps.changed.push((card, link.clone())),
                Some(_) => {}
            }
        }
        let is_known = |link: &Link| cards.iter().flatten().any(|known| known.index == link.index);
        let is_free = |card: &usize| steps.gone.contains(card) || cards.get(*card).is_some_and(Option::is_none);
        let mut free: Vec<usize> = (0..CARDS).filter(is_free).rev().collect();
        for link in links.into_iter().filter(|link| !is_known(link)) {
            let card = free.pop().with_context(|| {
                format!("link {}: the network namespace has {count} links, and a VM at most {CARDS} cards", link.name)
            })?;
            steps.new.push((card, link));
        }
        Ok(steps)
    }
}

impl State {
    fn links(&self) -> [Option<Link>; CARDS] {
        self.cards.each_ref().map(|wired| wired.as_ref().map(|wired| wired.link.clone()))
    }

    fn all_done(&self) -> bool {
        self.cards.iter().flatten().all(|wired| wired.done)
    }

    /// What the guest has to do for cards that are new, and for links that have changed.
    fn tell(&mut self, changed: Vec<(usize, Link)>, request: &mut SetNetworkRequest) {
        let mut before = Vec::new();
        for (card, link) in changed {
            let Some(Some(wired)) = self.cards.get_mut(card) else { continue };
            let old = std::mem::replace(&mut wired.link, link);
            before.extend(wired.done.then_some((card, old)));
        }
        self.cards.iter().flatten().filter(|wired| !wired.done).for_each(|wired| wired.begin(request));
        for (card, old) in before {
            let Some(Some(wired)) = self.cards.get_mut(card) else { continue };
            request.sysctls.extend(ipv6_switch(old.no_ipv6, &wired.link));
            request.messages.extend(mirror(Some(&old), &wired.link));
            // Until the guest has answered.
            wired.done = false;
        }
    }
}

impl Wired {
    fn begin(&self, request: &mut SetNetworkRequest) {
        request.plugged.push(Card { name: self.link.name.clone(), ..self.card.clone() });
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

    fn cards(indexes: &[u32]) -> [Option<Link>; CARDS] {
        std::array::from_fn(|card| indexes.get(card).filter(|&&index| index > 0).map(|&index| link(index, 1500)))
    }

    /// Cards whose links are gone and changed, and what is new.
    type Seen = (Vec<usize>, Vec<usize>, Vec<(usize, u32)>);

    fn between(indexes: &[u32], links: Vec<Link>) -> anyhow::Result<Seen> {
        let steps = Steps::between(&cards(indexes), links)?;
        let changed = steps.changed.iter().map(|(card, _)| *card).collect();
        Ok((steps.gone, changed, steps.new.iter().map(|(card, link)| (*card, link.index)).collect()))
    }

    #[test]
    fn links_are_told_apart_by_their_numbers() {
        let as_before = || vec![link(2, 1500), link(5, 1500)];
        assert_eq!(between(&[2, 5], as_before()).unwrap(), (vec![], vec![], vec![]));
        assert_eq!(between(&[], as_before()).unwrap(), (vec![], vec![], vec![(0, 2), (1, 5)]));
        let mixed = vec![link(5, 1400), link(7, 1500)];
        assert_eq!(between(&[2, 5], mixed).unwrap(), (vec![0], vec![1], vec![(0, 7)]));
        assert_eq!(between(&[0, 5], vec![link(5, 1500), link(6, 1500)]).unwrap(), (vec![], vec![], vec![(0, 6)]));
        assert_eq!(between(&[2, 5], vec![]).unwrap(), (vec![0, 1], vec![], vec![]));
    }

    #[test]
    fn more_links_than_cards_are_refused() {
        let links = |count: usize| (2..).take(count).map(|index| link(index, 1500)).collect::<Vec<_>>();
        assert!(between(&[], links(CARDS)).is_ok());
        let text = between(&[2], links(CARDS + 1)).unwrap_err().to_string();
        assert_eq!(text, "link eth6: the network namespace has 5 links, and a VM at most 4 cards");
    }
}
