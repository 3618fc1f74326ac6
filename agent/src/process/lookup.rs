//! Finding the program to execute, with the sentences Go's `exec.LookPath` (hence runc) has for failures.
//!
//! Engines read those sentences: "not found" and "no such file" become exit code 127, "permission
//! denied" and "is a directory" 126.

use crate::error::{Error, Result, errno_text};
use rustix::fs::{Access, AtFlags, FileType};
use rustix::io::Errno;

/// The path to execute for `command`, looked up in `path` (the value of `$PATH`) as the caller's user.
pub fn find(command: &str, path: &str) -> Result<String> {
    if command.contains('/') {
        return match executable(command) {
            Ok(()) => Ok(command.to_owned()),
            Err(Failure::Stat(errno)) => Err(failed(command, &format!("stat {command}: {}", errno_text(errno)))),
            Err(Failure::Kind(errno)) => Err(failed(command, &errno_text(errno))),
        };
    }
    for directory in path.split(':').filter(|_| !command.is_empty()) {
        let candidate = join(directory, command);
        if executable(&candidate).is_err() {
            continue;
        }
        if !candidate.starts_with('/') {
            return Err(failed(command, "cannot run executable found relative to current directory"));
        }
        return Ok(candidate);
    }
    Err(failed(command, "executable file not found in $PATH"))
}

/// The last value of a variable in an environment.
pub fn variable<'e>(env: &'e [String], name: &str) -> Option<&'e str> {
    env.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn join(directory: &str, command: &str) -> String {
    match directory.trim_end_matches('/') {
        "" if directory.starts_with('/') => format!("/{command}"),
        "" | "." => command.to_owned(),
        directory => format!("{directory}/{command}"),
    }
}

fn failed(command: &str, why: &str) -> Error {
    Error::internal(format!("exec: \"{command}\": {why}"))
}

/// Why a file can't be executed.
enum Failure {
    /// The file could not be looked at.
    Stat(Errno),
    /// The file is no program that this user may run.
    Kind(Errno),
}

fn executable(path: &str) -> std::result::Result<(), Failure> {
    let stat = rustix::fs::stat(path).map_err(Failure::Stat)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Failure::Kind(Errno::ISDIR));
    }
    match rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        // A kernel or filter without faccessat2: the mode bits have to do.
        Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        Err(_) => Err(Failure::Kind(Errno::ACCESS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn message(command: &str, path: &str) -> String {
        find(command, path).unwrap_err().message
    }

    #[test]
    fn failures_read_like_runc() {
        assert_eq!(message("foo", "/nope:/bin"), "exec: \"foo\": executable file not found in $PATH");
        assert_eq!(message("", "/bin"), "exec: \"\": executable file not found in $PATH");
        assert_eq!(message("/x/y", ""), "exec: \"/x/y\": stat /x/y: no such file or directory");
        assert_eq!(message("/", ""), "exec: \"/\": is a directory");
        assert_eq!(message("/etc/passwd", ""), "exec: \"/etc/passwd\": permission denied");
        assert_eq!(message("/etc/passwd/x", ""), "exec: \"/etc/passwd/x\": stat /etc/passwd/x: not a directory");
    }

    #[test]
    fn the_first_match_in_path_wins() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("prog");
        std::fs::write(&program, "").unwrap();
        let path = format!("/nope:{}", dir.path().display());
        assert!(find("prog", &path).is_err());
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("prog", &path).unwrap(), program.to_str().unwrap());
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let env = ["A=1", "AB=2", "A=3"].map(str::to_owned);
        assert_eq!(variable(&env, "A"), Some("3"));
        assert_eq!(variable(&env, "B"), None);
    }
}
