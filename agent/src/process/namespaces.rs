//! Namespaces of a container, in the terms of clone(2) and setns(2).

use crate::error::{Context, Error, Result};
use crate::sys;
use protocol::{CreateContainerRequest, IdMapping, Namespace, NamespaceKind};
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fmt::Write;

/// Kinds of namespaces that containers can share. Not a user namespace: who enters one has no rights in the others any
/// more.
const SHAREABLE: [NamespaceKind; 5] =
    [NamespaceKind::PID, NamespaceKind::NETWORK, NamespaceKind::IPC, NamespaceKind::UTS, NamespaceKind::CGROUP];

/// The namespaces of one container. A mount namespace of its own is always among them: without one
/// its root file system could not be made without disturbing the guest's.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    /// `CLONE_NEW*` flags of namespaces that are made for the container.
    new: u64,
    /// Containers whose namespaces this one shares, and the kinds.
    shared: Vec<(String, u64)>,
    time_offsets: String,
    uid_mappings: Vec<IdMapping>,
    gid_mappings: Vec<IdMapping>,
}

impl Namespaces {
    /// Reads and checks the request.
    pub fn new(request: &CreateContainerRequest) -> Result<Self> {
        let mut this = Self {
            new: libc::CLONE_NEWNS as u64,
            shared: Vec::new(),
            time_offsets: request.time_offsets.clone(),
            uid_mappings: request.uid_mappings.clone(),
            gid_mappings: request.gid_mappings.clone(),
        };
        request.namespaces.iter().try_for_each(|namespace| this.add(namespace))?;
        if !this.makes(libc::CLONE_NEWTIME) && !this.time_offsets.is_empty() {
            return Err(Error::invalid("time offsets without time namespace"));
        }
        let mapped = !this.uid_mappings.is_empty() && !this.gid_mappings.is_empty();
        if this.makes(libc::CLONE_NEWUSER) && !mapped {
            return Err(Error::invalid("user namespace without uid and gid mappings"));
        }
        Ok(this)
    }

    fn add(&mut self, namespace: &Namespace) -> Result<()> {
        let kind = namespace.kind.enum_value().map_err(|n| Error::invalid(format!("unknown namespace kind {n}")))?;
        match namespace.container_id.as_str() {
            "" => self.new |= clone_flag(kind)?,
            _ if !SHAREABLE.contains(&kind) => {
                return Err(Error::invalid(format!("a {kind:?} namespace cannot be shared")));
            }
            id => self.shared.push((id.to_owned(), clone_flag(kind)?)),
        }
        Ok(())
    }

    /// Whether the container has a namespace of this `CLONE_NEW*` kind that is not the guest's.
    pub fn has(&self, flag: libc::c_int) -> bool {
        self.all() & flag as u64 != 0
    }

    /// Whether a namespace of this kind is made for the container.
    pub fn makes(&self, flag: libc::c_int) -> bool {
        self.new & flag as u64 != 0
    }

    /// Containers whose namespaces this one shares, and the kinds.
    pub fn shared(&self) -> &[(String, u64)] {
        &self.shared
    }

    fn all(&self) -> u64 {
        self.shared.iter().fold(self.new, |all, (_, kinds)| all | kinds)
    }

    /// Flags for clone(2) to make namespaces with. The cgroup namespace is not among them: its root is the cgroup of
    /// whoever makes it, so the child does it once it is there. Nor is a time namespace with offsets:
    /// they are fixed as soon as somebody is born in it.
    pub fn clone_flags(&self) -> u64 {
        let later = if self.time_offsets.is_empty() { 0 } else { libc::CLONE_NEWTIME };
        self.new & !((libc::CLONE_NEWCGROUP | later) as u64)
    }

    /// Makes, in the child, what [`Namespaces::clone_flags`] left.
    pub fn make_the_rest(&self) -> Result<()> {
        if self.makes(libc::CLONE_NEWCGROUP) {
            // SAFETY: a cgroup namespace has nothing to do with memory or descriptors.
            unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }.context(|| "unshare cgroup namespace")?;
        }
        if self.time_offsets.is_empty() {
            return Ok(());
        }
        // SAFETY: as above; what is unshared is only for children, until it is joined below.
        unsafe { unshare_unsafe(UnshareFlags::NEWTIME) }.context(|| "unshare time namespace")?;
        sys::write_file("/proc/self/timens_offsets", &self.time_offsets)
            .context(|| format!("set linux.timeOffsets {:?}", self.time_offsets))?;
        let place = "/proc/self/ns/time_for_children";
        let made = rustix::fs::open(place, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let made = made.context(|| format!("open {place}"))?;
        move_into_link_name_space(made.as_fd(), Some(LinkNameSpaceType::Time)).context(|| "join time namespace")
    }

    /// Flags for a child to join the namespaces with. The pid namespace is not among them: a process joins one by being
    /// born there.
    pub fn join_flags(&self) -> u64 {
        self.all() & !(libc::CLONE_NEWPID as u64)
    }

