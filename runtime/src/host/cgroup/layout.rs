//! Cgroup hierarchies of this host, from /proc/self/mountinfo and /proc/self/cgroup.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::host::mounted::unescape;

/// Cgroup hierarchies that a process can be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Each mounted hierarchy once.
    pub hierarchies: Vec<Hierarchy>,
}

/// One cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Mount point.
    pub mount: PathBuf,
    /// Controllers of version 1, `name=…` included; none for the unified hierarchy of version 2.
    pub controllers: Vec<String>,
    /// This process's own cgroup in it, below the mount, without a leading slash.
    pub own: String,
}

impl Hierarchy {
    /// Whether the hierarchy is of version 2.
    pub fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether the hierarchy has a controller of version 1.
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// Directory of a container's cgroup. An absolute path is below the mount; a relative one is below this process's own cgroup,
    /// in version 2 beside it, because a cgroup with processes cannot have children there.
    pub fn directory(&self, path: &str) -> PathBuf {
        if let Some(below) = path.strip_prefix('/') {
            return self.mount.join(below);
        }
        let own = Path::new(&self.own);
        let base = if self.is_unified() { own.parent().unwrap_or(own) } else { own };
        self.mount.join(base).join(path)
    }
}

impl Layout {
    /// Reads this host's hierarchies.
    ///
    /// # Errors
    /// /proc cannot be read, or no cgroup file system is mounted.
    pub fn detect() -> anyhow::Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("read {path}"));
        let layout = Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        if layout.hierarchies.is_empty() {
            bail!("no cgroup file system is mounted: mount one at /sys/fs/cgroup");
        }
        Ok(layout)
    }

    /// Parses the text of proc_pid_mountinfo(5) and of /proc/PID/cgroup (cgroups(7)).
    pub fn parse(mountinfo: &str, own: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for found in mountinfo.lines().filter_map(|line| hierarchy(line, own)) {
            if !hierarchies.iter().any(|known| known.controllers == found.controllers) {
                hierarchies.push(found);
            }
        }
        Self { hierarchies }
    }

    /// Describes the versions in use, for `doctor`.
    pub fn describe(&self) -> String {
        let (all, unified) = (self.hierarchies.len(), self.hierarchies.iter().filter(|one| one.is_unified()).count());
        match unified {
            0 => format!("v1, {all} hierarchies"),
            _ if unified == all => "v2".to_owned(),
            _ => format!("v1 and v2 (hybrid), {all} hierarchies"),
        }
    }
}

/// Parses a line like `36 35 98:0 /root /mount/point rw,noatime shared:1 - cgroup source rw,cpu,cpuacct`.
fn hierarchy(line: &str, own: &str) -> Option<Hierarchy> {
    let (mount, system) = line.split_once(" - ")?;
    let mut system = system.split(' ');
    let kind = system.next()?;
    let options = system.nth(1).unwrap_or_default();
    let controllers: Vec<String> = match kind {
        "cgroup" => options.split(',').filter(|option| is_controller(option)).map(str::to_owned).collect(),
        "cgroup2" => Vec::new(),
        _ => return None,
    };
    if kind == "cgroup" && controllers.is_empty() {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    let own = own.lines().find_map(|line| own_path(line, &controllers)).unwrap_or("/");
    // Inside a container the mount shows only a part of the hierarchy.
    let own = own.strip_prefix(root.trim_end_matches('/')).filter(|rest| rest.starts_with('/')).unwrap_or("");
    let own = own.trim_matches('/');
    let own = if own.split('/').any(|part| part == "..") { "" } else { own };
    Some(Hierarchy { mount: point.into(), controllers, own: own.to_owned() })
}

/// Whether an option of a mount of version 1 is a controller.
fn is_controller(option: &str) -> bool {
    const OTHERS: [&str; 8] =
        ["rw", "ro", "noprefix", "clone_children", "xattr", "cpuset_v2_mode", "favordynmods", "nofavordynmods"];
    !option.is_empty() && !OTHERS.contains(&option) && !option.starts_with("release_agent=")
}

/// Path of a line like `4:cpu,cpuacct:/path` or `0::/path`, if it is about these controllers.
fn own_path<'a>(line: &'a str, controllers: &[String]) -> Option<&'a str> {
    let (names, path) = line.split_once(':')?.1.split_once(':')?;
    let wanted = match controllers.first() {
        Some(first) => names.split(',').any(|name| name == first),
        None => names.is_empty(),
    };
    wanted.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 1 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
23 22 0:21 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
24 22 0:22 / /sys/fs/cgroup/systemd rw shared:5 - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
25 22 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
26 22 0:23 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct
27 22 0:24 / /mnt/with\\040space rw - cgroup cgroup rw,memory
";

    #[test]
    fn hybrid_hosts() {
        let layout = Layout::parse(HYBRID, "5:memory:/a/b\n4:cpu,cpuacct:/\n1:name=systemd:/s\n0::/u/v\n");
        assert_eq!(layout.describe(), "v1 and v2 (hybrid), 4 hierarchies");
        let directory = |index: usize, path: &str| layout.hierarchies[index].directory(path).display().to_string();
        assert_eq!(layout.hierarchies.len(), 4);
        assert_eq!(directory(0, "box"), "/sys/fs/cgroup/unified/u/box");
        assert_eq!(directory(1, "box"), "/sys/fs/cgroup/systemd/s/box");
        assert_eq!(directory(2, "/d/box"), "/sys/fs/cgroup/cpu,cpuacct/d/box");
        assert_eq!(directory(3, "box"), "/mnt/with space/a/b/box");
        assert!(layout.hierarchies[2].has("cpuacct") && !layout.hierarchies[2].has("xattr"));
    }

    #[test]
    fn hosts_of_one_version() {
        let v2 = Layout::parse("23 22 0:21 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/\n");
        assert_eq!(v2.describe(), "v2");
        assert_eq!(v2.hierarchies[0].directory("box"), Path::new("/sys/fs/cgroup/box"));
        let v1 = Layout::parse("25 22 0:23 / /c rw - cgroup cgroup rw,cpu\n", "");
        assert_eq!(v1.describe(), "v1, 1 hierarchies");
        assert_eq!(Layout::parse("nonsense\n- - -\n", "x"), Layout { hierarchies: vec![] });
    }

    #[test]
    fn a_mount_that_shows_a_part() {
        let line = "25 22 0:23 /docker/x /c rw - cgroup cgroup rw,cpu\n";
        let own = |own: &str| Layout::parse(line, own).hierarchies[0].own.clone();
        assert_eq!(own("1:cpu:/docker/x/y\n"), "y");
        assert_eq!(own("1:cpu:/docker/x\n"), "");
        assert_eq!(own("1:cpu:/elsewhere\n"), "");
        assert_eq!(own("1:cpu:/docker/x/../../y\n"), "");
    }
}
