//! An unmodified dockerd that runs containers with the runtime under test.

use std::fs::File;
use std::time::Duration;

use tests::command::{code, memory_file, run, start};
use tests::disk;
use tests::docker::{Docker, IMAGE};
use tests::{Terminal, process};

#[test]
fn exit_codes() {
    let docker = Docker::new();
    for wanted in [0, 3] {
        docker.once(&["sh", "-c", &format!("exit {wanted}")]).exits(wanted);
    }
    let missing = docker.once(&["no-such-program"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert!(missing.stderr.contains("executable file not found in $PATH"), "{missing:?}");
    let denied = docker.once(&["/etc/passwd"]);
    assert_eq!(denied.code, 126, "{denied:?}");
    assert!(denied.stderr.contains("permission denied"), "{denied:?}");
}

#[test]
fn a_killed_container_is_137() {
    let docker = Docker::new();
    let name = "runvm-test-killed";
    let attached =
        start(docker.container(&["--rm", "--name", name], &["sleep", "100000"]).stdin(std::process::Stdio::null()));
    let runs = || docker.run(&["inspect", "--format", "{{.State.Running}}", name]).line() == "true";
    process::wait_until("the container to run", runs);
    docker.run(&["kill", name]).success();
    assert_eq!(attached.finish().code, 137);
}

#[test]
fn output_and_errors_stay_apart() {
    let docker = Docker::new();
    let outcome = docker.once(&["sh", "-c", "echo out; echo err >&2; seq 20000"]).success();
    assert_eq!(outcome.stderr, "err\n");
    let numbers: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert!(outcome.stdout == format!("out\n{numbers}"), "output is missing or out of order");
}

#[test]
fn a_quarter_gibibyte_in_and_out() {
    let docker = Docker::new();
    let input = tests::place::work().join("docker-input");
    let bytes: Vec<u8> = (0..32_u64 << 20).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    std::fs::write(&input, &bytes).unwrap();
    let output = memory_file();
    let mut command = docker.container(&["--rm", "--interactive", "--log-driver=none"], &["cat"]);
    command.stdin(File::open(&input).unwrap()).stdout(output.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    assert!(process::wait_end(child.id() as i32, Duration::from_secs(400)), "it does not end");
    assert_eq!(code(child.wait().unwrap()), 0);
    std::fs::remove_file(&input).unwrap();
    assert!(same(&output, &bytes), "what came out is not what went in");
}

fn same(file: &File, bytes: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let equal = |(at, block): (usize, &[u8])| {
        let part = &mut buffer[..block.len()];
        file.read_exact_at(part, (at << 20) as u64).is_ok() && part == block
    };
    file.metadata().unwrap().len() == bytes.len() as u64 && bytes.chunks(1 << 20).enumerate().all(equal)
}

#[test]
fn a_terminal_of_the_right_size() {
    let docker = Docker::new();
    let mut terminal = Terminal::open(33, 101);
    let script = "until [ \"$(stty size)\" = '33 101' ]; do sleep 0.05; done; tty; trap 'stty size; exit 5' WINCH
        echo up; while :; do sleep 0.1; done";
    let mut command = docker.container(&["--rm", "--interactive", "--tty"], &["sh", "-c", script]);
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.expect("/dev/pts/0\r\n");
    terminal.expect("up\r\n");
    terminal.resize(44, 77);
    terminal.expect("44 77\r\n");
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE));
    assert_eq!(code(child.wait().unwrap()), 5);
    assert!(!terminal.is_raw());
}

#[test]
fn typing_in_a_terminal() {
    let docker = Docker::new();
    let mut terminal = Terminal::open(24, 80);
    let mut command = docker.container(&["--rm", "-it"], &["sh"]);
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.expect("/ # ");
    terminal.write("echo $((40 + 2)); exit 6\n");
    terminal.expect("\r\n42\r\n");
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE));
    assert_eq!(code(child.wait().unwrap()), 6);
}

