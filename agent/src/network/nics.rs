//! What network a container has.
//!
//! ```text
//!  guest's own namespace            the container's
//!  eth0, eth1, … as they come ────▶ name and index as on the host, then addresses and routes
//!  card0, card1, … once used  ◀──── also when it ends: they are for all containers
//! ```
//!
//! The guest decides nothing here: the host sends what it found in the namespace that the engine set up. Only how many
//! queues a card uses depends on the CPUs, which come up later.

use crate::container::table::Containers;
use crate::error::{Context, Error, Result};
use crate::network::channels;
use crate::network::netlink::Netlink;
use crate::network::resolver::Resolver;
use crate::process::in_namespaces;
use crate::sys;
use protocol::{Card, KeyValue, SetNetworkRequest};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// virtio-mmio devices that the kernel was told of by number.
const DEVICES: &str = "/sys/devices/virtio-mmio-cmdline";
/// Where it is told of more.
const PLUG: &str = "/sys/module/virtio_mmio/parameters/device";

/// How long a card may take to come back that a container has moved on, to a namespace that ends with it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What containers have of the cards, by their ids.
#[derive(Default)]
pub struct Networks {
    table: Mutex<HashMap<String, Network>>,
    /// CPUs, once those that come up late have.
    cpus: AtomicU32,
}

/// A container's network that the host has filled.
struct Network {
    /// A socket in it, good also when nobody lives there any more.
    netlink: Netlink,
    /// Its interfaces that are cards: index and number of the device.
    cards: BTreeMap<u32, u32>,
}

/// Does what is asked for. What the kernel refuses does not keep the rest from being done; the first of it is the error.
pub fn set(containers: &Containers, networks: &Networks, request: &SetNetworkRequest) -> Result<()> {
    let id = &request.container_id;
    let (init, shape) = (containers.living(id)?, containers.shape(id)?);
    if !shape.namespaces.makes(libc::CLONE_NEWNET) {
        return Err(Error::precondition(format!("container {id} has no network namespace of its own")));
    }
    let stay = [(&init.pidfd, libc::CLONE_NEWNET as u64)];
    let mut table = networks.lock();
    let network = match table.entry(id.clone()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Network::of(&stay)?),
    };
    network.take_back(&request.unplugged)?;
    let there = open_namespace(&format!("/proc/{}/ns/net", init.pid))?;
    let (plugged, come) = network.hand_over(&request.plugged, &there)?;
    let has_come = |sysctl: &&KeyValue| interface_of(&sysctl.key).is_some_and(|name| come.contains(&name));
    let late = shape.late_sysctls.iter().filter(has_come);
    let sysctls: Vec<&KeyValue> = request.sysctls.iter().chain(late).collect();
    let written = match sysctls.is_empty() {
        true => Ok(()),
        false => in_namespaces::during(&stay, || all(&sysctls, |sysctl| write_sysctl(sysctl)))?
            .context(|| "enter the container's network")?,
    };
    let executed = all(&request.messages, |message| execute(&network.netlink, message));
    let resolver = serve_resolver(containers, request, &stay);
    let new = request.plugged.iter().filter(|card| come.contains(&card.name.as_str())).map(|card| card.index);
    networks.raise(new.map(|index| (&network.netlink, index)));
    plugged.and(written).and(executed).and(resolver)
}

impl Networks {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Network>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All CPUs are up, so many: every card has as many queues to use, if it can.
    pub fn use_cpus(&self, cpus: u32) {
        self.cpus.store(cpus, Ordering::Relaxed);
        let table = self.lock();
        let cards = table.values().flat_map(|network| network.cards.keys().map(|index| (&network.netlink, *index)));
        self.raise(cards);
    }

    fn raise<'a>(&self, cards: impl Iterator<Item = (&'a Netlink, u32)>) {
        let cpus = self.cpus.load(Ordering::Relaxed);
        if cpus > 1 {
            channels::raise(&cards.collect::<Vec<_>>(), cpus);
        }
    }

    /// Takes back what cards a container has whose processes are gone.
    pub async fn leave(&self, id: &str) {
        let Some(mut network) = self.lock().remove(id) else { return };
        let (indexes, devices): (Vec<u32>, Vec<u32>) = network.cards.clone().into_iter().unzip();
        if let Err(error) = network.take_back(&indexes) {
            crate::log::error(&error.message);
        }
        drop(network);
        let come_back = async {
            while !devices.iter().all(|device| matches!(interface(&place(*device)), Ok(Some(_)))) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, come_back).await.is_err() {
            crate::log::error(&format!("network cards that container {id} had did not come back"));
        }
    }
}

