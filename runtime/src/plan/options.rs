//! What the command line says about a container besides its bundle.

/// What the command line adds to the bundle.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Name of the container.
    pub id: String,
    /// `--systemd-cgroup`: `linux.cgroupsPath` has the form `slice:prefix:name`.
    pub systemd_cgroup: bool,
    /// `--net user`.
    pub user_network: bool,
    /// Each `--publish`.
    pub publish: Vec<String>,
    /// `--allow-net-annotations`.
    pub allow_net_annotations: bool,
    /// The host's /etc/resolv.conf, or nothing.
    pub resolv_conf: String,
}
