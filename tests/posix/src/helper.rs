//! What this program is when a case executes it (a copy of it, with a mode or attributes of the case's own).

use std::io::Read;
use std::process::ExitCode;

/// Waits for the end of standard input.
pub const WAIT: &str = "--wait";
/// Succeeds if it has effective user id 0.
pub const IS_ROOT: &str = "--is-root";
/// Succeeds if it has `CAP_CHOWN` in effect.
pub const MAY_CHOWN: &str = "--may-chown";
/// Maps a file, writes `mapped` to its begin, waits for standard input's end after `msync`.
pub const MAP: &str = "--map";

/// Does what the arguments ask for, if they are a case's.
pub fn run(args: &[&str]) -> Option<ExitCode> {
    match args {
        [WAIT] => wait(),
        [IS_ROOT] => return Some(code(rustix::process::geteuid().is_root())),
        [MAY_CHOWN] => return Some(code(may_chown())),
        [MAP, file] => {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(file).expect("open the file to map");
            let map = crate::check::Map::shared(&file, 4096);
            map.set(0, b"mapped");
            map.sync();
            println!("synced");
            wait();
        }
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

fn wait() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn may_chown() -> bool {
    let sets = rustix::thread::capabilities(None).expect("ask for capabilities");
    sets.effective.contains(rustix::thread::CapabilitySet::CHOWN)
}

fn code(success: bool) -> ExitCode {
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
