//! Holds requests to the guest back while its VM is paused.
//!
//! A VM that is paused in the middle of a request would answer it after its deadline, if ever. So a pause waits until no
//! request is in flight, and what comes later waits until the VM runs again.

use std::time::Duration;

use tokio::sync::watch;

/// How long a pause waits for requests: they take milliseconds, unless the guest is stuck, and then it is to pause too.
const PATIENCE: Duration = Duration::from_secs(5);

/// The gate of one VM.
pub struct RequestGate {
    closed: watch::Sender<bool>,
    in_flight: watch::Sender<usize>,
}

/// A request in flight, until this is dropped.
#[derive(Debug)]
pub struct InFlight(watch::Sender<usize>);

impl RequestGate {
    /// An open gate, with no request in flight.
    pub fn new() -> Self {
        Self { closed: watch::Sender::new(false), in_flight: watch::Sender::new(0) }
    }

    /// Waits until the gate is open.
    pub async fn enter(&self) -> InFlight {
        // The sender lives as long as `self`.
        let _ = self.closed.subscribe().wait_for(|closed| !closed).await;
        self.pass()
    }

    /// Counts a request as in flight from now on. For what the lifecycle has let through: a pause that is decided next
    /// waits for it.
    pub fn pass(&self) -> InFlight {
        self.in_flight.send_modify(|n| *n += 1);
        InFlight(self.in_flight.clone())
    }

    /// Holds new requests back from now on.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits until no request is in flight, or until they take too long.
    pub async fn quiesce(&self) {
        let mut in_flight = self.in_flight.subscribe();
        let _ = tokio::time::timeout(PATIENCE, in_flight.wait_for(|n| *n == 0)).await;
    }

    /// Lets requests through again.
    pub fn open(&self) {
        self.closed.send_replace(false);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    fn alone(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        LocalSet::new().block_on(&runtime, work);
    }

    #[test]
    fn a_pause_waits_for_requests_and_they_for_it() {
        alone(async {
            let gate = Rc::new(RequestGate::new());
            let first = gate.enter().await;
            let (quiet, entered) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
            gate.close();
            let (its_gate, its_quiet) = (gate.clone(), quiet.clone());
            spawn_local(async move {
                its_gate.quiesce().await;
                its_quiet.set(true);
            });
            yield_now().await;
            let (its_gate, its_entered) = (gate.clone(), entered.clone());
            spawn_local(async move {
                let _request = its_gate.enter().await;
                its_entered.set(true);
            });
            yield_now().await;
            assert_eq!((quiet.get(), entered.get()), (false, false));
            drop(first);
            yield_now().await;
            yield_now().await;
            assert_eq!((quiet.get(), entered.get()), (true, false));
            gate.open();
            yield_now().await;
            yield_now().await;
            assert!(entered.get());
        });
    }

    #[test]
    fn a_stuck_guest_is_paused_all_the_same() {
        alone(async {
            let gate = RequestGate::new();
            let _stuck = gate.enter().await;
            gate.close();
            let before = tokio::time::Instant::now();
            gate.quiesce().await;
            assert_eq!(before.elapsed(), PATIENCE);
        });
    }
}
