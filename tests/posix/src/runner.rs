//! Runs cases, each in a process and a directory of its own.

use std::ffi::CString;
use std::fs;
use std::io::{PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use crate::cases::Case;
use crate::process::{Child, End, fork};

/// Seconds that one case may take: on an emulated machine the longest takes a tenth of it.
const PATIENCE: u32 = 120;
/// Where processes of cases tell why they fail.
static REASONS: OnceLock<std::io::PipeWriter> = OnceLock::new();

/// Runs the cases whose names contain a word, below a directory.
pub fn run(cases: &[&Case], dir: &Path, word: &str) -> ExitCode {
    let mut reasons = listen();
    let (mut passed, mut failed) = (0, 0);
    for case in cases {
        let name = case.name();
        if !name.contains(word) {
            continue;
        }
        let place = dir.join(name.replace("::", "-"));
        let start = Instant::now();
        match one(case, &place, &mut reasons) {
            Ok(()) => {
                passed += 1;
                println!("ok {name} {} ms", start.elapsed().as_millis());
            }
            Err(why) => {
                failed += 1;
                println!("FAILED {name}: {}", why.trim().replace('\n', " | "));
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Has panics tell a pipe and end their process; gives the pipe's other end.
fn listen() -> PipeReader {
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    let flags = rustix::fs::fcntl_getfl(reader.as_fd()).expect("ask for the flags of a pipe");
    rustix::fs::fcntl_setfl(reader.as_fd(), flags | rustix::fs::OFlags::NONBLOCK).expect("make a pipe nonblocking");
    REASONS.set(writer).expect("listened already");
    std::panic::set_hook(Box::new(|info| {
        let text = format!("{info}\n");
        let _ = REASONS.get().map(|mut pipe| pipe.write_all(text.as_bytes()));
        // SAFETY: ends the process, which has failed, without running what its parent registered for its own exit.
        unsafe { libc::_exit(1) };
    }));
    reader
}

fn one(case: &Case, place: &Path, reasons: &mut PipeReader) -> Result<(), String> {
    fs::create_dir(place).map_err(|error| format!("cannot make {}: {error}", place.display()))?;
    let child = fork(|| {
        begin(place);
        (case.run)();
    });
    let end = finish(child);
    let mut why = Vec::new();
    let _ = reasons.read_to_end(&mut why);
    let removed = fs::remove_dir_all(place);
    match end {
        End::Code(0) => removed.map_err(|error| format!("what it left cannot be removed: {error}")),
        end => Err(format!("{end:?} {}", String::from_utf8_lossy(&why))),
    }
}

/// A case's first steps: a group of processes, a time limit, its directory, the usual mask.
fn begin(place: &Path) {
    let path = CString::new(place.as_os_str().as_encoded_bytes()).expect("no NUL in a path");
    // SAFETY: the path lives across the call; the others have no pointers.
    let result = unsafe {
        libc::setpgid(0, 0);
        libc::alarm(PATIENCE);
        libc::umask(0o022);
        libc::chdir(path.as_ptr())
    };
    assert_eq!(result, 0, "enter the case's directory");
}

/// Waits for a case's end and ends what it left running.
fn finish(child: Child) -> End {
    let group = child.pid();
    let end = child.end();
    // SAFETY: kill has no pointers; the group was made by the case.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    end
}
