//! The command line, flag for flag as runc has it.

mod limits;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

pub use limits::{CpuArgs, MemoryArgs};

/// What `--version` prints after the program's name; engines read these lines.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

/// runvm runs OCI bundles like runc, each container in a virtual machine of its own.
#[derive(Parser, Debug)]
#[command(name = "runvm", about, long_about = None, disable_version_flag = true, args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// Flags that stand before the command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags that stand before the command.
#[derive(Args, Debug)]
pub struct Global {
    /// Enable debug logging, with a timeline of each start and the guest's console
    #[arg(long)]
    pub debug: bool,
    /// Write logs to this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of the log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Directory for the state of containers
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Use systemd for cgroups; cgroupsPath is "slice:prefix:name"
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Ignore cgroup permission errors (true, false or auto)
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rootless: Option<String>,
    /// Annotations of bundles that may give a container more, even if users or images chose them: io.runvm.kernel,
    /// io.runvm.nested, io.runvm.net, io.runvm.ports, io.runvm.memory-mib and io.runvm.vcpus, or * for all
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub allow_annotations: Vec<String>,
    /// The earlier name for two of them
    #[arg(long, hide = true)]
    pub allow_net_annotations: bool,
    /// Create containers even where the host cannot take every right over itself from their monitors
    #[arg(long)]
    pub insecure: bool,
    /// Accepted for compatibility; criu is not used
    #[arg(long, hide = true, value_name = "PATH")]
    pub criu: Option<String>,
    /// Print the version
    #[arg(long, short = 'v')]
    pub version: bool,
}

/// Format of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum LogFormat {
    /// `time="…" level=error msg="…"`
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`
    Json,
}

/// A command of runvm.
// There is one value of it, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create a container; its process waits for start
    Create(CreateArgs),
    /// Let the process of a created container run
    Start(IdArgs),
    /// Create and start a container, and wait for its end
    Run(RunArgs),
    /// Run another process in a container
    Exec(ExecArgs),
    /// Send a signal to a container's init process
    Kill(KillArgs),
    /// Delete a stopped container and everything it holds on the host
    Delete(DeleteArgs),
    /// List the processes of a container
    Ps(PsArgs),
    /// Print statistics and out-of-memory events of a container
    Events(EventsArgs),
    /// Change the limits of a container
    Update(UpdateArgs),
    /// Pause a container
    Pause(IdArgs),
    /// Resume a paused container
    Resume(IdArgs),
    /// Save a container (not supported yet)
    Checkpoint(AnyArgs),
    /// Restore a saved container (not supported yet)
    Restore(AnyArgs),
    /// Print the state of a container as JSON
    State(IdArgs),
    /// List containers
    List(ListArgs),
    /// Write a config.json as a starting point
    Spec(SpecArgs),
    /// Print what this runtime supports as JSON
    Features,
    /// Check that this host can run containers in VMs
    Doctor,
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

/// Arguments of `ps`.
#[derive(Args, Debug)]
pub struct PsArgs {
    /// table: the processes in the guest; json: the pid of the VM on the host
    #[arg(long, short = 'f', value_enum, default_value_t = ListFormat::Table)]
    pub format: ListFormat,
    /// Container id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Options of ps(1): -ef (the default), aux, -o COLUMN,…
    #[arg(value_name = "PS-OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

/// Arguments of `events`.
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Interval between statistics, such as 5s or 500ms
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub interval: humantime::Duration,
    /// Print the statistics once and exit
    #[arg(long)]
    pub stats: bool,
    /// Container id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Arguments of `update`.
#[derive(Args, Debug)]
pub struct UpdateArgs {
    /// File with linux.resources as in config.json, "-" for standard input; other flags are then ignored
    #[arg(long, short = 'r', value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Limits of memory.
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Limits of processors.
    #[command(flatten)]
    pub cpu: CpuArgs,
    /// Maximum number of processes, -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Weight for the host's disks, 10 to 1000
    #[arg(long, value_name = "N")]
    pub blkio_weight: Option<u16>,
    /// Container id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Arguments of commands that are not supported yet.
#[derive(Args, Debug)]
pub struct AnyArgs {
    /// Any arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub arguments: Vec<String>,
}

/// Arguments of `create`.
#[derive(Args, Debug, Clone)]
pub struct CreateArgs {
    /// Path to the root of the bundle directory
    #[arg(long, short = 'b', value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket that receives the master end of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File to write the container's pid to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted for compatibility: the guest always pivots into its own root
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted for compatibility: each VM has key rings of its own
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass N additional file descriptors to the container
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Set up a network where no engine does: user, by passt(1)
    #[arg(long, value_enum, value_name = "NETWORK", hide_possible_values = true)]
    pub net: Option<Net>,
    /// Publish ports of the container on the host; needs no network
    #[arg(long, short = 'p', value_name = "[ADDRESS:]PORT[-PORT]:PORT[-PORT][/udp]")]
    pub publish: Vec<String>,
    /// Container id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Kind of network that runvm sets up itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// User-mode network by passt(1): the container reaches what the host's user reaches
    User,
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// What `create` takes.
    #[command(flatten)]
    pub create: CreateArgs,
    /// Detach from the container's process
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// Do not delete the container after it exits
    #[arg(long)]
    pub keep: bool,
    /// Accepted for compatibility: nothing is ever re-parented to this process
    #[arg(long)]
    pub no_subreaper: bool,
}

/// Arguments of `exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// Unix socket that receives the master end of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Set an environment variable
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Allocate a terminal
    #[arg(long, short = 't')]
    pub tty: bool,
    /// User, as UID or UID:GID
    #[arg(long, short = 'u', value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Additional group ids
    #[arg(long, short = 'g', value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// process.json that describes the process
    #[arg(long, short = 'p', value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Detach from the process
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// File to write the pid of the process to
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted for compatibility; labels have no effect in the guest
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// Accepted for compatibility; AppArmor has no effect in the guest
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Forbid gaining privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability to the bounding set
    #[arg(long, short = 'c', value_name = "CAP")]
    pub cap: Vec<String>,
    /// Pass N additional file descriptors to the process
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Accepted for compatibility; the guest has one cgroup per container
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<String>,
    /// Allow exec in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    /// Container id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Arguments of `kill`.
