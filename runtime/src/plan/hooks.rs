//! Hooks of the bundle that run on the host.

use std::path::PathBuf;

use anyhow::{Context, bail};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::nul;

/// Moments in a container's life at which hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// During `create`, with the monitor's pid; deprecated and still used.
    Prestart,
    /// During `create`, after the prestart hooks.
    CreateRuntime,
    /// During `start`, after the process was started.
    Poststart,
    /// During `delete`.
    Poststop,
}

/// One hook: a program to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: PathBuf,
    /// Arguments, the zeroth included; if there are none, the path is the zeroth.
    pub args: Vec<String>,
    /// Environment, `NAME=value` each; nothing is inherited.
    pub env: Vec<String>,
    /// Seconds after which the hook is killed.
    pub timeout: Option<u64>,
}

/// Hooks of a container, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Hooks of [`Kind::Prestart`].
    pub prestart: Vec<Hook>,
    /// Hooks of [`Kind::CreateRuntime`].
    pub create_runtime: Vec<Hook>,
    /// Hooks of [`Kind::Poststart`].
    pub poststart: Vec<Hook>,
    /// Hooks of [`Kind::Poststop`].
    pub poststop: Vec<Hook>,
}

/// Plans the hooks.
///
/// # Errors
/// A hook that would have to run in the container's namespaces, or one that breaks the specification.
#[allow(deprecated, reason = "engines still use prestart")]
pub fn plan(spec: &Spec) -> anyhow::Result<Hooks> {
    let Some(hooks) = spec.hooks() else { return Ok(Hooks::default()) };
    let inside = [("createContainer", hooks.create_container()), ("startContainer", hooks.start_container())];
    for (kind, list) in inside {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            bail!(
                "{kind} hooks run in the container's namespaces, which are inside the VM: \
                 use createRuntime or poststart"
            );
        }
    }
    Ok(Hooks {
        prestart: list("prestart", hooks.prestart())?,
        create_runtime: list("createRuntime", hooks.create_runtime())?,
        poststart: list("poststart", hooks.poststart())?,
        poststop: list("poststop", hooks.poststop())?,
    })
}

fn list(kind: &str, hooks: &Option<Vec<oci_spec::runtime::Hook>>) -> anyhow::Result<Vec<Hook>> {
    let hooks = hooks.iter().flatten().enumerate();
    hooks.map(|(n, hook)| convert(hook).with_context(|| format!("{kind} hook #{n}"))).collect()
}

fn convert(hook: &oci_spec::runtime::Hook) -> anyhow::Result<Hook> {
    nul::path("path", hook.path())?;
    if !hook.path().is_absolute() {
        bail!("its path {:?} is not absolute", hook.path());
    }
    let all = |field: &str, texts: &Option<Vec<String>>| {
        texts.iter().flatten().map(|text| nul::checked(field, text)).collect::<anyhow::Result<Vec<_>>>()
    };
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds @ 1..) => Some(u64::try_from(seconds)?),
        Some(seconds) => bail!("its timeout {seconds} is not greater than zero"),
    };
    Ok(Hook { path: hook.path().clone(), args: all("args", hook.args())?, env: all("env", hook.env())?, timeout })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(json: &str) -> anyhow::Result<Hooks> {
        plan(&serde_json::from_str(&format!(r#"{{"hooks":{json}}}"#)).unwrap())
    }

    #[test]
    fn hooks_of_the_host_are_taken_over() {
        let hooks = hooks(r#"{"prestart":[{"path":"/a","args":["a","b"],"env":["X=1"],"timeout":3}]}"#).unwrap();
        let hook = &hooks.prestart[0];
        assert_eq!((hook.args.len(), hook.env.len(), hook.timeout), (2, 1, Some(3)));
        assert!(hooks.poststop.is_empty());
    }

    #[test]
    fn others_are_refused() {
        let table = [
            (r#"{"createContainer":[{"path":"/a"}]}"#, "createContainer hooks run in the container's namespaces"),
            (r#"{"startContainer":[{"path":"/a"}]}"#, "startContainer hooks run in the container's namespaces"),
            (r#"{"poststop":[{"path":"/a"},{"path":"a"}]}"#, "poststop hook #1: its path \"a\" is not absolute"),
            (r#"{"prestart":[{"path":"/a","timeout":0}]}"#, "prestart hook #0: its timeout 0"),
        ];
        for (json, text) in table {
            let error = format!("{:#}", hooks(json).unwrap_err());
            assert!(error.starts_with(text), "{error}");
        }
        assert!(hooks(r#"{"createContainer":[]}"#).is_ok());
    }
}
