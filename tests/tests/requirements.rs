//! Hosts that lack something by which a container's processes on them are confined: `doctor` says so, `create` refuses with the same
//! sentence, and `--insecure` goes on with a warning.

use std::process::Command;

use serde_json::json;
use tests::bad_host::{NoUserNamespaces, with_mounts, without_call};
use tests::command::{Outcome, run};
use tests::netns::Netns;
use tests::{Container, Scene, place};

/// What makes a command one on such a host.
type Host = dyn Fn(Command) -> Command;

fn doctor(host: &Host) -> Outcome {
    let mut command = Command::new(place::runtime());
    command.arg("doctor");
    run(&mut host(command))
}

/// What `doctor` says of a check, with this word before it.
#[track_caller]
fn sentence(doctor: &Outcome, word: &str, check: &str) -> String {
    let begins = format!("{word}  {check}: ");
    let found = doctor.stdout.lines().find(|line| line.starts_with(&begins));
    found.unwrap_or_else(|| panic!("no {begins:?} in {doctor:?}")).split_once("  ").unwrap().1.to_owned()
}

/// `runvm FLAGS… run` of a container.
fn run_on(host: &Host, scene: &Scene, flags: &[&str], container: &Container) -> Outcome {
    container.write();
    let mut command = scene.runtime();
    command.args(flags).arg("run").arg("--bundle").arg(container.bundle()).arg(&container.id);
    run(&mut host(command))
}

#[track_caller]
fn is_insisted_on(check: &str, host: &Host) {
    let scene = Scene::new();
    let mut container = scene.container();
    container.args(&["echo", "inside"]);
    let found = doctor(host).failure();
    let sentence = sentence(&found, "FAIL", check);
    // Whether a loaded lab's KVM is quick enough is not asked here.
    let failed = found.stdout.lines().filter(|line| line.starts_with("FAIL") && !line.contains(" ring 0: "));
    assert_eq!(failed.count(), 1, "{found:?}");

    let refused = run_on(host, &scene, &[], &container);
    scene.refused(&refused, &[&sentence]);
    assert!(sentence.contains(" → ") && sentence.contains("--insecure"), "{sentence}");

    assert_eq!(run_on(host, &scene, &["--insecure"], &container).success().line(), "inside");
    assert_eq!(scene.messages("warning"), [sentence]);
}

#[test]
fn vm_no_user_namespaces() {
    let _without = NoUserNamespaces::new();
    is_insisted_on("user namespaces", &|command| command);
}

#[test]
fn vm_user_namespaces_without_ids() {
    is_insisted_on("user namespaces", &|command| {
        let mut outer = Command::new("setpriv");
        outer.args(["--bounding-set", "-setuid", "--"]).arg(command.get_program()).args(command.get_args());
        outer
    });
}

/// Rootless, as root of a user namespace that an engine has made: nobody there can load a filter, or make a node of a device.
#[test]
fn vm_rootless_needs_no_device_filter() {
    let scene = Scene::new();
    let mut container = scene.container();
    let host = |command: Command| {
        let mut outer = Command::new("unshare");
        outer
            .args(["--user", "--map-root-user", "--mount", "--net", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        outer
    };
    container.args(&["echo", "inside"]);
    assert_eq!(run_on(&host, &scene, &[], &container).success().line(), "inside");
    assert!(scene.messages("warning").is_empty());
}

#[test]
fn vm_no_device_filters() {
    if place::cgroup_is_unified() {
        // As a kernel without CONFIG_BPF_SYSCALL.
        return is_insisted_on("device filters", &|command| without_call(command, libc::SYS_bpf, libc::ENOSYS));
    }
    is_insisted_on("device filters", &|command| with_mounts("umount /sys/fs/cgroup/devices", &command));
}

#[test]
fn vm_no_seccomp() {
    // As a kernel without CONFIG_SECCOMP_FILTER.
    is_insisted_on("seccomp", &|command| without_call(command, libc::SYS_seccomp, libc::EINVAL));
}

#[test]
fn vm_no_tun() {
    let host = |command: Command| with_mounts("mount -t tmpfs none /dev/net", &command);
    let found = doctor(&host);
    let sentence = sentence(&found, "warn", "tun");

    // A container without a network never misses it.
    let scene = Scene::new();
    let mut container = scene.container();
    container.args(&["echo", "inside"]);
    assert_eq!(run_on(&host, &scene, &[], &container).success().line(), "inside");
    assert!(scene.messages("warning").is_empty());

    let namespace = Netns::new("runvm-test");
    namespace.veth(78, ("rvt0", "eth0"));
    let mut container = scene.container();
    container.args(&["true"]).namespace("network", Some(json!({"type": "network", "path": namespace.path()})));
    let refused = run_on(&host, &scene, &[], &container);
    scene.refused(&refused, &[&sentence]);
}
