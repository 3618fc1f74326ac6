//! Annotations of runvm: all begin with `io.runvm.`, and an unknown one is refused as a mistake.
//!
//! Engines pass annotations on that their users have chosen, and podman those of images, too. So an annotation gives a
//! container nothing of the host's that the bundle does not give it without: what would do that, [`RESERVED`] and a VM larger
//! than its limits need, takes the word of whoever set up the runtime, `--allow-annotations`.

use std::ops::RangeInclusive;

use anyhow::{Context, bail};
use oci_spec::runtime::Spec;

/// Cache modes of the container's files.
pub const CACHE: &str = "io.runvm.cache";
/// Destinations of mounts of raw images that become disks.
pub const DISKS: &str = "io.runvm.disks";
/// Name of a kernel other than the usual one.
pub const KERNEL: &str = "io.runvm.kernel";
/// Memory of the VM in MiB.
pub const MEMORY: &str = "io.runvm.memory-mib";
/// Whether the VM has virtualisation of its own.
pub const NESTED: &str = "io.runvm.nested";
/// Kind of network that runvm makes itself.
pub const NET: &str = "io.runvm.net";
/// Ports to publish on the host.
pub const PORTS: &str = "io.runvm.ports";
/// Whether sockets of the host can be mounted.
const SOCKETS: &str = "io.runvm.sockets";
/// Whether the timeline of the start is printed.
pub const TIMELINE: &str = "io.runvm.timeline";
/// Number of virtual CPUs.
pub const VCPUS: &str = "io.runvm.vcpus";

/// Prefix of every annotation of runvm.
const PREFIX: &str = "io.runvm.";
/// Known annotations.
const KNOWN: [&str; 10] = [CACHE, DISKS, KERNEL, MEMORY, NESTED, NET, PORTS, SOCKETS, TIMELINE, VCPUS];
/// Those that count only where they are allowed.
const RESERVED: [&str; 4] = [KERNEL, NESTED, NET, PORTS];
/// In a list of allowed annotations: all of them.
const ALL: &str = "*";

/// Names of annotations that are allowed, or [`ALL`].
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a>(&'a [String]);

impl<'a> Allowed<'a> {
    /// Reads the values of `--allow-annotations`.
    ///
    /// # Errors
    /// Names one that is not known.
    pub fn of(names: &'a [String]) -> anyhow::Result<Self> {
        match names.iter().find(|name| *name != ALL && !KNOWN.contains(&name.as_str())) {
            Some(name) => bail!("--allow-annotations {name}: known are {} and {ALL}", KNOWN.join(", ")),
            None => Ok(Self(names)),
        }
    }

    /// Whether this annotation is allowed.
    pub fn has(self, name: &str) -> bool {
        self.0.iter().any(|allowed| allowed == name || allowed == ALL)
    }
}

/// Checks that every annotation with our prefix is known, and may be there.
///
/// # Errors
/// Names one that is not.
pub fn check(spec: &Spec, allowed: Allowed<'_>) -> anyhow::Result<()> {
    let names = spec.annotations().iter().flatten().map(|(name, _)| name.as_str());
    if let Some(name) = names.filter(|name| name.starts_with(PREFIX) && !KNOWN.contains(name)).min() {
        bail!("unknown annotation {name}: known are {}", KNOWN.join(", "));
    }
    let Some(name) = RESERVED.into_iter().find(|name| get(spec, name).is_some() && !allowed.has(name)) else {
        return Ok(());
    };
    let instead = match name {
        NET => "; runvm run has --net",
        PORTS => "; runvm run has --publish",
        _ => "",
    };
    bail!(
        "annotation {name}: not allowed by the host's administrator (global flag --allow-annotations {name}), since \
         engines pass on annotations of users and images{instead}"
    )
}

/// Value of an annotation that is a number within a range, if the annotation is there. Beyond `usual`, which the container
/// would have without it, only where that is allowed.
///
/// # Errors
/// The value is no such number, or too large.
pub fn number(
    spec: &Spec,
    name: &str,
    range: RangeInclusive<u64>,
    usual: impl FnOnce() -> u64,
    allowed: Allowed<'_>,
) -> anyhow::Result<Option<u64>> {
    let Some(text) = get(spec, name) else { return Ok(None) };
    let number = match text.parse::<u64>() {
        Ok(number) if range.contains(&number) => number,
        _ => bail!("annotation {name}: {text:?} is not a number from {} to {}", range.start(), range.end()),
    };
    if !allowed.has(name) {
        let most = usual();
        if number > most {
            bail!(
                "annotation {name}: {number} is more than the {most} that host and limits give the container; more has to \
                 be allowed by the host's administrator (global flag --allow-annotations {name})"
            );
        }
    }
    Ok(Some(number))
}

/// Value of an annotation that is `true` or `false`; `false` when the annotation is missing.
///
/// # Errors
/// The value is neither.
pub fn switch(spec: &Spec, name: &str) -> anyhow::Result<bool> {
    let text = get(spec, name).unwrap_or("false");
    text.parse().with_context(|| format!("annotation {name}: {text:?} is neither true nor false"))
}

/// Whether sockets of the host can be mounted.
///
/// # Errors
/// The annotation is neither `true` nor `false`.
pub fn sockets_allowed(spec: &Spec) -> anyhow::Result<bool> {
    switch(spec, SOCKETS)
}

/// Name of the VM's kernel, if the annotation is there.
///
/// # Errors
/// The value is no file name.
pub fn kernel(spec: &Spec) -> anyhow::Result<Option<String>> {
    let Some(name) = get(spec, KERNEL) else { return Ok(None) };
    let known = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.chars().all(known) {
        bail!("annotation {KERNEL}: {name:?} is not a file name of letters, digits, '.', '_', '+' and '-'");
    }
    Ok(Some(name.to_owned()))
}

/// Refuses annotations that describe a VM when the container joins one that exists.
///
/// # Errors
/// Names the annotation.
pub fn refuse_shape(spec: &Spec, sandbox: &str) -> anyhow::Result<()> {
    match [KERNEL, MEMORY, NESTED, VCPUS].into_iter().find(|name| get(spec, name).is_some()) {
        Some(name) => bail!("annotation {name}: the container joins the VM of {sandbox}, which exists already"),
        None => Ok(()),
    }
}

/// Value of an annotation, if it is there.
pub fn get<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}
