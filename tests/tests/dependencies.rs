//! What the workspace depends on: licences and sources as `deny.toml` has them, nothing declared that nobody uses. Runs
//! anywhere, without network and without cargo-deny.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Packages whose code is generated when they are built, so that no file in the tree names their dependencies.
const GENERATED: [&str; 1] = ["protocol"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every package of the graph, as `cargo metadata` describes it.
fn packages() -> Vec<Value> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--format-version", "1", "--offline", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().clone();
    assert!(packages.len() > 50, "cargo knows {} packages only", packages.len());
    packages
}

/// Packages of this workspace: those that come from no registry.
fn members() -> Vec<Value> {
    packages().into_iter().filter(|package| package["source"].is_null()).collect()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap()
}

/// The `allow` list of `deny.toml`.
fn allowed() -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).unwrap();
    let list = text.split_once("\nallow = [").unwrap().1.split_once(']').unwrap().0;
    list.split(',').map(|item| item.trim().trim_matches('"').to_owned()).filter(|item| !item.is_empty()).collect()
}

/// Whether the list meets an SPDX expression; `/` is how old packages write OR.
fn meets(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ").replace(" WITH ", "-WITH-");
    let mut words = spaced.split_whitespace().peekable();
    let met = alternatives(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn alternatives(words: &mut Words, allowed: &[String]) -> bool {
    let mut met = demands(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= demands(words, allowed);
    }
    met
}

fn demands(words: &mut Words, allowed: &[String]) -> bool {
    let mut met = licence(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= licence(words, allowed);
    }
    met
}

fn licence(words: &mut Words, allowed: &[String]) -> bool {
    match words.next() {
        Some("(") => {
            let met = alternatives(words, allowed);
            assert_eq!(words.next(), Some(")"), "an expression without its end");
            met
        }
        Some(word) => allowed.iter().any(|known| known == word),
        None => false,
    }
}

#[test]
fn expressions_are_read_as_spdx_has_them() {
    let allowed = ["MIT".to_owned(), "Zlib".to_owned()];
    for good in
        ["MIT", "MIT OR GPL-3.0", "GPL-2.0/MIT", "(GPL-3.0 OR MIT) AND Zlib", "Apache-2.0 WITH LLVM-exception OR MIT"]
    {
        assert!(meets(good, &allowed), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Zlib) AND GPL-3.0", "MIT WITH LLVM-exception", "MIT MIT"] {
        assert!(!meets(bad, &allowed), "{bad}");
    }
}

#[test]
fn licences_are_on_the_list() {
    let allowed = allowed();
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(meets(licence, &allowed), "{} is under {licence:?}: see deny.toml", name(&package));
    }
}

#[test]
fn every_listed_licence_is_needed() {
    let allowed = allowed();
    let packages = packages();
    for one in &allowed {
        let rest: Vec<String> = allowed.iter().filter(|other| *other != one).cloned().collect();
        let needed = packages.iter().any(|package| !meets(package["license"].as_str().unwrap_or_default(), &rest));
        assert!(needed, "no package needs {one}: take it out of deny.toml");
    }
}

#[test]
fn packages_come_from_one_registry() {
    for package in packages() {
        let from_registry = package["source"].as_str().is_none_or(|source| source.starts_with("registry+"));
        assert!(from_registry, "{} comes from {}", name(&package), package["source"]);
    }
}

#[test]
fn members_inherit_licence_and_oldest_rust() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let oldest = text.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    for package in members() {
        assert_eq!(package["rust_version"], oldest, "{}: rust-version.workspace = true", name(&package));
        assert_eq!(package["license"], "Apache-2.0", "{}: license.workspace = true", name(&package));
    }
}

#[test]
fn whatever_is_declared_is_used() {
    let mut declared = Vec::new();
    for package in members() {
        let text = sources(Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap());
        for dependency in package["dependencies"].as_array().unwrap() {
            declared.push(name(dependency).to_owned());
            let path = name(dependency).replace('-', "_");
            let used = [format!("{path}::"), format!("use {path};")].iter().any(|used| text.contains(used.as_str()));
            assert!(used || GENERATED.contains(&name(&package)), "{} does not use {path}", name(&package));
        }
    }
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let table = text.split_once("[workspace.dependencies]\n").unwrap().1.split("\n[").next().unwrap();
    for (listed, _) in table.lines().filter_map(|line| line.split_once(" = ")) {
        assert!(declared.iter().any(|name| name == listed), "no package uses {listed} of the workspace's dependencies");
    }
}

/// All Rust code of a package, one file after the other; packages within its folder are others.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.join("Cargo.toml").exists() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(&path).unwrap();
        }
    }
    text
}
