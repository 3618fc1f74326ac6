//! Costs of runvm's operations, against the figures that were accepted last (`bench/counts.json`).
//!
//! `tools/test` runs this area on a host that counts instructions: see docs/lab.md.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    let measured = measure.stdin(Stdio::null()).stdout(Stdio::inherit()).output().unwrap();
    let errors = String::from_utf8_lossy(&measured.stderr);
    assert!(measured.status.success(), "the measurement failed: {}\n{errors}", measured.status);
    let outcome = compare(&Path::new(BENCH).join("counts.json"), &out().join("counts.json"));
    print!("{}", fs::read_to_string(out().join("counts.md")).unwrap());
    print!("{}", outcome.stdout);
    assert_eq!(outcome.code, 0, "some operations have become dearer:\n{}", outcome.stdout);
}
