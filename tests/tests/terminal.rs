//! Terminals: of `run` and `exec -t` in a user's terminal, and over an engine's console socket.

use std::process::Child;

use serde_json::json;
use tests::command::{code, run};
use tests::{ConsoleSocket, Container, Scene, Terminal, process};

/// Prints a line for each new size, until it is right.
const WAITS_FOR_SIZE: &str = "while [ \"$(stty size)\" != '33 101' ]; do sleep 0.05; done; echo size is right";

fn run_on(terminal: &Terminal, container: &mut Container) -> Child {
    container.set("/process/terminal", json!(true));
    let mut command = container.named("run", &[]);
    terminal.attach(&mut command);
    command.spawn().unwrap()
}

#[track_caller]
fn end_of(mut child: Child) -> i32 {
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE), "it has not ended");
    code(child.wait().unwrap())
}

#[test]
fn run_gives_the_container_a_terminal_of_our_size() {
    let scene = Scene::new();
    let (mut terminal, mut container) = (Terminal::open(33, 101), scene.container());
    let child = run_on(&terminal, container.sh(&format!("{WAITS_FOR_SIZE}; tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ]")));
    terminal.expect("size is right\r\n/dev/pts/0\r\n");
    assert_eq!(end_of(child), 0);
}

#[test]
fn vm_the_size_is_right_from_the_first_moment() {
    let scene = Scene::new();
    let (mut terminal, mut container) = (Terminal::open(33, 101), scene.container());
    let child = run_on(&terminal, container.args(&["stty", "size"]));
    terminal.expect("33 101\r\n");
    assert_eq!(end_of(child), 0);
}

#[test]
fn a_new_size_reaches_the_container_as_a_signal() {
    let scene = Scene::new();
    let (mut terminal, mut container) = (Terminal::open(24, 80), scene.container());
    let script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.1; done";
    let child = run_on(&terminal, container.sh(script));
    terminal.expect("up\r\n");
    for (rows, columns) in [(40, 132), (10, 20)] {
        terminal.resize(rows, columns);
        terminal.expect(&format!("{rows} {columns}\r\n"));
    }
    container.kill("KILL").success();
    assert_eq!(end_of(child), 137);
}

#[test]
fn typing_is_echoed_and_interpreted_in_the_container() {
    let scene = Scene::new();
    let (mut terminal, mut container) = (Terminal::open(24, 80), scene.container());
    let child = run_on(&terminal, container.sh("echo up; cat; echo end of input"));
    terminal.expect("up\r\n");
    terminal.write("wrong\u{15}hello\n");
    terminal.expect("hello\r\nhello\r\n");
    terminal.write("\u{4}");
    terminal.expect("end of input\r\n");
    assert_eq!(end_of(child), 0);
}

#[test]
fn control_c_interrupts_the_container_and_not_us() {
    let scene = Scene::new();
    let (mut terminal, mut container) = (Terminal::open(24, 80), scene.container());
    let script = "trap 'echo interrupted; exit 9' INT; echo up; while :; do sleep 0.1; done";
    let child = run_on(&terminal, container.sh(script));
    terminal.expect("up\r\n");
    terminal.write("\u{3}");
    terminal.expect("interrupted\r\n");
    assert_eq!(end_of(child), 9);
}

#[test]
fn the_users_terminal_is_raw_meanwhile_and_restored_afterwards() {
    let scene = Scene::new();
    let (mut terminal, mut container) = (Terminal::open(24, 80), scene.container());
    assert!(!terminal.is_raw());
    let child = run_on(&terminal, container.sh("echo up; read line; exit 5"));
    terminal.expect("up\r\n");
    assert!(terminal.is_raw());
    terminal.write("\n");
    assert_eq!(end_of(child), 5);
    assert!(!terminal.is_raw(), "the terminal was left raw");
}

#[test]
fn much_output_comes_whole() {
    let scene = Scene::new();
    let (mut terminal, mut container) = (Terminal::open(24, 80), scene.container());
    let child = run_on(&terminal, container.sh("seq 30000; echo end"));
    let seen = terminal.expect("end\r\n");
    let expected: String = (1..=30000).map(|n| format!("{n}\r\n")).collect();
    assert!(seen == format!("{expected}end\r\n"), "lines are missing or out of order");
    assert_eq!(end_of(child), 0);
}

#[test]
fn create_sends_the_master_over_the_console_socket() {
    let scene = Scene::new();
    let mut container = scene.container();
    let socket = ConsoleSocket::listen(container.bundle(), "console.sock");
    container.set("/process/terminal", json!(true));
    container.sh(&format!("trap 'stty size' WINCH; {WAITS_FOR_SIZE}; while :; do sleep 0.1; done"));
    let created = container.create_with(&["--console-socket", socket.path().to_str().unwrap()]);
    let mut terminal = socket.receive();
    terminal.resize(33, 101);
    container.start().success();
    terminal.expect("size is right\r\n");
    terminal.resize(50, 60);
    terminal.expect("50 60\r\n");
    assert!(created.stdout.is_silent() && created.stderr.is_silent());
    assert_eq!(container.end(&created), 137);
}

