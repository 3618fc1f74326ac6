//! Kernel settings of the container's own namespaces.
//!
//! Others would be possible, since the guest's kernel is the container's alone. Planning refuses them as runc does: a bundle that
//! works in a VM only is no help to anybody.

use anyhow::bail;
use oci_spec::runtime::Linux;
use protocol::{CreateContainerRequest, KeyValue, NamespaceKind};

use crate::plan::nul;

/// Settings of an IPC namespace, besides all of `fs.mqueue`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Fills in the settings, by their paths below /proc/sys. Needs the request's namespaces.
///
/// # Errors
/// A name is malformed, or belongs to no namespace of the container: in runc's words.
pub fn plan(linux: &Linux, request: &mut CreateContainerRequest) -> anyhow::Result<()> {
    let has = |kind: NamespaceKind| request.namespaces.iter().any(|namespace| namespace.kind == kind.into());
    let namespaces = [NamespaceKind::IPC, NamespaceKind::NETWORK, NamespaceKind::UTS].map(has);
    let mut sysctls: Vec<_> = linux.sysctl().iter().flatten().collect();
    sysctls.sort();
    let convert = |(name, value): (&String, &String)| {
        let dotted = dotted(&nul::checked("linux.sysctl", name)?);
        let path = swap(&dotted);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            bail!("sysctl {name:?} is not a name like net.ipv4.ip_forward");
        }
        check(&dotted, namespaces)?;
        Ok(KeyValue { key: path, value: nul::checked("linux.sysctl", value)?, ..Default::default() })
    };
    request.sysctls = sysctls.into_iter().map(convert).collect::<anyhow::Result<_>>()?;
    Ok(())
}

fn check(name: &str, [ipc, network, uts]: [bool; 3]) -> anyhow::Result<()> {
    match name {
        _ if IPC.contains(&name) || name.starts_with("fs.mqueue.") => {
            if !ipc {
                bail!("sysctl {name:?} is not allowed in the hosts ipc namespace");
            }
        }
        _ if name.starts_with("net.") => {
            if !network {
                bail!("sysctl {name:?} not allowed in host network namespace");
            }
        }
        "kernel.domainname" if uts => {}
        "kernel.hostname" if uts => {
            bail!("sysctl {name:?} is not allowed as it conflicts with the OCI \"hostname\" field")
        }
        _ => bail!("sysctl {name:?} is not in a separate kernel namespace"),
    }
    Ok(())
}

/// The name with dots between its parts. As in sysctl(8), dots or slashes separate, whichever comes first.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']).and_then(|first| name.get(first..)) {
        Some(rest) if rest.starts_with('/') => swap(name),
        _ => name.to_owned(),
    }
}

/// Swaps dots and slashes: a part of a name may contain the other one.
fn swap(name: &str) -> String {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    name.chars().map(swap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, kinds: &[NamespaceKind]) -> Result<String, String> {
        let linux = serde_json::from_value(serde_json::json!({"sysctl": {name: "1"}})).unwrap();
        let namespaces = kinds.iter().map(|&kind| protocol::Namespace { kind: kind.into(), ..Default::default() });
        let mut request = CreateContainerRequest { namespaces: namespaces.collect(), ..Default::default() };
        plan(&linux, &mut request).map_err(|error| error.to_string())?;
        Ok(request.sysctls[0].key.clone())
    }

    #[test]
    fn those_of_the_containers_namespaces() {
        let all = [NamespaceKind::IPC, NamespaceKind::NETWORK, NamespaceKind::UTS];
        for (name, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
            ("kernel.msgmax", "kernel/msgmax"),
            ("kernel/shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("kernel.domainname", "kernel/domainname"),
        ] {
            assert_eq!(planned(name, &all).as_deref(), Ok(path));
        }
    }

    #[test]
    fn others_are_refused_in_runcs_words() {
        use NamespaceKind::{IPC, NETWORK, UTS};
        let table = [
            ("kernel.msgmax", vec![NETWORK, UTS], "is not allowed in the hosts ipc namespace"),
            ("fs/mqueue/msg_max", vec![], "\"fs.mqueue.msg_max\" is not allowed in the hosts ipc namespace"),
            ("net.core.somaxconn", vec![IPC], "not allowed in host network namespace"),
            ("kernel.hostname", vec![UTS], "conflicts with the OCI \"hostname\" field"),
            ("kernel.domainname", vec![IPC], "is not in a separate kernel namespace"),
            ("vm.swappiness", vec![IPC, NETWORK, UTS], "\"vm.swappiness\" is not in a separate kernel namespace"),
            ("kernel.panic", vec![], "is not in a separate kernel namespace"),
            ("", vec![NETWORK], "is not a name"),
            ("net/../kernel/panic", vec![NETWORK], "is not a name"),
            ("net..ipv4", vec![NETWORK], "is not a name"),
            ("/net/ipv4", vec![NETWORK], "is not a name"),
            ("net.a\0", vec![NETWORK], "zero byte"),
        ];
        for (name, kinds, text) in table {
            let error = planned(name, &kinds).unwrap_err();
            assert!(error.contains(text), "{name}: {error}");
        }
    }
}
