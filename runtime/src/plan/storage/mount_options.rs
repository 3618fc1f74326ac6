//! Mount options, fstab style, as flags of mount(2).

/// Parsed options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `MS_*` to set, without `MS_BIND` and propagation.
    pub flags: u64,
    /// `MS_*` flags that an option cleared explicitly.
    pub clear: u64,
    /// `MS_PRIVATE` and the like, with `MS_REC`; 0 if no option sets propagation.
    pub propagation: u64,
    /// Options for the file system itself.
    pub data: Vec<String>,
    /// Whether the mount is a bind mount.
    pub bind: bool,
    /// Whether the bind mount includes everything mounted below.
    pub recursive: bool,
    /// Whether `tmpcopyup` is given: the tmpfs starts with a copy of what it covers.
    pub copy_up: bool,
    /// Whether `idmap` or `ridmap` is given: ids are mapped, as in the container's user namespace unless the mount says how.
    pub idmap: bool,
}

impl MountOptions {
    /// Whether the mount is read-only.
    pub fn read_only(&self) -> bool {
        self.flags & libc::MS_RDONLY != 0
    }
}

/// Effect of an option on a flag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Set,
    Clear,
}

/// Flag of mount(2) that libc does not have.
const MS_NOSYMFOLLOW: u64 = 256;

/// Runc's options. An option with an `r` in front that is not listed itself does the same for a whole tree.
const FLAGS: [(&str, Does, u64); 34] = [
    ("acl", Does::Set, libc::MS_POSIXACL),
    ("async", Does::Clear, libc::MS_SYNCHRONOUS),
    ("atime", Does::Clear, libc::MS_NOATIME),
    ("defaults", Does::Set, 0),
    ("dev", Does::Clear, libc::MS_NODEV),
    ("diratime", Does::Clear, libc::MS_NODIRATIME),
    ("dirsync", Does::Set, libc::MS_DIRSYNC),
    ("exec", Does::Clear, libc::MS_NOEXEC),
    ("iversion", Does::Set, libc::MS_I_VERSION),
    ("lazytime", Does::Set, libc::MS_LAZYTIME),
    ("loud", Does::Clear, libc::MS_SILENT),
    ("mand", Does::Set, libc::MS_MANDLOCK),
    ("noacl", Does::Clear, libc::MS_POSIXACL),
    ("noatime", Does::Set, libc::MS_NOATIME),
    ("nodev", Does::Set, libc::MS_NODEV),
    ("nodiratime", Does::Set, libc::MS_NODIRATIME),
    ("noexec", Does::Set, libc::MS_NOEXEC),
    ("noiversion", Does::Clear, libc::MS_I_VERSION),
    ("nolazytime", Does::Clear, libc::MS_LAZYTIME),
    ("nomand", Does::Clear, libc::MS_MANDLOCK),
    ("norelatime", Does::Clear, libc::MS_RELATIME),
    ("nostrictatime", Does::Clear, libc::MS_STRICTATIME),
    ("nosuid", Does::Set, libc::MS_NOSUID),
    ("nosymfollow", Does::Set, MS_NOSYMFOLLOW),
    ("relatime", Does::Set, libc::MS_RELATIME),
    ("remount", Does::Set, libc::MS_REMOUNT),
    ("ro", Does::Set, libc::MS_RDONLY),
    ("rw", Does::Clear, libc::MS_RDONLY),
    ("silent", Does::Set, libc::MS_SILENT),
    ("strictatime", Does::Set, libc::MS_STRICTATIME),
    ("suid", Does::Clear, libc::MS_NOSUID),
    ("symfollow", Does::Clear, MS_NOSYMFOLLOW),
    ("sync", Does::Set, libc::MS_SYNCHRONOUS),
    ("readonly", Does::Set, libc::MS_RDONLY),
];

/// Flags that mount_setattr(2) can set for a whole tree: their options exist with `r` in front.
const RECURSIVE: u64 = libc::MS_RDONLY
    | libc::MS_NOSUID
    | libc::MS_NODEV
    | libc::MS_NOEXEC
    | libc::MS_NOATIME
    | libc::MS_NODIRATIME
    | libc::MS_RELATIME
    | libc::MS_STRICTATIME
    | MS_NOSYMFOLLOW;

