//! NUL checks: the agent's system calls would cut a text of the bundle at its first zero byte.

use std::path::Path;

use anyhow::{Context, bail};

/// Checks that a text contains no zero byte, and returns it.
///
/// # Errors
/// Names `field`.
pub fn checked(field: &str, text: &str) -> anyhow::Result<String> {
    if text.contains('\0') {
        bail!("{field} contains a zero byte: {text:?}");
    }
    Ok(text.to_owned())
}

/// Checks that a path contains no zero byte, and returns it as text.
///
/// # Errors
/// Names `field`. The path is not UTF-8, or contains a zero byte.
pub fn path(field: &str, path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{field} is not UTF-8: {}", path.display()))?;
    checked(field, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_bytes_are_refused_by_name() {
        assert_eq!(checked("hostname", "a").unwrap(), "a");
        assert_eq!(checked("hostname", "a\0b").unwrap_err().to_string(), r#"hostname contains a zero byte: "a\0b""#);
    }
}
