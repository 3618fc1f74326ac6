//! Validation of what every bundle must have, in runc's words.

use anyhow::{Context, bail};
use oci_spec::runtime::Process;

use crate::bundle::Bundle;

/// Longest container id: ids are file names.
const MAX_ID: usize = 255;

/// Checks a container id: letters, digits and `_ + . -`, not `.` or `..`, at most 255 characters.
///
/// # Errors
/// Runc's message, with the reason.
pub fn id(id: &str) -> anyhow::Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
    if id.is_empty() || id == "." || id == ".." || !id.chars().all(allowed) {
        bail!("invalid container ID format: {id:?}, only letters, digits and _ + . - are allowed");
    }
    if id.len() > MAX_ID {
        bail!("invalid container ID format: {} characters, at most {MAX_ID} are allowed", id.len());
    }
    Ok(())
}

/// Checks version, process and root, and notes what only other platforms use.
///
/// # Errors
/// Says what is missing or wrong.
pub fn bundle(bundle: &Bundle, notes: &mut Vec<String>) -> anyhow::Result<()> {
    let spec = &bundle.spec;
    version(spec.version())?;
    process(spec.process().as_ref().context("process property must not be empty")?)?;
    if spec.root().as_ref().is_none_or(|root| root.path().as_os_str().is_empty()) {
        bail!("root must be specified");
    }
    for name in &bundle.unknown_capabilities {
        notes.push(format!("ignoring unknown capability {name}"));
    }
    let others = [spec.solaris().is_some(), spec.windows().is_some(), spec.vm().is_some(), spec.zos().is_some()];
    if others.contains(&true) {
        notes.push("solaris, windows, vm and zos sections of config.json have no effect".to_owned());
    }
    Ok(())
}

/// Checks what both `create` and `exec` need of a process.
///
/// # Errors
/// Runc's messages.
pub fn process(process: &Process) -> anyhow::Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        bail!("args must not be empty");
    }
    if !process.cwd().is_absolute() {
        bail!("Cwd must be an absolute path, not {:?}", process.cwd());
    }
    Ok(())
}

/// Accepts every 1.x: later versions only add to the specification.
fn version(version: &str) -> anyhow::Result<()> {
    let number = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<Option<u32>> = number.split('.').map(|part| part.parse().ok()).collect();
    match parts.as_slice() {
        [Some(1), Some(_), Some(_)] => Ok(()),
        _ => bail!("unsupported ociVersion {version:?}: this runtime supports 1.x.y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_an_allow_list() {
        for good in ["a", "A-b_c.d+e", "0", "...", &"x".repeat(255)] {
            assert!(id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../a", "a b", "ä", "a\n", "a\0", "a:b", &"x".repeat(256)] {
            let text = id(bad).unwrap_err().to_string();
            assert!(text.starts_with("invalid container ID format"), "{text}");
        }
    }

    #[test]
    fn versions_of_the_first_series() {
        for good in ["1.0.0", "1.0.2-dev", "1.2.0+x", "1.0.0-rc5", "1.99.3"] {
            assert!(version(good).is_ok(), "{good}");
        }
        for bad in ["", "1", "1.0", "0.9.0", "2.0.0", "1.x.0", "1.0.0.0", "v1.0.0", "-1.0.0"] {
            assert!(version(bad).unwrap_err().to_string().starts_with("unsupported ociVersion"), "{bad}");
        }
    }
}
