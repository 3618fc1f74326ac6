//! The rules of the OCI runtime specification that a bundle must keep.

use std::path::Path;

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::bundle::Bundle;
use crate::facts::{Facts, Kind};

/// Longest id: it names a directory.
const MAX_ID: usize = 255;

/// Checks a container's name: letters, digits, `_`, `+`, `-` and `.`, as runc has it.
pub fn validate_id(id: &str) -> anyhow::Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() {
        bail!("container id cannot be empty");
    }
    if id == "." || id == ".." || !id.chars().all(allowed) {
        bail!("invalid container ID format: {id:?} (letters, digits, '_', '+', '-' and '.' are possible)");
    }
    if id.len() > MAX_ID {
        bail!("invalid container ID format: {} characters are more than {MAX_ID}", id.len());
    }
    Ok(())
}

/// Checks what does not belong to one section alone.
pub fn spec(bundle: &Bundle, facts: &Facts) -> anyhow::Result<()> {
    version(bundle.spec.version())?;
    rootfs(bundle, facts)?;
    let process = bundle.spec.process().as_ref().context("config.json: process is required")?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        bail!("config.json: process.args must not be empty");
    }
    hostname(bundle)?;
    annotations(bundle)
}

fn version(version: &str) -> anyhow::Result<()> {
    let mut numbers = version.split(['-', '+']).next().unwrap_or_default().split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(1)), Some(Ok(_)), Some(Ok(_)), None) => Ok(()),
        _ => bail!("config.json: unsupported ociVersion {version:?}, this runtime implements 1.x"),
    }
}

fn rootfs(bundle: &Bundle, facts: &Facts) -> anyhow::Result<()> {
    let root = bundle.spec.root().as_ref().context("config.json: root is required")?;
    let path = bundle.dir.join(root.path());
    match facts.sources.get(&path) {
        Some(Kind::Directory) => Ok(()),
        Some(Kind::Missing) | None => bail!("rootfs {} does not exist: no such file or directory", path.display()),
        Some(_) => bail!("rootfs {} is not a directory", path.display()),
    }
}

fn hostname(bundle: &Bundle) -> anyhow::Result<()> {
    let named = bundle.spec.hostname().as_ref().is_some_and(|name| !name.is_empty());
    let namespaces = bundle.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let own = namespaces.is_some_and(|list| list.iter().any(|one| one.typ() == LinuxNamespaceType::Uts));
    if named && !own {
        bail!("config.json: unable to set hostname without a private UTS namespace");
    }
    Ok(())
}

fn annotations(bundle: &Bundle) -> anyhow::Result<()> {
    let known = ["io.runvm.memory-mib", "io.runvm.timeline", "io.runvm.vcpus"];
    let ours = bundle.spec.annotations().iter().flatten().map(|(key, _)| key.as_str());
    match ours.filter(|key| key.starts_with("io.runvm.")).find(|key| !known.contains(key)) {
        Some(unknown) => bail!("annotation {unknown} is not known; {} are", known.join(", ")),
        None => Ok(()),
    }
}

/// An annotation that is `true` or `false`; `false` when it is missing.
pub fn switch(spec: &Spec, key: &str) -> anyhow::Result<bool> {
    let text = spec.annotations().as_ref().and_then(|all| all.get(key)).map_or("false", String::as_str);
    text.parse().with_context(|| format!("annotation {key}: {text:?} is neither true nor false"))
}

/// An absolute path without NUL.
pub fn absolute(path: &Path, field: &str) -> anyhow::Result<String> {
    match path.to_str() {
        Some(text) if path.is_absolute() && !text.contains('\0') => Ok(text.to_owned()),
        _ => bail!("{field}: {path:?} must be an absolute path"),
    }
}
