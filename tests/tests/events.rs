//! Statistics, and what happens when memory runs out.

use serde_json::{Value, json};
use tests::command::{run, start};
use tests::process::wait_orphan;
use tests::{Container, Scene};

/// `events` with flags, to its end: one value a line.
#[track_caller]
fn events(container: &Container, flags: &[&str]) -> Vec<Value> {
    let mut command = container.command("events");
    let outcome = run(command.args(flags).arg(&container.id)).success();
    lines(&outcome.stdout)
}

#[track_caller]
fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

#[test]
fn statistics_once() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/resources", json!({"memory": {"limit": 100 << 20}, "pids": {"limit": 77}}));
    let up = container.idle();
    container.exec_sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").success();
    let found = events(&container, &["--stats"]);
    assert_eq!(found.len(), 1);
    let event = &found[0];
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(container.id)));
    let (cpu, memory, pids) = (&event["data"]["cpu"]["usage"], &event["data"]["memory"], &event["data"]["pids"]);
    assert!(cpu["total"].as_u64().unwrap() > 1_000_000, "{cpu}");
    assert_eq!(memory["usage"]["limit"], json!(100 << 20));
    let usage = memory["usage"]["usage"].as_u64().unwrap();
    assert!(usage > 50_000 && usage < 100 << 20, "{memory}");
    assert!(memory["raw"]["anon"].as_u64().unwrap() > 0, "{memory}");
    assert_eq!(pids["limit"], json!(77));
    assert!((2..9).contains(&pids["current"].as_u64().unwrap()), "{pids}");
    container.end(&up);
}

#[test]
fn statistics_until_the_end() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let mut command = container.command("events");
    let watcher = start(command.args(["--interval", "200ms"]).arg(&container.id));
    std::thread::sleep(std::time::Duration::from_secs(2));
    container.kill("KILL").success();
    wait_orphan(up.pid);
    let outcome = watcher.finish().success();
    let found = lines(&outcome.stdout);
    assert!(found.len() >= 3, "{found:?}");
    assert!(found.iter().all(|event| event["type"] == "stats"), "{found:?}");
    container.delete().success();
}

#[test]
fn vm_lack_of_memory_is_told() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/resources", json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}}));
    let up = container.idle();
    let mut command = container.command("events");
    let watcher = start(command.args(["--interval", "1h"]).arg(&container.id));
    // Two processes, one after the other, take more than there is.
    for _ in 0..2 {
        container.exec_sh("head -c 100000000 /dev/zero | tail").failure();
    }
    std::thread::sleep(std::time::Duration::from_secs(1));
    tests::process::signal(watcher.pid(), rustix::process::Signal::TERM);
    let outcome = watcher.finish();
    let found = lines(&outcome.stdout);
    let oom = json!({"type": "oom", "id": container.id});
    assert_eq!(found.iter().filter(|event| **event == oom).count(), 2, "{found:?}");
    container.end(&up);
}

#[test]
fn bad_requests() {
    let scene = Scene::new();
    let mut container = scene.container();
    scene.refused(&run(&mut container.named("events", &[])), &["does not exist"]);
    let up = container.idle();
    let mut command = container.command("events");
    scene.refused(&run(command.args(["--interval", "0s"]).arg(&container.id)), &["interval"]);
    container.kill("KILL").success();
    wait_orphan(up.pid);
    scene.refused(&run(&mut container.named("events", &["--stats"])), &["not running"]);
    container.delete().success();
}
