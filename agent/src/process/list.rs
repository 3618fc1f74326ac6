//! Processes of a container as ps(1) would find them, from /proc.

use protocol::ProcessEntry;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Longest part of a command line that is reported, in bytes.
const MAX_ARGS: u64 = 4096;
/// Longest part of another file in /proc/PID that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;
/// Number of processes reported at most.
const MAX_PROCESSES: usize = 8192;

/// The processes of these pids (of the guest's initial namespace) that still exist.
pub fn list(proc: &Path, pids: &[u32]) -> Vec<ProcessEntry> {
    let found = pids.iter().take(MAX_PROCESSES).filter_map(|pid| entry(proc, *pid).map(|entry| (*pid, entry)));
    let mut found: Vec<(u32, ProcessEntry)> = found.collect();
    let inside: HashMap<u32, u32> = found.iter().map(|(pid, entry)| (*pid, entry.pid)).collect();
    for (_, entry) in &mut found {
        // A parent outside of the container is nobody to those inside.
        entry.ppid = inside.get(&entry.ppid).copied().unwrap_or(0);
    }
    found.into_iter().map(|(_, entry)| entry).collect()
}

/// Time since boot in 1/100 s.
pub fn uptime(proc: &Path) -> u64 {
    let text = std::fs::read_to_string(proc.join("uptime")).unwrap_or_default();
    let seconds: f64 = text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0);
    // It has two decimals, which are not binary fractions.
    (seconds * 100.0).round() as u64
}

/// Memory of the guest, in bytes.
pub fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
}

/// Entry of one process, whose `ppid` is still of the initial namespace.
fn entry(proc: &Path, pid: u32) -> Option<ProcessEntry> {
    let directory = proc.join(pid.to_string());
    let mut entry = from_stat(&read(&directory.join("stat"), MAX_FILE)?)?;
    from_status(&mut entry, &read(&directory.join("status"), MAX_FILE)?);
    let args = read(&directory.join("cmdline"), MAX_ARGS)?;
    entry.args = args.strip_suffix('\0').unwrap_or(&args).replace('\0', " ");
    Some(entry)
}

/// So much of a file, whatever bytes a process has put into its name or its command line.
fn read(path: &Path, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Fields of proc_pid_stat(5).
fn from_stat(stat: &str) -> Option<ProcessEntry> {
    // The command may hold spaces and parentheses.
    let (comm, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbered as in the manual page, where `state` is the third.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
    let number = |index| field(index).parse::<u64>().unwrap_or(0);
    Some(ProcessEntry {
        state: field(3).to_owned(),
        ppid: number(4) as u32,
        terminal: terminal(number(7) as u32),
        cpu_time: number(14).saturating_add(number(15)),
        nice: field(19).parse().unwrap_or(0),
        threads: number(20) as u32,
        started: number(22),
        vsize: number(23),
        rss: number(24).saturating_mul(rustix::param::page_size() as u64),
        comm: comm.to_owned(),
        ..Default::default()
    })
}

/// The identities as the process sees them: the last number of each line is of the innermost namespace.
fn from_status(entry: &mut ProcessEntry, status: &str) {
    let line = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).unwrap_or_default();
    let last = |name| line(name).split_ascii_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or(0);
    (entry.pid, entry.pgid, entry.sid) = (last("NSpid:"), last("NSpgid:"), last("NSsid:"));
    let effective = line("Uid:").split_ascii_whitespace().nth(1);
    entry.uid = effective.and_then(|uid| uid.parse().ok()).unwrap_or(0);
}

/// The name of a terminal by its device number.
fn terminal(device: u32) -> String {
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    match major {
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        5 => "console".to_owned(),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_an_odd_name() {
        let stat = "7 (a) b (c) S 1 7 7 34817 7 4194560 9 0 0 0 3 4 0 0 20 5 2 0 1234 4096000 256 0 0";
        let entry = from_stat(stat).unwrap();
        assert_eq!((entry.comm.as_str(), entry.state.as_str(), entry.terminal.as_str()), ("a) b (c", "S", "pts/1"));
        assert_eq!((entry.ppid, entry.cpu_time, entry.nice, entry.threads, entry.started), (1, 7, 5, 2, 1234));
        assert_eq!((entry.vsize, entry.rss), (4_096_000, 256 * rustix::param::page_size() as u64));
        assert_eq!(from_stat("7 nonsense"), None);
    }

    #[test]
    fn the_innermost_namespace_counts() {
        let mut entry = ProcessEntry::default();
        from_status(&mut entry, "Uid:\t1\t1000\t1\t1\nNSpid:\t40\t3\nNSpgid:\t40\t2\nNSsid:\t40\t1\n");
        assert_eq!((entry.pid, entry.pgid, entry.sid, entry.uid), (3, 2, 1, 1000));
    }

    #[test]
    fn uptimes_are_whole_hundredths() {
        let proc = tempfile::tempdir().unwrap();
        for hundredths in (0..2_000_000).step_by(9_973) {
            let text = format!("{}.{:02} 1.00\n", hundredths / 100, hundredths % 100);
            std::fs::write(proc.path().join("uptime"), text).unwrap();
            assert_eq!(uptime(proc.path()), hundredths);
        }
    }

    #[test]
    fn no_process_hides_or_takes_more_than_its_share() {
        let proc = tempfile::tempdir().unwrap();
        let directory = proc.path().join("7");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("stat"), b"7 (\xff) S 1 7 7 0").unwrap();
        std::fs::write(directory.join("status"), b"Name:\t\xff\nNSpid:\t7\t2\n").unwrap();
        // Without end.
        std::os::unix::fs::symlink("/dev/zero", directory.join("cmdline")).unwrap();
        let found = list(proc.path(), &[7]);
        assert_eq!((found[0].comm.as_str(), found[0].pid, found[0].args.len()), ("\u{fffd}", 2, 4095));
    }

    #[test]
    fn this_process_is_found() {
        let me = std::process::id();
        let found = list(Path::new("/proc"), &[me, u32::MAX]);
        assert_eq!(found.len(), 1);
        assert!(found[0].pid == me && found[0].args.contains("agent") && found[0].ppid == 0);
        assert!(uptime(Path::new("/proc")) >= found[0].started);
    }
}
