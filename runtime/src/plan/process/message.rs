//! Processes of the specification as messages to the agent.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, bail};
use oci_spec::runtime::{PosixRlimit, Process, User};

use super::{capabilities, scheduling};
use crate::bundle::Bundle;
use crate::plan::facts::{Facts, Limit};
use crate::plan::{nul, validate};

/// Message for the container's own process.
///
/// # Errors
/// Says what about the process is wrong.
pub fn init(bundle: &Bundle, facts: &Facts, vcpus: u8, notes: &mut Vec<String>) -> anyhow::Result<protocol::Process> {
    let process = bundle.spec.process().as_ref().context("process property must not be empty")?;
    let mut message = convert(process, vcpus, notes)?;
    inherit(&mut message, &facts.limits);
    Ok(message)
}

/// Message for another process of a running container, whose VM has `vcpus` CPUs; `limits` are the caller's.
///
/// # Errors
/// Says what about the process is wrong.
pub fn exec(process: &Process, limits: &[Limit], vcpus: u8) -> anyhow::Result<protocol::Process> {
    validate::process(process)?;
    let mut message = convert(process, vcpus, &mut Vec::new())?;
    inherit(&mut message, limits);
    Ok(message)
}

/// Gives a process the caller's limits where it has none of its own, as if it were a child.
fn inherit(message: &mut protocol::Process, limits: &[Limit]) {
    let is_named = |limit: &&Limit| message.rlimits.iter().any(|named| named.resource == limit.resource);
    let unnamed = limits.iter().filter(|limit| !is_named(limit)).map(|&Limit { resource, soft, hard }| {
        protocol::Rlimit { resource, soft, hard, inherited: true, ..Default::default() }
    });
    let unnamed: Vec<_> = unnamed.collect();
    message.rlimits.extend(unnamed);
}

fn convert(process: &Process, vcpus: u8, notes: &mut Vec<String>) -> anyhow::Result<protocol::Process> {
    note_ignored(process, notes);
    let mut message = protocol::Process::new();
    let args = process.args().iter().flatten();
    message.args = args.map(|arg| nul::checked("process.args", arg)).collect::<anyhow::Result<_>>()?;
    message.env = environment(process.env().as_deref().unwrap_or_default())?;
    message.cwd = nul::path("process.cwd", process.cwd())?;
    user(process.user(), &mut message)?;
    message.capabilities = Some(capabilities::masks(process.capabilities().as_ref(), notes)).into();
    message.rlimits = rlimits(process.rlimits().as_deref().unwrap_or_default())?;
    message.no_new_privileges = process.no_new_privileges().unwrap_or(false);
    message.has_oom_score_adj = process.oom_score_adj().is_some();
    message.oom_score_adj = oom_score_adj(process)?;
    message.terminal = process.terminal().unwrap_or(false);
    if let (true, Some(size)) = (message.terminal, process.console_size()) {
        message.rows = cells(size.height());
        message.columns = cells(size.width());
    }
    scheduling::plan(process, vcpus, &mut message)?;
    Ok(message)
}

fn user(user: &User, message: &mut protocol::Process) -> anyhow::Result<()> {
    (message.uid, message.gid) = (user.uid(), user.gid());
    message.additional_gids = user.additional_gids().clone().unwrap_or_default();
    message.has_umask = user.umask().is_some();
    message.umask = user.umask().unwrap_or_default();
    let groups = message.additional_gids.iter().map(|&gid| ("additionalGids", gid));
    let mut ids = [("uid", message.uid), ("gid", message.gid)].into_iter().chain(groups);
    // The kernel's "no id", which means "leave it" to the calls that set one.
    if let Some((field, id)) = ids.find(|&(_, id)| id == u32::MAX) {
        bail!("process.user.{field} {id} is not a valid id");
    }
    if message.umask > 0o777 {
        bail!("process.user.umask {} ({0:#o}): must be 0 to 511 (0o777)", message.umask);
    }
    Ok(())
}

/// Rows or columns of a terminal; 0 for a number that no terminal can have.
fn cells(count: u64) -> u32 {
    u16::try_from(count).map_or(0, u32::from)
}

