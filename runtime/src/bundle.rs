//! Reads bundles, the directories with config.json, and the process file of `exec`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::{Capability, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Name of the configuration in a bundle.
pub const CONFIG: &str = "config.json";

/// Most bytes of a configuration; real ones have a few ten thousand.
const MAX_SIZE: u64 = 16 << 20;

/// A bundle as read from disk.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Canonical path of its directory.
    pub dir: PathBuf,
    /// Content of its config.json.
    pub spec: Spec,
    /// Capabilities that this runtime does not know; runc ignores such names with a warning.
    pub unknown_capabilities: Vec<String>,
}

/// Reads the bundle in a directory.
///
/// # Errors
/// Names the path: no such directory, no config.json, malformed JSON (with line and column), or a value of the wrong type.
pub fn load(dir: &Path) -> anyhow::Result<Bundle> {
    let dir = dir.canonicalize().with_context(|| format!("open bundle {}", dir.display()))?;
    if !dir.is_dir() {
        bail!("open bundle {}: not a directory", dir.display());
    }
    let path = dir.join(CONFIG);
    let kind = |error: &anyhow::Error| error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let text = match read(&path) {
        Err(error) if kind(&error) == Some(ErrorKind::NotFound) => {
            bail!("JSON specification file {CONFIG} not found in {}", dir.display())
        }
        text => text?,
    };
    of(dir, &text)
}

/// Reads the bundle of a directory from the text of its config.json.
///
/// # Errors
/// Malformed JSON (with line and column), or a value of the wrong type.
pub fn of(dir: PathBuf, text: &str) -> anyhow::Result<Bundle> {
    let (spec, unknown_capabilities) = parse(text, &dir.join(CONFIG))?;
    Ok(Bundle { dir, spec, unknown_capabilities })
}

/// Reads the process of `exec --process FILE`.
///
/// # Errors
/// As [`load`].
pub fn load_process(path: &Path) -> anyhow::Result<Process> {
    let (process, _) = parse(&read(path)?, path)?;
    Ok(process)
}

fn read(path: &Path) -> anyhow::Result<String> {
    // Non-blocking, so that a FIFO in its place cannot hold the command up.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    if !file.metadata().with_context(|| format!("stat {}", path.display()))?.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    let mut text = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut text).with_context(|| format!("read {}", path.display()))?;
    if text.len() as u64 > MAX_SIZE {
        bail!("{} is larger than {} MiB", path.display(), MAX_SIZE >> 20);
    }
    String::from_utf8(text).with_context(|| format!("{} is not UTF-8 text", path.display()))
}

/// Parses a value; also returns the capabilities in it that had to be ignored.
fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> anyhow::Result<(T, Vec<String>)> {
    // The parser would take an array for an object whose fields are all left out.
    if text.trim_start().starts_with('[') {
        bail!("parse {}: expected an object at line 1, found an array", path.display());
    }
    let failed = match serde_json::from_str(text) {
        Ok(value) => return Ok((value, Vec::new())),
        Err(error) => error,
    };
    // The types know all capabilities of today; names of tomorrow must not make a bundle unreadable.
    if let Ok(mut value) = serde_json::from_str::<Value>(text) {
        let mut unknown = BTreeSet::new();
        drop_unknown_capabilities(&mut value, &mut unknown);
        let renamed = rename_scheduler_flags(&mut value);
        if let (true, Ok(parsed)) = (renamed || !unknown.is_empty(), serde_json::from_value(value)) {
            return Ok((parsed, unknown.into_iter().collect()));
        }
    }
    Err(failed).with_context(|| format!("parse {}", path.display()))
}

/// Flags of `process.scheduler`: name in the specification, and name in our parser, which knows two by other names.
const SCHEDULER_FLAGS: [(&str, &str); 2] =
    [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];

/// Replaces names by those of the parser; says whether there were any.
fn rename_scheduler_flags(value: &mut Value) -> bool {
    let at_process = value.pointer("/process").is_some();
    let place = if at_process { "/process/scheduler/flags" } else { "/scheduler/flags" };
    let mut renamed = false;
    for flag in value.pointer_mut(place).and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some((_, name)) = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = Value::from(*name);
            renamed = true;
        }
    }
    renamed
}