#[derive(Args, Debug)]
pub struct KillArgs {
    /// Signal every process of the container
    #[arg(long, short = 'a')]
    pub all: bool,
    /// Container id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Name or number of the signal
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub signal: String,
}

/// Arguments of `delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// Kill the container first if it is running; an unknown id is no error
    #[arg(long, short = 'f')]
    pub force: bool,
    /// Container id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Arguments of commands that take nothing but a container.
#[derive(Args, Debug)]
pub struct IdArgs {
    /// Container id
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Arguments of `list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Format of the list
    #[arg(long, short = 'f', value_enum, default_value_t = ListFormat::Table)]
    pub format: ListFormat,
    /// Print names only
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

/// Output format of `list` and `ps`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// Columns for people
    Table,
    /// JSON for programs
    Json,
}

/// Arguments of `spec`.
#[derive(Args, Debug)]
pub struct SpecArgs {
    /// Directory to write config.json to
    #[arg(long, short = 'b', value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Write a configuration for a rootless container
    #[arg(long)]
    pub rootless: bool,
}

/// What `--version` prints.
pub fn version() -> String {
    format!("runvm version {VERSION}")
}

impl Global {
    /// The annotations that are allowed.
    pub fn allowed_annotations(&self) -> Vec<String> {
        let net = ["io.runvm.net", "io.runvm.ports"].into_iter().filter(|_| self.allow_net_annotations);
        self.allow_annotations.iter().cloned().chain(net.map(str::to_owned)).collect()
    }

    /// The directory that holds the state of all containers.
    pub fn root(&self) -> PathBuf {
        let default = || {
            let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let rootless = !rustix::process::geteuid().is_root();
            runtime_dir.filter(|_| rootless).unwrap_or_else(|| PathBuf::from("/run")).join("runvm")
        };
        self.root.clone().unwrap_or_else(default)
    }
}
