//! Numbers that say of an object where it counts as the same, and how it is reached.

/// Where objects of a share count as the same as those of other shares: numbers of what the guest has as one file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// For whatever is no directory.
    pub files: u16,
    /// For directories.
    pub directories: u16,
}

impl Place {
    /// The number for an object of this kind, which may be on a mount inside of its share.
    pub fn number(self, kind: u32, nested: bool) -> u16 {
        if nested || kind == libc::S_IFDIR { self.directories } else { self.files }
    }
}

/// Number of shares that an object is reached through, all together: [`super::shares::Shares::shares_of`] says which.
pub type WayId = u16;
