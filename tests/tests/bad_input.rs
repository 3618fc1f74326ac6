//! Bad bundles, hosts and guests: each gives one sentence that names what and where, in the log and on stderr, an
//! exit code that is not 0, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::bad_host::{Guest, Kvm, with_kvm};
use tests::command::{run, start};
use tests::process::{lives, wait_orphan};
use tests::{Container, Outcome, PATIENCE, Scene, place, process};

/// As `Scene::refused`, with words that only runvm has.
#[track_caller]
fn refused(scene: &Scene, outcome: &Outcome, words: &[&str]) {
    scene.refused(outcome, if place::is_runvm() { words } else { &[] });
}

/// Changes config.json and insists that create refuses it with these words.
#[track_caller]
fn spec_refused(edit: impl FnOnce(&mut Value), words: &[&str]) {
    let scene = Scene::new();
    let mut container = scene.container();
    edit(&mut container.spec);
    refused(&scene, &container.try_create(), words);
}

/// Writes this as config.json and insists that create refuses it with these words.
#[track_caller]
fn config_refused(text: &str, words: &[&str]) {
    let scene = Scene::new();
    let container = scene.container();
    let mut command = container.named("create", &[]);
    fs::write(container.bundle().join("config.json"), text).unwrap();
    refused(&scene, &run(&mut command), words);
}

// ---- bundles --------------------------------------------------------------------------------------

#[test]
fn a_missing_bundle() {
    let scene = Scene::new();
    let outcome = run(scene.runtime().args(["create", "--bundle", "/no/such/bundle", "runvm-test-x"]));
    refused(&scene, &outcome, &["/no/such/bundle", "No such file or directory"]);
}

#[test]
fn a_bundle_that_is_a_file() {
    let scene = Scene::new();
    let file = scene.dir().join("file");
    fs::write(&file, "").unwrap();
    let outcome = run(scene.runtime().arg("create").arg("--bundle").arg(&file).arg("runvm-test-x"));
    refused(&scene, &outcome, &[file.to_str().unwrap(), "directory"]);
}

#[test]
fn an_unreadable_bundle() {
    let scene = Scene::new();
    let bundle = scene.dir().join("secret");
    fs::create_dir(&bundle).unwrap();
    fs::set_permissions(&bundle, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(scene.dir(), Some(1000), Some(1000)).unwrap();
    let inner = scene.runtime();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]).arg(inner.get_program());
    command.args(inner.get_args()).arg("create").arg("--bundle").arg(&bundle).arg("runvm-test-x");
    refused(&scene, &run(&mut command), &["secret", "ermission denied"]);
}

#[test]
fn a_bundle_without_config() {
    let scene = Scene::new();
    let outcome = run(scene.runtime().arg("create").arg("--bundle").arg(scene.dir()).arg("runvm-test-x"));
    scene.refused(&outcome, &["config.json", "not found"]);
}

#[test]
fn a_config_that_is_no_json() {
    config_refused("{\"ociVersion\": ", &["config.json", "line 1"]);
    config_refused("", &["config.json"]);
    config_refused("\u{0}\u{1}\u{2}", &["config.json"]);
}

#[test]
fn a_config_that_is_no_file() {
    let scene = Scene::new();
    fs::create_dir(scene.dir().join("config.json")).unwrap();
    let outcome = run(scene.runtime().arg("create").arg("--bundle").arg(scene.dir()).arg("runvm-test-x"));
    refused(&scene, &outcome, &["config.json"]);
}

#[test]
fn values_of_the_wrong_type() {
    config_refused("[]", &["config.json"]);
    config_refused(r#"{"ociVersion": 1}"#, &["config.json"]);
    spec_refused(|spec| spec["root"] = json!(5), &["config.json", "line"]);
    spec_refused(|spec| spec["process"]["args"] = json!("true"), &["config.json"]);
    spec_refused(|spec| spec["process"]["user"]["uid"] = json!(-1), &["config.json"]);
}

#[test]
fn vm_another_version_of_the_specification() {
    for version in ["2.0.0", "0.1", "latest", ""] {
        spec_refused(|spec| spec["ociVersion"] = json!(version), &["ociVersion", version]);
    }
}

#[test]
fn a_missing_root() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/root/path", json!("nowhere"));
    refused(&scene, &container.try_create(), &["nowhere", "no such file or directory"]);
    container.set("/root/path", json!("config.json"));
    refused(&scene, &container.try_create(), &["config.json", "directory"]);
}

