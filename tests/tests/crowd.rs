//! Many at once: processes, containers, commands on one container.

use std::process::Stdio;

use tests::command::{Outcome, Running, start};
use tests::process::wait_orphan;
use tests::{Container, Scene};

/// A command in the background that reads nothing.
fn background(container: &Container, verb: &str, args: &[&str]) -> Running {
    start(container.named(verb, args).stdin(Stdio::null()))
}

#[track_caller]
fn all(running: Vec<Running>) -> Vec<Outcome> {
    running.into_iter().map(Running::finish).collect()
}

#[test]
fn fifty_processes() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let one =
        |n: usize| background(&container, "exec", &["sh", "-c", &format!("echo {n}; sleep 1; echo {n} >&2; exit {n}")]);
    for (n, outcome) in all((0..50).map(one).collect()).into_iter().enumerate() {
        let expected = format!("{n}\n");
        assert_eq!((outcome.code, outcome.stdout, outcome.stderr), (n as i32, expected.clone(), expected));
    }
    container.end(&up);
}

#[test]
fn a_process_after_thousands() {
    let scene = Scene::new();
    let mut container = scene.container();
    let script = "i=0; while [ $i -lt 3000 ]; do (:) ; i=$((i + 1)); done; echo enough; sleep 100000";
    let mut up = container.sh(script).up();
    up.stdout.expect("enough\n");
    assert_eq!(container.exec_sh("echo $$ here").success().stdout.split(' ').nth(1), Some("here\n"));
    container.end(&up);
}

#[test]
fn twenty_containers() {
    let scene = Scene::new();
    let mut containers: Vec<Container> = (0..20).map(|_| scene.container()).collect();
    for (n, container) in containers.iter_mut().enumerate() {
        container.sh(&format!("echo container {n}; exit {n}"));
    }
    let running = containers.iter().map(|container| background(container, "run", &[])).collect();
    for (n, outcome) in all(running).into_iter().enumerate() {
        assert_eq!((outcome.code, outcome.stdout), (n as i32, format!("container {n}\n")), "{}", outcome.stderr);
    }
    drop(containers);
    scene.check();
}

#[test]
fn one_of_many_starts_it() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh("echo began; sleep 100000").create();
    let outcomes = all((0..8).map(|_| background(&container, "start", &[])).collect());
    assert_eq!(outcomes.iter().filter(|outcome| outcome.code == 0).count(), 1, "{outcomes:?}");
    created.stdout.expect("began\n");
    assert!(created.stdout.is_silent(), "it began more than once");
    assert_eq!(container.status(), "running");
    let _ = std::fs::remove_file(scene.log());
    container.end(&created);
}

/// Waits for all of them: whether the container stands still at the moment is a matter of luck for most, and none for
/// state and kill; none says more than one line.
#[track_caller]
fn sound(running: Vec<(&str, Running)>) {
    for (verb, running) in running {
        let outcome = running.finish();
        let short = outcome.stderr.lines().count() <= 1;
        assert!(short && (outcome.code == 0 || !matches!(verb, "state" | "kill")), "{verb}: {outcome:?}");
    }
}

// Without a VM, the process of an exec may be frozen with the container on its way in, and exec with it.
#[test]
fn vm_everything_at_once_on_one_container() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let verbs: [(&str, &[&str]); 6] =
        [("exec", &["true"]), ("state", &[]), ("kill", &["CONT"]), ("pause", &[]), ("resume", &[]), ("ps", &[])];
    let running = (0..36).map(|n| (verbs[n % 6].0, background(&container, verbs[n % 6].0, verbs[n % 6].1)));
    // A pause that comes last holds what asks the kernel until the container goes on.
    let (held, free): (Vec<_>, Vec<_>) = running.partition(|(verb, _)| matches!(*verb, "exec" | "ps"));
    sound(free);
    if container.status() == "paused" {
        all(vec![background(&container, "resume", &[])]);
    }
    sound(held);
    container.exec(&["true"]).success();
    let _ = std::fs::remove_file(scene.log());
    container.end(&up);
}

#[test]
fn delete_by_force_from_all_sides() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let force = || start(container.command("delete").args(["--force", &container.id]).stdin(Stdio::null()));
    let outcomes = all((0..6).map(|_| force()).collect());
    assert!(outcomes.iter().any(|outcome| outcome.code == 0), "{outcomes:?}");
    assert_eq!(wait_orphan(up.pid), 137);
    let _ = std::fs::remove_file(scene.log());
    container.force_delete().success();
    drop(container);
    scene.check();
}
