//! Options of the command line that planning needs.

/// What the command line says about a container besides its bundle.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Id of the container.
    pub id: String,
    /// Whether `--systemd-cgroup` is given: `linux.cgroupsPath` then has the form `slice:prefix:name`.
    pub systemd_cgroup: bool,
    /// Whether `--net user` is given.
    pub user_network: bool,
    /// Values of `--publish`.
    pub publish: Vec<String>,
    /// Values of `--allow-annotations`.
    pub allowed_annotations: Vec<String>,
    /// Content of the host's /etc/resolv.conf; empty if there is none.
    pub resolv_conf: String,
}
