//! Pods of Kubernetes: the annotations by which engines name them.

use oci_spec::runtime::Spec;

/// Annotations with a container's role in its pod (`sandbox` or `container`) and the pod's id: containerd's, CRI-O's.
const PODS: [(&str, &str); 2] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
];

/// Whether the container is the first one of a pod: its VM has to hold the others, too.
pub fn is_of_pod(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    let is =
        |(kind, _): &(&str, &str)| annotations.is_some_and(|all| all.get(*kind).is_some_and(|kind| kind == "sandbox"));
    PODS.iter().any(is)
}

/// Annotation that names the engine. Podman's pods have CRI-O's annotations and need not share anything.
const MANAGER: &str = "io.container.manager";

/// Id of the pod that the container joins; none for the first container of a pod.
pub fn pod(spec: &Spec) -> Option<&str> {
    let annotations = spec.annotations().as_ref()?;
    if annotations.get(MANAGER).is_some_and(|manager| manager == "libpod") {
        return None;
    }
    let (_, id) = PODS.iter().find(|(kind, _)| annotations.get(*kind).is_some_and(|kind| kind == "container"))?;
    annotations.get(*id).map(String::as_str)
}
