//! The host's side of a container's network: what the monitor does in the container's network namespace.
//!
//! ```text
//!  engine's link (veth, macvlan, …) ──ingress: u32 + mirred──▶ tap of ours ◀──▶ the guest's network device,
//!                                   ◀──u32 + mirred: ingress──                  with the link's name, number and addresses
//! ```
//!
//! An engine's link is never changed: it only gets an ingress qdisc, and that is taken off again. What is configured on it is
//! repeated in the guest. The monitor sees neither /dev nor /proc any more; it works with descriptors opened before.

mod changes;
mod files;
mod links;
mod mirror;
mod netlink;
mod place;
mod resolver;
mod tap;
mod traffic;
mod uplink;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};

pub use changes::Changes;
pub use files::Files;
pub use links::Link;
pub use mirror::mirror;
use netlink::Socket;
pub use place::Place;
use place::inside;
pub use uplink::make as make_uplink;

use crate::log;
use crate::state::State;

/// What a network device of the guest can have.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// How often is looked at links that change all the time.
const LOOKS: usize = 10;

/// A container's network namespace and what was done in it. Every call belongs on a thread that is in the namespace, and
/// blocks. When this is dropped what was done stays, but for the taps: see [`Namespace::unwire_all`].
pub struct Namespace {
    socket: Socket,
    files: Arc<Files>,
    /// The links as they were last.
    seen: Vec<Link>,
    wired: BTreeMap<u32, Wire>,
    /// The ports that the host's sockets had before some were set apart.
    ports: Option<String>,
}

/// One link that leads to the guest.
struct Wire {
    tap: u32,
    /// Whether it had an ingress qdisc before.
    had_qdisc: bool,
    /// Whether the host gets answers to its own questions.
    replies: bool,
}

impl Namespace {
    /// The calling thread's.
    ///
    /// # Errors
    /// The kernel gives no netlink socket.
    pub fn open(files: Arc<Files>) -> anyhow::Result<Self> {
        let socket = Socket::open().context("open a netlink socket")?;
        Ok(Self { socket, files, seen: Vec::new(), wired: BTreeMap::new(), ports: None })
    }

