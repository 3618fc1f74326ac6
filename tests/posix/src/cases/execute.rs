//! Programs in the file system.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};

use crate::cases::privileges::{CAPABILITY, CHOWN};
use crate::check::*;
use crate::helper;
use crate::process::ALICE;

cases! {
    a_copy_of_a_program_runs
    a_script_runs
    what_may_not_be_executed
    a_running_program_is_not_written
    a_program_being_written_does_not_run
    a_running_program_can_be_replaced
    a_setuid_program_is_its_owners
    a_setgid_bit_and_a_stranger
    file_capabilities_are_given
    a_changed_program_runs_as_changed
}

/// A copy of this program.
fn program(name: &str, mode: u32) {
    fs::copy("/proc/self/exe", name).unwrap();
    chmod(name, mode);
}

fn run(name: &str, arg: &str) -> Result<ExitStatus, ErrorKind> {
    Command::new(format!("./{name}")).arg(arg).stdin(Stdio::null()).status().map_err(|error| error.kind())
}

/// The same as [`ALICE`].
fn run_as_alice(name: &str, arg: &str) -> bool {
    let mut command = Command::new(format!("./{name}"));
    command.arg(arg).uid(ALICE).gid(ALICE).stdin(Stdio::null()).status().unwrap().success()
}

fn a_copy_of_a_program_runs() {
    program("program", 0o755);
    assert!(run("program", helper::IS_ROOT).unwrap().success());
    assert!(!run_as_alice("program", helper::IS_ROOT));
    rustix::fs::link("program", "link").unwrap();
    std::os::unix::fs::symlink("link", "soft").unwrap();
    assert!(run("soft", helper::IS_ROOT).unwrap().success());
}

fn a_script_runs() {
    file("script", "#!/bin/sh\nexit 7\n", 0o755);
    assert_eq!(run("script", "").unwrap().code(), Some(7));
    program("program", 0o755);
    let path = std::env::current_dir().unwrap().join("program");
    file("by-ours", format!("#!{} {}\n", path.display(), helper::IS_ROOT), 0o755);
    // The script's name follows as an argument, which is then none of a case's.
    assert_eq!(Command::new("./by-ours").stderr(Stdio::null()).status().unwrap().code(), Some(2));
}

fn what_may_not_be_executed() {
    program("program", 0o644);
    assert_eq!(run("program", helper::WAIT).unwrap_err(), ErrorKind::PermissionDenied);
    dir("dir", 0o755);
    assert_eq!(run("dir", "").unwrap_err(), ErrorKind::PermissionDenied);
    assert_eq!(run("none", "").unwrap_err(), ErrorKind::NotFound);
    chmod("program", 0o111);
    // Executable though not readable.
    assert!(!run_as_alice("program", helper::IS_ROOT));
}

fn a_running_program_is_not_written() {
    program("program", 0o755);
    let mut child = Command::new("./program").arg(helper::WAIT).stdin(Stdio::piped()).spawn().unwrap();
    fails(try_open("program", OFlags::WRONLY), Errno::TXTBSY);
    fails(try_open("program", OFlags::RDWR | OFlags::TRUNC), Errno::TXTBSY);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    open("program", OFlags::WRONLY);
}

fn a_program_being_written_does_not_run() {
    program("program", 0o755);
    let writer = open("program", OFlags::WRONLY);
    assert_eq!(run("program", helper::WAIT).unwrap_err(), ErrorKind::ExecutableFileBusy);
    drop(writer);
    assert!(run("program", helper::WAIT).unwrap().success());
}

fn a_running_program_can_be_replaced() {
    program("program", 0o755);
    program("new", 0o755);
    let mut child = Command::new("./program").arg(helper::WAIT).stdin(Stdio::piped()).spawn().unwrap();
    rustix::fs::rename("new", "program").unwrap();
    rustix::fs::unlink("program").unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

fn a_setuid_program_is_its_owners() {
    program("program", 0o4755);
    assert!(run_as_alice("program", helper::IS_ROOT));
    chmod("program", 0o755);
    assert!(!run_as_alice("program", helper::IS_ROOT));
}

fn a_setgid_bit_and_a_stranger() {
    program("program", 0o2755);
    assert!(!run_as_alice("program", helper::IS_ROOT));
    assert_eq!(mode("program"), 0o2755);
}

fn file_capabilities_are_given() {
    program("program", 0o755);
    assert!(!run_as_alice("program", helper::MAY_CHOWN));
    rustix::fs::setxattr("program", CAPABILITY, &CHOWN, XattrFlags::empty()).unwrap();
    assert!(run_as_alice("program", helper::MAY_CHOWN));
    rustix::fs::removexattr("program", CAPABILITY).unwrap();
    assert!(!run_as_alice("program", helper::MAY_CHOWN));
}

fn a_changed_program_runs_as_changed() {
    for code in 0..10 {
        fs::write("script", format!("#!/bin/sh\nexit {code}\n")).unwrap();
        chmod("script", 0o755);
        assert_eq!(run("script", "").unwrap().code(), Some(code));
    }
}
