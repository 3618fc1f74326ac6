//! Capabilities of threads.

use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

/// Has a change of the file-system user keep capabilities from now on, and uid 0 bring none.
///
/// # Errors
/// The kernel's.
pub fn fix_capabilities() -> rustix::io::Result<()> {
    let bits = CapabilitiesSecureBits::NO_ROOT | CapabilitiesSecureBits::NO_SETUID_FIXUP;
    let locks = CapabilitiesSecureBits::NO_ROOT_LOCKED | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
    rustix::thread::set_capabilities_secure_bits(bits | locks | CapabilitiesSecureBits::KEEP_CAPS_LOCKED)
}

/// Has no program that is executed bring capabilities.
pub fn empty_bounding_set() {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        // The first number that the kernel has no capability for ends it; without CAP_SETPCAP the set stays, and matters to
        // nobody who cannot execute a program.
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
    // A kernel without ambient capabilities gives none.
    let _ = rustix::thread::clear_ambient_capability_set();
}

/// Drops all capabilities of the calling thread but these, for good.
///
/// # Errors
/// The kernel's.
pub fn keep(capabilities: CapabilitySet) -> rustix::io::Result<()> {
    let none = CapabilitySet::empty();
    // Who keeps nothing need not know what there is.
    let there = if capabilities.is_empty() { none } else { rustix::thread::capabilities(None)?.permitted };
    let kept = there.intersection(capabilities);
    rustix::thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })
}
