//! Capabilities: from names to bits.

use anyhow::{Context, anyhow};
use oci_spec::runtime::{Capabilities as Names, Capability, LinuxCapabilities, Process};

/// Names of all capabilities; the index is the number (linux/capability.h).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Capability masks of a process. A bundle without capabilities gives none, as with runc.
pub fn masks(capabilities: Option<&LinuxCapabilities>, notes: &mut Vec<String>) -> protocol::Capabilities {
    let mut masks = protocol::Capabilities::new();
    let Some(capabilities) = capabilities else { return masks };
    masks.bounding = mask(capabilities.bounding().as_ref());
    masks.effective = mask(capabilities.effective().as_ref());
    masks.inheritable = mask(capabilities.inheritable().as_ref());
    masks.permitted = mask(capabilities.permitted().as_ref());
    // The kernel lets only permitted and inheritable ones be ambient. runc tries all and goes on where it
    // fails, and its own default configuration counts on that.
    let asked = mask(capabilities.ambient().as_ref());
    masks.ambient = asked & masks.permitted & masks.inheritable;
    if masks.ambient != asked {
        notes.push("ambient capabilities that are not both permitted and inheritable have no effect".to_owned());
    }
    masks
}

fn mask(names: Option<&Names>) -> u64 {
    names.into_iter().flatten().filter_map(|&capability| number(capability)).fold(0, |mask, n| mask | 1 << n)
}

fn number(capability: Capability) -> Option<usize> {
    let name = capability.to_string();
    NAMES.iter().position(|known| known.strip_prefix("CAP_") == Some(&name))
}

/// Adds capabilities to a process, as `exec --cap` asks for.
///
/// # Errors
/// Names what is no capability.
pub fn add(process: &mut Process, names: &[String]) -> anyhow::Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let added = names.iter().map(|name| parse(name)).collect::<anyhow::Result<Names>>()?;
    let set = |old: Option<Names>| Some(old.unwrap_or_default().union(&added).copied().collect::<Names>());
    // Not the inheritable set: it would survive the exec of any file with inheritable file capabilities.
    let old = match process.capabilities() {
        Some(old) => old.clone(),
        // None of any kind; the default has three.
        None => serde_json::from_str::<LinuxCapabilities>("{}")?,
    };
    let mut new = old.clone();
    new.set_bounding(set(old.bounding().clone()));
    new.set_effective(set(old.effective().clone()));
    new.set_permitted(set(old.permitted().clone()));
    process.set_capabilities(Some(new));
    Ok(())
}

fn parse(name: &str) -> anyhow::Result<Capability> {
    let parsed = serde_json::from_value(serde_json::Value::from(name));
    parsed.map_err(|_| anyhow!("not a Linux capability")).with_context(|| format!("--cap {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(json: &str) -> LinuxCapabilities {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn every_name_has_its_number() {
        for (n, name) in NAMES.iter().enumerate() {
            assert_eq!(number(parse(name).unwrap()), Some(n), "{name}");
        }
        assert_eq!(NAMES[21], "CAP_SYS_ADMIN");
        assert_eq!(NAMES[40], "CAP_CHECKPOINT_RESTORE");
    }

    #[test]
    fn sets_become_masks() {
        let mut notes = Vec::new();
        let sets = capabilities(
            r#"{"bounding":["CAP_CHOWN","CAP_KILL"],"permitted":["CAP_KILL"],"inheritable":["CAP_KILL"],
                "ambient":["CAP_KILL","CAP_CHOWN"]}"#,
        );
        let masks = masks(Some(&sets), &mut notes);
        assert_eq!((masks.bounding, masks.permitted, masks.effective), (0b10_0001, 0b10_0000, 0));
        assert_eq!(masks.ambient, 0b10_0000);
        assert_eq!(notes.len(), 1);
    }

    #[test]
    fn none_given_is_none_had() {
        assert_eq!(masks(None, &mut Vec::new()), protocol::Capabilities::new());
    }

    #[test]
    fn more_can_be_added() {
        let mut process: Process = serde_json::from_str(r#"{"user":{},"cwd":"/"}"#).unwrap();
        add(&mut process, &["CAP_SYS_ADMIN".into(), "kill".into()]).unwrap();
        let masks = masks(process.capabilities().as_ref(), &mut Vec::new());
        assert_eq!(masks.bounding, 1 << 21 | 1 << 5);
        assert_eq!((masks.permitted, masks.effective), (masks.bounding, masks.bounding));
        assert_eq!((masks.inheritable, masks.ambient), (0, 0));
        let text = format!("{:#}", add(&mut process, &["CAP_X".into()]).unwrap_err());
        assert_eq!(text, r#"--cap "CAP_X": not a Linux capability"#);
    }
}
