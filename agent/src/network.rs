//! What network a container has.
//!
//! ```text
//!  guest's own namespace            the container's
//!  eth0, eth1, … as they come ────▶ name and index as on the host, then addresses and routes
//!  card0, card1, … once used  ◀────
//! ```
//!
//! The guest decides nothing here: the host sends what it found in the namespace that the engine set up.

use crate::container::Containers;
use crate::error::{Context, Error, Result};
use crate::netlink::Netlink;
use crate::resolver::Resolver;
use crate::{sys, visit};
use protocol::{Card, SetNetworkRequest};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// virtio-mmio devices that the kernel was told of by number.
const DEVICES: &str = "/sys/devices/virtio-mmio-cmdline";
/// Where it is told of more.
const PLUG: &str = "/sys/module/virtio_mmio/parameters/device";

/// Does what is asked for, up to what the kernel refuses.
pub fn set(containers: &Containers, request: &SetNetworkRequest) -> Result<()> {
    let id = &request.container_id;
    let (init, namespaces) = (containers.living(id)?, containers.shape(id)?);
    if !namespaces.namespaces.makes(libc::CLONE_NEWNET) {
        return Err(Error::precondition(format!("container {id} has no network namespace of its own")));
    }
    let own = Netlink::open().context(|| "open netlink socket")?;
    let stay = [(&init.pidfd, libc::CLONE_NEWNET as u64)];
    let theirs = visit::during(&stay, Netlink::open)?.and_then(|opened| opened);
    let theirs = theirs.context(|| "open netlink socket in the container's network")?;
    take_back(&theirs, &request.unplugged)?;
    let there = open_namespace(&format!("/proc/{}/ns/net", init.pid))?;
    request.plugged.iter().try_for_each(|card| hand_over(&own, card, &there))?;
    request.messages.iter().try_for_each(|message| execute(&theirs, message))?;
    match request.resolver && !containers.has_resolver(id)? {
        true => {
            let sockets = visit::during(&stay, Resolver::bind)?.and_then(|bound| bound);
            let sockets = sockets.context(
                || "serve the resolver of the container's network (it takes nf_tables in the guest's kernel)",
            )?;
            containers.set_resolver(id, sockets)
        }
        false => Ok(()),
    }
}

fn open_namespace(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).context(|| format!("open {path}"))
}

/// Interfaces that the container has removed or renumbered itself are not missed.
fn take_back(theirs: &Netlink, unplugged: &[u32]) -> Result<()> {
    let home = open_namespace("/proc/self/ns/net")?;
    for index in unplugged {
        // Out of the way of those that the kernel is yet to name.
        if let Err(error) = theirs.move_link(*index, home.as_fd(), (&format!("card{index}"), 0)) {
            crate::log::debug(|| error.message);
        }
    }
    Ok(())
}

fn hand_over(own: &Netlink, card: &Card, there: &OwnedFd) -> Result<()> {
    let index = match interface(card.device)? {
        Some(index) => index,
        None => {
            sys::write_file(PLUG, &card.plug).context(|| format!("tell the guest's kernel of device {}", card.plug))?;
            interface(card.device)?.ok_or_else(|| {
                Error::internal(format!("the guest's kernel made no interface of device {}", card.device))
            })?
        }
    };
    own.move_link(index, there.as_fd(), (&card.name, card.index))
}

/// Index of the interface that the kernel has made of a virtio-mmio device; none if it doesn't know the device.
fn interface(device: u32) -> Result<Option<u32>> {
    let directory = Path::new(DEVICES).join(format!("virtio-mmio.{device}"));
    let Some(virtio) = child(&directory, "virtio") else { return Ok(None) };
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
    let deletes = [libc::RTM_DELADDR, libc::RTM_DELROUTE, libc::RTM_DELNEIGH].contains(&kind);
    match theirs.execute(message) {
        // The container may have done it itself, and what goes takes along what belongs to it.
        Err(Errno::NOENT | Errno::SRCH | Errno::ADDRNOTAVAIL) if deletes => Ok(()),
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => {
            Err(errno).context(|| format!("set up the container's network (rtnetlink request of type {kind})"))
        }
    }
}