fn oom_score_adj(process: &Process) -> anyhow::Result<i32> {
    let value = process.oom_score_adj().unwrap_or_default();
    if !(-1000..=1000).contains(&value) {
        bail!("process.oomScoreAdj {value} is not between -1000 and 1000");
    }
    Ok(value)
}

/// The environment with each variable once: the last value wins.
fn environment(env: &[String]) -> anyhow::Result<Vec<String>> {
    let mut result: Vec<String> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for entry in env {
        let entry_text = nul::checked("process.env", entry)?;
        let Some((name, _)) = entry.split_once('=') else {
            bail!("invalid environment variable: missing '=' in {entry:?}");
        };
        if name.is_empty() {
            bail!("invalid environment variable: name cannot be empty in {entry:?}");
        }
        match places.get(name).and_then(|&place| result.get_mut(place)) {
            Some(earlier) => *earlier = entry_text,
            None => {
                places.insert(name, result.len());
                result.push(entry_text);
            }
        }
    }
    Ok(result)
}

fn rlimits(rlimits: &[PosixRlimit]) -> anyhow::Result<Vec<protocol::Rlimit>> {
    let mut seen = BTreeSet::new();
    let mut convert = |limit: &PosixRlimit| {
        // `oci_spec` has them in the order of their numbers in getrlimit(2) on x86-64.
        let (name, resource) = (limit.typ(), limit.typ() as u32);
        if !seen.insert(resource) {
            bail!("rlimit duplicated: {name}");
        }
        if limit.soft() > limit.hard() {
            bail!("rlimit {name}: its soft limit {} is above its hard limit {}", limit.soft(), limit.hard());
        }
        let (soft, hard) = (limit.soft(), limit.hard());
        Ok(protocol::Rlimit { resource, soft, hard, ..Default::default() })
    };
    rlimits.iter().map(&mut convert).collect()
}

