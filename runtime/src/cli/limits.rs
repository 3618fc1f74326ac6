//! Limits that `update` takes as flags.

use clap::Args;

/// Memory limits; sizes in bytes, or with k, m, g.
#[derive(Args, Debug)]
pub struct MemoryArgs {
    /// Memory limit
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Memory that is reclaimed last
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory_reservation: Option<String>,
    /// Limit of memory and swap together, -1 for unlimited swap
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory_swap: Option<String>,
    /// Accepted for compatibility: the kernel has no such limit any more
    #[arg(long, value_name = "SIZE", hide = true, allow_negative_numbers = true)]
    pub kernel_memory: Option<String>,
    /// Accepted for compatibility: no effect in the guest
    #[arg(long, value_name = "SIZE", hide = true, allow_negative_numbers = true)]
    pub kernel_memory_tcp: Option<String>,
}

/// CPU limits.
#[derive(Args, Debug)]
pub struct CpuArgs {
    /// CPU time relative to other containers (shares of cgroup v1)
    #[arg(long, value_name = "N")]
    pub cpu_share: Option<u64>,
    /// Microseconds of CPU time per period, -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    /// Length of a period in microseconds
    #[arg(long, value_name = "N")]
    pub cpu_period: Option<u64>,
    /// Microseconds of unused CPU time that may accumulate
    #[arg(long, value_name = "N")]
    pub cpu_burst: Option<u64>,
    /// Accepted for compatibility: no effect in the guest
    #[arg(long, value_name = "N", hide = true)]
    pub cpu_rt_period: Option<u64>,
    /// Accepted for compatibility: no effect in the guest
    #[arg(long, value_name = "N", hide = true, allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// CPUs to run on
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes of the host to use
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// 1: run only when nothing else does
    #[arg(long, value_name = "N")]
    pub cpu_idle: Option<i64>,
}
