//! One program of libFuzzer's for all targets; `FUZZ_TARGET` says which. See docs/fuzzing.md.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static CHOSEN: OnceLock<fuzz::Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let known = fuzz::TARGETS.map(|(name, _)| name).join(", ");
        CHOSEN.get_or_init(|| fuzz::target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET={name}: there are {known}")));
        fuzz::bound_process();
    },
    |data: &[u8]| {
        if let Some(target) = CHOSEN.get() {
            target(data);
        }
    }
);