    /// Writes the id mappings of the child that was just cloned.
    pub fn write_mappings(&self, pid: i32) -> Result<()> {
        if !self.makes(libc::CLONE_NEWUSER) {
            return Ok(());
        }
        let write = |file: &str, mappings: &[IdMapping]| {
            let path = format!("/proc/{pid}/{file}");
            sys::write_file(&path, &mapping_text(mappings)).context(|| format!("write {file}"))
        };
        write("uid_map", &self.uid_mappings)?;
        write("gid_map", &self.gid_mappings)
    }

    /// The guest's number for a user of the container; `None` when it has none.
    pub fn guest_uid(&self, uid: u32) -> Option<u32> {
        if self.makes(libc::CLONE_NEWUSER) { guest_id(&self.uid_mappings, uid) } else { Some(uid) }
    }

    /// The guest's number for a group of the container; `None` when it has none.
    pub fn guest_gid(&self, gid: u32) -> Option<u32> {
        if self.makes(libc::CLONE_NEWUSER) { guest_id(&self.gid_mappings, gid) } else { Some(gid) }
    }
}

fn guest_id(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|m| {
        let offset = id.checked_sub(m.container_id).filter(|&offset| offset < m.size)?;
        m.host_id.checked_add(offset)
    })
}

/// Becomes root of the user namespace the caller is in: after it was made or joined the caller's own
/// ids mean nothing there.
pub fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).context(|| "setgid in user namespace")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).context(|| "setuid in user namespace")
}

fn clone_flag(kind: NamespaceKind) -> Result<u64> {
    let flag = match kind {
        NamespaceKind::PID => libc::CLONE_NEWPID,
        NamespaceKind::NETWORK => libc::CLONE_NEWNET,
        NamespaceKind::MOUNT => libc::CLONE_NEWNS,
        NamespaceKind::IPC => libc::CLONE_NEWIPC,
        NamespaceKind::UTS => libc::CLONE_NEWUTS,
        NamespaceKind::USER => libc::CLONE_NEWUSER,
        NamespaceKind::CGROUP => libc::CLONE_NEWCGROUP,
        NamespaceKind::TIME => libc::CLONE_NEWTIME,
        NamespaceKind::NAMESPACE_UNKNOWN => return Err(Error::invalid("unknown namespace kind 0")),
    };
    Ok(flag as u64)
}

fn mapping_text(mappings: &[IdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, m| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {} {}", m.container_id, m.host_id, m.size);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(kinds: &[NamespaceKind]) -> CreateContainerRequest {
        let mut request = CreateContainerRequest::new();
        request.namespaces = kinds.iter().map(|&kind| Namespace { kind: kind.into(), ..Default::default() }).collect();
        request
    }

    #[test]
    fn cgroup_is_not_cloned_and_pid_not_joined() {
        let all = Namespaces::new(&request(&[NamespaceKind::PID, NamespaceKind::CGROUP])).unwrap();
        assert_eq!(all.clone_flags(), (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64);
        assert_eq!(all.join_flags(), (libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP) as u64);
    }

    #[test]
    fn what_is_shared_is_not_made() {
        let mut request = request(&[NamespaceKind::PID, NamespaceKind::IPC]);
        request.namespaces[0].container_id = "other".into();
        let namespaces = Namespaces::new(&request).unwrap();
        let (pid, ipc) = (libc::CLONE_NEWPID, libc::CLONE_NEWIPC);
        assert_eq!((namespaces.has(pid), namespaces.makes(pid), namespaces.makes(ipc)), (true, false, true));
        assert_eq!(namespaces.shared(), [("other".to_owned(), pid as u64)]);
        assert_eq!(namespaces.clone_flags(), (libc::CLONE_NEWNS | ipc) as u64);
        assert_eq!(namespaces.join_flags(), (libc::CLONE_NEWNS | ipc) as u64);
    }

    #[test]
    fn a_time_namespace_with_offsets_is_not_cloned() {
        let mut request = request(&[NamespaceKind::TIME]);
        let new_time = libc::CLONE_NEWTIME as u64;
        assert_ne!(Namespaces::new(&request).unwrap().clone_flags() & new_time, 0);
        request.time_offsets = "boottime 5 0\n".into();
        assert_eq!(Namespaces::new(&request).unwrap().clone_flags() & new_time, 0);
        request.namespaces.clear();
        assert!(Namespaces::new(&request).is_err());
    }

    #[test]
    fn ids_are_mapped() {
        let mut request = request(&[NamespaceKind::USER]);
        assert!(Namespaces::new(&request).is_err());
        let mapping = IdMapping { container_id: 0, host_id: 1000, size: 10, ..Default::default() };
        request.uid_mappings = vec![mapping.clone()];
        request.gid_mappings = vec![mapping];
        let namespaces = Namespaces::new(&request).unwrap();
        assert_eq!(namespaces.guest_uid(9), Some(1009));
        assert_eq!(namespaces.guest_uid(10), None);
        assert_eq!(mapping_text(&namespaces.uid_mappings), "0 1000 10\n");
    }
}
