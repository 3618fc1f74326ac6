//! Mount options as fstab and runc know them.

/// What a list of options means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `MS_*` flags that are set.
    pub flags: u64,
    /// Flags that an option cleared.
    pub clear: u64,
    /// `MS_PRIVATE`, … with `MS_REC` where recursive; 0: leave.
    pub propagation: u64,
    /// Whether it is a bind mount.
    pub bind: bool,
    /// Whether what is mounted below the source comes along.
    pub recursive: bool,
    /// `tmpcopyup`
    pub copy_up: bool,
    /// What the file system itself understands.
    pub data: Vec<String>,
}

const SET: &[(&str, u64)] = &[
    ("ro", libc::MS_RDONLY),
    ("nosuid", libc::MS_NOSUID),
    ("nodev", libc::MS_NODEV),
    ("noexec", libc::MS_NOEXEC),
    ("sync", libc::MS_SYNCHRONOUS),
    ("dirsync", libc::MS_DIRSYNC),
    ("mand", libc::MS_MANDLOCK),
    ("noatime", libc::MS_NOATIME),
    ("nodiratime", libc::MS_NODIRATIME),
    ("relatime", libc::MS_RELATIME),
    ("strictatime", libc::MS_STRICTATIME),
    ("iversion", libc::MS_I_VERSION),
];

const CLEAR: &[(&str, u64)] = &[
    ("rw", libc::MS_RDONLY),
    ("suid", libc::MS_NOSUID),
    ("dev", libc::MS_NODEV),
    ("exec", libc::MS_NOEXEC),
    ("async", libc::MS_SYNCHRONOUS),
    ("nomand", libc::MS_MANDLOCK),
    ("atime", libc::MS_NOATIME),
    ("diratime", libc::MS_NODIRATIME),
    ("norelatime", libc::MS_RELATIME),
    ("nostrictatime", libc::MS_STRICTATIME),
    ("noiversion", libc::MS_I_VERSION),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("private", libc::MS_PRIVATE),
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("unbindable", libc::MS_UNBINDABLE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
];

/// Reads a list of options; later ones win.
pub fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for option in options {
        let find = |table: &[(&str, u64)]| table.iter().find(|(name, _)| name == option).map(|(_, flag)| *flag);
        if let Some(flag) = find(SET) {
            (parsed.flags, parsed.clear) = (parsed.flags | flag, parsed.clear & !flag);
        } else if let Some(flag) = find(CLEAR) {
            (parsed.flags, parsed.clear) = (parsed.flags & !flag, parsed.clear | flag);
        } else if let Some(flag) = find(PROPAGATION) {
            parsed.propagation = flag;
        } else {
            parsed.other(option);
        }
    }
    parsed
}

impl MountOptions {
    fn other(&mut self, option: &str) {
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "tmpcopyup" => self.copy_up = true,
            "defaults" | "remount" => {}
            data => self.data.push(data.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_options_win_and_the_rest_is_data() {
        let list = ["ro", "nosuid", "rw", "rbind", "rslave", "size=64k", "mode=755"].map(str::to_owned);
        let parsed = parse(&list);
        assert_eq!((parsed.flags, parsed.clear), (libc::MS_NOSUID, libc::MS_RDONLY));
        assert_eq!(parsed.propagation, libc::MS_SLAVE | libc::MS_REC);
        assert!(parsed.bind && parsed.recursive);
        assert_eq!(parsed.data, ["size=64k", "mode=755"]);
    }
}
