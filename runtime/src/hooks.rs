//! Hooks of the bundle that run on the host (OCI runtime specification, "POSIX-platform Hooks").

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

/// The hooks that run in the runtime's namespaces.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Hooks {
    /// Before the container is made; deprecated, and what dockerd up to 25 uses for its network.
    pub prestart: Vec<Hook>,
    /// The same with its newer name.
    pub create_runtime: Vec<Hook>,
    /// After the process was started.
    pub poststart: Vec<Hook>,
    /// After the container was deleted.
    pub poststop: Vec<Hook>,
}

/// When hooks run.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// See [`Hooks::prestart`].
    Prestart,
    /// See [`Hooks::create_runtime`].
    CreateRuntime,
    /// See [`Hooks::poststart`].
    Poststart,
    /// See [`Hooks::poststop`].
    Poststop,
}

/// Runs the hooks of one kind in order, each with the state on stdin; stops at the first that fails.
pub fn run(kind: Kind, hooks: &Hooks, state: &serde_json::Value) -> anyhow::Result<()> {
    let (name, list) = match kind {
        Kind::Prestart => ("prestart", &hooks.prestart),
        Kind::CreateRuntime => ("createRuntime", &hooks.create_runtime),
        Kind::Poststart => ("poststart", &hooks.poststart),
        Kind::Poststop => ("poststop", &hooks.poststop),
    };
    for (number, hook) in list.iter().enumerate() {
        let failed = || format!("error running {name} hook #{number} ({})", hook.path().display());
        run_one(hook, &serde_json::to_vec(state)?).with_context(failed)?;
    }
    Ok(())
}

fn run_one(hook: &Hook, state: &[u8]) -> anyhow::Result<()> {
    let mut command = Command::new(hook.path());
    let mut arguments = hook.args().iter().flatten();
    if let Some(name) = arguments.next() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    command.args(arguments).env_clear();
    command.envs(hook.env().iter().flatten().filter_map(|variable| variable.split_once('=')));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    // A hook that does not read its input is none the worse for it.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(state));
    let output = [collect(child.stdout.take()), collect(child.stderr.take())];
    let status = wait(&mut child, hook.timeout())?;
    if status.success() {
        return Ok(());
    }
    let [stdout, stderr] = output.map(|thread| thread.join().unwrap_or_default());
    bail!("{status}, stdout: {}, stderr: {}", stdout.trim(), stderr.trim())
}

/// Waits for a hook, at most as long as its timeout in seconds says.
fn wait(child: &mut Child, timeout: Option<i64>) -> anyhow::Result<std::process::ExitStatus> {
    let seconds = timeout.and_then(|seconds| u64::try_from(seconds).ok()).filter(|&seconds| seconds > 0);
    let Some(seconds) = seconds else { return Ok(child.wait()?) };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("it ran longer than its timeout of {seconds} s and was killed");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Reads an output of a hook on a thread of its own, the first 16 KiB kept, so that it never blocks.
fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let Some(mut pipe) = pipe else { return String::new() };
        let mut kept = Vec::new();
        let _ = pipe.by_ref().take(16 << 10).read_to_end(&mut kept);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        String::from_utf8_lossy(&kept).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(script: &str, timeout: Option<i64>) -> Hooks {
        let mut hook = Hook::default();
        hook.set_path("/bin/sh".into());
        hook.set_args(Some(vec!["sh".into(), "-c".into(), script.into()]));
        hook.set_timeout(timeout);
        Hooks { prestart: vec![hook], ..Default::default() }
    }

    fn outcome(script: &str, timeout: Option<i64>) -> Result<(), String> {
        let state = serde_json::json!({"id": "x"});
        run(Kind::Prestart, &hooks(script, timeout), &state).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_state_is_on_stdin() {
        outcome(r#"test "$(/bin/cat)" = '{"id":"x"}'"#, None).unwrap();
    }

    #[test]
    fn a_failing_hook_says_what_it_said() {
        let error = outcome("echo out; echo err >&2; exit 3", None).unwrap_err();
        assert_eq!(error, "error running prestart hook #0 (/bin/sh): exit status: 3, stdout: out, stderr: err");
    }

    #[test]
    fn a_hook_that_hangs_is_killed() {
        let error = outcome("exec /bin/sleep 60", Some(1)).unwrap_err();
        assert!(error.contains("timeout of 1 s"), "{error}");
    }
}
