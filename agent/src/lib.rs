//! The agent: PID 1 of the guest. It builds the container that the monitor on the host asks for and
//! looks after its processes.
//!
//! ```text
//!            service ── create, exec ── container (the table) ── reaper
//!               │            │ ├─ disks
//!               │            │ ├─ cgroup ─ device_filter
//!               │            │ ├─ scheduling
//!               │            │ ├─ visit
//!               │            │ ├─ files
//!               │            │ ├─ sockets ─ relay
//!               ├─ ports ─ relay
//!               ├─ network ─ netlink, resolver ─ nat
//!               │            │ fork
//!            streams         ▼ in the child
//!               │       rootfs ─ mounts ─ devices ─ path
//!             stdio     process ─ capabilities ─ lookup
//!               │
//!             pump ═══ pipes and terminals
//! ```
//!
//! One thread and one event loop: fork, clone3 and setns are safe, and nothing here may block for
//! long. Nothing may panic either: the guest dies with its PID 1.

pub mod boot;
mod capabilities;
mod cgroup;
mod container;
mod copy_up;
mod create;
mod device_filter;
mod devices;
mod disks;
mod error;
mod event;
mod exec;
mod files;
mod link;
pub mod log;
mod lookup;
mod machine;
mod mounts;
mod namespaces;
mod nat;
mod netlink;
mod network;
mod path;
mod ports;
mod process;
mod processes;
mod pump;
mod reaper;
mod relay;
mod resolver;
pub mod rootfs;
mod scheduling;
mod service;
mod sockets;
mod stdio;
mod streams;
pub mod sys;
mod terminal;
mod visit;
pub mod vsock;

pub use error::{Error, Result};

use rootfs::Places;
use rustix::fd::OwnedFd;
use service::Service;
use std::sync::Arc;

/// What [`serve`] needs: made before the host is told that the agent is ready.
pub struct Listeners {
    /// With the listener for calls added.
    pub calls: ttrpc::r#async::Server,
    /// Non-blocking listener for streams.
    pub streams: OwnedFd,
    /// Readable when a child has ended.
    pub children: OwnedFd,
}

/// Serves calls and streams and reaps processes, for ever; returns only an error.
pub async fn serve(listeners: Listeners, places: Places) -> Result<()> {
    let service = Arc::new(Service::new(places));
    let reaper = reaper::run(listeners.children, service.containers.clone());
    let streams = service.streams.clone().serve(listeners.streams);
    let mut server = listeners.calls.register_service(protocol::create_agent(service));
    server.start().await.map_err(|error| Error::internal(format!("serve calls: {error}")))?;
    tokio::select! {
        result = reaper => result,
        result = streams => result,
    }
}
