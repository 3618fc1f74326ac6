//! Timeline of a start: moments on the host's monotonic clock, printed by `--debug`.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Present time in microseconds of `CLOCK_MONOTONIC`.
pub fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64) * 1_000_000 + (now.tv_nsec as u64) / 1_000
}

static BEGIN: OnceLock<u64> = OnceLock::new();

/// Notes when this process began; later calls change nothing.
pub fn begin() -> u64 {
    *BEGIN.get_or_init(now_us)
}

/// Named moments, in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Timeline {
    marks: Vec<(String, u64)>,
}

impl Timeline {
    /// A timeline whose first moment is the begin of this process.
    pub fn new() -> Self {
        Self { marks: vec![("begin".to_owned(), begin())] }
    }

    /// Adds a moment: now.
    pub fn mark(&mut self, what: &str) {
        self.mark_at(what, now_us());
    }

    /// Adds a moment measured elsewhere, in microseconds of `CLOCK_MONOTONIC`.
    pub fn mark_at(&mut self, what: &str, at_us: u64) {
        self.marks.push((what.to_owned(), at_us));
    }

    /// One line: what ended at each moment, how long it took and the total, in milliseconds.
    pub fn summary(&self) -> String {
        let step = |pair: &[(String, u64)]| match pair {
            [(_, from), (what, to)] => format!("{what} {:.1}", to.saturating_sub(*from) as f64 / 1000.0),
            _ => String::new(),
        };
        let steps: Vec<String> = self.marks.windows(2).map(step).collect();
        let ends = self.marks.first().zip(self.marks.last());
        let total = ends.map_or(0, |(first, last)| last.1.saturating_sub(first.1));
        format!("timeline (ms): {}, total {:.1}", steps.join(", "), total as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_names_each_step_with_its_length() {
        let mut timeline = Timeline { marks: vec![("begin".into(), 1000)] };
        timeline.mark_at("plan", 2500);
        timeline.mark_at("kernel", 12500);
        assert_eq!(timeline.summary(), "timeline (ms): plan 1.5, kernel 10.0, total 11.5");
    }
}
