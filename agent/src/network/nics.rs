//! The NICs of a container, and what the host wants set up in its network.
//!
//! ```text
//!  guest's own namespace            the container's
//!  eth0, eth1, … as they come ────▶ name and index as on the host, then addresses and routes
//!  nic0, nic1, … once used    ◀──── also when it ends: they are for all containers
//! ```
//!
//! The guest decides nothing here: the host sends what it found in the namespace that the engine set up.

use crate::error::{Context, Error, Result};
use crate::host::devices;
use crate::host::sockets::HostSocketClient;
use crate::log;
use crate::network::netlink::{Netlink, NewPlace};
use crate::network::resolver::Resolver;
use crate::network::{requests, sysctl};
use crate::process::handle::Process;
use crate::process::in_namespaces::in_network;
use protocol::{KeyValue, Nic, SetNetworkRequest};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a NIC may take to come back that a container has moved on, to a namespace that ends with the container.
const PATIENCE: Duration = Duration::from_secs(2);

/// The networks of all containers that have one, by the containers' ids.
#[derive(Default)]
pub struct Networks(Mutex<HashMap<String, Network>>);

/// A container's network that the host has filled.
struct Network {
    /// Netlink socket in the network, good also when nobody lives there any more.
    netlink: Netlink,
    /// Number of the virtio-mmio device of each interface that is a NIC, by the interface's index.
    nics: BTreeMap<u32, u32>,
    resolver: Option<Resolver>,
}

/// The container whose network is set up.
pub struct Owner<'a> {
    /// Init, which is in the network.
    pub init: &'a Process,
    /// Sysctls to be written once the interfaces they belong to have come.
    pub interface_sysctls: &'a [KeyValue],
    /// Client for connections to the resolver on the host.
    pub socket_client: HostSocketClient,
}

impl Networks {
    /// Does what the request asks for. When the kernel refuses a part the others are done all the same; the error is the
    /// first failure.
    pub fn set(&self, request: &SetNetworkRequest, owner: &Owner<'_>) -> Result<()> {
        let mut table = self.lock();
        let network = match table.entry(request.container_id.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Network::of(owner.init)?),
        };
        network.take_back(&request.removed_nics)?;
        let namespace = open_namespace(&format!("/proc/{}/ns/net", owner.init.pid))?;
        let (added, arrived) = network.hand_over(&request.added_nics, &namespace)?;
        let names: Vec<&str> = arrived.iter().map(|nic| nic.name.as_str()).collect();
        let written = owner.write_sysctls(&request.sysctls, &names)?;
        let executed = all(&request.messages, |message| requests::execute(&network.netlink, message));
        let resolver = if request.resolver { network.serve_resolver(owner) } else { Ok(()) };
        added.and(written).and(executed).and(resolver)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Network>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes back the NICs of a container whose processes are gone, and forgets its network.
    pub async fn remove(&self, id: &str) {
        let Some(mut network) = self.lock().remove(id) else { return };
        let (indexes, devices): (Vec<u32>, Vec<u32>) = network.nics.clone().into_iter().unzip();
        if let Err(error) = network.take_back(&indexes) {
            log::error(&error.message);
        }
        drop(network);
        let come_back = async {
            while !devices.iter().all(|device| matches!(interface(&devices::directory(*device)), Ok(Some(_)))) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, come_back).await.is_err() {
            log::error(&format!("NICs of container {id} did not come back"));
        }
    }
}

impl Owner<'_> {
    /// Writes the sysctls of the request, and those that waited for one of the interfaces that have come.
    fn write_sysctls(&self, asked: &[KeyValue], arrived: &[&str]) -> Result<Result<()>> {
        let has_arrived =
            |sysctl: &&KeyValue| sysctl::interface_of(&sysctl.key).is_some_and(|name| arrived.contains(&name));
        let waited = self.interface_sysctls.iter().filter(has_arrived);
        let sysctls: Vec<&KeyValue> = asked.iter().chain(waited).collect();
        match sysctls.is_empty() {
            true => Ok(Ok(())),
            false => in_network(self.init, || all(&sysctls, |sysctl| sysctl::write(sysctl))),
        }
    }
}

impl Network {
    fn of(init: &Process) -> Result<Self> {
        let netlink = in_network(init, Netlink::open)?.context(|| "open netlink socket in the container's network")?;
        Ok(Self { netlink, nics: BTreeMap::new(), resolver: None })
    }

    /// Moves NICs back to the guest's own namespace, unless the container has removed or renumbered them itself.
    fn take_back(&mut self, indexes: &[u32]) -> Result<()> {
        let own = open_namespace("/proc/self/ns/net")?;
        for index in indexes {
            if self.nics.remove(index).is_none() {
                continue;
            }
            // A name that the kernel does not give itself: the next NIC to appear is to find its own free.
            if let Err(error) =
                self.netlink.move_link(*index, NewPlace { namespace: own.as_fd(), name: "nic%d", index: 0 })
            {
                log::debug(|| error.message);
            }
        }
        Ok(())
    }

    /// Makes NICs interfaces of the container's; also gives those that were none before.
    fn hand_over<'a>(&mut self, nics: &'a [Nic], namespace: &OwnedFd) -> Result<(Result<()>, Vec<&'a Nic>)> {
        let (own, mut arrived) = (Netlink::open().context(|| "open netlink socket")?, Vec::new());
        let done = all(nics, |nic| {
            let Some(index) = self.at_home(nic)? else { return Ok(()) };
            own.move_link(index, NewPlace { namespace: namespace.as_fd(), name: &nic.name, index: nic.index })?;
            self.nics.insert(nic.index, nic.device);
            arrived.push(nic);
            Ok(())
        });
        Ok((done, arrived))
    }

    /// Index of a NIC's interface in the guest's own namespace; none if the container has the NIC already.
    fn at_home(&self, nic: &Nic) -> Result<Option<u32>> {
        devices::plug(nic.device, &nic.kernel_parameter)?;
        let device = devices::directory(nic.device);
        match interface(&device)? {
            None if self.nics.get(&nic.index) != Some(&nic.device) => Err(Error::precondition(format!(
                "the NIC for interface {} is still in a network namespace that another container made",
                nic.name
            ))),
            index => Ok(index),
        }
    }

    /// Serves the resolver of the container's network from now on, unless that is done already.
    fn serve_resolver(&mut self, owner: &Owner<'_>) -> Result<()> {
        if self.resolver.is_none() {
            let bound = in_network(owner.init, Resolver::bind)?.context(
                || "serve the resolver of the container's network (it takes nf_tables in the guest's kernel)",
            )?;
            self.resolver = Some(Resolver::serve(bound, &owner.socket_client)?);
        }
        Ok(())
    }
}

/// Calls `act` for each, whatever fails; gives the first failure.
fn all<'a, T>(these: &'a [T], act: impl FnMut(&'a T) -> Result<()>) -> Result<()> {
    these.iter().map(act).fold(Ok(()), Result::and)
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

#[cfg(test)]
mod tests {
    use super::*;

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
