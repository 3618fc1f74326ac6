//! One program of libFuzzer's for all targets; `FUZZ_TARGET` says which. See docs/fuzzing.md.
#![no_main]

mod files;
mod frames;
mod input;
mod rig;
mod rings;
mod streams;
mod transport;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use rustix::process::{Resource, Rlimit, setrlimit};

/// A function that takes an input of the fuzzer.
type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 9] = [
    ("rings", rings::target),
    ("transport", transport::target),
    ("files", files::target),
    ("streams", streams::target),
    ("frames", frames::target),
    ("agent", runvm::fuzz::agent),
    ("messages", runvm::fuzz::messages),
    ("config", runvm::fuzz::config),
    ("words", |data| {
        let plain = |c: char| c == '\n' || c == '\t' || !c.is_control();
        assert!(vmm::last_words::of(data).is_none_or(|words| words.chars().all(plain)));
    }),
];

/// Most bytes of a file: a guest may ask for one of any length, and it would be in memory.
const MAX_FILE: u64 = 8 << 20;

static CHOSEN: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let known = TARGETS.map(|(name, _)| name).join(", ");
        let found = TARGETS.iter().find(|(known, _)| *known == name);
        let (_, target) = found.unwrap_or_else(|| panic!("FUZZ_TARGET={name}: there are {known}"));
        CHOSEN.get_or_init(|| *target);
        // SAFETY: ignoring a signal runs no code of ours; writes beyond the limit then fail with EFBIG.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        setrlimit(Resource::Fsize, Rlimit { current: Some(MAX_FILE), maximum: Some(MAX_FILE) }).unwrap();
    },
    |data: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            target(data);
        }
    }
);
