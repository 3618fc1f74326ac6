//! Runs the bundle's hooks on the host.
//!
//! As with runc, a hook gets the container's state as JSON on its standard input, arguments and environment exactly as the bundle has
//! them, and the bundle's directory as working directory.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::process::{Pid, PidfdFlags};

use crate::plan::{Hook, Hooks};

pub use crate::plan::HookKind as Kind;

/// Bytes of each output stream of a hook that an error shows; the rest is read and dropped.
const KEEP: usize = 16 << 10;

/// Runs the hooks of one kind in order. `state` is the container's state as the OCI specification has it.
///
/// # Errors
/// The first failure, in runc's words. Before the container has started no further hook runs then; afterwards the remaining hooks
/// run all the same.
pub fn run(kind: Kind, hooks: &Hooks, state: &serde_json::Value) -> anyhow::Result<()> {
    let (hooks, runs_all) = match kind {
        Kind::Prestart => (&hooks.prestart, false),
        Kind::CreateRuntime => (&hooks.create_runtime, false),
        Kind::Poststart => (&hooks.poststart, true),
        Kind::Poststop => (&hooks.poststop, true),
    };
    let mut first = Ok(());
    for (n, hook) in hooks.iter().enumerate() {
        let result = hook.run(state).map_err(|error| anyhow!("error running hook #{n}: {error:#}"));
        if result.is_err() && !runs_all {
            return result;
        }
        first = first.and(result);
    }
    first
}

impl Hook {
    fn run(&self, state: &serde_json::Value) -> anyhow::Result<()> {
        let deadline = self.timeout.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        let mut child = self.spawn(state).with_context(|| format!("fork/exec {}", self.path.display()))?;
        let watched = watch(&mut child, deadline);
        if !matches!(watched, Ok(Some(_))) {
            // Whatever went wrong: it must not outlive us.
            let _ = child.kill();
        }
        let status = child.wait().context("wait for the hook")?;
        let Some([stdout, stderr]) = watched.context("watch the hook")? else {
            let seconds = self.timeout.unwrap_or_default();
            return Err(anyhow!("hook ran past specified timeout of {seconds}.0s"));
        };
        if status.success() {
            return Ok(());
        }
        Err(anyhow!("error running hook: {}, stdout: {stdout}, stderr: {stderr}", describe(status)))
    }

    fn spawn(&self, state: &serde_json::Value) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        if let Some((zeroth, rest)) = self.args.split_first() {
            command.arg0(zeroth).args(rest);
        }
        command.env_clear().envs(self.env.iter().filter_map(|entry| entry.split_once('=')));
        let bundle = state.get("bundle").and_then(|bundle| bundle.as_str()).map(Path::new);
        if let Some(bundle) = bundle.filter(|bundle| bundle.is_dir()) {
            command.current_dir(bundle);
        }
        // SAFETY: between fork and exec only a system call is made, with no memory of the parent's.
        unsafe { command.pre_exec(crate::signals::unblock) };
        command.stdin(stdin(state)?).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    }
}

/// Standard input with the state, a file of its own: a hook that does not read it holds nobody up.
fn stdin(state: &serde_json::Value) -> io::Result<Stdio> {
    let mut file = File::from(rustix::fs::memfd_create("state.json", MemfdFlags::CLOEXEC)?);
    file.write_all(state.to_string().as_bytes())?;
    file.rewind()?;
    Ok(Stdio::from(file))
}

/// Collects output until the process ends, even if others still hold its pipes. `None` when time is up.
fn watch(child: &mut Child, deadline: Option<Instant>) -> io::Result<Option<[String; 2]>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let stdout = child.stdout.take().map(|pipe| Output::new(pipe.into())).transpose()?;
    let stderr = child.stderr.take().map(|pipe| Output::new(pipe.into())).transpose()?;
    let (Some(mut stdout), Some(mut stderr)) = (stdout, stderr) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    loop {
        let ended = wait(&pidfd, [&stdout, &stderr], deadline)?;
        stdout.read()?;
        stderr.read()?;
        match ended {
            Some(true) => return Ok(Some([stdout.text(), stderr.text()])),
            Some(false) => {}
            None => return Ok(None),
        }
    }
}

