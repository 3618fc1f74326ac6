//! What the processes of a container may do to files, at the most.
//!
//! Capabilities, users and `noNewPrivileges` are the guest kernel's to keep. A container that owns that kernel is kept by
//! nothing of it, so the host's file server holds the guest to what any process of the container could ever do under runc:
//! to all that it has, and all that it may get by executing something. It is never less, as `exec` may bring more.
//!
//! | the bundle | its guest |
//! |---|---|
//! | no `CAP_MKNOD`, or a user namespace | makes no device nodes |
//! | no `CAP_SETFCAP` | gives files no capabilities |
//! | `noNewPrivileges` without `CAP_CHOWN`, `CAP_SETUID`, `CAP_SETGID` | gives files the process's user and groups, changes only those of that user |
//! | … without `CAP_FOWNER`, `CAP_FSETID` | the same for modes and ACLs; a change of content drops setuid |
//! | … with another user than root, and `nosuid` | makes no file setuid or setgid |
//! | a user namespace | gives files mapped users and groups only, in ACLs, too |
//!
//! Without `noNewPrivileges` a process may execute a program that is setuid, and become any user with the capabilities of the
//! bounding set. `nodev` and `nosuid` alone take nothing away: under runc, too, such files can be made there, and not used.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use protocol::{CreateContainerRequest, IdMapping, Process};
use serde::{Deserialize, Serialize};

use crate::plan::process::CAPABILITIES;

/// What the processes of a container may do to files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRights {
    /// Whether they may make device nodes.
    pub device_nodes: bool,
    /// Whether they may give files capabilities.
    pub file_capabilities: bool,
    /// Whether they may change modes and ACLs of files of others.
    pub any_owner: bool,
    /// Whether files stay setuid when their content changes.
    pub keeps_set_id: bool,
    /// Whether none of them is root or can become another user.
    pub plain: bool,
    /// Users that they may give files, by the container's numbers; all if there is no list.
    uids: Option<BTreeSet<u32>>,
    /// Groups that they may give files.
    gids: Option<BTreeSet<u32>>,
    /// The user namespace.
    maps: Option<[Vec<Map>; 2]>,
}

/// A range of ids of a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Map {
    container: u32,
    host: u32,
    size: u32,
}

/// Ids as the host has them.
pub type IdRanges = Vec<RangeInclusive<u32>>;

impl FileRights {
    /// Rights of a container's own process, as it is to be created.
    pub fn of(request: &CreateContainerRequest) -> Self {
        let map = |map: &IdMapping| Map { container: map.container_id, host: map.host_id, size: map.size };
        let maps = [&request.uid_mappings, &request.gid_mappings].map(|maps| maps.iter().map(map).collect());
        let maps = Some(maps).filter(|maps: &[Vec<Map>; 2]| maps.iter().any(|maps| !maps.is_empty()));
        let none = Self {
            device_nodes: false,
            file_capabilities: false,
            any_owner: false,
            keeps_set_id: false,
            plain: true,
            uids: Some(BTreeSet::new()),
            gids: Some(BTreeSet::new()),
            maps,
        };
        none.with(&request.process)
    }

    /// These rights and those of one more process.
    pub fn with(&self, process: &Process) -> Self {
        let capabilities = capabilities(process);
        let has = |names: &[&str]| names.iter().any(|name| capabilities & bit(name) != 0);
        let changes_user = !process.no_new_privileges || has(&["CAP_CHOWN", "CAP_SETUID", "CAP_SYS_ADMIN"]);
        let changes_group = !process.no_new_privileges || has(&["CAP_CHOWN", "CAP_SETGID", "CAP_SYS_ADMIN"]);
        let (user, groups) = (Some(process.uid), process.additional_gids.iter().chain([&process.gid]));
        Self {
            device_nodes: self.device_nodes || self.may_gain_device_nodes() && may_make_device_nodes(process),
            file_capabilities: self.file_capabilities || has(&["CAP_SETFCAP"]),
            any_owner: self.any_owner || has(&["CAP_FOWNER"]),
            keeps_set_id: self.keeps_set_id || has(&["CAP_FSETID"]),
            plain: self.plain && !changes_user && process.uid != 0,
            uids: add(&self.uids, changes_user, user),
            gids: add(&self.gids, changes_group, groups.copied()),
            maps: self.maps.clone(),
        }
    }

