//! Limits that change while a container runs.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use tests::command::{memory_file, run, run_with_input};
use tests::disk::Disk;
use tests::{Container, Scene, place};

/// A file of the container's cgroup, as the container reads it.
#[track_caller]
fn limit(container: &Container, name: &str) -> String {
    container.exec(&["cat", &format!("/sys/fs/cgroup/{name}")]).success().line().to_owned()
}

#[track_caller]
fn update(container: &Container, flags: &[&str]) {
    let mut command = container.command("update");
    run(command.args(flags).arg(&container.id)).success();
}

/// A file of the cgroup of the reported pid, on the host (cgroup v2).
#[track_caller]
fn host_file(pid: i32, name: &str) -> PathBuf {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = groups.trim().strip_prefix("0::/").expect("a host with cgroup v2");
    Path::new("/sys/fs/cgroup").join(path).join(name)
}

#[track_caller]
fn on_host(pid: i32, name: &str) -> String {
    let file = host_file(pid, name);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
}

#[test]
fn limits_of_the_bundle_hold_on_the_host_too() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set(
        "/linux/resources",
        json!({
            "cpu": {"shares": 512, "quota": 40000, "period": 50000, "cpus": "0"},
            "memory": {"limit": 100 << 20, "swap": 150 << 20},
        }),
    );
    let up = container.idle();
    assert_eq!(on_host(up.pid, "cpu.weight"), "20");
    assert_eq!(on_host(up.pid, "cpu.max"), "40000 50000");
    assert_eq!(on_host(up.pid, "cpuset.cpus"), "0");
    assert_eq!(on_host(up.pid, "memory.swap.max"), (50 << 20).to_string());
    let memory: u64 = on_host(up.pid, "memory.max").parse().unwrap();
    // A VM has its kernel and its monitor besides.
    let most = if place::is_runvm() { 400 } else { 100 };
    assert!((100..=most).contains(&(memory >> 20)), "{memory}");
    update(&container, &["--cpu-quota", "20000", "--cpu-period", "50000", "--cpu-share", "1024"]);
    assert_eq!(on_host(up.pid, "cpu.weight"), "39");
    assert_eq!(on_host(up.pid, "cpu.max"), "20000 50000");
    assert_eq!(on_host(up.pid, "memory.max"), memory.to_string());
    container.end(&up);
}

/// Insists on a share of disks: as given where the host has BFQ's file, else converted.
#[track_caller]
fn weight_on_host(pid: i32, weight: &str, converted: &str) {
    let bfq = host_file(pid, "io.bfq.weight").exists();
    let (file, value) = if bfq { ("io.bfq.weight", weight) } else { ("io.weight", converted) };
    assert_eq!(on_host(pid, file).lines().next().unwrap().trim_start_matches("default "), value);
}

/// A file of the cgroup of the reported pid that limits disks, on a host with cgroup v1.
#[track_caller]
fn of_blkio(pid: i32, name: &str) -> String {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = groups.lines().find_map(|line| line.split_once(":blkio:")).expect("a host with blkio").1;
    std::fs::read_to_string(format!("/sys/fs/cgroup/blkio{path}/{name}")).unwrap().trim().to_owned()
}

#[test]
fn disks_are_limited_on_the_host() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let (major, minor) = disk.number();
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let mut container = scene.container();
    let limits = json!({"throttleReadBpsDevice": rate(5 << 20), "throttleWriteIOPSDevice": rate(70)});
    container.set("/linux/resources", json!({"blockIO": limits}));
    let up = container.idle();
    if place::cgroup_is_unified() {
        assert_eq!(on_host(up.pid, "io.max"), format!("{major}:{minor} rbps=5242880 wbps=max riops=max wiops=70"));
    } else {
        let file = |name: &str| of_blkio(up.pid, &format!("blkio.throttle.{name}_device"));
        assert_eq!(file("read_bps"), format!("{major}:{minor} 5242880"));
        assert_eq!(file("write_iops"), format!("{major}:{minor} 70"));
    }
    container.end(&up);
}

#[test]
fn disks_are_shared_out_on_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/resources", json!({"blockIO": {"weight": 100}}));
    let up = container.idle();
    weight_on_host(up.pid, "100", "910");
    update(&container, &["--blkio-weight", "1000"]);
    weight_on_host(up.pid, "1000", "10000");
    container.end(&up);
}

#[test]
fn a_throttled_disk_is_slow() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let (major, minor) = disk.number();
    let volume = disk.mount();
    let mut container = scene.container();
    container.mount("bind", &volume, "/data", &["rbind", "rw"]);
    let rate = json!([{"major": major, "minor": minor, "rate": 1 << 20}]);
    container.set("/linux/resources", json!({"blockIO": {"throttleWriteBpsDevice": rate}}));
    let up = container.idle();
    let begin = std::time::Instant::now();
    container.exec_sh("dd if=/dev/zero of=/data/file bs=1M count=6 conv=fsync 2>/dev/null").success();
    // Six seconds' worth; some of it the kernel lets pass at the beginning.
    assert!(begin.elapsed().as_secs() >= 3, "{:?}", begin.elapsed());
    container.end(&up);
    drop(container);
}

