//! The processes of a container, as seen from outside.

use serde_json::{Value, json};
use tests::command::run;
use tests::process::wait_orphan;
use tests::{Container, Scene};

#[track_caller]
fn ps(container: &Container, args: &[&str]) -> String {
    run(&mut container.named("ps", args)).success().stdout
}

#[test]
fn engines_get_pids_of_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let mut command = container.command("ps");
    let outcome = run(command.args(["--format", "json"]).arg(&container.id)).success();
    let pids: Vec<i32> = serde_json::from_str(&outcome.stdout).expect("an array of numbers");
    assert!(pids.contains(&up.pid), "{} is not in {pids:?}", up.pid);
    container.end(&up);
}

#[test]
fn vm_json_is_the_monitor_alone_even_when_paused() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    run(&mut container.named("pause", &[])).success();
    let mut command = container.command("ps");
    let outcome = run(command.args(["-f", "json"]).arg(&container.id)).success();
    assert_eq!(serde_json::from_str::<Value>(&outcome.stdout).unwrap(), json!([up.pid]));
    scene.refused(&run(&mut container.named("ps", &[])), &["paused"]);
    run(&mut container.named("resume", &[])).success();
    container.end(&up);
    drop(container);
    scene.check();
}

#[test]
fn a_table_for_people() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let table = ps(&container, &[]);
    let header = table.lines().next().unwrap_or_default();
    for name in ["UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD"] {
        assert!(header.split_whitespace().any(|word| word == name), "{name} is not in {header:?}");
    }
    assert_eq!(table.lines().filter(|line| line.ends_with("sleep 100000")).count(), 1, "{table}");
    assert!(table.lines().count() >= 3, "{table}");
    container.end(&up);
}

#[test]
fn columns_can_be_chosen() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/user", json!({"uid": 1234, "gid": 0}));
    let up = container.idle();
    let table = ps(&container, &["-eo", "pid,ppid,uid,nlwp,stat,comm"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["PID", "PPID", "UID", "NLWP", "STAT", "COMMAND"]);
    let sleep = lines.iter().find(|line| line.last() == Some(&"sleep")).unwrap_or_else(|| panic!("{table}"));
    assert!(sleep[2] == "1234" && sleep[3] == "1" && sleep[4].starts_with('S'), "{table}");
    container.end(&up);
}

#[test]
fn vm_pids_are_those_inside() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let table = ps(&container, &["-o", "pid,ppid,args"]);
    let rows: Vec<_> = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert!(rows.iter().any(|row| row[..2] == ["1", "0"]), "{table}");
    let sleep = rows.iter().find(|row| row[2..] == ["sleep", "100000"]).unwrap_or_else(|| panic!("{table}"));
    assert_eq!(sleep[1], "1", "{table}");
    // The number is good for kill inside. The kill itself may be killed before it has ended: process 1 ends with
    // what it waited for, and everything in its pid namespace with it.
    container.exec(&["kill", sleep[0]]);
    assert_eq!(wait_orphan(up.pid), 143);
    container.delete().success();
}

#[test]
fn vm_what_is_not_known_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    scene.refused(&run(&mut container.named("ps", &[])), &["does not exist"]);
    let up = container.idle();
    scene.refused(&run(&mut container.named("ps", &["--forest"])), &["--forest", "unsupported ps option"]);
    scene.refused(&run(&mut container.named("ps", &["-o", "pid,wchan"])), &["wchan"]);
    container.kill("KILL").success();
    wait_orphan(up.pid);
    scene.refused(&run(&mut container.named("ps", &[])), &["not running"]);
    container.delete().success();
}
