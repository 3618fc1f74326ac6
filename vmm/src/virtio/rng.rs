//! Entropy device (virtio 1.2, section 5.4): fills the driver's buffers from the host's `getrandom`.

use super::queue::{Chain, Outcome};
use super::{Context, Device, Error, Event};

/// Most bytes given for one request: enough for the guest's pool, no more work than a page.
const MAX_BYTES: usize = 4096;

/// The entropy device; it has no state.
pub struct Rng;

impl Device for Rng {
    fn id(&self) -> u32 {
        virtio_bindings::virtio_ids::VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn handle(&mut self, _event: Event, context: &mut Context) -> Result<(), Error> {
        context.rings[0].serve(context.memory, fill)
    }
}

fn fill(chain: &mut Chain) -> Result<Outcome, Error> {
    let mut bytes = [0u8; MAX_BYTES];
    let wanted = chain.writable.len().min(MAX_BYTES);
    // SAFETY: the pointer and length describe `bytes`, which lives across the call.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), wanted, 0) };
    let got = usize::try_from(got).map_err(|_| Error::Host("getrandom", std::io::Error::last_os_error()))?;
    Ok(Outcome::Used(chain.writable.write(&bytes[..got]) as u32))
}
