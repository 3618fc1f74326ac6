//! The guest as a machine: clock, randomness, CPUs, its end.

use crate::error::{Context, Error, Result};
use crate::log;
use crate::sys;
use protocol::ConfigureRequest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::PathBuf;
use std::time::Duration;

/// How long the host has to stop the machine after Shutdown was answered.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Error of the clock in microseconds from which on it is set rather than adjusted.
const STEP_US: u64 = 1_000_000;

/// How long after StartContainer's answer the other CPUs are brought up: a process that does little is
/// done by then, and needn't share the one CPU with that work.
const AFTER_START: Duration = Duration::from_millis(100);

/// Takes over settings of the host, sets the clock and mixes the host's entropy into the random pool.
pub fn configure(request: &ConfigureRequest) -> Result<()> {
    for setting in &request.settings {
        // A kernel of somebody's own may lack one, or have other bounds.
        if let Err(error) = sys::write_file(format!("/proc/sys/{}", setting.key), &setting.value) {
            log::error(&format!("setting {} = {:?} of the host: {error}", setting.key, setting.value));
        }
    }
    if request.realtime_nsec >= 1_000_000_000 {
        return Err(Error::invalid("realtime_nsec is not below a second"));
    }
    if request.realtime_sec != 0 {
        set_clock(request.realtime_sec, request.realtime_nsec)?;
    }
    if request.entropy.is_empty() {
        return Ok(());
    }
    let random = rustix::fs::open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let random = random.context(|| "open /dev/urandom")?;
    match sys::add_entropy(&random, &request.entropy) {
        // Reseeding is refused while the pool has never been ready; it seeds itself then.
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(errno) => Err(errno).context(|| "add entropy to the guest's random pool"),
    }
}

/// A second or more is a step; less the clock makes good by going faster or slower, so that no time comes twice.
fn set_clock(seconds: i64, nanoseconds: u32) -> Result<()> {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let whole = seconds.saturating_sub(now.tv_sec).saturating_mul(1_000_000);
    let behind = whole.saturating_add((i64::from(nanoseconds) - now.tv_nsec) / 1000);
    if behind.unsigned_abs() < STEP_US {
        return sys::slew_realtime(behind).context(|| "adjust the guest's clock");
    }
    sys::set_realtime(seconds, nanoseconds).context(|| "set the guest's clock")
}

/// Brings CPUs up until `count` are online, soon. In a child, since each takes the kernel milliseconds in which the agent
/// would answer nobody; the reaper sees it off.
pub async fn bring_up_cpus(count: u32) {
    tokio::time::sleep(AFTER_START).await;
    let args = sys::SpawnArgs { flags: 0, cgroup: None };
    let child = || {
        (1..count).for_each(bring_up_cpu);
        sys::exit_now(0)
    };
    if let Err(errno) = sys::spawn(&args, child) {
        log::error(&format!("bring CPUs up: {errno}"));
    }
}

/// Brings one CPU up; nothing to do for one that is, or that there is not.
pub fn bring_up_cpu(cpu: u32) {
    let file = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/online"));
    if std::fs::read_to_string(&file).is_ok_and(|online| online.trim() == "0")
        && let Err(error) = sys::write_file(&file, "1")
    {
        log::error(&format!("cpu {cpu}: {error}"));
    }
}

/// Writes all file systems back.
pub fn sync() {
    rustix::fs::sync();
}

/// Ends the machine if the host doesn't.
pub async fn end() {
    tokio::time::sleep(SHUTDOWN_PATIENCE).await;
    let result = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    log::error(&format!("the machine did not end: {result:?}"));
}
