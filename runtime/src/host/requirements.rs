//! What a host must have for the processes of a container on it to be confined. `doctor` looks for it, `create` insists on it,
//! and both say the same of what is missing.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::monitor_namespaces;
use crate::log;

/// What makes taps.
const TUN: &str = "/dev/net/tun";

/// Something that the host must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// A user namespace for each monitor, so that it has no right over the host.
    UserNamespaces,
    /// Device filters of cgroups, so that a monitor opens no device by its node.
    DeviceFilters,
    /// Seccomp filters, so that threads that a guest reaches make no system calls but their own.
    Seccomp,
    /// The tun device, for containers with a network.
    Tun,
}

impl Requirement {
    /// Name of the check.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserNamespaces => "user namespaces",
            Self::DeviceFilters => "device filters",
            Self::Seccomp => "seccomp",
            Self::Tun => "tun",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::UserNamespaces => {
                "sysctl user.max_user_namespaces=65536, a kernel with CONFIG_USER_NS, or a security module that permits them; \
                 --insecure goes on without"
            }
            Self::DeviceFilters => {
                "a kernel with CONFIG_CGROUP_BPF, or the devices controller of cgroup version 1; --insecure goes on without"
            }
            Self::Seccomp => "a kernel with CONFIG_SECCOMP_FILTER; --insecure goes on without",
            Self::Tun => "modprobe tun: containers with a network need it",
        }
    }

    /// Says that the host lacks it, and why.
    pub fn missing(self, why: impl Display) -> Missing {
        Missing { what: self, why: why.to_string() }
    }
}

/// What a host lacks, as a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    what: Requirement,
    why: String,
}

impl Display for Missing {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}: {} → {}", self.what.name(), self.why, self.what.remedy())
    }
}

impl std::error::Error for Missing {}

/// Goes on without something only where the caller says so; then the log does, too.
///
/// # Errors
/// It is missing, and the caller insists on it.
pub fn insist<T>(found: Result<T, Missing>, insecure: bool) -> anyhow::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(missing) if insecure => {
            log::warning(&missing.to_string());
            Ok(None)
        }
        Err(missing) => bail!(missing),
    }
}

/// Rootless, a device filter that cannot be there is none that is missed: such a process makes no nodes of devices, and opens
/// those that any process of its user may open.
///
/// # Errors
/// It is missing, and this process is not rootless.
pub fn unless_rootless<T>(without: T, filtered: Result<T, Missing>) -> Result<T, Missing> {
    match filtered {
        Err(missing) if monitor_namespaces::is_rootless() => {
            log::debug(&missing.to_string());
            Ok(without)
        }
        filtered => filtered,
    }
}

/// What processes of a container on the host are confined by; all of it, unless `--insecure` permits less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Whether the monitor goes into a user namespace.
    pub user_namespace: bool,
    /// Whether threads have seccomp filters.
    pub seccomp: bool,
}

impl Confinement {
    /// What this host can give. To be called while there is one thread.
    ///
    /// # Errors
    /// Something is missing, and the caller insists on it.
    pub fn of_host(insecure: bool) -> anyhow::Result<Self> {
        let seccomp = insist(seccomp(), insecure)?.is_some();
        // Nobody can leave a user namespace again. Whoever insists on one is told by the monitor's own.
        let user_namespace = !insecure || insist(user_namespaces(), insecure)?.is_some();
        Ok(Self { user_namespace, seccomp })
    }
}

/// Makes a user namespace as a monitor does, and says how many there can be. To be called while there is one thread.
///
/// # Errors
/// Why it cannot be made.
pub fn user_namespaces() -> Result<String, Missing> {
    let missing = |error: anyhow::Error| Requirement::UserNamespaces.missing(format!("{error:#}"));
    monitor_namespaces::user_namespace(&monitor_namespaces::own_ids().map_err(missing)?).map_err(missing)?;
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    Ok(format!("at most {}", most.trim()))
}

/// Asks whether the kernel has the answers that our filters give.
///
/// # Errors
/// It has none.
pub fn seccomp() -> Result<String, Missing> {
    // linux/seccomp.h
    const GET_ACTION_AVAIL: libc::c_uint = 2;
    const ANSWERS: [u32; 2] = [libc::SECCOMP_RET_TRAP, libc::SECCOMP_RET_KILL_PROCESS];
    for answer in ANSWERS {
        // SAFETY: the call reads one number, which lives across it.
        if unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const answer) } != 0 {
            return Err(Requirement::Seccomp.missing(format!("no filters: {}", io::Error::last_os_error())));
        }
    }
    Ok("filters".to_owned())
}

/// Opens the tun device, as the network helper does.
///
/// # Errors
/// It cannot be opened.
pub fn tun() -> Result<String, Missing> {
    let opened = File::options().read(true).write(true).open(TUN);
    opened.map(|_| "present".to_owned()).map_err(|error| no_tun(&error))
}

/// Says that the tun device cannot be opened.
pub fn no_tun(error: &io::Error) -> Missing {
    Requirement::Tun.missing(format!("open {TUN}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_insists_is_told_what_to_do() {
        let missing = || Err::<(), _>(Requirement::Seccomp.missing("no filters: EINVAL"));
        let error = insist(missing(), false).unwrap_err().to_string();
        assert_eq!(
            error,
            "seccomp: no filters: EINVAL → a kernel with CONFIG_SECCOMP_FILTER; --insecure goes on without"
        );
        assert_eq!(insist(missing(), true).unwrap(), None);
        assert_eq!(insist(Ok(1), false).unwrap(), Some(1));
    }
}