#[test]
fn nothing_to_run() {
    spec_refused(|spec| spec["process"]["args"] = json!([]), &["args must not be empty"]);
    spec_refused(|spec| drop(spec["process"].as_object_mut().unwrap().remove("args")), &["args"]);
    spec_refused(|spec| drop(spec.as_object_mut().unwrap().remove("process")), &["process"]);
    spec_refused(|spec| drop(spec.as_object_mut().unwrap().remove("root")), &["root"]);
}

#[test]
fn a_relative_working_directory() {
    spec_refused(|spec| spec["process"]["cwd"] = json!("tmp"), &["Cwd must be an absolute path"]);
}

#[test]
fn a_limit_that_does_not_exist() {
    let limit = json!([{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]);
    spec_refused(|spec| spec["process"]["rlimits"] = limit, &["RLIMIT_NONSENSE"]);
}

#[test]
fn a_namespace_that_does_not_exist() {
    spec_refused(|spec| spec["linux"]["namespaces"][0]["type"] = json!("nonsense"), &["nonsense"]);
}

/// runc leaves some of these out, or makes containers that nothing can be started in.
#[test]
fn vm_limits_that_nothing_could_run_with() {
    let refused = |resources: Value, words: &[&str]| spec_refused(|spec| spec["linux"]["resources"] = resources, words);
    refused(json!({"memory": {"limit": 4096}}), &["linux.resources.memory.limit 4096"]);
    refused(json!({"memory": {"limit": -1, "swappiness": 101}}), &["swappiness", "101"]);
    refused(json!({"cpu": {"quota": 1000, "period": 5}}), &["linux.resources.cpu.period 5"]);
    refused(json!({"cpu": {"quota": 10, "period": 1000}}), &["linux.resources.cpu.quota 10"]);
    refused(json!({"cpu": {"cpus": "all"}}), &["linux.resources.cpu.cpus", "all"]);
    refused(json!({"cpu": {"mems": "3-1"}}), &["linux.resources.cpu.mems", "3-1"]);
    refused(json!({"hugepageLimits": [{"pageSize": "huge", "limit": 1}]}), &["hugepageLimits.pageSize", "huge"]);
    refused(json!({"blockIO": {"weight": 5}}), &["linux.resources.blockIO.weight 5"]);
}

#[test]
fn vm_machines_that_cannot_be() {
    let refused = |name: &str, value: &str| {
        let annotations = json!({format!("io.runvm.{name}"): value});
        spec_refused(|spec| spec["annotations"] = annotations, &[name, value]);
    };
    refused("vcpus", "0");
    refused("vcpus", "65");
    refused("vcpus", "many");
    refused("memory-mib", "1");
    refused("memory-mib", "99999999999999999999");
}

#[test]
fn vm_what_a_vm_has_no_part_in() {
    spec_refused(|spec| spec["linux"]["intelRdt"] = json!({"closID": "guaranteed"}), &["linux.intelRdt"]);
    spec_refused(|spec| spec["linux"]["netDevices"] = json!({"eth7": {}}), &["linux.netDevices"]);
}

#[test]
fn a_network_namespace_that_is_none() {
    for path in ["/no/such/namespace", "/etc/passwd"] {
        let entry = json!({"type": "network", "path": path});
        let edit = |spec: &mut Value| {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|namespace| namespace["type"] != "network");
            list.push(entry);
        };
        spec_refused(edit, &[path]);
    }
}

#[test]
fn a_bind_of_nothing() {
    let mount = json!({"destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["rbind"]});
    spec_refused(|spec| spec["mounts"].as_array_mut().unwrap().push(mount), &["/no/such/source", "no such file"]);
}

#[test]
fn a_mount_that_the_kernel_does_not_know() {
    let mount = json!({"destination": "/data", "type": "nonsensefs", "source": "none"});
    spec_refused(|spec| spec["mounts"].as_array_mut().unwrap().push(mount), &["nonsensefs"]);
}

// ---- names and arguments --------------------------------------------------------------------------

#[test]
fn names_that_are_none() {
    let scene = Scene::new();
    let container = scene.container();
    let long = "x".repeat(1100);
    for id in ["a/b", "../escape", "/absolute", "", ".", "..", "two words", "ünicode", "new\nline", long.as_str()] {
        let mut command = container.command("create");
        // runc takes one dot for a name.
        if id != "." || place::is_runvm() {
            refused(&scene, &run(command.arg(id)), &["invalid container ID"]);
        }
    }
    assert!(!scene.dir().join("escape").exists());
}

#[test]
fn a_name_that_is_no_name_for_any_command() {
    let scene = Scene::new();
    fs::create_dir(scene.dir().join("escape")).unwrap();
    for verb in ["state", "start", "kill", "delete", "exec"] {
        let mut command = scene.runtime();
        command.args([verb, "../escape"]);
        if verb == "exec" {
            command.arg("true");
        }
        refused(&scene, &run(&mut command), &["invalid container ID"]);
    }
    assert!(scene.dir().join("escape").exists());
}

#[test]
fn a_name_that_is_taken() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    let again = run(&mut container.named("create", &[]));
    scene.refused(&again, &["already exists"]);
    assert_eq!(container.status(), "created");
    container.end(&created);
}

#[test]
fn one_name_for_many_at_once() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.write();
    let one = |_| start(container.named("create", &[]).stdin(Stdio::null()));
    let running: Vec<_> = (0..6).map(one).collect();
    let outcomes: Vec<_> = running.into_iter().map(tests::command::Running::finish).collect();
    let successes = outcomes.iter().filter(|outcome| outcome.code == 0).count();
    assert_eq!(successes, 1, "{outcomes:?}");
    if place::is_runvm() {
        let told = scene.errors().iter().filter(|error| error.contains("already exists")).count();
        assert_eq!(told, 5, "{outcomes:?}");
    }
    assert_eq!(container.status(), "created");
    container.force_delete().success();
}

