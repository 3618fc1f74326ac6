//! Linux capabilities, as the masks of the protocol.

use crate::error::{Context, Error, Result};
use protocol::Capabilities;
use rustix::io::Errno;
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// Number of capabilities that this kernel has.
fn count() -> u32 {
    (0..64)
        .find(|&n| thread::capability_is_in_bounding_set(CapabilitySet::from_bits_retain(1 << n)).is_err())
        .unwrap_or(64)
}

/// The capabilities in `mask` that the kernel knows, each alone.
fn each(mask: u64, count: u32) -> impl Iterator<Item = CapabilitySet> {
    (0..count.min(64)).map(|n| 1 << n).filter(move |bit| mask & bit != 0).map(CapabilitySet::from_bits_retain)
}

/// Bits of the capabilities this kernel knows.
fn known(count: u32) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Drops what is not in the bounding set. Needs CAP_SETPCAP: to be done before the user changes.
pub fn drop_bounding(capabilities: &Capabilities) -> Result<()> {
    let count = count();
    for capability in each(!capabilities.bounding, count) {
        thread::remove_capability_from_bounding_set(capability).context(|| "drop bounding capability")?;
    }
    Ok(())
}

/// Applies the other four sets; after the change of user, which `PR_SET_KEEPCAPS` let them survive.
pub fn apply(capabilities: &Capabilities) -> Result<()> {
    let count = count();
    let set = |mask: u64| CapabilitySet::from_bits_retain(mask & known(count));
    let sets = CapabilitySets {
        effective: set(capabilities.effective),
        permitted: set(capabilities.permitted),
        inheritable: set(capabilities.inheritable),
    };
    thread::set_capabilities(None, sets).context(|| "set capabilities")?;
    thread::clear_ambient_capability_set().context(|| "clear ambient capabilities")?;
    for capability in each(capabilities.ambient, count) {
        match thread::configure_capability_in_ambient_set(capability, true) {
            Ok(()) => {}
            Err(Errno::PERM) => return Err(Error::internal("ambient capability is not permitted and inheritable")),
            Err(errno) => return Err(errno).context(|| "raise ambient capability"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_cut_to_what_the_kernel_knows() {
        let bits: Vec<u64> = each(0b1011, 3).map(|set| set.bits()).collect();
        assert_eq!(bits, [1, 2]);
        assert_eq!(known(41), (1 << 41) - 1);
        assert_eq!(known(64), u64::MAX);
    }

    #[test]
    fn the_kernel_has_some() {
        assert!((38..64).contains(&count()));
    }
}
