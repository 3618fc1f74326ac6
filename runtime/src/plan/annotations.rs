//! Annotations of runvm: all begin with `io.runvm.`, and an unknown one is refused as a mistake.

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
const KNOWN: [&str; 9] = [CACHE, DISKS, KERNEL, MEMORY, NET, PORTS, SOCKETS, TIMELINE, VCPUS];

/// Checks that every annotation with our prefix is known.
///
/// # Errors
/// Names an unknown one.
pub fn check(spec: &Spec) -> anyhow::Result<()> {
    let names = spec.annotations().iter().flatten().map(|(name, _)| name.as_str());
    match names.filter(|name| name.starts_with(PREFIX) && !KNOWN.contains(name)).min() {
        Some(name) => bail!("unknown annotation {name}: known are {}", KNOWN.join(", ")),
        None => Ok(()),
    }
}

/// Value of an annotation that is a number within a range, if the annotation is there.
///
/// # Errors
/// The value is no such number.
pub fn number(spec: &Spec, name: &str, range: RangeInclusive<u64>) -> anyhow::Result<Option<u64>> {
    let Some(text) = get(spec, name) else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => bail!("annotation {name}: {text:?} is not a number from {} to {}", range.start(), range.end()),
    }
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
    match [KERNEL, MEMORY, VCPUS].into_iter().find(|name| get(spec, name).is_some()) {
        Some(name) => bail!("annotation {name}: the container joins the VM of {sandbox}, which exists already"),
        None => Ok(()),
    }
}

/// Value of an annotation about the network, if it is there.
///
/// Engines pass annotations on that their users have chosen, and podman those of images; so runvm takes them only where
/// whoever set up the runtime allows it.
///
/// # Errors
/// The annotation is there and not allowed.
pub fn network<'a>(spec: &'a Spec, name: &str, allowed: bool) -> anyhow::Result<Option<&'a str>> {
    let flag = if name == NET { "--net" } else { "--publish" };
    match get(spec, name) {
        Some(_) if !allowed => bail!(
            "annotation {name}: not allowed by the host's administrator (global flag --allow-net-annotations), since \
             engines pass on annotations of users and images; runvm run has {flag}"
        ),
        value => Ok(value),
    }
}

/// Value of an annotation, if it is there.
pub fn get<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}
