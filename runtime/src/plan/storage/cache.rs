//! Cache modes of the shares: the annotation `io.runvm.cache`.
//!
//! `MODE` for all, or `DESTINATION=MODE[,DESTINATION=MODE…]`, where `/` is the root file system.

use std::collections::BTreeMap;

use anyhow::bail;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::plan::{annotations, guest_path};

/// What the guest may cache of a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachePlan {
    /// Milliseconds during which the guest may trust names and attributes.
    pub valid_ms: u64,
    /// Whether nobody else changes the files.
    pub exclusive: bool,
    /// Whether locks are the host's.
    pub host_locks: bool,
}

impl CachePlan {
    /// Default for a root file system, which hardly anybody but the container changes.
    pub const ROOT: Self = Self { valid_ms: 10_000, exclusive: false, host_locks: false };
    /// Default for a volume.
    pub const VOLUME: Self = Self { valid_ms: 1_000, exclusive: false, host_locks: true };
    const NONE: Self = Self { valid_ms: 0, exclusive: false, host_locks: true };
    const EXCLUSIVE: Self = Self { valid_ms: 3_600_000, exclusive: true, host_locks: false };
}

/// Cache modes that a container's annotation chooses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Caches {
    all: Option<CachePlan>,
    of: BTreeMap<String, Option<CachePlan>>,
}

impl Caches {
    /// Reads the annotation.
    ///
    /// # Errors
    /// The annotation has another form, an unknown mode, or a destination twice.
    pub fn of(spec: &Spec) -> anyhow::Result<Self> {
        let Some(given) = annotations::get(spec, annotations::CACHE) else { return Ok(Self::default()) };
        if !given.contains('=') {
            return Ok(Self { all: mode(given)?, of: BTreeMap::new() });
        }
        let mut of = BTreeMap::new();
        for entry in given.split(',') {
            let Some((destination, name)) = entry.split_once('=').filter(|(path, _)| path.starts_with('/')) else {
                bail!("annotation {}: {entry:?} is not DESTINATION=MODE", annotations::CACHE);
            };
            if of.insert(guest_path::clean(destination), mode(name)?).is_some() {
                bail!("annotation {}: {destination} is listed twice", annotations::CACHE);
            }
        }
        Ok(Self { all: None, of })
    }

    /// Takes the mode of a destination, `usual` if the annotation chooses none.
    pub fn take(&mut self, destination: &str, usual: CachePlan) -> CachePlan {
        self.of.remove(destination).unwrap_or(self.all).unwrap_or(usual)
    }

    /// Refuses destinations that no mount took.
    ///
    /// # Errors
    /// Names one.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.of.into_keys().next() {
            Some(path) => bail!("annotation {}: nothing of the host is mounted on {path}", annotations::CACHE),
            None => Ok(()),
        }
    }
}

/// Reads the name of a mode; `None` stands for the default.
fn mode(name: &str) -> anyhow::Result<Option<CachePlan>> {
    Ok(match name {
        "auto" => None,
        "none" => Some(CachePlan::NONE),
        "exclusive" => Some(CachePlan::EXCLUSIVE),
        _ => bail!("annotation {}: unknown mode {name:?}: known are auto, exclusive, none", annotations::CACHE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caches(text: &str) -> anyhow::Result<Caches> {
        let annotations = serde_json::json!({ annotations::CACHE: text });
        Caches::of(&serde_json::from_value(serde_json::json!({"annotations": annotations})).unwrap())
    }

    #[test]
    fn for_all_or_for_some() {
        let mut all = caches("none").unwrap();
        assert_eq!(all.take("/", CachePlan::ROOT), CachePlan::NONE);
        all.finish().unwrap();
        let mut some = caches("/=exclusive,/a/../src=none,/data=auto").unwrap();
        assert_eq!(some.take("/", CachePlan::ROOT), CachePlan::EXCLUSIVE);
        assert_eq!(some.take("/src", CachePlan::VOLUME), CachePlan::NONE);
        assert_eq!(some.take("/other", CachePlan::VOLUME), CachePlan::VOLUME);
        assert!(some.finish().unwrap_err().to_string().ends_with("nothing of the host is mounted on /data"));
        assert_eq!(caches("auto").unwrap().take("/x", CachePlan::VOLUME), CachePlan::VOLUME);
    }

    #[test]
    fn what_is_no_choice() {
        for (text, why) in [
            ("fast", "unknown mode \"fast\""),
            ("", "unknown mode \"\""),
            ("/x=", "unknown mode \"\""),
            ("x=none", "\"x=none\" is not DESTINATION=MODE"),
            ("/x=none,", "\"\" is not DESTINATION=MODE"),
            ("/x=none,/x/=auto", "/x/ is listed twice"),
        ] {
            let error = caches(text).unwrap_err().to_string();
            assert!(error.starts_with("annotation io.runvm.cache: ") && error.contains(why), "{text}: {error}");
        }
    }
}
