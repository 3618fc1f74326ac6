//! Namespaces: the agent makes new ones in the guest; of the host's, a container can have only a network namespace.

use std::collections::BTreeSet;

use anyhow::bail;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Spec};
use protocol::{CreateContainerRequest, NamespaceKind};

use super::{id_mappings, personality, sysctls};
use crate::plan::nul;
use crate::plan::vm::Sandbox;

/// Most bytes of a host or domain name (sethostname(2)).
const MAX_NAME: usize = 64;

/// Fills in namespaces and what depends on them: host name, id mappings, kernel settings, clocks.
///
/// # Errors
/// A namespace cannot be shared with a VM, or a setting needs one that the container does not have.
pub fn plan(
    spec: &Spec,
    sandbox: Option<&Sandbox>,
    request: &mut CreateContainerRequest,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    let none = Linux::default();
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let kinds = kinds(namespaces, sandbox)?;
    note_shared(&kinds, notes);
    names(spec, kinds.contains(&(NamespaceKind::UTS as i32)), request)?;
    let message = |namespace: &LinuxNamespace| protocol::Namespace {
        kind: kind(namespace.typ()).into(),
        container_id: owner(namespace, sandbox).unwrap_or_default().to_owned(),
        ..Default::default()
    };
    request.namespaces = namespaces.iter().map(message).collect();
    let linux = linux.unwrap_or(&none);
    id_mappings::plan(linux, kinds.contains(&(NamespaceKind::USER as i32)), request)?;
    sysctls::plan(linux, request)?;
    personality::plan(linux, request)?;
    Ok(())
}

fn path_of(namespace: &LinuxNamespace) -> Option<&std::path::Path> {
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

/// Id of the container whose namespace this is; none for a new one.
fn owner<'a>(namespace: &LinuxNamespace, sandbox: Option<&'a Sandbox>) -> Option<&'a str> {
    sandbox?.owner(namespace.typ())
}

/// Kinds of namespaces that the container has; each may be listed once.
fn kinds(namespaces: &[LinuxNamespace], sandbox: Option<&Sandbox>) -> anyhow::Result<BTreeSet<i32>> {
    let mut kinds = BTreeSet::new();
    for namespace in namespaces {
        let kind = kind(namespace.typ());
        let name = name(kind);
        if !kinds.insert(kind as i32) {
            bail!("malformed spec file: duplicated {name} namespace");
        }
        let Some(path) = path_of(namespace) else { continue };
        match (namespace.typ(), owner(namespace, sandbox)) {
            (LinuxNamespaceType::Network, _) => {}
            (LinuxNamespaceType::User | LinuxNamespaceType::Mount | LinuxNamespaceType::Time, Some(owner)) => {
                bail!(
                    "cannot join {name} namespace {} of container {owner}: give the container a new one",
                    path.display()
                )
            }
            (_, Some(_)) => {}
            (_, None) => bail!(
                "cannot join {name} namespace {}: it does not belong to a container under this --root, and a VM has \
                 namespaces of its own; give the container a new one (no --{name} container:… or host)",
                path.display()
            ),
        }
    }
    Ok(kinds)
}

fn note_shared(kinds: &BTreeSet<i32>, notes: &mut Vec<String>) {
    for wanted in [NamespaceKind::PID, NamespaceKind::IPC, NamespaceKind::UTS, NamespaceKind::MOUNT] {
        if !kinds.contains(&(wanted as i32)) {
            let name = name(wanted);
            notes.push(format!("no new {name} namespace: the container has that of its VM, not the host's"));
        }
    }
}

fn kind(kind: LinuxNamespaceType) -> NamespaceKind {
    match kind {
        LinuxNamespaceType::Mount => NamespaceKind::MOUNT,
        LinuxNamespaceType::Cgroup => NamespaceKind::CGROUP,
        LinuxNamespaceType::Uts => NamespaceKind::UTS,
        LinuxNamespaceType::Ipc => NamespaceKind::IPC,
        LinuxNamespaceType::User => NamespaceKind::USER,
        LinuxNamespaceType::Pid => NamespaceKind::PID,
        LinuxNamespaceType::Network => NamespaceKind::NETWORK,
        LinuxNamespaceType::Time => NamespaceKind::TIME,
    }
}

/// Name of a kind in config.json.
fn name(kind: NamespaceKind) -> String {
    format!("{kind:?}").to_lowercase()
}

fn names(spec: &Spec, uts: bool, request: &mut CreateContainerRequest) -> anyhow::Result<()> {
    request.hostname = host_name("hostname", spec.hostname().as_deref(), uts)?;
    request.domainname = host_name("domainname", spec.domainname().as_deref(), uts)?;
    Ok(())
}

fn host_name(field: &str, value: Option<&str>, uts: bool) -> anyhow::Result<String> {
    let value = value.unwrap_or_default();
    if !value.is_empty() && !uts {
        bail!("unable to set {field} without a private UTS namespace");
    }
    if value.len() > MAX_NAME {
        bail!("{field} has {} bytes, the maximum is {MAX_NAME}", value.len());
    }
    nul::checked(field, value)
}
