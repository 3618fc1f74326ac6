//! Processes of a container: from the clone to the exec of the program, their standard streams and what ps(1) shows.

pub mod capabilities;
pub mod child;
pub mod child_pipe;
pub mod handle;
pub mod in_namespaces;
pub mod list;
pub mod lookup;
pub mod namespaces;
pub mod scheduling;
pub mod setup;
pub mod stdio;
pub mod terminal;
