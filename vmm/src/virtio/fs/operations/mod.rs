//! Requests of the guest, a file for each kind; `dispatch` calls them.

mod attributes;
mod directories;
mod files;
mod locks;
mod names;
mod session;
mod watch;
mod xattrs;