#[test]
fn signals_that_are_none() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    for signal in ["NONSENSE", "SIG", "9x", "SIGTERM2"] {
        refused(&scene, &container.kill(signal), &["signal", signal]);
    }
    assert!(lives(created.pid));
    container.end(&created);
}

#[test]
fn a_pid_file_that_cannot_be_written() {
    let scene = Scene::new();
    let container = scene.container();
    let mut command = container.command("create");
    let outcome = run(command.args(["--pid-file", "/no/such/folder/pid"]).arg(&container.id));
    refused(&scene, &outcome, &["/no/such/folder/pid"]);
}

#[test]
fn a_log_that_cannot_be_written() {
    let outcome = run(Command::new(place::runtime()).args(["--log", "/no/such/folder/log", "list"])).failure();
    assert!(outcome.stderr.contains("/no/such/folder/log"), "{outcome:?}");
}

#[test]
fn a_root_that_is_a_file() {
    let scene = Scene::new();
    let container = scene.container();
    fs::write(scene.root(), "").unwrap();
    let outcome = run(&mut container.named("create", &[]));
    refused(&scene, &outcome, &[scene.root().to_str().unwrap()]);
    fs::remove_file(scene.root()).unwrap();
}

#[test]
fn vm_commands_and_flags_that_are_none() {
    let scene = Scene::new();
    for arguments in [&["nonsense"][..], &["state"], &["create", "--nonsense", "x"], &["run", "a", "b"], &[]] {
        scene.refused(&run(scene.runtime().args(arguments)), &[]);
    }
}