#[test]
fn the_master_ends_with_the_container() {
    let scene = Scene::new();
    let mut container = scene.container();
    let socket = ConsoleSocket::listen(container.bundle(), "console.sock");
    container.set("/process/terminal", json!(true)).sh("seq 2000; exit 11");
    let created = container.create_with(&["--console-socket", socket.path().to_str().unwrap()]);
    let terminal = socket.receive();
    container.start().success();
    let expected: String = (1..=2000).map(|n| format!("{n}\r\n")).collect();
    assert_eq!(terminal.rest(), expected);
    assert_eq!(process::wait_orphan(created.pid), 11);
}

#[test]
fn a_closed_master_hangs_up() {
    let scene = Scene::new();
    let mut container = scene.container();
    let socket = ConsoleSocket::listen(container.bundle(), "console.sock");
    container.set("/process/terminal", json!(true)).sh("trap 'exit 21' HUP; echo up; while :; do sleep 0.1; done");
    let created = container.create_with(&["--console-socket", socket.path().to_str().unwrap()]);
    let mut terminal = socket.receive();
    container.start().success();
    terminal.expect("up\r\n");
    drop(terminal);
    assert_eq!(process::wait_orphan(created.pid), 21);
    container.delete().success();
}

#[test]
fn jobs_are_stopped_and_go_on() {
    let scene = Scene::new();
    let (mut terminal, mut container) = (Terminal::open(24, 80), scene.container());
    container.set("/process/env", json!(["PATH=/bin:/usr/bin", "PS1=READY# "]));
    let child = run_on(&terminal, container.args(&["sh", "-i"]));
    terminal.expect("READY# ");
    // The shell edits its line in a mode of its own, which it has left when it writes something.
    terminal.write("echo begin; cat\n");
    terminal.expect("\nbegin\r\n");
    terminal.write("one\n");
    terminal.expect("one\r\none\r\n");
    terminal.write("\u{1a}");
    terminal.expect("Stopped");
    terminal.expect("READY# ");
    terminal.write("jobs\n");
    terminal.expect("Stopped");
    terminal.expect("READY# ");
    terminal.write("fg\n");
    terminal.expect("cat\r\n");
    terminal.write("two\n");
    terminal.expect("two\r\ntwo\r\n");
    terminal.write("\u{3}");
    terminal.expect("READY# ");
    terminal.write("exit 6\n");
    assert_eq!(end_of(child), 6);
}

#[test]
fn exec_in_our_terminal() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let mut terminal = Terminal::open(33, 101);
    let mut command = container.command("exec");
    command.args(["--tty", &container.id, "sh", "-c"]).arg(format!("{WAITS_FOR_SIZE}; tty; exec sh"));
    terminal.attach(&mut command);
    let child = command.spawn().unwrap();
    terminal.expect("size is right\r\n/dev/pts/0\r\n");
    assert!(terminal.is_raw());
    terminal.resize(44, 55);
    terminal.write("stty size\n");
    terminal.expect("44 55\r\n");
    terminal.write("exit 8\n");
    assert_eq!(end_of(child), 8);
    assert!(!terminal.is_raw());
    container.end(&up);
}

#[test]
fn exec_over_a_console_socket() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let (socket, pid_file) =
        (ConsoleSocket::listen(container.bundle(), "exec.sock"), container.bundle().join("exec.pid"));
    let mut command = container.command("exec");
    command.args(["--tty", "--detach", "--console-socket"]).arg(socket.path()).arg("--pid-file").arg(&pid_file);
    // The trap comes after the first change of size, which is a signal too.
    let script = format!("{WAITS_FOR_SIZE}; trap 'stty size; exit 12' WINCH; echo go; while :; do sleep 0.1; done");
    let outcome = run(command.args([&container.id, "sh", "-c", &script])).success();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""));
    let mut terminal = socket.receive();
    terminal.resize(33, 101);
    terminal.expect("size is right\r\ngo\r\n");
    terminal.resize(20, 30);
    terminal.expect("20 30\r\n");
    let pid = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(process::wait_orphan(pid), 12);
    container.end(&up);
}

#[test]
fn a_terminal_without_a_place_to_go_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/terminal", json!(true));
    let outcome = container.try_create();
    scene.refused(&outcome, &["cannot allocate tty if", "without setting console socket"]);
}

#[test]
fn a_console_socket_without_a_terminal_is_refused() {
    let scene = Scene::new();
    let container = scene.container();
    let socket = ConsoleSocket::listen(container.bundle(), "console.sock");
    let mut command = container.command("create");
    let outcome = run(command.arg("--console-socket").arg(socket.path()).arg(&container.id));
    scene.refused(&outcome, &["cannot use console socket if"]);
}

#[test]
fn a_console_socket_where_nobody_listens_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/terminal", json!(true));
    let mut command = container.command("create");
    let outcome = run(command.args(["--console-socket", "/run/no/such.sock"]).arg(&container.id));
    scene.refused(&outcome, &["/run/no/such.sock"]);
}
