//! Requests of the guest, a file for each kind; `dispatch` calls them.

mod attributes;
mod directories;
mod files;
mod locks;
mod names;
mod opens;
mod session;
mod watch;
mod xattrs;
