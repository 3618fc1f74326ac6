//! On a false version 2 tree. The areas of the lab have the kernel's own, of both versions.

use super::*;

struct FakeRoot(tempfile::TempDir);

impl FakeRoot {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        fs::write(root.path("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::write(root.path("cgroup.subtree_control"), "cpu\n").unwrap();
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn layout(&self, own: &str) -> Layout {
        let mount = self.0.path().to_owned();
        Layout { hierarchies: vec![Hierarchy { mount, controllers: vec![], own: own.to_owned() }] }
    }
}

fn plan(path: &str) -> CgroupPlan {
    CgroupPlan { path: path.to_owned(), unit: None }
}

#[test]
fn a_unified_tree() {
    let root = FakeRoot::new();
    let cgroup = create_in(&root.layout(""), &plan("/a/b")).unwrap();
    assert!(root.path("a/b").is_dir());
    // A plain file keeps only the last write; the kernel takes each.
    assert_eq!(fs::read_to_string(root.path("cgroup.subtree_control")).unwrap(), "+pids");
    cgroup.add(7).unwrap();
    assert_eq!(fs::read_to_string(root.path("a/b/cgroup.procs")).unwrap(), "7");
    fs::remove_file(root.path("a/b/cgroup.procs")).unwrap();
    fs::remove_file(root.path("a/b/cgroup.subtree_control")).unwrap_or_default();
    fs::create_dir_all(root.path("a/b/child/grandchild")).unwrap();
    cgroup.remove().unwrap();
    assert!(!root.path("a/b").exists() && root.path("a").is_dir());
    cgroup.remove().unwrap();
}

#[test]
fn a_relative_path_is_beside_the_own_cgroup() {
    let root = FakeRoot::new();
    fs::create_dir_all(root.path("user/session")).unwrap();
    create_in(&root.layout("user/session"), &plan("box")).unwrap();
    assert!(root.path("user/box").is_dir());
}

#[test]
fn what_others_use_is_left_alone() {
    let root = FakeRoot::new();
    fs::create_dir_all(root.path("shared/other")).unwrap();
    let cgroup = create_in(&root.layout(""), &plan("/shared")).unwrap();
    cgroup.remove().unwrap();
    assert!(root.path("shared/other").is_dir());
}

#[test]
fn the_first_file_that_there_is_gets_its_value() {
    let root = FakeRoot::new();
    let cgroup = create_in(&root.layout(""), &plan("/box")).unwrap();
    fs::write(root.path("box/io.weight"), "").unwrap();
    let file = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut limits =
        HostLimits { one_of: vec![vec![file("io.bfq.weight", "1"), file("io.weight", "2")]], ..Default::default() };
    cgroup.limit(&limits).unwrap();
    assert_eq!(fs::read_to_string(root.path("box/io.weight")).unwrap(), "2");
    limits.one_of = vec![vec![file("blkio.bfq.weight", "1"), file("blkio.weight", "2")]];
    let error = cgroup.limit(&limits).unwrap_err().to_string();
    assert!(error.starts_with("set blkio.bfq.weight to \"1\" or blkio.weight to \"2\": the host's cgroup"), "{error}");
}

#[test]
fn a_failure_names_the_place_and_leaves_nothing() {
    let (good, bad) = (FakeRoot::new(), FakeRoot::new());
    fs::write(bad.path("a"), "in the way").unwrap();
    let hierarchies = [good.layout("").hierarchies, bad.layout("").hierarchies].concat();
    let text = format!("{:#}", create_in(&Layout { hierarchies }, &plan("/a/b")).unwrap_err());
    assert!(text.starts_with("make cgroup ") && text.contains("/a/b: "), "{text}");
    assert!(!good.path("a/b").exists());
    let gone =
        HostCgroup { directories: vec![Directory { path: good.path("none"), made: true, unified: true }], unit: None };
    assert!(format!("{:#}", gone.add(1).unwrap_err()).starts_with("move process 1 into "));
}

#[test]
fn a_limit_is_never_lowered_below_what_is_in_use() {
    let root = FakeRoot::new();
    let cgroup = create_in(&root.layout(""), &plan("/a")).unwrap();
    let mib = |n: u64| (n << 20).to_string();
    for (before, used, asked, after) in [
        (mib(500), mib(100), mib(300), mib(300)),
        (mib(500), mib(400), mib(300), mib(464)),
        // Somebody who uses all there is gets no more by asking for less.
        (mib(500), mib(490), mib(300), mib(500)),
        (mib(500), mib(490), mib(600), mib(600)),
        ("max\n".to_owned(), mib(400), mib(300), mib(464)),
        (mib(500), mib(400), "max".to_owned(), "max".to_owned()),
    ] {
        fs::write(root.path("a/memory.max"), before).unwrap();
        fs::write(root.path("a/memory.current"), used + "\n").unwrap();
        let limits = HostLimits { unified: vec![("memory.max".to_owned(), asked)], ..HostLimits::default() };
        cgroup.limit(&limits).unwrap();
        assert_eq!(fs::read_to_string(root.path("a/memory.max")).unwrap(), after);
    }
}
