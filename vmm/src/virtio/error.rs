//! Errors that stop a device.

/// A fault of the guest or the host that a device met. The fault stops the device, not the VM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest's ring or a descriptor chain breaks the rules of virtio.
    #[error("bad virtqueue: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// A descriptor points outside guest memory.
    #[error("descriptor outside guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// A message in a chain breaks the device's protocol.
    #[error("malformed request: {0}")]
    Protocol(&'static str),
    /// A host operation that the device needs failed.
    #[error("{0}: {1}")]
    Host(&'static str, #[source] std::io::Error),
}

impl Error {
    /// The reason in a word that has nothing of the guest's in it: there are few of them, whatever a guest does.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Queue(_) => "virtqueue",
            Self::Memory(_) => "memory",
            Self::Protocol(what) | Self::Host(what, _) => what,
        }
    }
}
