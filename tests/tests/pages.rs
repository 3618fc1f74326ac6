//! The pages: what they name is there, links lead somewhere, and lines are short enough to be reviewed. Runs anywhere.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest line of a page, in characters; rows of tables may be longer.
const WIDTH: usize = 160;

/// Folders of the tree that pages name files in.
const FOLDERS: [&str; 10] =
    ["agent", "bench", "device-filter", "docs", "guest-kernel", "initrd", "runtime", "tests", "tools", "vmm"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every page of ours, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let folders = ["", "docs", "docs/decisions", "guest-kernel/patches"];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap().flatten());
    let pages = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "md"));
    let pages: Vec<_> = pages.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect();
    assert!(pages.len() > 20, "the pages have moved");
    pages
}

/// Lines of a page that are prose, with their numbers: neither rows of a table nor blocks of code.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().zip(1..).filter_map(move |(line, number)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!in_code && !fence && !line.starts_with('|')).then_some((number, line))
    })
}

#[test]
fn lines_are_short() {
    for (page, text) in pages() {
        for (number, line) in prose(&text) {
            let length = line.chars().count();
            assert!(length <= WIDTH, "{}:{number}: {length} characters, {WIDTH} at most", page.display());
        }
    }
}

#[test]
fn links_lead_somewhere() {
    for (page, text) in pages() {
        for (link, _) in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let file = link.split('#').next().unwrap();
            let elsewhere = file.is_empty() || link.starts_with("http");
            assert!(elsewhere || page.parent().unwrap().join(file).exists(), "{}: {link} is not there", page.display());
        }
    }
}

#[test]
fn files_that_pages_name_are_there() {
    let mut seen = 0;
    for (page, text) in pages() {
        // What has been removed or renamed since stays in the record of changes.
        if page.ends_with("CHANGELOG.md") {
            continue;
        }
        for name in text.split('`').skip(1).step_by(2).filter(|name| is_path(name)) {
            for path in alternatives(name) {
                seen += 1;
                assert!(root().join(&path).exists(), "{}: there is no {path}", page.display());
            }
        }
    }
    assert!(seen > 100, "{seen} names found");
}

#[test]
fn tests_that_pages_name_are_there() {
    let areas = fs::read_dir(root().join("tests/tests")).unwrap().flatten().map(|entry| entry.path());
    let sources: String = areas.filter_map(|path| fs::read_to_string(path).ok()).collect();
    let mut seen = 0;
    for (page, text) in pages() {
        for name in text.split('`').skip(1).step_by(2).filter(|name| is_test(name)) {
            seen += 1;
            assert!(sources.contains(&format!("fn {name}()")), "{}: there is no test {name}", page.display());
        }
    }
    assert!(seen > 8, "{seen} names found");
}

/// Whether a piece of code in a page is the name of a test of what only a VM has.
fn is_test(name: &str) -> bool {
    name.strip_prefix("vm_")
        .is_some_and(|rest| rest.len() > 5 && rest.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c)))
}

/// Whether a piece of code in a page is the path of a file in the tree, rather than a command or a pattern.
fn is_path(name: &str) -> bool {
    let folder = name.split_once('/').is_some_and(|(first, _)| FOLDERS.contains(&first));
    let pattern = name.contains("NAME") || name.starts_with("bench/results");
    folder && !pattern && name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-{},".contains(c))
}

/// The paths that `a/{b,c}.rs` stands for.
fn alternatives(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (list, after) = rest.split_once('}').unwrap_or((rest, ""));
    list.split(',').map(|one| format!("{before}{one}{after}")).collect()
}

#[test]
fn paths_are_told_from_commands() {
    for path in ["vmm/src/virtio", "tests/lab/run", "runtime/src/{a,b}.rs"] {
        assert!(is_path(path), "{path}");
    }
    for other in ["tests/lab/run true", "net/core.c", "vmm/src/NAME.rs", "make test", "bench/results/start.md"] {
        assert!(!is_path(other), "{other}");
    }
    assert_eq!(alternatives("a/{b,c}.rs"), ["a/b.rs", "a/c.rs"]);
}
