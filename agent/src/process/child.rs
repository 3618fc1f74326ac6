//! The last steps of a forked child on its way to be the container's process, from its user to the exec.
//!
//! Init and executed processes take the same steps. When they begin the child is in its namespaces, in its root
//! directory, with its standard streams in place.

use crate::error::{Context, Error, Result, errno_text};
use crate::process::capabilities;
use crate::process::child_pipe::ParentPipe;
use crate::process::lookup;
use crate::sys;
use protocol::{Process, SeccompFilter};
use rustix::fd::RawFd;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The umask of a process that asks for none, as runc has it.
const DEFAULT_UMASK: u32 = 0o022;

/// Checks what the kernel would only refuse with a number.
pub fn validate(process: &Process) -> Result<()> {
    if process.args.is_empty() {
        return Err(Error::invalid("args must not be empty"));
    }
    if process.args.iter().chain(&process.env).chain([&process.cwd]).any(|text| text.contains('\0')) {
        return Err(Error::invalid("args, env and cwd must not contain NUL"));
    }
    Ok(())
}

/// Applies `process`, says ready, waits for the start and executes. Returns only an error.
///
/// The ready message tells the agent `master`, the terminal's.
pub fn run(process: &Process, filter: &SeccompFilter, agent: &ParentPipe, master: Option<RawFd>) -> Error {
    match prepare(process, filter, agent, master) {
        Ok(program) => {
            let errno = sys::exec(&program.path, &program.args, &program.env);
            Error::internal(format!("exec {}: {}", program.path.to_string_lossy(), errno_text(errno)))
        }
        Err(error) => error,
    }
}

/// Arguments of execve(2).
struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

fn prepare(process: &Process, filter: &SeccompFilter, agent: &ParentPipe, master: Option<RawFd>) -> Result<Program> {
    if process.no_new_privileges {
        thread::set_no_new_privs(true).context(|| "set no_new_privs")?;
    }
    rustix::process::umask(Mode::from_raw_mode(if process.has_umask { process.umask } else { DEFAULT_UMASK }));
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, which is about to go. With it the filter
    // comes last, so that it has to allow as little as possible.
    if !process.no_new_privileges {
        install_seccomp(filter)?;
    }
    let home = become_user(process)?;
    let program = find_program(process, home)?;
    agent.ready_and_wait(master)?;
    if process.no_new_privileges {
        install_seccomp(filter)?;
    }
    Ok(program)
}

fn install_seccomp(filter: &SeccompFilter) -> Result<()> {
    if filter.program.is_empty() {
        return Ok(());
    }
    sys::set_seccomp_filter(&filter.program, filter.flags).context(|| "unable to init seccomp")
}

/// Working directory, user, groups and capabilities; returns the user's home directory.
fn become_user(process: &Process) -> Result<String> {
    // The directory may be one that only root can enter, or one that only the user can.
    let entered = rustix::process::chdir(cwd(process)).is_ok();
    if let Some(capabilities) = process.capabilities.as_ref() {
        capabilities::drop_bounding(capabilities)?;
        thread::set_keep_capabilities(true).context(|| "set keep capabilities")?;
    }
    let home = home_of(Path::new("/etc/passwd"), process.uid);
    set_ids(process)?;
    if !entered {
        rustix::process::chdir(cwd(process))
            .context(|| format!("chdir to cwd (\"{}\") set in config.json failed", process.cwd))?;
    }
    if let Some(capabilities) = process.capabilities.as_ref() {
        thread::set_keep_capabilities(false).context(|| "clear keep capabilities")?;
        capabilities::apply(capabilities)?;
    }
    Ok(home)
}

fn cwd(process: &Process) -> &str {
    if process.cwd.is_empty() { "/" } else { &process.cwd }
}

fn set_ids(process: &Process) -> Result<()> {
    let invalid = |what: &str| Error::invalid(format!("{what} 4294967295 is not valid"));
    let groups: Vec<Gid> =
        process.additional_gids.iter().filter(|&&gid| gid != u32::MAX).map(|&gid| Gid::from_raw(gid)).collect();
    if process.uid == u32::MAX {
        return Err(invalid("uid"));
    }
    if process.gid == u32::MAX {
        return Err(invalid("gid"));
    }
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    thread::set_thread_groups(&groups).context(|| "setgroups")?;
    thread::set_thread_res_gid(gid, gid, gid).context(|| "setgid")?;
    thread::set_thread_res_uid(uid, uid, uid).context(|| "setuid")
}

/// The home directory that a passwd(5) file gives a user; "/" if it gives none.
fn home_of(passwd: &Path, uid: u32) -> String {
    // Anything can be there: a pipe must not keep the child waiting, and only so much of a file is looked at.
    let mut text = Vec::new();
    if let Ok(file) = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(passwd)
        && file.metadata().is_ok_and(|meta| meta.is_file())
    {
        let _ = file.take(1 << 20).read_to_end(&mut text);
    }
    home_in(&String::from_utf8_lossy(&text), uid).unwrap_or("/").to_owned()
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let matches = fields.next()?.parse() == Ok(uid);
        fields.nth(2).filter(|home| matches && !home.is_empty())
    })
}

fn find_program(process: &Process, home: String) -> Result<Program> {
    let command = process.args.first().ok_or_else(|| Error::invalid("args must not be empty"))?;
    let path = lookup::find(command, lookup::variable(&process.env, "PATH").unwrap_or(""))?;
    let mut env = process.env.clone();
    if lookup::variable(&env, "HOME").is_none_or(str::is_empty) {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={home}"));
    }
    let strings = |list: &[String]| list.iter().map(sys::c_string).collect::<std::result::Result<Vec<_>, Errno>>();
    Ok(Program {
        path: sys::c_string(&path).context(|| "exec")?,
        args: strings(&process.args).context(|| "exec")?,
        env: strings(&env).context(|| "exec")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nnobody:x:65534:65534::/nowhere:\nempty:x:7:7:::\n";

    #[test]
    fn home_comes_from_passwd() {
        assert_eq!(home_in(PASSWD, 0), Some("/root"));
        assert_eq!(home_in(PASSWD, 65534), Some("/nowhere"));
        assert_eq!(home_in(PASSWD, 7), None);
        assert_eq!(home_in(PASSWD, 5), None);
    }

    #[test]
    fn a_pipe_in_place_of_passwd_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let passwd = dir.path().join("passwd");
        std::fs::write(&passwd, PASSWD).unwrap();
        assert_eq!(home_of(&passwd, 65534), "/nowhere");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(home_of(&pipe, 0), "/");
    }

    #[test]
    fn nonsense_is_refused() {
        let mut process = Process::new();
        assert!(validate(&process).is_err());
        process.args = vec!["true".into()];
        validate(&process).unwrap();
        process.env = vec!["A=\0".into()];
        assert!(validate(&process).is_err());
    }

    #[test]
    fn home_is_added_when_missing() {
        let mut process = Process::new();
        process.args = vec!["/bin/sh".into()];
        process.env = vec!["HOME=".into(), "A=b".into()];
        let program = find_program(&process, "/root".into()).unwrap();
        assert_eq!(program.env, [c"A=b".to_owned(), c"HOME=/root".to_owned()]);
    }
}
