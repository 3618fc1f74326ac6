//! Users and groups of a user namespace, checked as the kernel checks them: the kernel would only say "invalid argument".

use std::ops::Range;

use anyhow::bail;
use oci_spec::runtime::{Linux, LinuxIdMapping, Mount};
use protocol::{CreateContainerRequest, IdMapping};

/// Most entries that the kernel takes (user_namespaces(7)).
const MOST: usize = 340;

/// Fills in the mappings; `user` says whether there is a new user namespace.
///
/// # Errors
/// Mappings without a namespace or a namespace without mappings, in runc's words; mappings that the kernel refuses.
pub fn plan(linux: &Linux, user: bool, request: &mut CreateContainerRequest) -> anyhow::Result<()> {
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    match (user, uids.is_empty(), gids.is_empty()) {
        (true, true, _) => bail!("User namespaces enabled, but no uid mappings found."),
        (true, _, true) => bail!("User namespaces enabled, but no gid mappings found."),
        (false, true, true) => return Ok(()),
        (false, ..) => bail!("User namespace mappings specified, but user namespace isn't enabled in the config"),
        _ => {}
    }
    check("linux.uidMappings", uids)?;
    check("linux.gidMappings", gids)?;
    request.uid_mappings = uids.iter().map(message).collect();
    request.gid_mappings = gids.iter().map(message).collect();
    Ok(())
}

/// Lines of `uid_map` and `gid_map` for a mount whose ids are mapped, as in runc: `containerID` on the file system is `hostID` in
/// the mount. `idmap` without mappings of the mount's own stands for those of the container.
///
/// # Errors
/// Only one of the two is there, or the kernel would refuse a mapping.
pub fn of_mount(mount: &Mount, linux: Option<&Linux>, idmap: bool) -> anyhow::Result<Option<[String; 2]>> {
    fn all(ids: &Option<Vec<LinuxIdMapping>>) -> &[LinuxIdMapping] {
        ids.as_deref().unwrap_or_default()
    }
    let own = [("uidMappings", all(mount.uid_mappings())), ("gidMappings", all(mount.gid_mappings()))];
    let given = match (own.iter().all(|(_, ids)| ids.is_empty()), linux) {
        (true, _) if !idmap => return Ok(None),
        (true, Some(linux)) => {
            [("linux.uidMappings", all(linux.uid_mappings())), ("linux.gidMappings", all(linux.gid_mappings()))]
        }
        _ => own,
    };
    for (field, ids) in given {
        if ids.is_empty() || ids.len() > MOST {
            bail!("{field} has {} entries: a mount with mapped ids has 1 to {MOST}", ids.len());
        }
        disjoint(field, "containerID", ids, LinuxIdMapping::container_id)?;
        disjoint(field, "hostID", ids, LinuxIdMapping::host_id)?;
    }
    let line = |id: &LinuxIdMapping| format!("{} {} {}\n", id.container_id(), id.host_id(), id.size());
    Ok(Some(given.map(|(_, ids)| ids.iter().map(line).collect())))
}

fn message(mapping: &LinuxIdMapping) -> IdMapping {
    let (container_id, host_id, size) = (mapping.container_id(), mapping.host_id(), mapping.size());
    IdMapping { container_id, host_id, size, ..Default::default() }
}

fn check(field: &str, mappings: &[LinuxIdMapping]) -> anyhow::Result<()> {
    if mappings.len() > MOST {
        bail!("{field} has {} entries, the maximum is {MOST}", mappings.len());
    }
    disjoint(field, "containerID", mappings, LinuxIdMapping::container_id)?;
    disjoint(field, "hostID", mappings, LinuxIdMapping::host_id)?;
    if !mappings.iter().any(|mapping| mapping.container_id() == 0) {
        bail!("{field} has no containerID 0, as which the container is set up");
    }
    Ok(())
}

/// Checks that mappings do not overlap and contain only valid ids.
fn disjoint(
    field: &str,
    side: &str,
    mappings: &[LinuxIdMapping],
    start: impl Fn(&LinuxIdMapping) -> u32,
) -> anyhow::Result<()> {
    let mut seen: Vec<Range<u64>> = Vec::new();
    for (index, mapping) in mappings.iter().enumerate() {
        let (first, size) = (u64::from(start(mapping)), u64::from(mapping.size()));
        if size == 0 {
            bail!("{field}[{index}].size 0: it maps nothing; leave the entry out");
        }
        let range = first..first + size;
        // The last number of 32 bits stands for "no id".
        if range.end > u64::from(u32::MAX) {
            bail!("{field}[{index}]: {side} {first} and size {size} go beyond the last id, {}", u32::MAX - 1);
        }
        if let Some(other) = seen.iter().position(|other| range.start < other.end && other.start < range.end) {
            bail!("{field}[{index}]: {side} {first} and size {size} overlap with {field}[{other}]");
        }
        seen.push(range);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(uids: &str) -> Result<CreateContainerRequest, String> {
        let gids = r#"[{"containerID":0,"hostID":7,"size":1}]"#;
        let linux = serde_json::from_str(&format!(r#"{{"uidMappings":{uids},"gidMappings":{gids}}}"#)).unwrap();
        let mut request = CreateContainerRequest::new();
        plan(&linux, true, &mut request).map_err(|error| error.to_string())?;
        Ok(request)
    }

    #[test]
    fn mappings_arrive() {
        let uids = r#"[{"containerID":0,"hostID":1000,"size":10},{"containerID":10,"hostID":0,"size":1000}]"#;
        let request = planned(uids).unwrap();
        assert_eq!((request.uid_mappings[1].container_id, request.uid_mappings[1].size), (10, 1000));
        assert_eq!(request.gid_mappings[0].host_id, 7);
    }

    #[test]
    fn what_the_kernel_refuses_is_named() {
        let table = [
            ("[]", "User namespaces enabled, but no uid mappings found."),
            (r#"[{"containerID":0,"hostID":1,"size":0}]"#, "linux.uidMappings[0].size 0"),
            (r#"[{"containerID":1,"hostID":1,"size":1}]"#, "linux.uidMappings has no containerID 0"),
            (
                r#"[{"containerID":0,"hostID":4294967290,"size":10}]"#,
                "linux.uidMappings[0]: hostID 4294967290 and size 10 go beyond the last id, 4294967294",
            ),
            (
                r#"[{"containerID":0,"hostID":0,"size":10},{"containerID":9,"hostID":100,"size":1}]"#,
                "linux.uidMappings[1]: containerID 9 and size 1 overlap with linux.uidMappings[0]",
            ),
            (
                r#"[{"containerID":0,"hostID":5,"size":10},{"containerID":10,"hostID":0,"size":6}]"#,
                "linux.uidMappings[1]: hostID 0 and size 6 overlap with linux.uidMappings[0]",
            ),
        ];
        for (uids, text) in table {
            let error = planned(uids).unwrap_err();
            assert!(error.starts_with(text), "{error}");
        }
        let many: Vec<_> = (0..=MOST).map(|n| format!(r#"{{"containerID":{n},"hostID":{n},"size":1}}"#)).collect();
        assert!(planned(&format!("[{}]", many.join(","))).unwrap_err().contains("has 341 entries"));
    }
}
