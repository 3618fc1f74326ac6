//! Sizes of frames and their headers.

use virtio_bindings::virtio_net::virtio_net_hdr_v1;

/// Bytes of the header before each frame.
pub const HEADER: usize = size_of::<virtio_net_hdr_v1>();
/// Bytes of an Ethernet header, the least frame.
pub const ETHERNET: usize = libc::ETH_HLEN as usize;
/// Bytes of a VLAN's tag.
pub const VLAN: usize = 4;
/// Most bytes of a header and a frame: the longest IP packet behind Ethernet's header and tag.
pub const LONGEST: usize = HEADER + ETHERNET + VLAN + 65_535;