#[test]
fn a_process_file_that_is_none() {
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    let file = container.bundle().join("process.json");
    for content in [None, Some("{"), Some("{}"), Some(r#"{"args": [], "cwd": "/", "user": {"uid": 0, "gid": 0}}"#)] {
        if let Some(text) = content {
            fs::write(&file, text).unwrap();
        }
        let mut command = container.command("exec");
        let outcome = run(command.arg("--process").arg(&file).arg(&container.id));
        refused(&scene, &outcome, &[]);
    }
    container.end(&up);
}

// ---- hosts ----------------------------------------------------------------------------------------

#[test]
fn vm_no_kvm() {
    let scene = Scene::new();
    let container = scene.container();
    let outcome = run(&mut with_kvm(Kvm::Missing, scene.dir(), &container.named("create", &[])));
    scene.refused(&outcome, &["/dev/kvm", "No such file or directory"]);
}

#[test]
fn vm_something_else_in_kvms_place() {
    let scene = Scene::new();
    let container = scene.container();
    let outcome = run(&mut with_kvm(Kvm::Useless, scene.dir(), &container.named("create", &[])));
    scene.refused(&outcome, &["/dev/kvm"]);
}

// ---- guests ---------------------------------------------------------------------------------------

/// Runs a container with a damaged guest.
#[track_caller]
fn run_with(guest: &Guest, container: &Container, limit: Duration) -> Outcome {
    let mut command = container.named("run", &[]);
    guest.apply(&mut command);
    start(command.stdin(Stdio::null())).finish_within(limit)
}

#[track_caller]
fn guest_refused(damage: impl FnOnce(&Guest), words: &[&str]) {
    let scene = Scene::new();
    let (guest, container) = (Guest::copy(&scene), scene.container());
    damage(&guest);
    scene.refused(&run_with(&guest, &container, PATIENCE), words);
}

#[test]
fn vm_a_kernel_by_its_name() {
    let scene = Scene::new();
    let (guest, mut container) = (Guest::copy(&scene), scene.container());
    // The same kernel, under another release of the same length.
    let mut kernel = fs::read(guest.file("vmlinux")).unwrap();
    let names: Vec<usize> = (0..kernel.len() - 6).filter(|&at| &kernel[at..at + 6] == b"-runvm").collect();
    names.iter().for_each(|&at| kernel[at..at + 6].copy_from_slice(b"-other"));
    fs::create_dir(guest.file("kernels")).unwrap();
    fs::write(guest.file("kernels/other"), kernel).unwrap();
    container.set("/annotations", json!({"io.runvm.kernel": "other"})).args(&["uname", "-r"]);
    scene.refused(&run_with(&guest, &container, PATIENCE), &["--allow-annotations io.runvm.kernel"]);
    container.annotate("io.runvm.kernel", "other");
    let outcome = run_with(&guest, &container, PATIENCE);
    assert!(outcome.code == 0 && outcome.stdout.ends_with("-other\n"), "{outcome:?}");
    for name in ["none", "..", "a/b", ""] {
        container.annotate("io.runvm.kernel", name);
        scene.refused(&run_with(&guest, &container, PATIENCE), &["io.runvm.kernel", name]);
    }
}

#[test]
fn vm_missing_guest_files() {
    for name in ["vmlinux", "initrd"] {
        guest_refused(|guest| fs::remove_file(guest.file(name)).unwrap(), &[name, "No such file or directory"]);
    }
    guest_refused(|guest| fs::remove_file(guest.file("manifest.json")).unwrap(), &["no manifest.json", "make build"]);
}

#[test]
fn vm_truncated_guest_files() {
    for name in ["vmlinux", "initrd"] {
        guest_refused(|guest| fs::write(guest.file(name), "short").unwrap(), &[name, "5 bytes"]);
    }
    guest_refused(|guest| fs::write(guest.file("manifest.json"), "{").unwrap(), &["manifest.json", "make build"]);
    let damage = |manifest: &mut Value| drop(manifest["kernel"].as_object_mut().unwrap().remove("patches"));
    guest_refused(|guest| guest.edit_manifest(damage), &["manifest.json", "patches", "make build"]);
}

#[test]
fn vm_a_kernel_that_is_none() {
    guest_refused(|guest| guest.replace("vmlinux", b"this is no ELF file, whatever its name says"), &["vmlinux"]);
    guest_refused(|guest| guest.replace("vmlinux", b""), &["vmlinux"]);
}

#[test]
fn vm_a_kernel_full_of_nonsense() {
    let damage = |guest: &Guest| {
        let mut bytes = fs::read(guest.file("vmlinux")).unwrap();
        // The ELF headers stay; what they lead to does not.
        bytes[4096..].fill(0xcc);
        guest.replace("vmlinux", &bytes);
    };
    let scene = Scene::new();
    let (guest, container) = (Guest::copy(&scene), scene.container());
    damage(&guest);
    // A triple fault at best; a guest that spins is given up by the time limit at worst.
    scene.refused(&run_with(&guest, &container, PATIENCE * 3), &["guest"]);
}

#[test]
fn vm_an_initrd_that_is_none() {
    guest_refused(|guest| guest.replace("initrd", &[0x55; 4096]), &["panic"]);
}

#[test]
fn vm_another_protocol() {
    guest_refused(|guest| guest.edit_manifest(|manifest| manifest["protocol"] = json!(4711)), &["protocol", "4711"]);
    guest_refused(|guest| guest.edit_manifest(|manifest| manifest["version"] = json!("99.0.0")), &["99.0.0"]);
}

#[test]
fn vm_a_guest_that_panics() {
    let words = ["Kernel panic", "Attempted to kill init"];
    guest_refused(|guest| guest.set_init("exit 3"), &words);
}

#[test]
fn vm_a_guest_that_powers_off() {
    guest_refused(|guest| guest.set_init("exec /bin/busybox reboot -f"), &["guest stopped"]);
}

#[test]
fn vm_a_guest_that_dies_says_so_where_its_user_looks() {
    let scene = Scene::new();
    for logs_to_a_file in [true, false] {
        let mut container = scene.container();
        container
            .set("/linux/readonlyPaths", json!([]))
            .set("/linux/resources", json!({"memory": {"limit": 64 << 20}}));
        container.sh("echo 2 >/proc/sys/vm/panic_on_oom; echo up; tail /dev/zero");
        let mut command = Command::new(place::runtime());
        container.write();
        command.arg("--root").arg(scene.root());
        if logs_to_a_file {
            command.arg("--log").arg(scene.log());
        }
        command.arg("run").arg("--bundle").arg(container.bundle()).arg(&container.id);
        let outcome = run(&mut command);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (255, "up\n"), "{outcome:?}");
        assert_eq!(outcome.stderr.matches("the guest stopped").count(), 1, "{outcome:?}");
        assert!(outcome.stderr.contains("Kernel panic"), "{outcome:?}");
    }
    let _ = fs::remove_file(scene.log());
    scene.check();
}

