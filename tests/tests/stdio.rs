//! The three standard streams: every byte, in order, to its end, and no longer.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use tests::command::{memory_file, run, run_with_input, start};
use tests::{Scene, process, stream};

/// `size` bytes in which each eight differ from all others.
fn numbered(size: usize) -> Vec<u8> {
    (0..size as u64 / 8).flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect()
}

#[test]
fn sixty_four_mebibytes_from_file_to_file() {
    let scene = Scene::new();
    let mut container = scene.container();
    let (bytes, input, output) = (numbered(64 << 20), scene.dir().join("input"), memory_file());
    std::fs::write(&input, &bytes).unwrap();
    let mut command = container.args(&["cat"]).named("run", &[]);
    command.stdin(File::open(&input).unwrap()).stdout(output.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE * 2));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(content(&output) == bytes, "the bytes that came out are not those that went in");
}

fn content(mut file: &File) -> Vec<u8> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn sixteen_mebibytes_through_an_engines_pipes() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.args(&["cat"]).up();
    let bytes: String = (0..1 << 21).map(|n| format!("{n:07}\n")).collect();
    let (mut stdin, copy) = (File::from(created.stdin.take().unwrap()), bytes.clone());
    let writer = std::thread::spawn(move || stdin.write_all(copy.as_bytes()).unwrap());
    assert!(created.stdout.rest() == bytes, "the bytes that came out are not those that went in");
    writer.join().unwrap();
    assert_eq!(process::wait_orphan(created.pid), 0);
}

#[test]
fn output_and_errors_stay_apart() {
    let scene = Scene::new();
    let script =
        "for i in 1 2 3 4; do head -c 300000 /dev/zero | tr '\\0' o; head -c 300000 /dev/zero | tr '\\0' e >&2; done";
    let outcome = scene.sh(script).success();
    assert!(outcome.stdout.len() == 1_200_000 && outcome.stdout.bytes().all(|byte| byte == b'o'));
    assert!(outcome.stderr.len() == 1_200_000 && outcome.stderr.bytes().all(|byte| byte == b'e'));
}

#[test]
fn the_end_of_input_arrives_while_output_goes_on() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh("echo ready; wc -c; echo still here; sleep 0.1; echo bye >&2").up();
    created.stdout.expect("ready\n");
    let mut stdin = File::from(created.stdin.take().unwrap());
    stdin.write_all(b"12345").unwrap();
    drop(stdin);
    assert_eq!(created.stdout.rest(), "5\nstill here\n");
    assert_eq!(created.stderr.rest(), "bye\n");
    assert_eq!(process::wait_orphan(created.pid), 0);
}

#[test]
fn input_before_start_is_not_lost() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.args(&["cat"]).create();
    let mut stdin = File::from(created.stdin.take().unwrap());
    stdin.write_all(b"early\n").unwrap();
    container.start().success();
    stdin.write_all(b"late\n").unwrap();
    drop(stdin);
    assert_eq!(created.stdout.rest(), "early\nlate\n");
}

#[test]
fn a_writer_learns_that_its_reader_has_gone() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut created = container.sh("yes; echo $? >/code").up();
    created.stdout.expect("y\ny\n");
    drop(created.stdout);
    assert_eq!(process::wait_orphan(created.pid), 0);
    let code = std::fs::read_to_string(container.rootfs().join("code")).unwrap();
    assert_eq!(code.trim(), "141", "SIGPIPE is what ends it");
}

#[test]
fn a_slow_reader_holds_the_writer_up() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.sh("head -c 20000000 /dev/zero; touch /written").up();
    // A full pipe is the proof that the container writes and that nobody else reads.
    let full = || rustix::io::ioctl_fionread(created.stdout.descriptor()).unwrap() == 65536;
    process::wait_until("a full pipe", full);
    assert!(!container.rootfs().join("written").exists(), "20 MB went somewhere while nobody read");
    assert_eq!(created.stdout.rest().len(), 20_000_000);
    assert_eq!(process::wait_orphan(created.pid), 0);
}

