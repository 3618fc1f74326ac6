//! Pods: what engines of Kubernetes say of them by annotations.

use oci_spec::runtime::Spec;

/// Annotations that say whether a container is one of a pod's (`container`), and of which: containerd's, CRI-O's.
const PODS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// Whether the container is the first one of a pod: what its VM must hold comes later.
pub fn is_of_pod(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    let is =
        |(kind, _): &(&str, &str)| annotations.is_some_and(|all| all.get(*kind).is_some_and(|kind| kind == "sandbox"));
    PODS.iter().any(is)
}

/// Who made the container; podman's pods bear CRI-O's annotations and need not share anything.
const MANAGER: &str = "io.container.manager";

/// The pod that the container is to be in; none for the first container of a pod.
pub fn pod(spec: &Spec) -> Option<&str> {
    let annotations = spec.annotations().as_ref()?;
    if annotations.get(MANAGER).is_some_and(|manager| manager == "libpod") {
        return None;
    }
    let (_, id) = PODS.iter().find(|(kind, _)| annotations.get(*kind).is_some_and(|kind| kind == "container"))?;
    annotations.get(*id).map(String::as_str)
}
