//! Black-box tests of an OCI runtime: what a person or an engine sees when calling it like runc.
//!
//! ```text
//!  tools/test ──boots──▶ lab host ──runs──▶ tests/tests/AREA.rs (libtest, one test at a time)
//!                                             └─ Scene      a folder, a --root and a log; nothing may be left in the end
//!                                                 └─ Container   a bundle and the commands on it
//!                                                     └─ Created    the running container: its pid and streams
//! ```
//!
//! `TEST_RUNTIME` names the runtime; whatever is not about VMs holds for runc and crun too. Tests whose names
//! begin with `vm_` are about runvm alone. Every wait is bounded ([`PATIENCE`]) and ends in a panic that says
//! what was waited for.

pub mod bad_host;
pub mod bindfs;
pub mod command;
pub mod container;
pub mod containerd;
pub mod daemon;
pub mod disk;
pub mod dns;
pub mod docker;
pub mod leftovers;
pub mod netns;
pub mod place;
pub mod podman;
pub mod process;
pub mod scene;
pub mod spec;
pub mod stream;
pub mod terminal;
pub mod unix;
pub mod uplink;
pub mod worker;

pub use command::{Outcome, PATIENCE};
pub use container::{Container, Created};
pub use scene::Scene;
pub use stream::Reader;
pub use terminal::{ConsoleSocket, Terminal};
pub use worker::Worker;
