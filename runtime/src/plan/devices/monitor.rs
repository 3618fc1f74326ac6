//! Devices that a container's processes on the host may use: almost none. What they have of devices was opened by the command,
//! or before; after that nothing is opened by its node but the null device, and the tun device by the network helper.

use super::filter;
use super::rules::{Kind, MKNOD, READ, Rule, Rules, WRITE};

/// Numbers of character devices that may be opened: null, tun.
const OPENED: [(u32, u32); 2] = [(1, 3), (10, 200)];

/// What is allowed, in the form that each kind of cgroup takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorDevices {
    rules: Rules,
}

impl MonitorDevices {
    /// The rules. Making nodes is allowed, since a process of the monitor's does that for the guest; opening them is not.
    pub fn rules() -> Self {
        let rule = |kind, major, minor, access| Rule { allow: true, kind, major, minor, access };
        let nodes = [Kind::Char, Kind::Block].map(|kind| rule(kind, None, None, MKNOD));
        let opened = OPENED.map(|(major, minor)| rule(Kind::Char, Some(major), Some(minor), READ | WRITE));
        Self { rules: Rules { rules: nodes.into_iter().chain(opened).collect(), otherwise: false } }
    }

    /// The program for a cgroup of version 2.
    pub fn program(&self) -> Vec<u8> {
        filter::compile(&self.rules, &[]).program
    }

    /// Lines for `devices.allow` of a cgroup of version 1.
    pub fn lines(&self) -> Vec<String> {
        self.rules.rules.iter().map(line).collect()
    }

    /// Entries of systemd's `DeviceAllow=`: a device, and what is allowed.
    pub fn entries(&self) -> Vec<(String, String)> {
        self.rules.rules.iter().map(|rule| (name(rule), access(rule))).collect()
    }
}

fn line(rule: &Rule) -> String {
    let kind = match rule.kind {
        Kind::Block => 'b',
        Kind::Char => 'c',
    };
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), access(rule))
}

/// A device as systemd.resource-control(5) names it.
fn name(rule: &Rule) -> String {
    let kind = match rule.kind {
        Kind::Block => "block",
        Kind::Char => "char",
    };
    match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        _ => format!("{kind}-*"),
    }
}

fn access(rule: &Rule) -> String {
    let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')].into_iter();
    letters.filter(|(bit, _)| rule.access & bit != 0).map(|(_, letter)| letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_says_the_same() {
        let devices = MonitorDevices::rules();
        assert_eq!(devices.lines(), ["c *:* m", "b *:* m", "c 1:3 rw", "c 10:200 rw"]);
        let entry = |device: &str, access: &str| (device.to_owned(), access.to_owned());
        let names = [
            entry("char-*", "m"),
            entry("block-*", "m"),
            entry("/dev/char/1:3", "rw"),
            entry("/dev/char/10:200", "rw"),
        ];
        assert_eq!(devices.entries(), names);
        let program = devices.program();
        assert!(!program.is_empty() && program.len().is_multiple_of(8));
    }
}