    /// The links that a guest can have, by their numbers, with all that is configured on them. Where they are not as they
    /// were the last time, two looks must agree: one takes the kernel several lists, which somebody may change between
    /// them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn scan(&mut self) -> anyhow::Result<Vec<Link>> {
        settle(&mut self.seen, || links::scan(&mut self.socket))?;
        Ok(self.seen.clone())
    }

    /// Leads a link's packets to a new tap, and the tap's to the link. The descriptor is the guest's network device's;
    /// when it is closed the tap is gone.
    ///
    /// # Errors
    /// The link cannot be wired; then it is as it was.
    pub fn wire(&mut self, link: &Link) -> anyhow::Result<OwnedFd> {
        self.check(link)?;
        let what = || format!("connect link {} to the VM", link.name);
        let devices = self.files.devices().with_context(what)?;
        let tap = tap::make(devices, &self.socket).with_context(what)?;
        tap::set_up(&mut self.socket, tap.index, link).context("set its tap up").with_context(what)?;
        let had_qdisc = traffic::join(&mut self.socket, link.index, tap.index).with_context(what)?;
        self.wired.insert(link.index, Wire { tap: tap.index, had_qdisc, replies: false });
        Ok(tap.file)
    }

    fn check(&self, link: &Link) -> anyhow::Result<()> {
        check_mtu(link)?;
        if self.wired.contains_key(&link.index) {
            bail!("link {} leads to the VM already", link.name);
        }
        Ok(())
    }

    /// Follows a wired link whose settings have changed.
    ///
    /// # Errors
    /// The guest's network device cannot have such settings.
    pub fn follow(&mut self, link: &Link) -> anyhow::Result<()> {
        check_mtu(link)?;
        let Some(wire) = self.wired.get(&link.index) else { bail!("link {} does not lead to the VM", link.name) };
        tap::set_up(&mut self.socket, wire.tap, link).with_context(|| format!("set up the tap of link {}", link.name))
    }

    /// Undoes [`Namespace::wire`], and [`Namespace::keep_replies`]. A link that is gone, or was never wired, is no error.
    ///
    /// # Errors
    /// Something of it stays.
    pub fn unwire(&mut self, index: u32) -> anyhow::Result<()> {
        let Some(wire) = self.wired.remove(&index) else { return Ok(()) };
        // All of it is tried, whatever becomes of one.
        let parted = traffic::part(&mut self.socket, index, Some(wire.tap), wire.had_qdisc);
        let removed = tap::remove(&mut self.socket, wire.tap);
        let given = self.give_ports_back();
        parted.with_context(|| format!("take the filters off link {index}"))?;
        removed.with_context(|| format!("remove the tap of link {index}"))?;
        given
    }

    /// Undoes everything.
    ///
    /// # Errors
    /// The first thing that stays.
    pub fn unwire_all(&mut self) -> anyhow::Result<()> {
        let links: Vec<u32> = self.wired.keys().copied().collect();
        let results: Vec<_> = links.into_iter().map(|link| self.unwire(link)).collect();
        results.into_iter().collect()
    }

    /// Whether docker's name server is in the namespace.
    ///
    /// # Errors
    /// The sockets cannot be listed.
    pub fn resolver(&self) -> anyhow::Result<bool> {
        resolver::is_there(&self.files.proc)
    }

    /// Lets the host have the answers to what a name server in the namespace asks by a wired link. More than once is as
    /// good as once.
    ///
    /// # Errors
    /// The link is not wired, or the kernel cannot do it; then nothing has changed.
    pub fn keep_replies(&mut self, link: &Link) -> anyhow::Result<()> {
        let Some(wire) = self.wired.get_mut(&link.index) else { bail!("link {} does not lead to the VM", link.name) };
        if wire.replies {
            return Ok(());
        }
        traffic::keep(&mut self.socket, link.index, wire.tap)
            .with_context(|| format!("let the host's resolver have its answers from link {}", link.name))?;
        wire.replies = true;
        if self.ports.is_none() {
            match resolver::set_apart(&self.files.proc) {
                Ok(old) => self.ports = Some(old),
                Err(error) => {
                    wire.replies = false;
                    // The error at hand says more than one of cleaning up.
                    let _ = traffic::give(&mut self.socket, link.index);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn give_ports_back(&mut self) -> anyhow::Result<()> {
        if self.wired.values().any(|wire| wire.replies) {
            return Ok(());
        }
        self.ports.take().map_or(Ok(()), |old| resolver::give_back(&self.files.proc, &old))
    }
}

/// Looks until it is as it was seen before.
fn settle<T: PartialEq>(seen: &mut T, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<()> {
    for _ in 0..LOOKS {
        let before = std::mem::replace(seen, look()?);
        if *seen == before {
            break;
        }
    }
    Ok(())
}

/// Takes what a monitor that could not has left on the links of the calling thread's namespace: filters of ours that lead
/// nowhere any more. Everything else stays.
///
/// # Errors
/// The first link that keeps them.
pub fn clean() -> anyhow::Result<()> {
    let mut socket = Socket::open().context("open a netlink socket")?;
    let busy = traffic::busy(&mut socket).context("list the qdiscs")?;
    let mut part = |link: u32| {
        let done = traffic::part(&mut socket, link, None, false);
        done.with_context(|| format!("take the filters off link {link}"))
    };
    let results: Vec<_> = busy.into_iter().map(&mut part).collect();
    results.into_iter().collect()
}

/// The ports that the host's sockets in a namespace have, to be noted before a monitor may set some apart.
pub fn ports(namespace: &Path) -> Option<String> {
    inside(File::open(namespace).ok()?, || resolver::ports(&crate::sockets::open_proc()?)).ok()
}

/// The same in the namespace of a container that has ended and did not make it. Where that is gone, so is all that was
/// in it.
pub fn clean_after(state: &State) {
    let Some(namespace) = state.network.as_ref().and_then(|path| File::open(path).ok()) else { return };
    let ports = state.ports.clone().unwrap_or_else(|| resolver::DEFAULT.to_owned());
    let there = move || {
        clean()?;
        // Unless the monitor has done so.
        resolver::give_back(&crate::sockets::open_proc()?, &ports)
    };
    if let Err(error) = inside(namespace, there) {
        log::warning(&format!("clean up the network namespace of container {}: {error:#}", state.id));
    }
}

fn check_mtu(link: &Link) -> anyhow::Result<()> {
    if !MTU.contains(&link.mtu) {
        let (least, most) = (MTU.start(), MTU.end());
        bail!("link {} has an MTU of {}: a VM's network device can have {least} to {most}", link.name, link.mtu);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