fn note_ignored(process: &Process, notes: &mut Vec<String>) {
    let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let ignored =
        [("apparmorProfile", given(process.apparmor_profile())), ("selinuxLabel", given(process.selinux_label()))];
    let ignored = ignored.iter().filter(|(_, given)| *given);
    notes.extend(ignored.map(|(name, _)| format!("process.{name}: no effect in the guest")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_have_the_kernels_numbers() {
        use libc::*;
        let numbers = [
            ("CPU", RLIMIT_CPU),
            ("FSIZE", RLIMIT_FSIZE),
            ("DATA", RLIMIT_DATA),
            ("STACK", RLIMIT_STACK),
            ("CORE", RLIMIT_CORE),
            ("RSS", RLIMIT_RSS),
            ("NPROC", RLIMIT_NPROC),
            ("NOFILE", RLIMIT_NOFILE),
            ("MEMLOCK", RLIMIT_MEMLOCK),
            ("AS", RLIMIT_AS),
            ("LOCKS", RLIMIT_LOCKS),
            ("SIGPENDING", RLIMIT_SIGPENDING),
            ("MSGQUEUE", RLIMIT_MSGQUEUE),
            ("NICE", RLIMIT_NICE),
            ("RTPRIO", RLIMIT_RTPRIO),
            ("RTTIME", RLIMIT_RTTIME),
        ];
        for (name, number) in numbers {
            let limit = serde_json::json!([{"type": format!("RLIMIT_{name}"), "soft": 1, "hard": 2}]);
            let limits: Vec<PosixRlimit> = serde_json::from_value(limit).unwrap();
            assert_eq!(rlimits(&limits).unwrap()[0].resource, number, "{name}");
        }
    }

    fn process(json: &str) -> anyhow::Result<protocol::Process> {
        exec(&serde_json::from_str(json).unwrap(), &[], 2)
    }

    fn error(json: &str) -> String {
        format!("{:#}", process(json).unwrap_err())
    }

    #[test]
    fn everything_arrives() {
        let message = process(
            r#"{"terminal":true,"consoleSize":{"height":24,"width":80},"cwd":"/w","args":["a","b"],
                "user":{"uid":1,"gid":2,"umask":18,"additionalGids":[3,4]},"env":["A=1","B=2","A=3"],
                "rlimits":[{"type":"RLIMIT_NOFILE","soft":10,"hard":20}],"noNewPrivileges":true,
                "oomScoreAdj":-5,"capabilities":{"bounding":["CAP_KILL"]}}"#,
        )
        .unwrap();
        assert_eq!((message.rows, message.columns, message.terminal), (24, 80, true));
        assert_eq!((message.args.len(), message.cwd.as_str()), (2, "/w"));
        assert_eq!((message.uid, message.gid, message.umask, message.has_umask), (1, 2, 18, true));
        assert_eq!(message.additional_gids, [3, 4]);
        assert_eq!(message.env, ["A=3", "B=2"]);
        let limit = &message.rlimits[0];
        assert_eq!((limit.resource, limit.soft, limit.hard), (7, 10, 20));
        assert!(message.no_new_privileges && message.has_oom_score_adj);
        assert_eq!((message.oom_score_adj, message.capabilities.bounding), (-5, 32));
        assert_eq!((message.stdin, message.stdout, message.stderr), (0, 0, 0));
    }

    #[test]
    fn limits_without_a_name_are_the_callers() {
        let json = r#"{"user":{},"cwd":"/","args":["a"],"rlimits":[{"type":"RLIMIT_NOFILE","soft":10,"hard":20}]}"#;
        let limits = [7, 1].map(|resource| Limit { resource, soft: 5, hard: 6 });
        let message = exec(&serde_json::from_str(json).unwrap(), &limits, 2).unwrap();
        let got = message.rlimits.iter().map(|limit| (limit.resource, limit.soft, limit.hard, limit.inherited));
        assert_eq!(got.collect::<Vec<_>>(), [(7, 10, 20, false), (1, 5, 6, true)]);
    }

    #[test]
    fn what_is_wrong_is_said_in_runcs_words() {
        let with = |extra: &str| format!(r#"{{"user":{{}},"args":["a"],"cwd":"/"{extra}}}"#);
        assert_eq!(error(r#"{"user":{},"cwd":"/"}"#), "args must not be empty");
        assert_eq!(error(r#"{"user":{},"cwd":"/","args":[]}"#), "args must not be empty");
        let text = error(r#"{"user":{},"cwd":"x","args":["a"]}"#);
        assert!(text.starts_with("Cwd must be an absolute path"), "{text}");
        assert!(error(&with(r#","env":["A"]"#)).starts_with("invalid environment variable: missing '='"));
        assert!(error(&with(r#","env":["=1"]"#)).contains("name cannot be empty"));
        assert!(error(&with(r#","env":["A=\u0000"]"#)).contains("zero byte"));
        assert!(error(&with(r#","oomScoreAdj":1001"#)).contains("oomScoreAdj 1001"));
        let uid = r#"{"user":{"uid":4294967295},"cwd":"/","args":["a"]}"#;
        assert_eq!(error(uid), "process.user.uid 4294967295 is not a valid id");
        let groups = r#"{"user":{"additionalGids":[1,4294967295]},"cwd":"/","args":["a"]}"#;
        assert!(error(groups).starts_with("process.user.additionalGids 4294967295"));
        assert!(
            error(r#"{"user":{"umask":512},"cwd":"/","args":["a"]}"#).starts_with("process.user.umask 512 (0o1000)")
        );
        let twice = r#","rlimits":[{"type":"RLIMIT_CPU"},{"type":"RLIMIT_CPU"}]"#;
        assert_eq!(error(&with(twice)), "rlimit duplicated: RLIMIT_CPU");
        let above = r#","rlimits":[{"type":"RLIMIT_CPU","soft":2,"hard":1}]"#;
        assert!(error(&with(above)).contains("above its hard limit 1"));
    }

    #[test]
    fn absurd_terminal_sizes_are_no_sizes() {
        let json =
            r#"{"terminal":true,"consoleSize":{"height":99999999999,"width":80},"cwd":"/","args":["a"],"user":{}}"#;
        let message = process(json).unwrap();
        assert_eq!((message.rows, message.columns), (0, 80));
    }
}
