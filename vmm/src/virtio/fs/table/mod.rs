//! What the guest knows, has open, lists and has locked.

mod cold;
pub mod handles;
mod index;
pub mod inode;
pub mod inodes;
pub mod listings;
pub mod locks;
pub mod slab;
