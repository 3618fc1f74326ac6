//! A container that stands still.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use tests::command::{run, start};
use tests::process::{self, wait_orphan};
use tests::{Scene, place};

/// Long enough for a running container to write something.
const A_WHILE: Duration = Duration::from_millis(700);

#[test]
fn nothing_moves_until_it_goes_on() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut up = container.sh("echo up; n=0; while :; do n=$((n + 1)); echo $n >/count; sleep 0.1; done").up();
    up.stdout.expect("up\n");
    let count = || std::fs::read_to_string(container.rootfs().join("count")).unwrap_or_default();
    process::wait_until("a first count", || !count().trim().is_empty());
    run(&mut container.named("pause", &[])).success();
    assert_eq!(container.status(), "paused");
    let before = count();
    std::thread::sleep(A_WHILE);
    assert_eq!(count(), before);
    run(&mut container.named("resume", &[])).success();
    assert_eq!(container.status(), "running");
    process::wait_until("a higher count", || count() != before && !count().trim().is_empty());
    assert_eq!(container.end(&up), 137);
}

#[test]
fn only_what_runs_is_paused_and_only_what_is_paused_resumed() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    scene.refused(&run(&mut container.named("resume", &[])), &["not paused"]);
    run(&mut container.named("pause", &[])).success();
    scene.refused(&run(&mut container.named("pause", &[])), &["not running"]);
    scene.refused(&container.start(), &["cannot start", "paused"]);
    scene.refused(&container.exec(&["true"]), &["cannot exec in a paused container"]);
    scene.refused(&run(&mut container.named("delete", &[])), &["not stopped"]);
    run(&mut container.named("resume", &[])).success();
    container.exec(&["true"]).success();
    container.end(&up);
    drop(container);
    scene.check();
}

#[test]
fn a_signal_waits_until_it_goes_on() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut up = container.sh("trap 'echo got USR1' USR1; echo up; while :; do sleep 0.1; done").up();
    up.stdout.expect("up\n");
    run(&mut container.named("pause", &[])).success();
    container.kill("USR1").success();
    std::thread::sleep(A_WHILE);
    assert!(up.stdout.is_silent());
    run(&mut container.named("resume", &[])).success();
    up.stdout.expect("got USR1\n");
    container.end(&up);
}

#[test]
fn kill_ends_a_paused_one() {
    if !place::is_runvm() && !place::cgroup_is_unified() {
        return; // runc on cgroup v1 leaves the signal to the thaw.
    }
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    run(&mut container.named("pause", &[])).success();
    container.kill("KILL").success();
    assert_eq!(wait_orphan(up.pid), 137);
    assert_eq!(container.status(), "stopped");
    container.delete().success();
    drop(container);
    scene.check();
}

#[test]
fn a_paused_one_is_deleted_by_force() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    run(&mut container.named("pause", &[])).success();
    container.force_delete().success();
    assert!(process::wait_end(up.pid, tests::PATIENCE));
    drop(container);
    scene.check();
}

#[test]
fn vm_a_paused_machine_uses_no_processor() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut up = container.sh("echo up; while :; do :; done").up();
    up.stdout.expect("up\n");
    run(&mut container.named("pause", &[])).success();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", up.pid)).unwrap();
        let fields: Vec<u64> =
            stat.rsplit(") ").next().unwrap().split(' ').filter_map(|field| field.parse().ok()).collect();
        // utime and stime, fields 14 and 15; of those before, name, state and a negative one are left out.
        fields[9] + fields[10]
    };
    let before = ticks();
    std::thread::sleep(A_WHILE);
    // A hundredth of a second each; a busy machine would take seventy.
    assert!(ticks() <= before + 5, "{before} and then {}", ticks());
    container.end(&up);
}

#[test]
fn vm_a_pause_needs_no_note_of_it() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let file = scene.root().join(&container.id).join("state.json");
    let before = std::fs::read(&file).unwrap();
    run(&mut container.named("pause", &[])).success();
    // Whatever a pause wrote that is killed before it has written it: the monitor is who knows.
    std::fs::write(&file, before).unwrap();
    assert_eq!(container.status(), "paused");
    scene.refused(&container.exec(&["true"]), &["cannot exec in a paused container"]);
    run(&mut container.named("resume", &[])).success();
    assert_eq!(container.status(), "running");
    container.exec(&["true"]).success();
    container.end(&up);
}

#[test]
fn output_is_whole_after_many_pauses() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.sh("echo up; head -c 20000000 /dev/zero | tr '\\0' x; echo; echo end").up();
    let reader = std::thread::spawn(move || up.stdout.rest());
    for _ in 0..8 {
        // It may have ended meanwhile.
        if run(&mut container.named("pause", &[])).code == 0 {
            run(&mut container.named("resume", &[])).success();
        }
    }
    let text = reader.join().unwrap();
    assert_eq!((text.len(), &text[..4], &text[text.len() - 5..]), (20_000_008, "up\nx", "\nend\n"));
    assert_eq!(wait_orphan(up.pid), 0);
    container.delete().success();
}

// Commands give the guest less time to answer.
const LONGER_THAN_ANY_LIMIT: Duration = Duration::from_secs(12);

#[test]
fn what_was_asked_before_a_pause_is_answered() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let kill = || start(container.named("kill", &["CONT"]).stdin(Stdio::null()));
    let before: Vec<_> = (0..10).map(|_| kill()).collect();
    let pause = start(container.named("pause", &[]).stdin(Stdio::null()));
    let after: Vec<_> = (0..10).map(|_| kill()).collect();
    pause.finish().success();
    std::thread::sleep(LONGER_THAN_ANY_LIMIT);
    for running in before.into_iter().chain(after) {
        running.finish().success();
    }
    run(&mut container.named("resume", &[])).success();
    container.exec(&["true"]).success();
    container.end(&up);
}

#[test]
fn an_exec_that_is_killed_meanwhile_is_gone_afterwards() {
    if !place::is_runvm() && !place::cgroup_is_unified() {
        return; // runc on cgroup v1 leaves the signal to the thaw.
    }
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let pid_file = container.bundle().join("exec.pid");
    let mut command = container.command("exec");
    command.arg("--detach").arg("--pid-file").arg(&pid_file).args([&container.id, "sleep", "54321"]);
    run(&mut command).success();
    let pid = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    run(&mut container.named("pause", &[])).success();
    process::signal(pid, Signal::KILL);
    assert_eq!(wait_orphan(pid), 137);
    std::thread::sleep(A_WHILE);
    run(&mut container.named("resume", &[])).success();
    let sleeps = || container.exec_sh("cat /proc/[0-9]*/cmdline").stdout.matches("54321").count();
    process::wait_until("the process in the container to be gone", || sleeps() == 0);
    container.end(&up);
}
