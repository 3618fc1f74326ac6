//! The agent: PID 1 of the guest. It builds the container that the monitor on the host asks for and
//! looks after its processes.
//!
//! ```text
//!  main ── boot                 service: one call of the host, one function
//!                                  │
//!                     ┌────────────┴───────────┐
//!                 container ───────────────▶ network
//!                  │     └──────────┐        │   │
//!                  ▼                ▼        │   │
//!               storage          process ◀───┘   │
//!                                   └────▶ host ◀┘
//!
//!  below all of them: guest · guest_paths · sent_ahead · sys · event · log · error
//! ```
//!
//! The arrows are the allowed directions between the rooms; no two files use each other. `container` has the table of
//! containers and what creates and ends them, `process` what turns a forked child into a container's process, `storage`
//! its files, `network` its NICs and ports, `host` the streams to the monitor.
//!
//! One thread and one event loop: fork, clone3 and setns are safe, and nothing here may block for
//! long. Nothing may panic either: the guest dies with its PID 1.

pub mod boot;
mod container;
mod error;
mod event;
mod guest;
mod guest_paths;
mod host;
pub mod log;
mod network;
mod process;
mod sent_ahead;
mod service;
mod storage;
pub mod sys;

pub use error::{Error, Result};
pub use guest_paths::GuestPaths;
pub use host::vsock;

use rustix::fd::OwnedFd;
use service::Service;
use std::sync::Arc;

/// Listeners for [`serve`], made before the agent tells the host that it is ready.
pub struct Listeners {
    /// Server that has the listener for calls added.
    pub calls: ttrpc::r#async::Server,
    /// Non-blocking listener for streams.
    pub streams: OwnedFd,
    /// Readable when a child has ended.
    pub children: OwnedFd,
}

/// Serves calls and streams and reaps processes, for ever; returns only an error.
pub async fn serve(listeners: Listeners, paths: GuestPaths) -> Result<()> {
    let service = Arc::new(Service::new(paths));
    let reaper = container::reaper::run(listeners.children, service.containers.clone());
    let streams = service.streams.clone().serve(listeners.streams);
    let mut server = listeners.calls.register_service(protocol::create_agent(service));
    server.start().await.map_err(|error| Error::internal(format!("serve calls: {error}")))?;
    tokio::select! {
        result = reaper => result,
        result = streams => result,
    }
}