impl Network {
    fn of(stay: &[in_namespaces::Stay<'_>]) -> Result<Self> {
        let opened = in_namespaces::during(stay, Netlink::open)?.and_then(|opened| opened);
        let netlink = opened.context(|| "open netlink socket in the container's network")?;
        Ok(Self { netlink, cards: BTreeMap::new() })
    }

    /// Interfaces that the container has removed or renumbered itself are not missed.
    fn take_back(&mut self, unplugged: &[u32]) -> Result<()> {
        let home = open_namespace("/proc/self/ns/net")?;
        for index in unplugged {
            if self.cards.remove(index).is_none() {
                continue;
            }
            // Out of the way of those that the kernel is yet to name; those of other containers have names already.
            if let Err(error) = self.netlink.move_link(*index, home.as_fd(), ("card%d", 0)) {
                crate::log::debug(|| error.message);
            }
        }
        Ok(())
    }

    /// Makes cards interfaces of the container's; also gives the names of those that were none before.
    fn hand_over<'a>(&mut self, cards: &'a [Card], there: &OwnedFd) -> Result<(Result<()>, Vec<&'a str>)> {
        let (own, mut come) = (Netlink::open().context(|| "open netlink socket")?, Vec::new());
        let done = all(cards, |card| {
            let Some(index) = self.at_home(card)? else { return Ok(()) };
            own.move_link(index, there.as_fd(), (&card.name, card.index))?;
            self.cards.insert(card.index, card.device);
            come.push(card.name.as_str());
            Ok(())
        });
        Ok((done, come))
    }

    /// Index of a card's interface in the guest's own namespace; none if it is where it is to go, or the container has
    /// moved it from there.
    fn at_home(&self, card: &Card) -> Result<Option<u32>> {
        let device = place(card.device);
        if !device.exists() {
            sys::write_file(PLUG, &card.plug).context(|| format!("tell the guest's kernel of device {}", card.plug))?;
        }
        match interface(&device)? {
            None if self.cards.get(&card.index) != Some(&card.device) => Err(Error::precondition(format!(
                "the network card for interface {} is still where another container has moved it",
                card.name
            ))),
            index => Ok(index),
        }
    }
}

/// The directory of a device.
fn place(device: u32) -> PathBuf {
    Path::new(DEVICES).join(format!("virtio-mmio.{device}"))
}

/// Tries each; the first failure.
fn all<'a, T>(these: &'a [T], act: impl FnMut(&'a T) -> Result<()>) -> Result<()> {
    these.iter().map(act).fold(Ok(()), Result::and)
}

fn serve_resolver(
    containers: &Containers,
    request: &SetNetworkRequest,
    stay: &[in_namespaces::Stay<'_>],
) -> Result<()> {
    if !request.resolver {
        return Ok(());
    }
    containers.serve_resolver(&request.container_id, || {
        in_namespaces::during(stay, Resolver::bind)?
            .and_then(|bound| bound)
            .context(|| "serve the resolver of the container's network (it takes nf_tables in the guest's kernel)")
    })
}

/// Whether a sysctl is one interface's: it may come later than the container.
pub fn is_of_interface(path: &str) -> bool {
    interface_of(path).is_some()
}

fn interface_of(path: &str) -> Option<&str> {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["net", "ipv4" | "ipv6", "conf" | "neigh", interface, ..] => {
            (!["all", "default", "lo"].contains(interface)).then_some(*interface)
        }
        _ => None,
    }
}

/// In the caller's namespace. An interface that there is not yet has none.
fn write_sysctl(sysctl: &KeyValue) -> Result<()> {
    match sys::write_file(format!("/proc/sys/{}", sysctl.key), &sysctl.value) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        written => written.context(|| format!("write sysctl {} = {:?}", sysctl.key, sysctl.value)),
    }
}

