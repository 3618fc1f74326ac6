//! How measured counts are held against the accepted ones (`bench/counts.py compare`). Runs anywhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::Outcome;
use tests::command::run;

fn compare(accepted: &Path, measured: &Path) -> Outcome {
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../bench/counts.py")).arg("compare");
    run(command.arg(accepted).arg(measured))
}

/// A file of this test program's own.
fn file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("counts_comparison");
    fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{name}.json"))
}

/// The comparison of one figure that was `old` with one that is `new`.
fn compared(old: Value, new: Value) -> Outcome {
    let written = |name: &str, figure: Value| {
        let path = file(&format!("{name} {old} {new}"));
        let text =
            json!({"conditions": {"rustc": name}, "figures": {"unlink": {"VM exits": figure, "instructions": 5000}}});
        fs::write(&path, text.to_string()).unwrap();
        path
    };
    compare(&written("accepted", old.clone()), &written("measured", new.clone()))
}

#[test]
fn a_tenth_more_is_tolerated() {
    for (old, new) in [(100, 100), (100, 110), (100, 60)] {
        assert_eq!(compared(json!(old), json!(new)).success().code, 0);
    }
    assert!(compared(json!(100), json!(60)).stdout.contains("VM exits fell from 100 to 60"));
}

#[test]
fn more_is_told() {
    let outcome = compared(json!(100), json!(112)).exits(1);
    for words in [
        "unlink: VM exits grew from 100 to 112, 12 % more",
        "bench/run counts --accept",
        "another rustc: accepted, and not measured",
    ] {
        assert!(outcome.stdout.contains(words), "{words:?} not in {}", outcome.stdout);
    }
    assert!(!outcome.stdout.contains("instructions"), "{}", outcome.stdout);
    assert!(compared(json!(0), json!(1)).exits(1).stdout.contains("grew from 0 to 1. "));
}

#[test]
fn what_nobody_accepted_is_told() {
    let (none, other) = (file("none"), file("one"));
    fs::write(&none, json!({"conditions": {}, "figures": {}}).to_string()).unwrap();
    fs::write(&other, json!({"conditions": {}, "figures": {"unlink": {"VM exits": 1}}}).to_string()).unwrap();
    assert!(compare(&none, &other).exits(1).stdout.contains("nobody has accepted"));
    assert!(compare(&other, &none).exits(1).stdout.contains("not measured any more"));
}
