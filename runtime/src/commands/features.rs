//! `runvm features`

use serde_json::json;

use crate::plan;

/// Prints what this runtime supports (OCI runtime specification, "Features Structure").
pub fn run() -> anyhow::Result<()> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
        "mountOptions": plan::mount_option_names(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": plan::CAPABILITIES.as_slice(),
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false},
            "seccomp": plan::seccomp_features(),
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
        },
        "annotations": {"io.runvm.version": env!("CARGO_PKG_VERSION")},
        "potentiallyUnsafeConfigAnnotations": [
            "io.runvm.kernel",
            "io.runvm.memory-mib",
            "io.runvm.nested",
            "io.runvm.net",
            "io.runvm.ports",
            "io.runvm.sockets",
            "io.runvm.vcpus",
        ],
    });
    println!("{}", serde_json::to_string_pretty(&features)?);
    Ok(())
}