#[test]
fn the_life_of_a_detached_container() {
    let docker = Docker::new();
    let name = "runvm-test-life";
    let script = "trap 'echo stopping; exit 9' TERM; echo started; sleep 100000 & while :; do wait $!; done";
    run(&mut docker.container(&["--detach", "--name", name], &["sh", "-c", script])).success();
    wait_for_logs(&docker, name, "started\n");
    let outcome = docker.run(&["exec", name, "sh", "-c", "echo from exec; echo data >/file; exit 4"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, "from exec\n"));
    let missing = docker.run(&["exec", name, "no-such-program"]);
    // dockerd 20.10 tells 126 for every exec that fails to start, later ones 127.
    assert!([126, 127].contains(&missing.code), "{missing:?}");
    assert!(
        missing.stdout.contains("executable file not found") || missing.stderr.contains("executable file not found")
    );
    docker.run(&["stop", name]).success();
    assert_eq!(docker.run(&["inspect", "--format", "{{.State.ExitCode}}", name]).line(), "9");
    assert_ne!(docker.run(&["exec", name, "true"]).code, 0);
    docker.run(&["start", name]).success();
    wait_for_logs(&docker, name, "started\nstopping\nstarted\n");
    assert_eq!(docker.run(&["exec", name, "cat", "/file"]).success().stdout, "data\n");
    let refused = docker.run(&["rm", name]).failure();
    assert!(refused.stderr.contains("running"), "{refused:?}");
    docker.run(&["rm", "--force", name]).success();
    assert_eq!(docker.run(&["ps", "--all", "--quiet"]).stdout, "");
}

#[track_caller]
fn wait_for_logs(docker: &Docker, name: &str, wanted: &str) {
    process::wait_until("the container's log", || docker.run(&["logs", name]).stdout == wanted);
}

#[test]
fn settings_of_the_command_line() {
    let docker = Docker::new();
    let dir = tests::place::work().join("docker-volume");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("in"), "from the host").unwrap();
    let volume = format!("{}:/data", dir.display());
    let flags = [
        "--rm",
        "--env",
        "A=b c",
        "--workdir",
        "/tmp",
        "--hostname",
        "box",
        "--volume",
        &volume,
        "--user",
        "1000:1000",
    ];
    let script =
        "echo $A; pwd; hostname; cat /data/in; echo; id -u; grep -c box /etc/hosts; cat /etc/hostname; df /dev/shm";
    let outcome = run(&mut docker.container(&flags, &["sh", "-c", script])).success();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[..7], ["b c", "/tmp", "box", "from the host", "1000", "0", "box"]);
    assert!(lines.last().unwrap().contains("65536"), "/dev/shm is docker's 64 MiB: {outcome:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn an_exec_in_a_terminal() {
    let docker = Docker::new();
    let name = "runvm-test-exec";
    run(&mut docker.container(&["--detach", "--name", name], &["sleep", "100000"])).success();
    let mut terminal = Terminal::open(33, 101);
    let script = "until [ \"$(stty size)\" = '33 101' ]; do sleep 0.05; done; echo right size; read line; exit 7";
    let mut command = docker.command(&["exec", "-it", name, "sh", "-c", script]);
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.expect("right size\r\n");
    terminal.write("\n");
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE));
    assert_eq!(code(child.wait().unwrap()), 7);
    docker.run(&["rm", "--force", name]).success();
}

/// What the host's administrator executes with all rights has them over the files of a container that has few.
#[test]
fn a_privileged_exec() {
    let docker = Docker::new();
    let name = "runvm-test-privileged";
    run(&mut docker.container(&["--detach", "--name", name, "--cap-drop", "MKNOD"], &["sleep", "100000"])).success();
    docker.run(&["exec", name, "mknod", "/node", "c", "1", "3"]).failure();
    docker.run(&["exec", "--privileged", name, "mknod", "/node", "c", "1", "3"]).success();
    docker.run(&["exec", "--privileged", "--detach", name, "mknod", "/another", "c", "1", "3"]).success();
    process::wait_until("the other one", || {
        docker.run(&["exec", name, "sh", "-c", "test -c /node && test -c /another"]).code == 0
    });
    docker.run(&["rm", "--force", name]).success();
}

#[test]
fn files_can_be_copied_out() {
    let docker = Docker::new();
    let name = "runvm-test-copy";
    run(&mut docker.container(&["--name", name], &["sh", "-c", "echo content >/made"])).success();
    let outcome = docker.run(&["cp", &format!("{name}:/made"), "-"]).success();
    assert!(outcome.stdout.contains("content\n"));
    let changes = docker.run(&["diff", name]).success();
    assert!(changes.stdout.contains("A /made\n"), "{changes:?}");
    docker.run(&["rm", name]).success();
    assert_eq!(docker.run(&["images", "--format", "{{.Repository}}"]).line(), IMAGE);
}

#[test]
fn a_disk_of_the_host() {
    let docker = Docker::new();
    disk::is_handed_through("docker-disk", |device, script| {
        run(&mut docker.container(&["--rm", device], &["sh", "-c", script])).success().stdout
    });
}
