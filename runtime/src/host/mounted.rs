//! Mount points of the mount namespace of this process.

use std::path::PathBuf;

/// The mount points; none where there is no procfs.
pub fn points() -> Vec<PathBuf> {
    points_in(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn points_in(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| unescape(point).into()).collect()
}

/// Decodes the octal escapes that mountinfo has for spaces and the like.
pub fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_paths() {
        let text =
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:20 / /a\\040b rw shared:5 - tmpfs tmpfs rw\nnonsense\n";
        assert_eq!(points_in(text), [PathBuf::from("/"), PathBuf::from("/a b")]);
    }
}
