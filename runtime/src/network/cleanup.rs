//! Cleans up a network namespace after a monitor that could not.

use std::fs::File;
use std::path::Path;

use anyhow::Context;

use super::namespace::inside;
use super::netlink::Socket;
use super::{resolver, traffic};
use crate::log;
use crate::state::State;

/// Removes what a killed monitor left on the links of the calling thread's namespace: filters of ours that lead nowhere any more.
/// Everything else stays.
///
/// # Errors
/// Names the first link that keeps them.
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

/// Port range of the host's sockets in a namespace, to be noted before a monitor changes it.
pub fn ports(namespace: &Path) -> Option<String> {
    inside(File::open(namespace).ok()?, || resolver::ports(&resolver::open_range()?)).ok()
}

/// Cleans up the namespace of a container that has ended, if the container did not make the namespace. Where that is gone, nothing is
/// left to clean.
pub fn clean_after(state: &State) {
    let Some(namespace) = state.network.as_ref().and_then(|path| File::open(path).ok()) else { return };
    let ports = state.ports.clone().unwrap_or_else(|| resolver::DEFAULT.to_owned());
    let there = move || {
        clean()?;
        // Unless the monitor has done so.
        resolver::give_back(&resolver::open_range()?, &ports)
    };
    if let Err(error) = inside(namespace, there) {
        log::warning(&format!("clean up the network namespace of container {}: {error:#}", state.id));
    }
}
