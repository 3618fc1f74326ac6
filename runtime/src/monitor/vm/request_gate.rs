//! Whether the machine moves, and who is asking the guest something.
//!
//! A machine that stopped in the middle of a request would answer it after its deadline, if ever. So a pause lets
//! requests come to their end first, and what comes later waits until the machine goes on.

use std::time::Duration;

use tokio::sync::watch;

/// How long a pause waits for requests: they take milliseconds, unless the guest is stuck, and then it is to stop too.
const PATIENCE: Duration = Duration::from_secs(5);

/// One machine's.
pub struct Motion {
    still: watch::Sender<bool>,
    asking: watch::Sender<usize>,
}

/// A request in flight, until it is dropped.
pub struct Asking<'a>(&'a watch::Sender<usize>);

impl Motion {
    /// It moves and nobody asks.
    pub fn new() -> Self {
        Self { still: watch::Sender::new(false), asking: watch::Sender::new(0) }
    }

    /// Waits until the machine moves.
    pub async fn ask(&self) -> Asking<'_> {
        // The sender lives as long as `self`.
        let _ = self.still.subscribe().wait_for(|still| !still).await;
        self.asking.send_modify(|n| *n += 1);
        Asking(&self.asking)
    }

    /// New requests wait from now on. Returns when the machine may be stopped.
    pub async fn stop(&self) {
        self.still.send_replace(true);
        let mut asking = self.asking.subscribe();
        let _ = tokio::time::timeout(PATIENCE, asking.wait_for(|n| *n == 0)).await;
    }

    /// It moves again.
    pub fn go_on(&self) {
        self.still.send_replace(false);
    }
}

impl Drop for Asking<'_> {
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
    fn a_stop_waits_for_requests_and_they_for_it() {
        alone(async {
            let motion = Rc::new(Motion::new());
            let first = motion.ask().await;
            let (stopped, asked) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
            let (its_motion, its_stopped) = (motion.clone(), stopped.clone());
            spawn_local(async move {
                its_motion.stop().await;
                its_stopped.set(true);
            });
            yield_now().await;
            let (its_motion, its_asked) = (motion.clone(), asked.clone());
            spawn_local(async move {
                let _asking = its_motion.ask().await;
                its_asked.set(true);
            });
            yield_now().await;
            assert_eq!((stopped.get(), asked.get()), (false, false));
            drop(first);
            yield_now().await;
            yield_now().await;
            assert_eq!((stopped.get(), asked.get()), (true, false));
            motion.go_on();
            yield_now().await;
            yield_now().await;
            assert!(asked.get());
        });
    }

    #[test]
    fn a_stuck_guest_is_stopped_all_the_same() {
        alone(async {
            let motion = Motion::new();
            let _stuck = motion.ask().await;
            let before = tokio::time::Instant::now();
            motion.stop().await;
            assert_eq!(before.elapsed(), PATIENCE);
        });
    }
}
