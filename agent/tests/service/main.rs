//! The agent's service over unix sockets instead of vsock, in a pid and a mount namespace of its own:
//! it can't touch the machine's mounts and everything it started dies with it.
//!
//! ```text
//!  this process: the host's part ── calls, streams ──▶ the same program again, as PID 1 under unshare(1)
//! ```
//!
//! Needs root, cgroup2 mounted somewhere and a static busybox. Without them the suite says so and fails.

mod cases;
mod harness;

use harness::Host;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

fn main() {
    if let Some(directory) = std::env::var_os("AGENT_TEST_SERVE") {
        harness::serve(Path::new(&directory));
    }
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    if let Err(missing) = requirements() {
        eprintln!("the agent's service tests need {missing}");
        std::process::exit(1);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let failed = runtime.block_on(run(filter.as_deref().unwrap_or("")));
    std::process::exit(i32::from(failed));
}

fn requirements() -> Result<(), &'static str> {
    if !rustix::process::geteuid().is_root() {
        return Err("root");
    }
    harness::cgroup2().ok_or("a cgroup2 mount")?;
    harness::busybox().map(drop).ok_or("a static busybox")
}

/// Runs the cases whose name contains `filter`, each with an agent of its own; whether one failed.
async fn run(filter: &str) -> bool {
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, case) in cases::ALL.iter().filter(|(name, _)| name.contains(filter)) {
        let local = tokio::task::LocalSet::new();
        let outcome = local.run_until(async {
            let case = tokio::task::spawn_local(async { case(&mut Host::start().await).await });
            tokio::time::timeout(Duration::from_secs(30), case).await
        });
        match outcome.await {
            Ok(Ok(())) => passed += 1,
            Ok(Err(_)) => failed.push(format!("{name}: panicked")),
            Err(_) => failed.push(format!("{name}: timed out")),
        }
    }
    failed.iter().for_each(|failed| eprintln!("{failed}"));
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    // In the words of Rust's own runner, for tools/test to count.
    println!("test result: {result}. {passed} passed; {} failed; 0 ignored", failed.len());
    !failed.is_empty()
}

/// A path below the machine's temporary directory that nobody else has.
fn scratch() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("agent-service-{}-{count}", std::process::id()))
}
