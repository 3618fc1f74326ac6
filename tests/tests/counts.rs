//! Costs of runvm's operations, against the figures that were accepted last (`bench/counts.json`).
//!
//! `tools/test` runs this area on a host that counts instructions: see docs/lab.md.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tests::command::run;
use tests::{Outcome, place};

const BENCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench");

/// A folder that outlives the lab: the figures measured stay to be looked at.
fn out() -> PathBuf {
    PathBuf::from(std::env::var_os("LAB_OUT").expect("tools/test names a folder"))
}

fn counts(verb: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg(format!("{BENCH}/counts.py")).arg(verb);
    command
}

fn compare(accepted: &Path, measured: &Path) -> Outcome {
    run(counts("compare").arg(accepted).arg(measured))
}

#[test]
fn vm_no_operation_has_become_dearer() {
    let mut measure = counts("measure");
    measure.arg("--runtime").arg(place::runtime().parent().unwrap());
    measure.arg("--program").arg(place::bin().join("counts"));
    measure.arg("--rootfs").arg(place::base_rootfs()).arg("--out").arg(out());
    // No time limit: idle time passes at once here, so a minute is soon over.
    let status = measure.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "the measurement failed: {status}");
    let outcome = compare(&Path::new(BENCH).join("counts.json"), &out().join("counts.json"));
    print!("{}", fs::read_to_string(out().join("counts.md")).unwrap());
    print!("{}", outcome.stdout);
    assert_eq!(outcome.code, 0, "some operations have become dearer:\n{}", outcome.stdout);
}

/// The comparison of one figure that was `old` with one that is `new`.
fn compared(old: Value, new: Value) -> Outcome {
    let file = |name: &str, figure: Value| {
        let path = place::work().join(name);
        let text =
            json!({"conditions": {"rustc": name}, "figures": {"unlink": {"VM exits": figure, "instructions": 5000}}});
        fs::write(&path, text.to_string()).unwrap();
        path
    };
    compare(&file("accepted", old), &file("measured", new))
}

#[test]
fn vm_a_tenth_more_is_tolerated() {
    for (old, new) in [(100, 100), (100, 110), (100, 60)] {
        assert_eq!(compared(json!(old), json!(new)).success().code, 0);
    }
    assert!(compared(json!(100), json!(60)).stdout.contains("VM exits fell from 100 to 60"));
}

#[test]
fn vm_more_is_told() {
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
fn vm_what_nobody_accepted_is_told() {
    let (file, other) = (place::work().join("none"), place::work().join("one"));
    fs::write(&file, json!({"conditions": {}, "figures": {}}).to_string()).unwrap();
    fs::write(&other, json!({"conditions": {}, "figures": {"unlink": {"VM exits": 1}}}).to_string()).unwrap();
    assert!(compare(&file, &other).exits(1).stdout.contains("nobody has accepted"));
    assert!(compare(&other, &file).exits(1).stdout.contains("not measured any more"));
}