fn drop_unknown_capabilities(value: &mut Value, unknown: &mut BTreeSet<String>) {
    let at_process = value.pointer("/process/capabilities").is_some();
    let place = if at_process { "/process/capabilities" } else { "/capabilities" };
    let Some(Value::Object(sets)) = value.pointer_mut(place) else { return };
    for names in sets.values_mut().filter_map(Value::as_array_mut) {
        names.retain(|name| {
            let known = !name.is_string() || serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                unknown.extend(name.as_str().map(str::to_owned));
            }
            known
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &str) -> (tempfile::TempDir, anyhow::Result<Bundle>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG), config).unwrap();
        let loaded = load(dir.path());
        (dir, loaded)
    }

    fn error(config: &str) -> String {
        format!("{:#}", bundle(config).1.unwrap_err())
    }

    #[test]
    fn broken_configurations_are_named_with_line_and_column() {
        let text = error("{\n  \"ociVersion\": \n");
        assert!(text.contains("config.json: ") && text.contains("line 3 column 0"), "{text}");
        let text = error(r#"{"ociVersion":"1.0.2","root":5}"#);
        assert!(text.contains("invalid type: integer `5`") && text.contains("line 1 column"), "{text}");
        assert!(error("").contains("EOF while parsing"));
        assert!(error(" []").contains("config.json: expected an object at line 1"));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("{:#}", load(dir.path()).unwrap_err());
        assert!(text.starts_with("JSON specification file config.json not found"), "{text}");
        let text = format!("{:#}", load(Path::new("/nonexistent/bundle")).unwrap_err());
        assert!(text.contains("/nonexistent/bundle") && text.contains("No such file"), "{text}");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(format!("{:#}", load(&file).unwrap_err()).contains("not a directory"));
    }

    #[test]
    fn a_configuration_is_a_regular_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(CONFIG)).unwrap();
        assert!(format!("{:#}", load(dir.path()).unwrap_err()).contains("is not a regular file"));
        let dir = tempfile::tempdir().unwrap();
        let fifo = std::ffi::CString::new(dir.path().join(CONFIG).to_str().unwrap()).unwrap();
        // SAFETY: the path is a valid C string.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        assert!(format!("{:#}", load(dir.path()).unwrap_err()).contains("is not a regular file"));
    }

    #[test]
    fn unknown_capabilities_are_ignored_and_told() {
        let config = r#"{"ociVersion":"1.0.2","process":{"user":{},"cwd":"/","capabilities":
            {"bounding":["CAP_KILL","CAP_FROM_THE_FUTURE"],"effective":["CAP_FROM_THE_FUTURE"]}}}"#;
        let bundle = bundle(config).1.unwrap();
        assert_eq!(bundle.unknown_capabilities, ["CAP_FROM_THE_FUTURE"]);
        let capabilities = bundle.spec.process().as_ref().unwrap().capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn flags_of_the_scheduler_have_the_specifications_names() {
        for (name, _) in SCHEDULER_FLAGS {
            let process = format!(
                r#"{{"user":{{}},"cwd":"/","scheduler":{{"policy":"SCHED_RR","flags":["SCHED_FLAG_RECLAIM","{name}"]}}}}"#
            );
            let bundle = bundle(&format!(r#"{{"ociVersion":"1.2.0","process":{process}}}"#)).1.unwrap();
            let scheduler = bundle.spec.process().as_ref().unwrap().scheduler().clone().unwrap();
            assert_eq!(scheduler.flags().as_ref().unwrap().len(), 2);
            let path = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(path.path(), process).unwrap();
            load_process(path.path()).unwrap();
        }
    }

    #[test]
    fn a_process_file_is_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("process.json");
        std::fs::write(&path, r#"{"user":{},"args":["a"],"cwd":"/","capabilities":{"bounding":["CAP_X"]}}"#).unwrap();
        assert_eq!(load_process(&path).unwrap().args().as_ref().unwrap()[0], "a");
        std::fs::write(&path, "{").unwrap();
        assert!(format!("{:#}", load_process(&path).unwrap_err()).contains("process.json"));
        let text = format!("{:#}", load_process(&dir.path().join("none")).unwrap_err());
        assert!(text.contains("none: No such file"), "{text}");
    }
}
