//! Kernel settings of the host that hold for containers there, and so for a guest.

use serde::{Deserialize, Serialize};

use crate::plan::facts::Facts;

/// Settings of the host that a guest takes over, as files below /proc/sys, each with what a guest's kernel has by itself, if that does
/// not depend on its memory or CPUs. They are settings that are not of a namespace and that administrators change for what runs
/// in containers.
pub const HOST_SETTINGS: [(&str, Option<&str>); 18] = [
    ("fs/aio-max-nr", Some("65536")),
    ("fs/file-max", None),
    ("fs/inotify/max_queued_events", Some("16384")),
    ("fs/inotify/max_user_instances", Some("128")),
    ("fs/inotify/max_user_watches", None),
    ("fs/nr_open", Some("1048576")),
    ("fs/pipe-max-size", Some("1048576")),
    ("fs/protected_fifos", Some("0")),
    ("fs/protected_hardlinks", Some("0")),
    ("fs/protected_regular", Some("0")),
    ("fs/protected_symlinks", Some("0")),
    (CORE_PATTERN, Some("core")),
    ("kernel/pid_max", Some("32768")),
    ("kernel/threads-max", None),
    ("net/core/rmem_max", Some("212992")),
    ("net/core/wmem_max", Some("212992")),
    ("vm/max_map_count", Some("65530")),
    (OVERCOMMIT, Some("0")),
];

/// A pattern that names a program is taken over, too: the guest has no such program, so there is no core file, as in a container
/// of the host.
const CORE_PATTERN: &str = "kernel/core_pattern";
const OVERCOMMIT: &str = "vm/overcommit_memory";
/// The mode of [`OVERCOMMIT`] in which memory is counted before it is used: against the host's, and the guest has less.
const STRICT: &str = "2";

/// A setting of the guest's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The file below /proc/sys.
    pub file: String,
    /// What it is to hold.
    pub value: String,
}

/// What the guest's kernel has to be told.
pub fn plan(facts: &Facts, notes: &mut Vec<String>) -> Vec<Setting> {
    let usual = |name: &str| HOST_SETTINGS.iter().find(|(setting, _)| *setting == name).and_then(|(_, usual)| *usual);
    let differs = |(name, value): &&(&str, String)| usual(name) != Some(value.as_str());
    let is_strict = |(name, value): &&(&str, String)| *name == OVERCOMMIT && value == STRICT;
    let told = facts.settings.iter().filter(differs).filter(|setting| !is_strict(setting));
    if facts.settings.iter().any(|setting| is_strict(&setting)) {
        notes.push("vm.overcommit_memory 2 of the host has no effect in the guest".to_owned());
    }
    told.map(|(file, value)| Setting { file: (*file).to_owned(), value: value.clone() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::facts;

    #[test]
    fn the_guest_is_told_of_what_differs() {
        let settings = [
            ("fs/nr_open", "1048576"),
            ("fs/file-max", "100"),
            ("vm/max_map_count", "262144"),
            (CORE_PATTERN, "|/usr/bin/dump %p"),
            (OVERCOMMIT, "1"),
        ];
        let with = |settings: &[(&'static str, &str)]| {
            let settings = settings.iter().map(|&(name, value)| (name, value.to_owned())).collect();
            let mut notes = Vec::new();
            (plan(&Facts { settings, ..facts() }, &mut notes), notes.len())
        };
        let (told, notes) = with(&settings);
        let told: Vec<(&str, &str)> =
            told.iter().map(|setting| (setting.file.as_str(), setting.value.as_str())).collect();
        assert_eq!((told.as_slice(), notes), (&settings[1..], 0));
        assert_eq!(with(&[(OVERCOMMIT, STRICT)]), (vec![], 1));
    }
}