/// Before the container starts: an interface that has not come is a mistake of whoever set its sysctls.
pub fn check_sysctls(containers: &Containers, id: &str) -> Result<()> {
    let late = &containers.shape(id)?.late_sysctls;
    if late.is_empty() {
        return Ok(());
    }
    let init = containers.living(id)?;
    let is_missing = |sysctl: &&KeyValue| !Path::new(&format!("/proc/sys/{}", sysctl.key)).exists();
    let missing = in_namespaces::during(&[(&init.pidfd, libc::CLONE_NEWNET as u64)], || late.iter().find(is_missing))?;
    match missing.context(|| "enter the container's network")? {
        Some(sysctl) => Err(Errno::NOENT).context(|| format!("write sysctl {} = {:?}", sysctl.key, sysctl.value)),
        None => Ok(()),
    }
}

fn open_namespace(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(|| format!("open {path}"))
}

/// Index of the interface that the kernel has made of a virtio-mmio device, if it is in the guest's own namespace.
fn interface(device: &Path) -> Result<Option<u32>> {
    let virtio = child(device, "virtio");
    let virtio =
        virtio.ok_or_else(|| Error::internal(format!("the guest's kernel has no driver for {}", device.display())))?;
    let Some(interface) = child(&virtio.join("net"), "") else { return Ok(None) };
    let path = interface.join("ifindex");
    let text = std::fs::read_to_string(&path).context(|| format!("read {}", path.display()))?;
    text.trim().parse().map(Some).map_err(|_| Error::internal(format!("{} is no number: {text}", path.display())))
}

fn child(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(directory).ok()?.flatten();
    entries.find(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path())
}

fn execute(theirs: &Netlink, message: &[u8]) -> Result<()> {
    let kind = message.get(4..6).and_then(<[u8]>::first_chunk).map_or(0, |kind| u16::from_ne_bytes(*kind));
    let family = message.get(16).copied().map_or(0, libc::c_int::from);
    let of_link = [libc::RTM_NEWLINK, libc::RTM_SETLINK].contains(&kind);
    let deletes = [libc::RTM_DELADDR, libc::RTM_DELROUTE, libc::RTM_DELNEIGH].contains(&kind);
    let mut done = theirs.execute(message);
    if done == Err(Errno::NETUNREACH) && kind == libc::RTM_NEWROUTE && family == libc::AF_INET {
        // A route stays when the way to its gateway goes, and cannot be made again like that.
        done = theirs.execute(&to_any_gateway(message));
    }
    match done {
        // The container may have done it itself, and what goes takes along what belongs to it.
        Err(Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL) if deletes => Ok(()),
        Err(Errno::EXIST) if !of_link => Ok(()),
        // The container has turned IPv6 off.
        Err(Errno::ACCESS | Errno::HOSTUNREACH | Errno::NETUNREACH) if family == libc::AF_INET6 => Ok(()),
        done => done.context(|| format!("set up the container's network (rtnetlink request of type {kind})")),
    }
}

/// The same `RTM_NEWROUTE` with `RTNH_F_ONLINK`: the kernel does not look for a way to the gateway.
fn to_any_gateway(route: &[u8]) -> Vec<u8> {
    const FLAGS: std::ops::Range<usize> = 24..28;
    /// Of `linux/rtnetlink.h`.
    const RTNH_F_ONLINK: u32 = 4;
    let mut route = route.to_vec();
    if let Some(flags) = route.get_mut(FLAGS).and_then(|flags| flags.first_chunk_mut()) {
        *flags = (u32::from_ne_bytes(*flags) | RTNH_F_ONLINK).to_ne_bytes();
    }
    route
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_interfaces_are_told_from_others() {
        for path in ["net/ipv4/conf/eth0/rp_filter", "net/ipv6/neigh/eth1/retrans_time_ms"] {
            assert!(is_of_interface(path), "{path}");
        }
        for path in ["net/ipv4/conf/all/rp_filter", "net/ipv6/conf/lo/mtu", "net/core/somaxconn", "net/ipv4/ip_forward"]
        {
            assert!(!is_of_interface(path), "{path}");
        }
    }

    #[test]
    fn all_are_tried_and_the_first_failure_is_told() {
        let tried = std::cell::Cell::new(0);
        let result = all(&[1, 2, 3], |number| {
            tried.set(tried.get() + 1);
            if *number == 1 { Ok(()) } else { Err(Error::internal(format!("number {number}"))) }
        });
        assert_eq!((tried.get(), result.unwrap_err().message), (3, "number 2".to_owned()));
    }
}
