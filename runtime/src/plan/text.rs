//! Text of a bundle on its way to the agent's system calls, which end it at the first zero byte.

use std::path::Path;

use anyhow::{Context, bail};

/// The text, if it has no zero byte in it.
///
/// # Errors
/// Names `field`.
pub fn checked(field: &str, text: &str) -> anyhow::Result<String> {
    if text.contains('\0') {
        bail!("{field} contains a zero byte: {text:?}");
    }
    Ok(text.to_owned())
}

/// The same for a path.
///
/// # Errors
/// Names `field`.
pub fn path(field: &str, path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{field} is not UTF-8: {}", path.display()))?;
    checked(field, text)
}

/// The absolute path without `.`, `..` and double slashes, taken as inside `/` when it is relative.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_inside_the_root() {
        let table = [
            ("", "/"),
            ("/", "/"),
            ("a", "/a"),
            ("/a//b/./c/", "/a/b/c"),
            ("/a/../b", "/b"),
            ("../../etc", "/etc"),
            ("/..", "/"),
        ];
        for (path, cleaned) in table {
            assert_eq!(clean(path), cleaned, "{path}");
        }
    }

    #[test]
    fn zero_bytes_are_refused_by_name() {
        assert_eq!(checked("hostname", "a").unwrap(), "a");
        assert_eq!(checked("hostname", "a\0b").unwrap_err().to_string(), r#"hostname contains a zero byte: "a\0b""#);
    }
}
