//! Attaches links of a network namespace to the VM's network devices.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};

use super::files::Files;
use super::links::{self, Link};
use super::messages::{NewTap, Sight};
use super::netlink::Socket;
use super::{resolver, tap, traffic};
use crate::plan::NICS;

/// Range of MTUs that a network device of the guest can have.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// Most looks at links that change all the time.
const LOOKS: usize = 10;

/// Links of a container's network namespace, and which of them are attached to the VM. Callers are on a thread in that namespace;
/// every call may block. Dropping it leaves everything attached: see [`AttachedLinks::detach_all`].
pub struct AttachedLinks {
    pub(super) socket: Socket,
    pub(super) files: Files,
    /// Links as last seen.
    seen: Vec<Link>,
    /// Attached links by their index.
    attached: BTreeMap<u32, Attachment>,
    /// Port range of the host's sockets before [`resolver::set_apart`].
    pub(super) ports: Option<String>,
}

/// An attached link.
struct Attachment {
    /// Index of its tap.
    tap: u32,
    /// The MTU that its tap was set up for.
    mtu: u32,
    /// Whether the link had an ingress qdisc before.
    had_qdisc: bool,
    /// Whether replies to the host's own resolver stay on the host.
    replies: bool,
}

impl AttachedLinks {
    /// Opens the calling thread's namespace, with no link attached.
    ///
    /// # Errors
    /// The kernel gives no netlink socket.
    pub fn open(files: Files) -> anyhow::Result<Self> {
        let socket = Socket::open().context("open a netlink socket")?;
        Ok(Self { socket, files, seen: Vec::new(), attached: BTreeMap::new(), ports: None })
    }

    /// Looks at the namespace as [`Request::Look`](super::messages::Request::Look) says. Links that are new are attached all
    /// or none.
    ///
    /// # Errors
    /// The new links are more than there are NICs, or one cannot be attached, or followed.
    pub fn look(&mut self, known: &[u32], free: usize) -> anyhow::Result<Sight> {
        let links = self.scan()?;
        let resolver = self.resolver()?;
        let is_there = |index: &u32| links.iter().any(|link| link.index == *index);
        let stale = |index: &u32| !known.contains(index) || !is_there(index);
        let stale: Vec<u32> = self.attached.keys().copied().filter(stale).collect();
        // Their NICs become free.
        let gone = known.iter().filter(|index| !is_there(index)).count();
        stale.into_iter().try_for_each(|index| self.detach(index))?;
        let (old, new): (Vec<_>, Vec<_>) = links.iter().partition(|link| self.attached.contains_key(&link.index));
        if new.len() > free.saturating_add(gone) || links.len() > NICS {
            bail!(too_many(&new, links.len()));
        }
        old.into_iter().try_for_each(|link| self.follow(link))?;
        let mut taps = Vec::new();
        let keep = links.iter().filter(|_| resolver);
        let attached = new.into_iter().try_for_each(|link| {
            let tap = self.attach(link)?.into();
            taps.push(NewTap { link: link.index, tap });
            Ok(())
        });
        if let Err(error) = attached.and_then(|()| keep.into_iter().try_for_each(|link| self.keep_replies(link))) {
            // All or none, or the next try would find them in use.
            taps.iter().try_for_each(|new| self.detach(new.link))?;
            return Err(error);
        }
        Ok(Sight { links, taps, resolver })
    }

    /// Lists the links that a guest can have, by index, with all that is configured on them. If they differ from the last scan, two
    /// looks must agree: for one look the kernel makes several lists, and somebody may change the links between them.
    ///
    /// # Errors
    /// The kernel refuses a list.
    pub(super) fn scan(&mut self) -> anyhow::Result<Vec<Link>> {
        settle(&mut self.seen, || links::scan(&mut self.socket))?;
        Ok(self.seen.clone())
    }

    /// Attaches a link: redirects its packets to a new tap, and the tap's to the link. Returns the tap's descriptor, for the guest's
    /// network device; closing it removes the tap.
    ///
    /// # Errors
    /// The link cannot be attached; then it is as it was.
    pub(super) fn attach(&mut self, link: &Link) -> anyhow::Result<OwnedFd> {
        check_mtu(link)?;
        if self.attached.contains_key(&link.index) {
            bail!("link {} leads to the VM already", link.name);
        }
        let what = || format!("connect link {} to the VM", link.name);
        let devices = self.files.devices().with_context(what)?;
        let tap = tap::make(devices, &self.socket).with_context(what)?;
        tap::set_up(&mut self.socket, tap.index, link).context("set its tap up").with_context(what)?;
        let had_qdisc = traffic::join(&mut self.socket, link.index, tap.index).with_context(what)?;
        let attachment = Attachment { tap: tap.index, mtu: link.mtu, had_qdisc, replies: false };
        self.attached.insert(link.index, attachment);
        Ok(tap.file)
    }