#[test]
fn vm_more_memory_than_the_machine_has_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/annotations", json!({"io.runvm.memory-mib": "256"}));
    container.set("/linux/resources", json!({"memory": {"limit": 64 << 20}}));
    let up = container.idle();
    let mut command = container.command("update");
    scene.refused(&run(command.args(["--memory", "1g"]).arg(&container.id)), &["1024 MiB", "virtual machine has"]);
    assert_eq!(limit(&container, "memory.max"), (64 << 20).to_string());
    container.end(&up);
}

#[test]
fn a_limit_of_memory_moves_on_the_host_too() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/linux/resources", json!({"memory": {"limit": 64 << 20}}));
    let up = container.idle();
    let memory = || on_host(up.pid, "memory.max").parse::<u64>().unwrap();
    let before = memory();
    update(&container, &["--memory", "1g"]);
    assert_eq!(limit(&container, "memory.max"), (1u64 << 30).to_string());
    assert!(memory() >= before + (960 << 20), "{before}, then {}", memory());
    update(&container, &["--memory", "64m"]);
    assert_eq!((memory(), limit(&container, "memory.max")), (before, (64 << 20).to_string()));
    container.end(&up);
}

#[test]
fn flags_change_the_limits() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    update(
        &container,
        &["--memory", "64m", "--memory-swap", "96m", "--memory-reservation", "32MiB", "--pids-limit", "50"],
    );
    assert_eq!(limit(&container, "memory.max"), (64 << 20).to_string());
    assert_eq!(limit(&container, "memory.swap.max"), (32 << 20).to_string());
    assert_eq!(limit(&container, "memory.low"), (32 << 20).to_string());
    assert_eq!(limit(&container, "pids.max"), "50");
    update(&container, &["--cpu-quota", "50000", "--cpu-share", "512"]);
    assert_eq!(limit(&container, "cpu.max"), "50000 100000");
    assert_eq!(limit(&container, "cpu.weight"), "20");
    // What is not named stays.
    assert_eq!(limit(&container, "pids.max"), "50");
    update(&container, &["--pids-limit", "-1", "--memory", "-1", "--memory-swap", "-1"]);
    assert_eq!((limit(&container, "pids.max"), limit(&container, "memory.max")), ("max".to_owned(), "max".to_owned()));
    container.end(&up);
}

#[test]
fn resources_come_from_standard_input_too() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let mut file = memory_file();
    file.write_all(br#"{"memory":{"limit":134217728},"cpu":{"quota":25000,"period":50000},"pids":{"limit":70}}"#)
        .unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let mut command = container.command("update");
    run_with_input(command.args(["--resources", "-"]).arg(&container.id), file).success();
    assert_eq!(limit(&container, "memory.max"), (128 << 20).to_string());
    assert_eq!(
        (limit(&container, "cpu.max"), limit(&container, "pids.max")),
        ("25000 50000".to_owned(), "70".to_owned())
    );
    container.end(&up);
}

#[test]
fn a_new_limit_of_processes_holds() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    // Runtimes that are no VM have threads of their own in there for a moment.
    update(&container, &["--pids-limit", "30"]);
    let outcome = container.exec_sh("for i in $(seq 40); do sleep 5 & done; wait");
    assert!(outcome.stderr.contains("fork"), "{outcome:?}");
    container.end(&up);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let scene = Scene::new();
    let mut container = scene.container();
    scene.refused(&run(&mut container.named("update", &[])), &["does not exist"]);
    let up = container.idle();
    let refused = |flags: &[&str], words: &[&str]| {
        let mut command = container.command("update");
        scene.refused(&run(command.args(flags).arg(&container.id)), words);
    };
    refused(&["--memory", "lots"], &["invalid value for memory", "lots"]);
    refused(&["--memory", "64m", "--memory-swap", "32m"], &["memory+swap limit"]);
    refused(&["--resources", "/no/such/file"], &["/no/such/file", "o such file"]);
    refused(&["--resources", "/bin/sh"], if place::is_runvm() { &["/bin/sh"] } else { &["invalid"] });
    assert_eq!(container.end(&up), 137);
    drop(container);
    scene.check();
}

#[test]
fn a_stopped_one_has_no_limits() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    container.kill("KILL").success();
    tests::process::wait_orphan(up.pid);
    let mut command = container.command("update");
    scene.refused(&run(command.args(["--pids-limit", "5"]).arg(&container.id)), &["not running"]);
    container.delete().success();
}
