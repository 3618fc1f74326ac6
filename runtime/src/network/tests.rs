//! In real network namespaces, where this machine allows them, with iproute2 as the judge.

mod attached;
mod helper;
mod mirrored;
mod packets;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use nix::sched::CloneFlags;

use super::attached_links::{AttachedLinks, settle};
use super::cleanup::clean;
use super::files::Files;
use super::*;

/// A network namespace, as long as this lives.
struct TestNamespace(OwnedFd);

impl TestNamespace {
    fn new() -> Self {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let netns = Self(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into());
        netns.sh("ip link set lo up");
        netns
    }

    fn enter(&self) {
        nix::sched::setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs commands there.
    fn sh(&self, script: &str) -> String {
        self.enter();
        let done = Command::new("sh").args(["-e", "-c", script]).output().unwrap();
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    fn attached_links(&self) -> AttachedLinks {
        self.enter();
        AttachedLinks::open(Files::open().unwrap()).unwrap()
    }

    /// A pair of links: eth0 here, with 10.0.0.2 and fd00::2, and peer there, with 10.0.0.1 and fd00::1.
    fn connect(&self, there: &TestNamespace) {
        let netns = format!("/proc/{}/fd/{}", std::process::id(), there.0.as_raw_fd());
        self.sh("ip link add eth0 type veth peer name peer");
        self.sh(&format!("ip link set peer netns {netns}; ip link set eth0 up"));
        self.sh("ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0 nodad");
        there.sh("ip link set peer up; ip addr add 10.0.0.1/24 dev peer; ip addr add fd00::1/64 dev peer nodad");
        // The kernel notices the carrier a moment later.
        self.sh("until ip link show eth0 | grep -q 'state UP'; do sleep 0.01; done");
    }

    /// Everything that attaching could change.
    fn dump(&self) -> String {
        let text = self.sh(
            "ip -d link; ip addr; ip route show table all; ip -6 route show table all; tc qdisc; \
             for link in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do echo $link; tc -d filter show dev $link ingress; done; \
             cat /proc/sys/net/ipv4/ip_local_port_range",
        );
        // Addresses become valid by themselves.
        text.replace(" tentative", "")
    }
}

/// Runs a test in a thread of its own, which ends with its namespaces.
fn isolated(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        test();
    };
    std::thread::spawn(run).join().unwrap();
}

/// The one link of a name.
fn named(links: Vec<Link>, name: &str) -> Link {
    links.into_iter().find(|link| link.name == name).unwrap()
}
