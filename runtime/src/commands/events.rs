//! `runvm events`

#[cfg(not(feature = "fuzz"))]
mod stats;
#[cfg(feature = "fuzz")]
pub mod stats;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::cli::{EventsArgs, Global};
use crate::control::{self, Reply, Request};
use crate::state::{Dir, Life, Status};
use crate::status;

/// Time for the monitor's answer: the guest only reads a few files.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for the next out-of-memory event.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Prints statistics of the container's cgroup in the guest: once, or repeatedly until the container ends, then with an event each
/// time that the container runs out of memory.
pub fn run(global: &Global, args: &EventsArgs) -> anyhow::Result<u8> {
    let dir = Dir::open(&global.root(), &args.id)?;
    if dir.state()?.life() != Life::Alive {
        bail!("container with id {} is not running", args.id);
    }
    if args.stats {
        return print(&args.id, "stats", Some(stats(dir.path())?)).map(|()| 0);
    }
    if args.interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    let (path, id) = (dir.path().to_owned(), args.id.clone());
    std::thread::spawn(move || watch_memory(&path, &id));
    loop {
        std::thread::sleep(*args.interval);
        let data = stats(dir.path());
        match (data, dir.load()) {
            (Ok(data), _) => print(&args.id, "stats", Some(data))?,
            (Err(_), Ok(Some(state))) if status::of(&dir, &state) == Status::Paused => {}
            (Err(_), _) if ends(&dir) => return Ok(0),
            (Err(error), _) => return Err(error),
        }
    }
}

/// Whether the container has ended, was deleted, or is ending: its monitor answers no more, and delivers the last output.
fn ends(dir: &Dir) -> bool {
    let begin = Instant::now();
    loop {
        match dir.load() {
            Ok(None) => return true,
            Ok(Some(state)) if state.life() == Life::Stopped => return true,
            _ if begin.elapsed() > PATIENCE => return false,
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Prints statistics once.
fn stats(dir: &Path) -> anyhow::Result<Value> {
    let names = stats::FILES.iter().map(|name| (*name).to_owned()).collect();
    match control::call(dir, &Request::ReadCgroup(names), PATIENCE)? {
        Reply::Files(files) => Ok(stats::stats(&files)),
        _ => bail!("unexpected reply from the container's monitor: not files"),
    }
}

/// Prints an event each time that memory runs out, until the container ends.
fn watch_memory(dir: &Path, id: &str) {
    let mut seen = 0;
    while let Ok(Reply::OomKills(kills)) = control::call(dir, &Request::WaitOom(seen), FOR_EVER) {
        seen = kills;
        if print(id, "oom", None).is_err() {
            return;
        }
    }
}

fn print(id: &str, kind: &str, data: Option<Value>) -> anyhow::Result<()> {
    let mut event = json!({"type": kind, "id": id});
    if let Some(data) = data {
        event["data"] = data;
    }
    let mut line = serde_json::to_vec(&event)?;
    line.push(b'\n');
    // One write: two threads print.
    std::io::stdout().lock().write_all(&line).context("print an event")
}