#[test]
fn output_is_complete_however_fast_the_exit() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    for round in 0..50 {
        let text = format!("{round:01000}\n");
        let outcome = container.exec(&["echo", text.trim_end()]).success();
        assert_eq!(outcome.stdout, text, "round {round}");
    }
    container.end(&up);
}

#[test]
fn nothing_as_input() {
    let scene = Scene::new();
    let mut container = scene.container();
    assert_eq!(container.sh("cat; echo code $?").run().success().stdout, "code 0\n");
}

#[test]
fn a_device_as_input() {
    let scene = Scene::new();
    let mut container = scene.container();
    let zero = File::open("/dev/zero").unwrap();
    let outcome = run_with_input(&mut container.args(&["head", "-c", "100000"]).named("run", &[]), zero).success();
    assert_eq!(outcome.stdout.len(), 100_000);
}

#[test]
fn output_to_a_device() {
    let scene = Scene::new();
    let mut container = scene.container();
    let mut command = container.sh("head -c 1000000 /dev/zero; echo done >&2").named("run", &[]);
    let null = || File::options().write(true).open("/dev/null").unwrap();
    let (read, write) = stream::pipe();
    let mut child = command.stdin(Stdio::null()).stdout(null()).stderr(write).spawn().unwrap();
    drop(command);
    assert_eq!(tests::Reader::new(read).rest(), "done\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn vm_closed_streams_are_no_harm() {
    let scene = Scene::new();
    for closed in [0, 1, 2] {
        let mut container = scene.container();
        let mut command = container.sh("cat; echo out; echo err >&2; exit 3").named("run", &[]);
        let close = move || {
            // SAFETY: the child owns its standard descriptors, and nothing in it uses this one any more.
            unsafe { libc::close(closed) };
            Ok(())
        };
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(close) };
        let outcome = run(&mut command);
        assert_eq!(outcome.code, 3, "{closed}: {outcome:?}");
        assert_eq!(outcome.stdout, if closed == 1 { "" } else { "out\n" }, "{closed}");
        assert_eq!(outcome.stderr, if closed == 2 { "" } else { "err\n" }, "{closed}");
    }
}

#[test]
fn what_nobody_reads_does_not_keep_the_run_from_ending() {
    let scene = Scene::new();
    let mut container = scene.container();
    let (read, write) = stream::pipe();
    let mut command = container.sh("exit 6").named("run", &[]);
    // Somebody holds the other end of standard input open and never writes.
    let (stdin, _open) = stream::pipe();
    command.stdin(stdin).stdout(write);
    let mut child = command.spawn().unwrap();
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE), "run waits for input that never comes");
    assert_eq!(child.wait().unwrap().code(), Some(6));
    drop((command, read));
    let second = start(container.named("run", &[]).stdin(Stdio::null())).finish();
    assert_eq!(second.code, 6);
}

#[test]
fn one_that_still_holds_the_output_holds_nothing_up() {
    let scene = Scene::new();
    let outcome = scene.container().sh("sleep 100000 & echo main is done; exit 4").run();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, "main is done\n"));
}

#[test]
fn vm_much_output_takes_no_memory() {
    const BYTES: usize = 150 << 20;
    let scene = Scene::new();
    let mut container = scene.container();
    let script = format!("head -c {BYTES} /dev/zero; echo end >&2; sleep 100000");
    let mut up = container.sh(&format!("echo up >&2; read go; {script}")).up();
    up.stderr.expect("up\n");
    let held = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", up.pid)).unwrap();
        let text = tests::process::field(&status, "VmRSS").unwrap().to_owned();
        text.split(' ').next().unwrap().parse().unwrap()
    };
    let before = held();
    rustix::io::write(up.stdin.as_ref().unwrap(), b"go\n").unwrap();
    let stdout = up.stdout;
    let reader = std::thread::spawn(move || stdout.rest().len());
    up.stderr.expect("end\n");
    let grown = held().saturating_sub(before);
    assert!(grown < 16 << 10, "the pid holds {grown} KiB more after {BYTES} bytes of output");
    container.kill("KILL").success();
    tests::process::wait_orphan(up.pid);
    assert_eq!(reader.join().unwrap(), BYTES);
    container.delete().success();
}
