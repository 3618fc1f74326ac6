//! What parses bytes of a guest, a bundle or another process, as functions from bytes to nothing. libFuzzer guides inputs by the
//! coverage that they reach (`fuzz/libfuzzer`), and `fuzz/tests` tries known inputs and what is near them: docs/fuzzing.md.

mod files;
mod frames;
mod input;
mod rig;
mod rings;
mod streams;
mod transport;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A function that takes an input: it panics when something is wrong.
pub type Target = fn(&[u8]);

/// Every target, by its name.
pub const TARGETS: [(&str, Target); 10] = [
    ("rings", rings::target),
    ("transport", transport::target),
    ("files", files::target),
    ("streams", streams::target),
    ("frames", frames::target),
    ("agent", runvm::fuzz::agent),
    ("messages", runvm::fuzz::messages),
    ("nodes", runvm::fuzz::nodes),
    ("config", runvm::fuzz::config),
    ("words", words),
];

/// Most bytes of a file: a guest may ask for one of any length, and it would be in memory.
const MAX_FILE: u64 = 8 << 20;

/// The target of this name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}

/// Bounds what an input can take of the host, for all of the process.
///
/// # Panics
/// The host allows smaller files only.
pub fn bound_process() {
    // SAFETY: ignoring a signal runs no code of ours; writes beyond the limit then fail with EFBIG.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: Some(MAX_FILE), maximum }).unwrap();
}

/// The panic region of a guest's kernel.
fn words(data: &[u8]) {
    let plain = |c: char| c == '\n' || c == '\t' || !c.is_control();
    assert!(vmm::last_words::of(data).is_none_or(|words| words.chars().all(plain)));
}