    /// Whether one more process can bring the right to make device nodes: not into a user namespace.
    pub fn may_gain_device_nodes(&self) -> bool {
        self.maps.is_none()
    }

    /// These rights while the container is being set up: its root makes what mounts and devices need.
    pub fn of_setup(&self) -> Self {
        let root = |ids| add(ids, false, [0]);
        Self { uids: root(&self.uids), gids: root(&self.gids), ..self.clone() }
    }

    /// Users and groups that exist; no ranges if all do.
    pub fn known(&self) -> Option<[IdRanges; 2]> {
        let range = |map: &Map| map.host..=map.host.saturating_add(map.size.saturating_sub(1));
        self.maps.as_ref().map(|maps| maps.each_ref().map(|maps| maps.iter().map(range).collect()))
    }

    /// Users that files may be given, and groups; no ranges if all may that exist.
    pub fn own(&self) -> [Option<IdRanges>; 2] {
        let on_host = |ids: &Option<BTreeSet<u32>>, kind: usize| {
            let one = |&id: &u32| self.on_host(kind, id).map(|id| id..=id);
            ids.as_ref().map(|ids| ids.iter().filter_map(one).collect())
        };
        [on_host(&self.uids, 0), on_host(&self.gids, 1)]
    }

    fn on_host(&self, kind: usize, id: u32) -> Option<u32> {
        let Some(maps) = self.maps.as_ref().and_then(|maps| maps.get(kind)) else { return Some(id) };
        maps.iter().find_map(|map| {
            let offset = id.checked_sub(map.container).filter(|&offset| offset < map.size)?;
            map.host.checked_add(offset)
        })
    }
}

/// Whether a process may ever make device nodes, outside of a user namespace.
pub fn may_make_device_nodes(process: &Process) -> bool {
    capabilities(process) & bit("CAP_MKNOD") != 0
}

/// All capabilities that a process can ever have.
fn capabilities(process: &Process) -> u64 {
    let sets = &process.capabilities;
    let by_execution = if process.no_new_privileges { 0 } else { sets.bounding | sets.inheritable };
    sets.permitted | by_execution
}

fn bit(name: &str) -> u64 {
    CAPABILITIES.iter().position(|known| *known == name).map_or(0, |number| 1 << number)
}