#[test]
fn vm_a_guest_that_never_answers() {
    let scene = Scene::new();
    let (guest, container) = (Guest::copy(&scene), scene.container());
    guest.set_init("exec /bin/busybox sleep 100000");
    scene.refused(&run_with(&guest, &container, PATIENCE * 3), &["guest did not report within"]);
}

// ---- a monitor that is killed ---------------------------------------------------------------------

/// Waits until the container's monitor has a processor running, which is long before its guest answers.
#[track_caller]
fn wait_for_boot(container: &Container) -> i32 {
    let mut pid = None;
    process::wait_until("a monitor with a processor", || {
        let list = fs::read_dir("/proc").unwrap().flatten();
        let pids = list.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pid = pids.filter(|pid| has_processor(*pid)).find(|pid| process::descendants().contains_key(pid));
        pid.is_some()
    });
    pid.unwrap_or_else(|| panic!("no monitor of {}", container.id))
}

fn has_processor(pid: i32) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.any(|link| link.starts_with(Path::new("anon_inode:kvm-vcpu:0")))
}

#[test]
fn vm_killed_before_it_began() {
    let scene = Scene::new();
    let mut container = scene.container();
    let hook = "kill -9 $(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p')";
    container.spec["hooks"] =
        json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", hook], "env": ["PATH=/bin"]}]});
    scene.refused(&container.try_create(), &["monitor", &container.id]);
}

#[test]
fn vm_killed_while_its_guest_boots() {
    let scene = Scene::new();
    let container = scene.container();
    let create = start(container.named("create", &[]).stdin(Stdio::null()));
    process::signal(wait_for_boot(&container), Signal::KILL);
    scene.refused(&create.finish(), &["monitor", &container.id]);
}

#[test]
fn vm_the_command_is_killed_while_the_guest_boots() {
    let scene = Scene::new();
    let mut container = scene.container();
    let create = start(container.named("create", &[]).stdin(Stdio::null()));
    let monitor = wait_for_boot(&container);
    create.signal(Signal::KILL);
    assert_eq!(create.finish().code, 137);
    assert!(process::wait_end(monitor, PATIENCE), "the monitor goes on though nobody waits for it");
    container.force_delete().success();
}

#[test]
fn killed_when_created() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.create();
    process::signal(created.pid, Signal::KILL);
    assert_eq!(wait_orphan(created.pid), 137);
    assert_eq!(container.status(), "stopped");
    refused(&scene, &container.start(), &["stopped"]);
    container.delete().success();
}

#[test]
fn killed_when_running() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.idle();
    process::signal(created.pid, Signal::KILL);
    assert_eq!(wait_orphan(created.pid), 137);
    assert_eq!(created.stdout.rest(), "");
    assert_eq!(container.status(), "stopped");
    scene.refused(&container.kill("TERM"), &["container not running"]);
    container.delete().success();
}

#[test]
fn killed_during_an_exec() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.idle();
    let exec = start(container.named("exec", &["sh", "-c", "touch /ready; sleep 100000"]).stdin(Stdio::null()));
    process::wait_until("the exec to run", || container.rootfs().join("ready").exists());
    process::signal(created.pid, Signal::KILL);
    assert_eq!(wait_orphan(created.pid), 137);
    assert_eq!(exec.finish().code, 137);
    container.delete().success();
}

#[test]
fn killed_under_a_run() {
    let scene = Scene::new();
    let mut container = scene.container();
    let run = start(container.sh("touch /ready; sleep 100000").named("run", &[]).stdin(Stdio::null()));
    process::wait_until("the container to run", || container.rootfs().join("ready").exists());
    let pid = container.state()["pid"].as_i64().unwrap();
    process::signal(pid as i32, Signal::KILL);
    assert_eq!(run.finish().code, 137);
}

#[test]
fn vm_a_stopped_monitor_hangs_no_command() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = container.idle();
    process::signal(created.pid, Signal::STOP);
    assert_eq!(container.status(), "running");
    run(scene.runtime().arg("list")).success();
    container.kill("TERM").failure();
    let _ = fs::remove_file(scene.log());
    container.kill("KILL").success();
    assert_eq!(wait_orphan(created.pid), 137);
    container.delete().success();
}