/// Waits for output or the process's end; says whether the process ended, `None` when time is up.
fn wait(pidfd: &OwnedFd, outputs: [&Output; 2], deadline: Option<Instant>) -> io::Result<Option<bool>> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
    fds.extend(outputs.iter().filter(|output| output.open).map(|output| PollFd::new(&output.pipe, PollFlags::IN)));
    match rustix::event::poll(&mut fds, timeout.as_ref()) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(fds.first().is_some_and(|pidfd| !pidfd.revents().is_empty()))),
        Err(rustix::io::Errno::INTR) => Ok(Some(false)),
        Err(error) => Err(error.into()),
    }
}

/// One stream of a hook's output.
struct Output {
    pipe: File,
    open: bool,
    kept: Vec<u8>,
}

impl Output {
    fn new(pipe: OwnedFd) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        Ok(Self { pipe: pipe.into(), open: true, kept: Vec::new() })
    }

    /// Reads the output that is there.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        // Bounded, so that a hook that never stops writing cannot keep us from its deadline.
        for _ in 0..64 {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    self.open = false;
                    return Ok(());
                }
                Ok(length) => {
                    let room = KEEP.saturating_sub(self.kept.len()).min(length);
                    self.kept.extend(buffer.iter().take(room));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).trim_end().to_owned()
    }
}

/// Describes an exit status as Go's standard library, and so runc, does.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, signal) => {
            let signal = signal.and_then(|n| nix::sys::signal::Signal::try_from(n).ok());
            format!("signal: {}", signal.map_or("unknown", |signal| signal.as_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".into(), args, env: vec!["A=1".to_owned()], timeout: None }
    }

    fn prestart(hooks: &[Hook]) -> Result<(), String> {
        let hooks = Hooks { prestart: hooks.to_vec(), ..Hooks::default() };
        let state = serde_json::json!({"id": "box", "pid": 7, "bundle": "/"});
        run(Kind::Prestart, &hooks, &state).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_hook_gets_state_arguments_and_environment() {
        let script =
            r#"[ "$(cat)" = '{"bundle":"/","id":"box","pid":7}' ] && [ "$A" = 1 ] && [ -z "$HOME" ] && [ "$PWD" = / ]"#;
        prestart(&[shell(script)]).unwrap();
        let echo = Hook { path: "/bin/true".into(), ..Hook::default() };
        prestart(&[echo]).unwrap();
        // A large state that is not read.
        let hooks = Hooks { poststop: vec![shell("exec true")], ..Hooks::default() };
        run(Kind::Poststop, &hooks, &serde_json::json!({"annotations": "x".repeat(1 << 20)})).unwrap();
    }

    #[test]
    fn failures_read_like_runcs() {
        let error = prestart(&[shell("true"), shell("echo out; echo err >&2; exit 3")]).unwrap_err();
        assert_eq!(error, "error running hook #1: error running hook: exit status 3, stdout: out, stderr: err");
        let error = prestart(&[shell("kill -9 $$")]).unwrap_err();
        assert!(error.contains("error running hook: signal: SIGKILL, stdout: , stderr: "), "{error}");
        let none = Hook { path: "/nonexistent/hook".into(), ..Hook::default() };
        let error = prestart(&[none]).unwrap_err();
        assert!(error.starts_with("error running hook #0: fork/exec /nonexistent/hook: No such file"), "{error}");
    }

    #[test]
    fn time_is_limited() {
        let begin = Instant::now();
        let error = prestart(&[Hook { timeout: Some(1), ..shell("exec sleep 60") }]).unwrap_err();
        assert_eq!(error, "error running hook #0: hook ran past specified timeout of 1.0s");
        let busy = Hook { timeout: Some(1), ..shell("exec cat /dev/zero") };
        assert!(prestart(&[busy]).unwrap_err().contains("timeout"));
        assert!(begin.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn much_output_and_what_stays_behind_hold_nobody_up() {
        let begin = Instant::now();
        let error = prestart(&[shell("head -c 1000000 /dev/zero | tr '\\0' x; exit 1")]).unwrap_err();
        assert!(error.len() < 2 * KEEP, "{}", error.len());
        prestart(&[shell("sleep 20 & true")]).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn later_hooks_run_only_where_the_container_is_not_at_stake() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let touch = shell(&format!("echo x >> {}", file.path().display()));
        let hooks = vec![shell("exit 1"), touch];
        let hooks = Hooks { prestart: hooks.clone(), poststop: hooks, ..Hooks::default() };
        let state = serde_json::json!({});
        assert!(run(Kind::Prestart, &hooks, &state).is_err());
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "");
        assert!(run(Kind::Poststop, &hooks, &state).is_err());
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "x\n");
    }
}