fn add(to: &Option<BTreeSet<u32>>, all: bool, more: impl IntoIterator<Item = u32>) -> Option<BTreeSet<u32>> {
    let mut ids = to.clone().filter(|_| !all)?;
    ids.extend(more);
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &[&str] = &["CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SETFCAP", "CAP_SETUID"];

    fn process(uid: u32, bounding: &[&str], permitted: &[&str], no_new_privileges: bool) -> Process {
        let mask = |names: &[&str]| names.iter().map(|name| bit(name)).sum();
        let (bounding, permitted) = (mask(bounding), mask(permitted));
        let capabilities = protocol::Capabilities { bounding, permitted, effective: permitted, ..Default::default() };
        let gid = uid * 2;
        let additional_gids = vec![7];
        let capabilities = Some(capabilities).into();
        Process { uid, gid, additional_gids, capabilities, no_new_privileges, ..Default::default() }
    }

    fn rights(process: Process, maps: &[(u32, u32, u32)]) -> FileRights {
        let map = |&(container_id, host_id, size)| IdMapping { container_id, host_id, size, ..Default::default() };
        let maps: Vec<_> = maps.iter().map(map).collect();
        let process = Some(process).into();
        FileRights::of(&CreateContainerRequest {
            process,
            uid_mappings: maps.clone(),
            gid_mappings: maps,
            ..Default::default()
        })
    }

    fn all() -> FileRights {
        rights(process(0, DOCKER, DOCKER, false), &[])
    }

    #[test]
    fn containers_of_docker_are_held_to_nothing() {
        let all = all();
        assert!(all.device_nodes && all.file_capabilities && all.any_owner && all.keeps_set_id && !all.plain);
        assert_eq!((all.own(), all.known()), ([None, None], None));
        // Another user may become root by what is setuid in the image.
        assert_eq!(rights(process(1000, DOCKER, &[], false), &[]), all);
        assert_eq!(all.of_setup(), all);
    }

    #[test]
    fn without_ways_to_more_a_user_has_its_own_files_only() {
        let plain = rights(process(1000, DOCKER, &[], true), &[]);
        assert!(!plain.device_nodes && !plain.file_capabilities && !plain.any_owner && !plain.keeps_set_id);
        assert!(plain.plain);
        let own = |rights: &FileRights| {
            rights.own().map(|ids| ids.map(|ids| ids.into_iter().map(|id| *id.start()).collect::<Vec<_>>()))
        };
        assert_eq!(own(&plain), [Some(vec![1000]), Some(vec![7, 2000])]);
        assert_eq!(own(&plain.of_setup()), [Some(vec![0, 1000]), Some(vec![0, 7, 2000])]);
        let root = rights(process(0, &[], &[], true), &[]);
        assert_eq!((own(&root), root.plain), ([Some(vec![0]), Some(vec![0, 7])], false));
        // Some capabilities are ways.
        let chown = rights(process(1000, &[], &["CAP_CHOWN"], true), &[]);
        assert_eq!((chown.own(), chown.plain), ([None, None], false));
        let setgid = rights(process(1000, &[], &["CAP_SETGID"], true), &[]);
        assert_eq!((own(&setgid)[0].clone(), setgid.own()[1].clone()), (Some(vec![1000]), None));
    }

    #[test]
    fn one_more_process_brings_what_it_has() {
        let plain = rights(process(1000, &[], &[], true), &[]);
        assert_eq!(plain.with(&process(1000, &[], &[], true)), plain, "as most do");
        let more = plain.with(&process(5, &[], &["CAP_MKNOD"], true));
        assert!(more.device_nodes && !more.any_owner);
        assert_eq!(more.own()[0], Some(vec![5..=5, 1000..=1000]));
        assert_eq!(more.with(&process(0, DOCKER, DOCKER, false)), all());
    }

    #[test]
    fn a_user_namespace_bounds_everything() {
        let maps = [(0, 100_000, 10), (10, 7, 1)];
        let root = rights(process(0, DOCKER, DOCKER, false), &maps);
        assert!(!root.device_nodes && root.file_capabilities);
        assert_eq!(root.known().unwrap()[0], [100_000..=100_009, 7..=7]);
        assert_eq!(root.own(), [None, None]);
        assert!(!root.with(&process(0, DOCKER, DOCKER, false)).device_nodes, "not even by an exec");
        let plain = rights(process(3, &[], &[], true), &maps);
        // Group 6 and group 7 are mapped; a user beyond the namespace would be nobody.
        assert_eq!(plain.own(), [Some(vec![100_003..=100_003]), Some(vec![100_006..=100_006, 100_007..=100_007])]);
        assert_eq!(plain.of_setup().own()[0], Some(vec![100_000..=100_000, 100_003..=100_003]));
        let unmapped = rights(process(11, &[], &[], true), &maps);
        assert_eq!(unmapped.own()[0], Some(vec![]));
    }

    #[test]
    fn a_process_without_capabilities_of_any_kind_has_none() {
        let bare = rights(Process { no_new_privileges: true, ..Default::default() }, &[]);
        assert!(!bare.device_nodes && !bare.any_owner);
    }
}
