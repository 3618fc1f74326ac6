//! The part of a container that stays the same from its creation to its deletion.

use crate::container::cgroup::Cgroup;
use crate::error::Result;
use crate::guest_paths::GuestPaths;
use crate::network::sysctl;
use crate::process::namespaces::Namespaces;
use crate::process::scheduling::Scheduling;
use protocol::{CreateContainerRequest, KeyValue, SeccompFilter};

/// Configuration that every process of a container shares, and that later ones need.
pub struct ContainerConfig {
    /// Namespaces of the container.
    pub namespaces: Namespaces,
    /// Cgroup of the container.
    pub cgroup: Cgroup,
    /// How many CPUs the guest should have once the container runs; 0: as many as now.
    pub online_cpus: u32,
    /// Seccomp filter of every process.
    pub seccomp: SeccompFilter,
    /// Execution domain of personality(2); 0: as it is.
    pub personality: u32,
    /// Scheduling that the request asks for on behalf of init.
    pub scheduling: Scheduling,
    /// Sysctls of interfaces, to be written once the interfaces are there.
    pub interface_sysctls: Vec<KeyValue>,
}

impl ContainerConfig {
    /// Reads a request and makes the container's cgroup.
    pub fn new(request: &CreateContainerRequest, paths: &GuestPaths, namespaces: Namespaces) -> Result<Self> {
        let path = if request.cgroup_path.is_empty() { &request.container_id } else { &request.cgroup_path };
        let cgroup = Cgroup::create(&paths.cgroup_root, path, &request.cgroup_files)?;
        cgroup.filter_devices(&request.device_filter)?;
        let interface_sysctls = request.sysctls.iter().filter(|sysctl| sysctl::is_of_interface(&sysctl.key));
        Ok(Self {
            namespaces,
            cgroup,
            online_cpus: request.online_cpus,
            seccomp: request.seccomp.clone().unwrap_or_default(),
            personality: request.personality,
            scheduling: Scheduling::of(&request.process),
            interface_sysctls: interface_sysctls.cloned().collect(),
        })
    }
}
