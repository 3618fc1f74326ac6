//! Rules of the device cgroup: `linux.resources.devices`, and the devices that every container may use.
//!
//! Rules come in order, and the last one that names a device and an access decides, as in version 1 of cgroups and in runc.
//! Where these would ignore a rule, because an earlier one is wider or narrower, the rule holds here.

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};

/// Access: make a node (`BPF_DEVCG_ACC_MKNOD`).
pub const MKNOD: u32 = 1;
/// Access: open for reading (`BPF_DEVCG_ACC_READ`).
pub const READ: u32 = 2;
/// Access: open for writing (`BPF_DEVCG_ACC_WRITE`).
pub const WRITE: u32 = 4;
/// All three accesses.
const ALL: u32 = MKNOD | READ | WRITE;
/// Most rules of a bundle: far more than engines give. Each becomes some instructions in the guest's kernel.
const MOST: usize = 1024;

/// Kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Block device.
    Block,
    /// Character device.
    Char,
}

/// Number of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Kind of the device.
    pub kind: Kind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// One rule of the device cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether the rule allows rather than denies.
    pub allow: bool,
    /// Kind of the devices that the rule names.
    pub kind: Kind,
    /// Their major number; `None` for any.
    pub major: Option<u32>,
    /// Their minor number; `None` for any.
    pub minor: Option<u32>,
    /// Accesses that the rule names: [`MKNOD`], [`READ`], [`WRITE`].
    pub access: u32,
}

/// Device rules of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Rules in order: the last one that matches decides.
    pub rules: Vec<Rule>,
    /// Whether an access that no rule names is allowed.
    pub otherwise: bool,
}

/// Rules for every container, whatever the bundle says. Runc adds the same.
fn defaults() -> impl Iterator<Item = Rule> {
    let rule = |kind, major, minor, access| Rule { allow: true, kind, major, minor, access };
    let nodes = [rule(Kind::Char, None, None, MKNOD), rule(Kind::Block, None, None, MKNOD)];
    // null, zero, full, random, urandom, tty, ptmx, tun, and all terminals of devpts.
    let numbers = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200)];
    let used = numbers.into_iter().map(move |(major, minor)| rule(Kind::Char, Some(major), Some(minor), ALL));
    nodes.into_iter().chain(used).chain([rule(Kind::Char, Some(136), None, ALL)])
}

impl Rules {
    /// Reads the bundle's rules, and appends those for every container.
    ///
    /// # Errors
    /// Says which rule is malformed, and how.
    pub fn of(spec: &Spec) -> anyhow::Result<Self> {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let given = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
        if given.len() > MOST {
            bail!("linux.resources.devices has {} rules, the maximum is {MOST}", given.len());
        }
        let mut this = Self { rules: Vec::new(), otherwise: false };
        for (index, rule) in given.iter().enumerate() {
            this.add(rule).with_context(|| format!("linux.resources.devices[{index}]"))?;
        }
        this.rules.extend(defaults());
        Ok(this)
    }

    /// Whether the rules deny nothing, as `--privileged` asks for.
    pub fn allow_everything(&self) -> bool {
        self.otherwise && self.rules.iter().all(|rule| rule.allow)
    }

    /// Whether the rules allow one kind of access to a device.
    pub fn allow(&self, device: DeviceNumber, access: u32) -> bool {
        let names = |rule: &&Rule| {
            rule.kind == device.kind
                && rule.major.is_none_or(|number| number == device.major)
                && rule.minor.is_none_or(|number| number == device.minor)
                && rule.access & access != 0
        };
        self.rules.iter().rev().find(names).map_or(self.otherwise, |rule| rule.allow)
    }

    fn add(&mut self, rule: &LinuxDeviceCgroup) -> anyhow::Result<()> {
        let access = access(rule.access().as_deref().unwrap_or_default())?;
        let (major, minor) = (number("major", rule.major())?, number("minor", rule.minor())?);
        let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
            // All devices, whatever else it says; so what was said before counts no more.
            LinuxDeviceType::A => {
                *self = Self { rules: Vec::new(), otherwise: rule.allow() };
                return Ok(());
            }
            LinuxDeviceType::B => Kind::Block,
            LinuxDeviceType::C => Kind::Char,
            kind => bail!("type {:?}: a rule is for a, b or c", kind.as_str()),
        };
        self.rules.push(Rule { allow: rule.allow(), kind, major, minor, access });
        Ok(())
    }
}

fn access(letters: &str) -> anyhow::Result<u32> {
    if letters.is_empty() {
        bail!("access must not be empty: it is some of r, w and m");
    }
    letters.chars().try_fold(0, |access, letter| match letter {
        'm' => Ok(access | MKNOD),
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        _ => bail!("access {letters:?}: use only r, w and m"),
    })
}

/// Reads a device number; -1 and a missing one stand for any.
fn number(field: &str, number: Option<i64>) -> anyhow::Result<Option<u32>> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{field} {number} is neither a device number nor -1 for all"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> anyhow::Result<Rules> {
        Rules::of(&serde_json::from_str(&format!(r#"{{"linux":{{"resources":{{"devices":{json}}}}}}}"#)).unwrap())
    }

    #[test]
    fn without_rules_there_are_the_devices_for_everybody() {
        let rules = rules("[]").unwrap();
        assert_eq!(rules, Rules::of(&serde_json::from_str("{}").unwrap()).unwrap());
        assert!(!rules.otherwise && !rules.allow_everything() && rules.rules.iter().all(|rule| rule.allow));
        assert!(rules.rules.contains(&Rule {
            allow: true,
            kind: Kind::Char,
            major: Some(1),
            minor: Some(3),
            access: ALL
        }));
    }

    #[test]
    fn a_rule_for_all_ends_what_was_before() {
        let before = r#"{"allow":true,"type":"c","major":7,"access":"r"}"#;
        let rules = |rest: &str| rules(&format!("[{before},{rest}]")).unwrap();
        let seven = |rules: &Rules| rules.rules.iter().any(|rule| rule.major == Some(7));
        let denied = rules(r#"{"allow":false,"access":"rwm"}"#);
        assert!(!denied.otherwise && !seven(&denied));
        let allowed = rules(r#"{"allow":true,"type":"a","major":-1,"access":"rwm"}"#);
        assert!(allowed.otherwise && allowed.allow_everything());
        let but_one = rules(r#"{"allow":true,"access":"rwm"},{"type":"b","major":7,"minor":-1,"access":"w"}"#);
        assert!(but_one.otherwise && !but_one.allow_everything() && seven(&but_one));
    }

    #[test]
    fn what_is_no_rule_is_named() {
        let table = [
            (r#"[{"allow":true}]"#, "linux.resources.devices[0]: access must not be empty"),
            (r#"[{"access":"r"},{"access":"rx"}]"#, "linux.resources.devices[1]: access \"rx\": use only r, w and m"),
            (r#"[{"type":"p","access":"r"}]"#, "linux.resources.devices[0]: type \"p\": a rule is for a, b or c"),
            (r#"[{"major":-2,"access":"r"}]"#, "linux.resources.devices[0]: major -2 is neither"),
            (r#"[{"minor":4294967296,"access":"r"}]"#, "linux.resources.devices[0]: minor 4294967296 is neither"),
        ];
        for (json, text) in table {
            let error = format!("{:#}", rules(json).unwrap_err());
            assert!(error.starts_with(text), "{error}");
        }
        let many = vec![r#"{"access":"r"}"#; MOST + 1].join(",");
        assert!(rules(&format!("[{many}]")).unwrap_err().to_string().contains("has 1025 rules"));
    }
}
