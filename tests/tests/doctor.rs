//! `runvm doctor`: what it finds, what it advises, and its exit code.

use std::process::Command;

use tests::bad_host::{Guest, Kvm, with_kvm};
use tests::command::run;
use tests::{Outcome, Scene, place};

fn doctor() -> Command {
    let mut command = Command::new(place::runtime());
    command.arg("doctor");
    command
}

/// The line of a check.
#[track_caller]
fn line<'a>(outcome: &'a Outcome, check: &str) -> &'a str {
    let found = outcome.stdout.lines().find(|line| line.contains(&format!(" {check}: ")));
    found.unwrap_or_else(|| panic!("no line about {check}: {outcome:?}"))
}

/// Insists that a check failed, that its line says these words and what to do, and that the exit code says so.
#[track_caller]
fn fails(outcome: &Outcome, check: &str, words: &[&str]) {
    assert_ne!(outcome.code, 0, "{outcome:?}");
    let line = line(outcome, check);
    assert!(line.starts_with("FAIL"), "{line}");
    let advice = line.split_once(" → ").map_or("", |(_, advice)| advice);
    assert!(advice.len() > 5, "no advice: {line}");
    for word in words {
        assert!(line.contains(word), "{word:?} not in {line:?}");
    }
}

#[test]
fn vm_a_good_host_passes() {
    let outcome = run(&mut doctor()).success();
    for check in ["/dev/kvm", "ring 0", "guest", "cgroups"] {
        assert!(line(&outcome, check).starts_with("ok "), "{outcome:?}");
    }
    assert!(!outcome.stdout.contains("FAIL"), "{outcome:?}");
}

#[test]
fn vm_no_kvm() {
    let scene = Scene::new();
    let outcome = run(&mut with_kvm(Kvm::Missing, scene.dir(), &doctor()));
    fails(&outcome, "/dev/kvm", &["missing", "modprobe"]);
    assert!(line(&outcome, "guest").starts_with("ok "), "one failure must not hide the other checks: {outcome:?}");
}

#[test]
fn vm_something_else_in_kvms_place() {
    let scene = Scene::new();
    let outcome = run(&mut with_kvm(Kvm::Useless, scene.dir(), &doctor()));
    fails(&outcome, "ring 0", &[]);
}

#[test]
fn vm_no_guest() {
    let scene = Scene::new();
    let outcome = run(doctor().env("RUNVM_GUEST_DIR", scene.dir()));
    fails(&outcome, "guest", &[scene.dir().to_str().unwrap(), "make"]);
}

#[test]
fn vm_a_damaged_guest() {
    let scene = Scene::new();
    for name in ["vmlinux", "initrd"] {
        let guest = Guest::copy(&scene);
        let mut bytes = std::fs::read(guest.file(name)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(guest.file(name), bytes).unwrap();
        let mut command = doctor();
        guest.apply(&mut command);
        fails(&run(&mut command), "guest", &[guest.file(name).to_str().unwrap()]);
        std::fs::remove_dir_all(guest.file("")).unwrap();
    }
}

#[test]
fn vm_a_guest_of_another_version() {
    let scene = Scene::new();
    let guest = Guest::copy(&scene);
    guest.edit_manifest(|manifest| manifest["version"] = "99.0.0".into());
    let mut command = doctor();
    guest.apply(&mut command);
    fails(&run(&mut command), "guest", &["99.0.0"]);
}
