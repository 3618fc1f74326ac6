//! Network namespaces as engines set them up.

use std::process::Command;

use crate::command::{self, Outcome};

/// A named namespace, removed at its end.
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new one with its loopback up.
    pub fn new(name: &str) -> Self {
        ip(&["netns", "add", name]);
        let this = Self { name: name.to_owned() };
        this.ip("link set lo up");
        this
    }

    /// Where it is.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// A command in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// A shell script in it, which must succeed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Outcome {
        command::run(self.command("sh").args(["-ec", script])).success()
    }

    /// `ip WORDS` in it.
    #[track_caller]
    pub fn ip(&self, words: &str) -> Outcome {
        self.sh(&format!("ip {words}"))
    }

    /// A veth pair between the host and this namespace, up: `host` with `.1`, `inside` with `.2` of 10.N.0.0/24 and
    /// fdN::/64, and a default route.
    #[track_caller]
    pub fn veth(&self, number: u8, (host, inside): (&str, &str)) {
        veth(host, (&self.path(), inside), number);
    }

    /// What tc knows of it, and its links without counters: to be compared.
    pub fn traffic_control(&self) -> String {
        self.sh("tc qdisc show; for l in $(ls /sys/class/net); do echo $l; tc filter show dev $l ingress; done").stdout
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Plugs one end of a veth pair into a namespace given by its path or by a process's `/proc/PID/ns/net`.
#[track_caller]
pub fn veth(host: &str, (namespace, inside): (&str, &str), number: u8) {
    let script = format!(
        "ip link add {host} type veth peer name {inside}.tmp
        ip addr add 10.{number}.0.1/24 dev {host}
        ip -6 addr add fd{number}::1/64 dev {host} nodad
        ip link set {host} up
        exec 9<{namespace}
        ip link set {inside}.tmp netns /proc/self/fd/9
        nsenter --net={namespace} sh -ec '
            ip link set {inside}.tmp name {inside}
            ip link set {inside} up
            ip addr add 10.{number}.0.2/24 dev {inside}
            ip -6 addr add fd{number}::2/64 dev {inside} nodad
            ip route add default via 10.{number}.0.1 metric {number}
            ip -6 route add default via fd{number}::1 metric {number}'"
    );
    command::run(Command::new("sh").args(["-ec", &script])).success();
}

#[track_caller]
fn ip(args: &[&str]) {
    command::run(Command::new("ip").args(args)).success();
}
