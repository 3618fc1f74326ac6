//! A request that is longer than a call may be, and so comes ahead of its call, in pieces.

use crate::error::{Error, Result};
use protobuf::Message;
use protocol::{MAX_SENT_AHEAD, SendAheadRequest};
use std::sync::{Mutex, PoisonError};

/// The bytes received so far of one request that is sent ahead.
#[derive(Default)]
pub struct SentAhead(Mutex<Vec<u8>>);

impl SentAhead {
    /// Takes a piece.
    pub fn add(&self, piece: &SendAheadRequest) -> Result<()> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if piece.offset == 0 {
            bytes.clear();
        }
        if piece.offset != bytes.len() as u64 {
            return Err(Error::precondition(format!("a piece at {} follows {} bytes", piece.offset, bytes.len())));
        }
        if piece.bytes.len() > MAX_SENT_AHEAD - bytes.len() {
            return Err(Error::invalid(format!("a request of more than {MAX_SENT_AHEAD} bytes")));
        }
        bytes.extend_from_slice(&piece.bytes);
        Ok(())
    }

    /// The request of a call: what came ahead if the call says so, else what the call itself has.
    pub fn resolve<R: Message>(&self, is_ahead: bool, request: R) -> Result<R> {
        if !is_ahead {
            return Ok(request);
        }
        let bytes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if bytes.is_empty() {
            return Err(Error::precondition("no request was sent ahead"));
        }
        R::parse_from_bytes(&bytes).map_err(|error| Error::invalid(format!("what was sent ahead: {error}")))
    }
}
