//! Running commands with a time limit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;

use crate::process;

/// How long anything may take that is not known to be slow. A guest's start in the lab takes 1–3 s.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How a command ended.
#[derive(Clone)]
pub struct Outcome {
    /// Exit code; 128 + n for signal n.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Outcome {
    /// Insists on exit code 0.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.describe());
        self
    }

    /// Insists on this exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.describe());
        self
    }

    /// Insists on an exit code other than 0.
    #[track_caller]
    pub fn failure(self) -> Self {
        assert_ne!(self.code, 0, "it should have failed; {}", self.describe());
        self
    }

    /// Standard output without the white space around it.
    pub fn line(&self) -> &str {
        self.stdout.trim()
    }

    fn describe(&self) -> String {
        format!("exit code {}\nstdout: {}\nstderr: {}", self.code, end(&self.stdout), end(&self.stderr))
    }
}

/// As much of a text's end as a message should hold.
fn end(text: &str) -> &str {
    let start = text.len().saturating_sub(4000);
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[start..]
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

/// A command in the background whose output is kept. Killed when dropped.
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    what: String,
}

/// Runs a command to its end; standard input is `/dev/null` unless set. Output goes to files, so a process
/// that the command leaves behind holds nothing up.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    command.stdin(Stdio::null());
    start(command).finish()
}

/// The same with a standard input.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: impl Into<Stdio>) -> Outcome {
    command.stdin(input);
    start(command).finish()
}

/// Starts a command whose output is kept; standard input is the caller's choice.
#[track_caller]
pub fn start(command: &mut Command) -> Running {
    let (stdout, stderr) = (memory_file(), memory_file());
    command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let what = format!("{command:?}");
    let child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
    Running { child, stdout, stderr, what }
}

impl Running {
    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.finish_within(PATIENCE)
    }

    /// Waits for its end, with a limit of the caller's own.
    #[track_caller]
    pub fn finish_within(mut self, limit: Duration) -> Outcome {
        let outcome = self.try_finish(limit);
        outcome.unwrap_or_else(|so_far| panic!("not finished after {limit:?}: {}\n{so_far}", self.what))
    }

    /// Waits for its end; kills it and tells what it wrote so far when that does not come within the limit.
    pub fn try_finish(&mut self, limit: Duration) -> Result<Outcome, String> {
        if !process::wait_end(self.pid(), limit) {
            self.end();
            return Err(self.outcome(-1).describe());
        }
        let status = self.child.wait().unwrap();
        Ok(self.outcome(code(status)))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        process::signal(self.pid(), signal);
    }

    fn outcome(&self, code: i32) -> Outcome {
        Outcome { code, stdout: content(&self.stdout), stderr: content(&self.stderr) }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// An exit status as a shell says it.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).expect("an end has a code or a signal")
}

/// A file without a name.
pub fn memory_file() -> File {
    rustix::fs::memfd_create("test-output", MemfdFlags::CLOEXEC).unwrap().into()
}

fn content(file: &File) -> String {
    // By position: the commands that write share the file's offset with us.
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