    /// Follows an attached link whose settings have changed.
    ///
    /// # Errors
    /// The guest's network device cannot have such settings.
    pub(super) fn follow(&mut self, link: &Link) -> anyhow::Result<()> {
        check_mtu(link)?;
        let Some(attachment) = self.attached.get_mut(&link.index) else {
            bail!("link {} does not lead to the VM", link.name)
        };
        if attachment.mtu != link.mtu {
            tap::set_up(&mut self.socket, attachment.tap, link)
                .with_context(|| format!("set up the tap of link {}", link.name))?;
            attachment.mtu = link.mtu;
        }
        Ok(())
    }

    /// Undoes [`AttachedLinks::attach`] and [`AttachedLinks::keep_replies`]. A link that is gone or not attached is no error.
    ///
    /// # Errors
    /// Something of the attachment stays.
    pub(super) fn detach(&mut self, index: u32) -> anyhow::Result<()> {
        let Some(attachment) = self.attached.remove(&index) else { return Ok(()) };
        // All of it is tried, whatever becomes of one.
        let parted = traffic::part(&mut self.socket, index, Some(attachment.tap), attachment.had_qdisc);
        let removed = tap::remove(&mut self.socket, attachment.tap);
        let given = self.give_ports_back();
        parted.with_context(|| format!("take the filters off link {index}"))?;
        removed.with_context(|| format!("remove the tap of link {index}"))?;
        given
    }

    /// Detaches all links.
    ///
    /// # Errors
    /// Names the first thing that stays.
    pub fn detach_all(&mut self) -> anyhow::Result<()> {
        let links: Vec<u32> = self.attached.keys().copied().collect();
        let results: Vec<_> = links.into_iter().map(|link| self.detach(link)).collect();
        results.into_iter().collect()
    }

    /// Whether Docker's resolver is in the namespace.
    ///
    /// # Errors
    /// The sockets cannot be listed.
    pub(super) fn resolver(&self) -> anyhow::Result<bool> {
        resolver::is_there(&self.files.sockets)
    }

    /// Keeps replies to the resolver in the namespace on the host, when they arrive by an attached link. Idempotent.
    ///
    /// # Errors
    /// The link is not attached, or the kernel refuses; then nothing has changed.
    pub(super) fn keep_replies(&mut self, link: &Link) -> anyhow::Result<()> {
        let Some(attachment) = self.attached.get_mut(&link.index) else {
            bail!("link {} does not lead to the VM", link.name)
        };
        if attachment.replies {
            return Ok(());
        }
        traffic::keep(&mut self.socket, link.index, attachment.tap)
            .with_context(|| format!("let the host's resolver have its answers from link {}", link.name))?;
        attachment.replies = true;
        if self.ports.is_none() {
            match resolver::set_apart(&self.files.range) {
                Ok(old) => self.ports = Some(old),
                Err(error) => {
                    attachment.replies = false;
                    // The first error says more than one of cleaning up.
                    let _ = traffic::give(&mut self.socket, link.index);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn give_ports_back(&mut self) -> anyhow::Result<()> {
        if self.attached.values().any(|attached| attached.replies) {
            return Ok(());
        }
        self.ports.take().map_or(Ok(()), |old| resolver::give_back(&self.files.range, &old))
    }
}

/// Looks until two looks agree.
pub(super) fn settle<T: PartialEq>(seen: &mut T, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<()> {
    for _ in 0..LOOKS {
        let before = std::mem::replace(seen, look()?);
        if *seen == before {
            break;
        }
    }
    Ok(())
}

fn too_many(new: &[&Link], count: usize) -> String {
    let name = new.last().map_or("", |link| &link.name);
    format!(
        "link {name}: the network namespace has {count} links, and a VM at most {NICS} NICs for all of its containers"
    )
}

fn check_mtu(link: &Link) -> anyhow::Result<()> {
    if !MTU.contains(&link.mtu) {
        let (least, most) = (MTU.start(), MTU.end());
        bail!("link {} has an MTU of {}: a VM's network device can have {least} to {most}", link.name, link.mtu);
    }
    Ok(())
}