const PROPAGATION: [(&str, u64); 8] = [
    ("private", libc::MS_PRIVATE),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC),
    ("shared", libc::MS_SHARED),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("slave", libc::MS_SLAVE),
    ("rslave", libc::MS_SLAVE | libc::MS_REC),
    ("unbindable", libc::MS_UNBINDABLE),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
];

/// Parses options in order: a later one wins.
pub fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for option in options {
        match option.as_str() {
            "bind" => parsed.bind = true,
            "rbind" => (parsed.bind, parsed.recursive) = (true, true),
            "tmpcopyup" => parsed.copy_up = true,
            // Whether for the mounts below, too, is the bind mount's own recursion to say.
            "idmap" | "ridmap" => parsed.idmap = true,
            option => apply(option, &mut parsed),
        }
    }
    parsed
}

fn apply(option: &str, parsed: &mut MountOptions) {
    if let Some((_, flag)) = PROPAGATION.iter().find(|(name, _)| *name == option) {
        parsed.propagation = *flag;
        return;
    }
    match flag(option) {
        Some((Does::Set, flag)) => {
            parsed.flags |= flag;
            parsed.clear &= !flag;
        }
        Some((Does::Clear, flag)) => {
            parsed.flags &= !flag;
            parsed.clear |= flag;
        }
        None => parsed.data.push(option.to_owned()),
    }
}

fn flag(option: &str) -> Option<(Does, u64)> {
    let find = |wanted: &str| FLAGS.iter().find(|(name, ..)| *name == wanted).map(|&(_, does, flag)| (does, flag));
    // A share is one file system in the guest, so that for it the recursive form says nothing more.
    let recursive = || option.strip_prefix('r').and_then(find).filter(|(_, flag)| flag & RECURSIVE != 0);
    find(option).or_else(recursive)
}

/// Sorted names of all options that are not just data for a file system.
pub fn names() -> Vec<String> {
    let flags = FLAGS.iter().map(|(name, ..)| (*name).to_owned());
    let recursive = FLAGS.iter().filter(|(name, _, flag)| flag & RECURSIVE != 0 && *name != "readonly");
    let recursive = recursive.map(|(name, ..)| format!("r{name}"));
    let propagation = PROPAGATION.iter().map(|(name, _)| (*name).to_owned());
    let others = ["bind", "rbind", "tmpcopyup", "idmap", "ridmap"].map(str::to_owned);
    let mut names: Vec<String> = flags.chain(recursive).chain(propagation).chain(others).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> MountOptions {
        parse(&text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_become_flags() {
        let table = [
            ("", 0, 0),
            ("ro nosuid", libc::MS_RDONLY | libc::MS_NOSUID, 0),
            ("ro rw", 0, libc::MS_RDONLY),
            ("rw ro", libc::MS_RDONLY, 0),
            ("exec suid dev", 0, libc::MS_NOEXEC | libc::MS_NOSUID | libc::MS_NODEV),
            ("strictatime", libc::MS_STRICTATIME, 0),
            ("noatime atime", 0, libc::MS_NOATIME),
            ("defaults", 0, 0),
            ("rro rnosuid", libc::MS_RDONLY | libc::MS_NOSUID, 0),
            ("relatime", libc::MS_RELATIME, 0),
            ("rrelatime", libc::MS_RELATIME, 0),
            ("nosymfollow", MS_NOSYMFOLLOW, 0),
        ];
        for (text, flags, clear) in table {
            let parsed = options(text);
            assert_eq!((parsed.flags, parsed.clear, parsed.data.len()), (flags, clear, 0), "{text}");
        }
    }

    #[test]
    fn what_is_no_flag_is_data() {
        let parsed = options("nosuid mode=755 size=65536k rsync");
        assert_eq!(parsed.data, ["mode=755", "size=65536k", "rsync"]);
    }

    #[test]
    fn binds_and_propagation() {
        let parsed = options("rbind rslave ro tmpcopyup");
        assert!(parsed.bind && parsed.recursive && parsed.copy_up && parsed.read_only());
        assert_eq!(parsed.propagation, libc::MS_SLAVE | libc::MS_REC);
        assert_eq!(options("rprivate shared").propagation, libc::MS_SHARED);
        assert!(!options("bind").recursive);
        assert!(options("bind idmap").idmap);
    }

    #[test]
    fn all_names_are_known() {
        for name in names() {
            assert!(options(&name).data.is_empty(), "{name}");
        }
    }
}
