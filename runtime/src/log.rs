//! Logging: `--log`, `--log-format` and `--debug`, as in runc.
//!
//! Engines show their users the last `level: error` line of the log file. The same sentence goes to
//! stderr. Without `--log`, lines go to stderr alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::cli::{Global, LogFormat};
use crate::guest_text;
use crate::ipc::Descriptor;

/// Settings of logging; passed on to the monitor, which writes to the same file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The log file, open for appending; stderr when there is none.
    pub file: Option<Descriptor>,
    /// Format of the lines.
    pub format: LogFormat,
    /// Whether debug lines are written.
    pub debug: bool,
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

/// Sets logging up from the command line; called once, before anything else can fail.
pub fn init(global: &Global) -> anyhow::Result<()> {
    let file = global.log.as_deref().map(append).transpose()?;
    set(Settings { file, format: global.log_format, debug: global.debug });
    Ok(())
}

/// Sets logging up from the settings of another process of ours.
pub fn set(settings: Settings) {
    let _ = SETTINGS.set(settings);
}

fn append(path: &Path) -> anyhow::Result<Descriptor> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = OpenOptions::new().create(true).append(true).mode(0o644).open(path);
    Ok(file.with_context(|| format!("open log file {}", path.display()))?.into())
}

/// Sets logging up from the arguments of a malformed command line: the engine still looks for the reason in the log file.
pub fn init_from_arguments(arguments: impl Iterator<Item = OsString>) {
    let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    let value = |name: &str| {
        let joined = arguments.iter().find_map(|argument| argument.strip_prefix(&format!("{name}=")));
        let apart = || arguments.iter().position(|argument| argument == name).and_then(|at| arguments.get(at + 1));
        joined.or_else(|| apart().map(String::as_str)).map(str::to_owned)
    };
    let format = if value("--log-format").as_deref() == Some("json") { LogFormat::Json } else { LogFormat::Text };
    // A log that cannot be opened must not hide what is wrong with the arguments.
    let file = value("--log").and_then(|path| append(Path::new(&path)).ok());
    set(Settings { file, format, debug: false });
}

/// Settings that [`init`] was given.
pub fn settings() -> Settings {
    SETTINGS.get().cloned().unwrap_or(Settings { file: None, format: LogFormat::Text, debug: false })
}

/// Log file; none when lines go to stderr.
pub fn file() -> Option<&'static Descriptor> {
    SETTINGS.get().and_then(|settings| settings.file.as_ref())
}

/// Reports why the command failed: a line in the log, and the sentence on stderr.
pub fn fatal(message: &str) {
    error(message);
    if file().is_some() {
        eprintln!("{message}");
    }
}

/// How much a line matters.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warning,
    /// For who looks for a cause.
    Debug,
}

/// Writes a line that can come again and again, as one that a guest causes can: the first time, and when it has come ten,
/// a hundred, a thousand times and so on. Lines that differ in numbers only are the same one.
pub fn repeated(level: Level, message: &str) {
    if matches!(level, Level::Debug) && !is_debug() {
        return;
    }
    let message = guest_text::sentence(message);
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).count(&message);
    let message = match seen {
        None => return,
        Some(1) => message,
        Some(times) => format!("{message} ({times} times by now)"),
    };
    match level {
        Level::Error => error(&message),
        Level::Warning => warning(&message),
        Level::Debug => debug(&message),
    }
}

/// Writes a line of level error.
pub fn error(message: &str) {
    line("error", message);
}

/// Writes a line of level warning.
pub fn warning(message: &str) {
    line("warning", message);
}

/// Writes a line of level info.
pub fn info(message: &str) {
    line("info", message);
}

/// Writes a line of level debug, if `--debug` was given.
pub fn debug(message: &str) {
    if is_debug() {
        line("debug", message);
    }
}

fn is_debug() -> bool {
    SETTINGS.get().is_some_and(|settings| settings.debug)
}

/// Most kinds of lines that are told apart. A guest that causes more is heard of as if all others were one.
const KINDS: usize = 64;

static SEEN: Mutex<Repeats> = Mutex::new(Repeats(BTreeMap::new()));

/// How often each kind of line has come.
struct Repeats(BTreeMap<String, u64>);

impl Repeats {
    /// Counts a line; gives the count when the line is to be written.
    fn count(&mut self, message: &str) -> Option<u64> {
        let mut kind: String = message.chars().filter(|c| !c.is_ascii_digit()).collect();
        if !self.0.contains_key(&kind) && self.0.len() >= KINDS {
            kind.clear();
        }
        let seen = self.0.entry(kind).or_default();
        *seen = seen.saturating_add(1);
        std::iter::successors(Some(1), |power: &u64| power.checked_mul(10)).any(|power| power == *seen).then_some(*seen)
    }
}

fn line(level: &str, message: &str) {
    let format = SETTINGS.get().map_or(LogFormat::Text, |settings| settings.format);
    let text = render(format, level, message, SystemTime::now());
    // A log that cannot be written must not turn a success into a failure.
    let _ = match file() {
        Some(file) => rustix::io::write(file, text.as_bytes()).map(drop),
        None => rustix::io::write(rustix::stdio::stderr(), text.as_bytes()).map(drop),
    };
}

fn render(format: LogFormat, level: &str, message: &str, time: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(time).to_string();
    match format {
        LogFormat::Json => {
            let line = serde_json::json!({"level": level, "msg": message, "time": time});
            format!("{line}\n")
        }
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_again_is_written_a_few_times() {
        let mut repeats = Repeats(BTreeMap::new());
        let written: Vec<u64> = (0..12_345).filter_map(|n| repeats.count(&format!("descriptor {n} is bad"))).collect();
        assert_eq!(written, [1, 10, 100, 1000, 10_000]);
        assert_eq!(repeats.count("another one"), Some(1));
    }

    #[test]
    fn a_guest_that_thinks_up_reasons_is_bounded() {
        let mut repeats = Repeats(BTreeMap::new());
        let reason = |n: u32| char::from_u32(0x1000 + n).unwrap().to_string();
        let written = (0..10_000).filter_map(|n| repeats.count(&reason(n))).count();
        assert_eq!((written, repeats.0.len()), (KINDS + 4, KINDS + 1));
    }

    #[test]
    fn a_json_line_is_what_engines_parse() {
        let line = render(LogFormat::Json, "error", "no \"x\"", SystemTime::UNIX_EPOCH);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "no \"x\"");
        assert_eq!(value["time"], "1970-01-01T00:00:00Z");
        assert!(line.ends_with('\n'));
    }
}
