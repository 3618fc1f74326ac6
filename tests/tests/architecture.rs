//! The allowed directions between crates and inside vmm, and what no source file may contain. Runs anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which crate of the workspace may use which others.
const ALLOWED: [(&str, &[&str]); 8] = [
    ("runvm", &["vmm", "protocol", "initrd"]),
    ("vmm", &[]),
    ("agent", &["protocol"]),
    ("protocol", &[]),
    ("initrd", &["protocol"]),
    ("tests", &[]),
    ("posix-cases", &[]),
    ("udp-echo", &[]),
];

/// What must not get into a crate, however deep.
const FORBIDDEN: [(&str, &[&str]); 2] = [
    ("vmm", &["ttrpc", "tokio", "oci-spec", "protocol", "clap", "protobuf", "async-trait", "futures", "mio", "smol"]),
    ("agent", &["oci-spec", "serde_json", "clap", "vmm"]),
];

/// What `vmm::virtio` may use of vmm.
const BELOW_VIRTIO: [&str; 5] = ["memory", "registers", "interrupt", "event_loop", "virtio"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a package needs to run: name → names of its normal dependencies, for the whole graph.
fn graph() -> (BTreeMap<String, BTreeSet<String>>, BTreeSet<String>) {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let names: BTreeMap<String, String> =
        list(&metadata["packages"]).iter().map(|package| (text(&package["id"]), text(&package["name"]))).collect();
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in list(&metadata["resolve"]["nodes"]) {
        let from = edges.entry(names[&text(&node["id"])].clone()).or_default();
        for dependency in list(&node["deps"]) {
            if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                from.insert(names[&text(&dependency["pkg"])].clone());
            }
        }
    }
    let members = list(&metadata["workspace_members"]).iter().map(|id| names[&text(id)].clone()).collect();
    (edges, members)
}

#[test]
fn crates_use_only_what_is_below_them() {
    let (edges, members) = graph();
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    for member in &members {
        let may = allowed.get(member.as_str());
        let may = may.unwrap_or_else(|| panic!("{member} is new: say here what it may use"));
        let uses: Vec<_> = edges[member].intersection(&members).collect();
        for used in uses {
            assert!(may.contains(&used.as_str()), "{member} may not use {used}");
        }
    }
}

#[test]
fn what_must_stay_out_of_a_crate_stays_out() {
    let (edges, _) = graph();
    for (name, forbidden) in FORBIDDEN {
        let mut reached = BTreeSet::new();
        let mut open = vec![name.to_owned()];
        while let Some(package) = open.pop() {
            for used in edges.get(&package).into_iter().flatten() {
                if reached.insert(used.clone()) {
                    open.push(used.clone());
                }
            }
        }
        assert!(!reached.is_empty(), "{name} is not in the graph");
        let found: Vec<_> = forbidden.iter().filter(|name| reached.contains(**name)).collect();
        assert!(found.is_empty(), "{name} pulls in {found:?}");
    }
}

#[test]
fn virtio_devices_use_nothing_above_them() {
    let files = files_below(&root().join("vmm/src/virtio"));
    assert!(files.len() > 3, "vmm/src/virtio has moved");
    // Tests of a device may use the whole crate: they are above it.
    for file in files.iter().filter(|file| !file.iter().any(|part| part == "tests" || part == "tests.rs")) {
        let text = fs::read_to_string(file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (number, line) in code(text) {
            for used in crate_paths(line) {
                let place = format!("{}:{number}", file.display());
                assert!(BELOW_VIRTIO.contains(&used), "{place}: crate::{used} is above virtio");
            }
        }
    }
}

/// Lines that are no comments, with their numbers.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The names that follow `crate::` in a line, a list in braces included.
fn crate_paths(line: &str) -> Vec<&str> {
    let name = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut found = Vec::new();
    for (at, start) in line.match_indices("crate::") {
        let rest = &line[at + start.len()..];
        match rest.strip_prefix('{') {
            None => found.push(&rest[..name(rest)]),
            Some(list) => found.extend(list.split([',', '}']).map(|item| item.trim_start()).filter_map(|item| {
                let word = &item[..name(item)];
                (!word.is_empty()).then_some(word)
            })),
        }
    }
    found
}

#[test]
fn crate_paths_are_found() {
    assert_eq!(crate_paths("use crate::memory::GuestMemory;"), ["memory"]);
    assert_eq!(crate_paths("use crate::{boot, memory as m};"), ["boot", "memory"]);
    assert_eq!(crate_paths("fn f(a: crate::vcpu::Vcpu) {}"), ["vcpu"]);
    assert!(crate_paths("pub(crate) fn f() {}").is_empty());
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // Put together here, so that this file passes too.
    let words = [["/wo", "rk/"].concat(), ["../sha", "red"].concat()];
    for file in files_below(&root()) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (number, line) in text.lines().enumerate() {
            for word in &words {
                let found = line.find(word.as_str()).is_some_and(|at| begins_path(line, at));
                assert!(!found, "{}:{}: {word}", file.display(), number + 1);
            }
        }
    }
}

/// Whether a path begins here, rather than going on.
fn begins_path(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_.-}$/".contains(c))
}

/// Every file of ours below a folder.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy().into_owned();
        if path.is_symlink() || name == "target" || name.starts_with('.') && name != ".ci" {
            continue;
        }
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
