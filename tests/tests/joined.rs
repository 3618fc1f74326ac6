//! Containers that share namespaces with another one: in a VM, they are all in the first one's.

use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use std::process::Stdio;

use serde_json::{Value, json};
use tests::command::run;
use tests::disk::Tmpfs;
use tests::process::{self, wait_orphan};
use tests::{ConsoleSocket, Container, Created, Scene, place};

const ALL: [&str; 4] = ["pid", "ipc", "uts", "network"];
const NAMES: [&str; 4] = ["pid", "ipc", "uts", "net"];

fn path_of(pid: i32, kind: &str) -> Value {
    let name = if kind == "network" { "net" } else { kind };
    json!({"type": kind, "path": format!("/proc/{pid}/ns/{name}")})
}

/// A container to be that has these namespaces of a process's.
fn neighbour<'a>(scene: &'a Scene, pid: i32, kinds: &[&str]) -> Container<'a> {
    let mut container = scene.container();
    for kind in kinds {
        container.namespace(kind, Some(path_of(pid, kind)));
    }
    if kinds.contains(&"uts") {
        container.spec.as_object_mut().unwrap().remove("hostname");
    }
    container
}

/// A container that idles, and one that shares everything with it and idles, too.
fn two(scene: &Scene) -> (Container<'_>, Created, Container<'_>, Created) {
    let mut first = scene.container();
    let one = first.idle();
    let mut second = neighbour(scene, one.pid, &ALL);
    let two = second.idle();
    (first, one, second, two)
}

#[test]
fn namespaces_are_those_of_the_other() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    first.set("/hostname", json!("guest"));
    let links = format!("for n in {} mnt; do readlink /proc/self/ns/$n; done", NAMES.join(" "));
    let theirs = first.exec_sh(&links).success().stdout;
    let mut second = neighbour(&scene, one.pid, &ALL);
    let outcome =
        second.sh(&format!("{links}; hostname; cat /proc/1/cmdline | tr '\\0' ' '; echo; echo $$")).run().success();
    let (theirs, lines): (Vec<&str>, Vec<&str>) = (theirs.lines().collect(), outcome.stdout.lines().collect());
    assert_eq!(lines[..4], theirs[..4]);
    assert_ne!(lines[4], theirs[4], "a root file system of its own");
    assert_eq!(lines[5], "guest");
    assert!(lines[6].contains("sleep 100000"), "process 1 is the first one's: {outcome:?}");
    assert_ne!(lines[7], "1");
    let alone = neighbour(&scene, one.pid, &["uts"]).sh("hostname; echo $$").run().success();
    assert_eq!(alone.stdout, "guest\n1\n");
    first.end(&one);
}

#[test]
fn memory_and_interfaces_are_shared() {
    let scene = Scene::new();
    let shm = Tmpfs::new(scene.dir().join("shm"));
    let with_shm = |container: &mut Container| {
        let mounts = container.spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev/shm");
        container.mount("bind", shm.path(), "/dev/shm", &["rbind", "rprivate", "noexec"]);
    };
    let mut first = scene.container();
    with_shm(&mut first);
    let one = first.idle();
    first.exec_sh("echo from the first >/dev/shm/file; touch /dev/mqueue/queue").success();
    let mut second = neighbour(&scene, one.pid, &["ipc", "network"]);
    with_shm(&mut second);
    let up = second.sh("cat /dev/shm/file; ls /dev/mqueue; echo from the second >/dev/shm/file; echo hi | nc -l -p 7777 >/dev/null").up();
    let mut stdout = up.stdout;
    stdout.expect("from the first\nqueue\n");
    process::wait_until("the listener", || first.exec_sh("nc -w 5 127.0.0.1 7777 </dev/null").stdout == "hi\n");
    assert_eq!(first.exec_sh("cat /dev/shm/file").success().stdout, "from the second\n");
    assert_eq!(wait_orphan(up.pid), 0);
    second.delete().success();
    first.end(&one);
}

#[test]
fn each_has_a_life_of_its_own() {
    let scene = Scene::new();
    let (mut first, one, mut second, two) = two(&scene);
    assert_eq!((first.status(), second.status()), ("running".into(), "running".into()));
    assert_eq!(second.exec_sh("echo in >/mine; exit 5").code, 5);
    assert!(second.rootfs().join("mine").exists() && !first.rootfs().join("mine").exists());
    second.kill("TERM").success();
    assert_eq!(wait_orphan(two.pid), 143);
    assert_eq!((first.status(), second.status()), ("running".into(), "stopped".into()));
    scene.refused(&second.exec(&["true"]), &["cannot exec in a stopped container"]);
    second.delete().success();
    // The name is free again, at once.
    for code in [3, 0] {
        let mut up = second.sh(&format!("read line; echo out $line; echo err >&2; exit {code}")).up();
        rustix::io::write(up.stdin.as_ref().unwrap(), b"in\n").unwrap();
        up.stdout.expect("out in\n");
        up.stderr.expect("err\n");
        assert_eq!(wait_orphan(up.pid), code);
        second.delete().success();
    }
    assert_eq!(first.exec_sh("echo alive").success().stdout, "alive\n");
    first.end(&one);
}

#[test]
fn a_created_one_waits_and_can_be_killed() {
    let scene = Scene::new();
    let mut first = scene.container();
    // Engines of pods join before the first one runs.
    let one = first.sh("echo first; sleep 100000").create();
    let mut second = neighbour(&scene, one.pid, &["ipc", "uts"]);
    let two = second.sh("echo second").create();
    assert_eq!((first.status(), second.status()), ("created".into(), "created".into()));
    assert!(two.stdout.is_silent());
    second.kill("KILL").success();
    assert_eq!(wait_orphan(two.pid), 137);
    second.delete().success();
    let mut two = second.up();
    two.stdout.expect("second\n");
    assert_eq!(wait_orphan(two.pid), 0);
    second.delete().success();
    first.start().success();
    first.end(&one);
}

#[test]
fn killing_its_pid_kills_it_and_nobody_else() {
    let scene = Scene::new();
    let (mut first, one, mut second, two) = two(&scene);
    process::signal(two.pid, Signal::KILL);
    assert_eq!(wait_orphan(two.pid), 137);
    assert_eq!(second.status(), "stopped");
    second.delete().success();
    let sleepers = || first.exec_sh("ps -o args | grep -c '[s]leep 100000$'").stdout;
    if place::is_runvm() {
        // Those that it has forked, too.
        process::wait_until("its processes to be gone", || sleepers().trim() == "1");
    }
    assert_eq!(first.status(), "running");
    first.end(&one);
}

#[test]
fn signals_to_its_pid_reach_it() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let mut second = neighbour(&scene, one.pid, &["ipc"]);
    let mut two = second.sh("trap 'echo got USR1' USR1; trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done").up();
    two.stdout.expect("up\n");
    process::signal(two.pid, Signal::USR1);
    two.stdout.expect("got USR1\n");
    process::signal(two.pid, Signal::TERM);
    assert_eq!(wait_orphan(two.pid), 9);
    second.delete().success();
    first.end(&one);
}

#[test]
fn each_stands_still_alone() {
    let scene = Scene::new();
    let (mut first, one, mut second, two) = two(&scene);
    for (still, other) in [(&first, &second), (&second, &first)] {
        run(&mut still.named("pause", &[])).success();
        assert_eq!((still.status(), other.status()), ("paused".into(), "running".into()));
        assert_eq!(other.exec_sh("echo moves").success().stdout, "moves\n");
        scene.refused(&still.exec(&["true"]), &["cannot exec in a paused container"]);
        run(&mut still.named("resume", &[])).success();
        still.exec(&["true"]).success();
    }
    run(&mut second.named("pause", &[])).success();
    second.kill("KILL").success();
    assert_eq!(wait_orphan(two.pid), 137);
    second.delete().success();
    first.end(&one);
}

#[test]
fn a_terminal_of_its_own() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let mut second = neighbour(&scene, one.pid, &["ipc"]);
    second.set("/process/terminal", json!(true)).sh("read line; stty size; tty; sleep 100000");
    let socket = ConsoleSocket::listen(scene.dir(), "console");
    let two = second.create_with(&["--console-socket", socket.path().to_str().unwrap()]);
    let mut terminal = socket.receive();
    second.start().success();
    terminal.resize(33, 101);
    // The size has to get there.
    process::wait_until("the size", || second.exec_sh("stty size </dev/console").stdout == "33 101\n");
    terminal.write("go\n");
    terminal.expect("33 101\r\n/dev/pts/0\r\n");
    second.end(&two);
    first.end(&one);
}

#[test]
fn volumes_are_free_at_its_end() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    for round in 0..3 {
        let volume = Tmpfs::new(scene.dir().join("volume"));
        let mut second = neighbour(&scene, one.pid, &["ipc"]);
        second.mount("bind", volume.path(), "/data", &["rbind"]);
        let script = format!("echo {round} >/data/file; find / -xdev >/dev/null; exec 3</data/file; cat <&3");
        let outcome = second.sh(&script).run().success();
        assert_eq!(outcome.stdout, format!("{round}\n"));
        assert_eq!(std::fs::read_to_string(volume.path().join("file")).unwrap(), outcome.stdout);
        rustix::mount::unmount(volume.path(), UnmountFlags::empty()).expect("nobody has it open");
        let rootfs = second.rootfs();
        rustix::mount::unmount(&rootfs, UnmountFlags::empty()).expect("nobody has its root open");
        rustix::mount::mount("none", &rootfs, "tmpfs", MountFlags::empty(), None).unwrap();
    }
    first.end(&one);
}

#[test]
fn limits_and_figures_are_its_own() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let mut second = neighbour(&scene, one.pid, &["pid"]);
    second.set("/linux/resources", json!({"memory": {"limit": 32 << 20, "swap": 32 << 20}, "pids": {"limit": 20}}));
    let two = second.idle();
    let figures = run(second.command("events").arg("--stats").arg(&second.id)).success();
    let figures: Value = serde_json::from_str(&figures.stdout).unwrap();
    assert_eq!(
        (&figures["data"]["pids"]["limit"], &figures["data"]["memory"]["usage"]["limit"]),
        (&json!(20), &json!(32 << 20))
    );
    run(second.command("update").args(["--pids-limit", "17"]).arg(&second.id)).success();
    assert_eq!(second.exec_sh("cat /sys/fs/cgroup/pids.max").success().stdout, "17\n");
    let unified = place::cgroup_is_unified();
    let kills = || {
        let file = format!("/sys/fs/cgroup/{}/memory.events", second.id);
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap().parse::<u32>().unwrap()
    };
    second.exec_sh("head -c 100000000 /dev/zero | tail").failure();
    if unified {
        process::wait_until("the kill to be counted on the host", || kills() > 0);
    }
    assert_eq!((first.status(), second.status()), ("running".into(), "running".into()));
    let _ = std::fs::remove_file(scene.log());
    second.end(&two);
    first.end(&one);
}

#[test]
fn vm_the_first_ones_end_is_everybodys() {
    let scene = Scene::new();
    for by_pid in [false, true] {
        let mut first = scene.container();
        let one = first.idle();
        let mut second = neighbour(&scene, one.pid, &["ipc"]);
        let mut two = second.sh("echo last words; sleep 100000").up();
        two.stdout.expect("last words\n");
        match by_pid {
            true => process::signal(one.pid, Signal::KILL),
            false => drop(first.kill("KILL").success()),
        }
        assert_eq!((wait_orphan(one.pid), wait_orphan(two.pid)), (137, 137));
        assert_eq!((first.status(), second.status()), ("stopped".into(), "stopped".into()));
        scene.refused(&neighbour(&scene, one.pid, &["ipc"]).try_create(), &["cannot join ipc namespace"]);
        second.delete().success();
        first.delete().success();
    }
}

#[test]
fn vm_the_first_ones_memory_limit_on_the_host_is_not_for_both() {
    let scene = Scene::new();
    let mut first = scene.container();
    first.set("/linux/resources", json!({"memory": {"limit": 32 << 20}}));
    let one = first.idle();
    let mut second = neighbour(&scene, one.pid, &["ipc"]);
    let outcome =
        second.sh("dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; dd if=/dev/zero bs=500M count=1 | wc -c");
    assert_eq!(outcome.run().success().stdout, format!("{}\n", 500 << 20));
    run(first.command("update").args(["--memory", "40m"]).arg(&first.id)).success();
    let outcome = second.sh("dd if=/dev/zero bs=500M count=1 | wc -c").run().success();
    assert_eq!(outcome.stdout, format!("{}\n", 500 << 20));
    first.end(&one);
}

#[test]
fn vm_pods_of_kubernetes_are_one_vm() {
    let scene = Scene::new();
    let kinds = [
        ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
        ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
    ];
    for (kind, sandbox) in kinds {
        let mut pause = scene.container();
        pause.set("/annotations", json!({kind: "sandbox", sandbox: pause.id.clone()}));
        let one = pause.idle();
        let boot = |container: &Container| container.exec_sh("cat /proc/sys/kernel/random/boot_id").success().stdout;
        let mut second = scene.container();
        second.set("/annotations", json!({kind: "container", sandbox: pause.id.clone()}));
        let two = second.idle();
        assert_eq!(boot(&second), boot(&pause));
        second.end(&two);
        let mut lost = scene.container();
        lost.set("/annotations", json!({kind: "container", sandbox: "nowhere"}));
        scene.refused(&lost.try_create(), &["sandbox nowhere", "is not running"]);
        pause.end(&one);
    }
}

#[test]
fn vm_a_network_by_another_name_is_the_pods() {
    let scene = Scene::new();
    // As `ip netns add` does it.
    let name = scene.dir().join("pod");
    std::fs::write(&name, "").unwrap();
    run(std::process::Command::new("unshare").arg(format!("--net={}", name.display())).arg("true")).success();
    let by_name = Some(json!({"type": "network", "path": &name}));
    let mut pause = scene.container();
    pause.namespace("network", by_name.clone());
    let one = pause.idle();
    let mut second = neighbour(&scene, one.pid, &["ipc"]);
    second.namespace("network", by_name);
    let theirs = pause.exec_sh("readlink /proc/self/ns/net").success().stdout;
    assert_eq!(second.sh("readlink /proc/self/ns/net").run().success().stdout, theirs);
    pause.end(&one);
    rustix::mount::unmount(&name, UnmountFlags::empty()).unwrap();
}

#[test]
fn vm_what_cannot_be_shared_is_refused() {
    let scene = Scene::new();
    let (mut first, mut other) = (scene.container(), scene.container());
    let (one, elsewhere) = (first.idle(), other.idle());
    let refused = |container: &mut Container, words: &[&str]| {
        scene.refused(&container.try_create(), words);
        assert!(!scene.root().join(&container.id).exists());
    };
    let mut both = neighbour(&scene, one.pid, &["ipc"]);
    both.namespace("pid", Some(path_of(elsewhere.pid, "pid")));
    refused(&mut both, &[&first.id, &other.id, "are in different VMs"]);
    for (kind, name) in [("mount", "mnt"), ("user", "user")] {
        let mut container = neighbour(&scene, one.pid, &["ipc"]);
        container.namespace(kind, Some(json!({"type": kind, "path": format!("/proc/{}/ns/{name}", one.pid)})));
        refused(&mut container, &[&format!("cannot join {kind} namespace"), &first.id]);
    }
    refused(
        &mut neighbour(&scene, 1, &["ipc"]),
        &["cannot join ipc namespace /proc/1/ns/ipc", "does not belong to a container"],
    );
    for name in ["io.runvm.memory-mib", "io.runvm.vcpus", "io.runvm.kernel"] {
        let mut container = neighbour(&scene, one.pid, &["ipc"]);
        container.annotate(name, "1");
        refused(&mut container, &[&format!("annotation {name}"), "which exists already", &first.id]);
    }
    let mut container = neighbour(&scene, one.pid, &["ipc"]);
    container.set("/linux/resources/blockIO", json!({"weight": 100}));
    refused(&mut container, &["linux.resources.blockIO", "shares the VM of another one"]);
    run(&mut first.named("pause", &[])).success();
    refused(&mut neighbour(&scene, one.pid, &["ipc"]), &["cannot join", &first.id, "paused"]);
    run(&mut first.named("resume", &[])).success();
    // In the guest: nothing of it is left there.
    let mut container = neighbour(&scene, one.pid, &["ipc"]);
    refused(container.args(&["nosuchcommand"]), &["exec: \"nosuchcommand\": executable file not found in $PATH"]);
    assert_eq!(container.sh("echo second try").run().success().stdout, "second try\n");
    other.end(&elsewhere);
    first.end(&one);
}

#[test]
fn vm_many_come_and_go_and_leave_nothing() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", one.pid)).unwrap().count();
    let mut before = 0;
    for round in 0..12 {
        let mut second = neighbour(&scene, one.pid, &ALL);
        assert_eq!(second.sh("find / -xdev | wc -l >/count; sleep 1000 & exit 6").run().code, 6);
        if round == 2 {
            before = descriptors();
        }
    }
    if place::is_runvm() {
        assert!(descriptors() <= before + 2, "{before} descriptors became {}", descriptors());
        assert_eq!(first.exec_sh("ps | grep -c '[s]leep 1000$'").stdout, "0\n");
    }
    first.end(&one);
}

#[test]
fn several_at_once() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let mut others: Vec<Container> = (0..6).map(|_| neighbour(&scene, one.pid, &ALL)).collect();
    let commands = others.iter_mut().enumerate().map(|(n, other)| {
        let mut command = other.sh(&format!("echo {n}; exit {n}")).named("run", &[]);
        tests::command::start(&mut command)
    });
    let commands: Vec<_> = commands.collect();
    for (n, command) in commands.into_iter().enumerate() {
        let outcome = command.finish();
        assert_eq!((outcome.code, outcome.stdout), (n as i32, format!("{n}\n")), "{}", outcome.stderr);
    }
    drop(others);
    first.end(&one);
}

#[test]
fn vm_another_root_knows_nothing_of_it() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let second = neighbour(&scene, one.pid, &["ipc"]);
    second.write();
    let elsewhere = scene.dir().join("elsewhere");
    let mut command = std::process::Command::new(place::runtime());
    command.arg("--root").arg(&elsewhere).args(["run", "--bundle"]).arg(second.bundle()).arg("x");
    let outcome = run(&mut command).failure();
    assert!(outcome.stderr.contains("does not belong to a container under this --root"), "{outcome:?}");
    assert!(Path::new(&elsewhere).read_dir().is_ok_and(|mut dir| dir.next().is_none()) || !elsewhere.exists());
    first.end(&one);
}

#[test]
fn a_container_of_run_can_be_joined_paused_and_deleted() {
    let scene = Scene::new();
    let mut first = scene.container();
    let running =
        tests::command::start(&mut first.sh("trap 'exit 143' TERM; sleep 100000 & wait $!").named("run", &[]));
    process::wait_until("it to run", || run(&mut first.named("state", &[])).stdout.contains("\"running\""));
    let _ = std::fs::remove_file(scene.log());
    let pid = first.state()["pid"].as_i64().unwrap() as i32;
    assert_eq!(neighbour(&scene, pid, &["ipc"]).sh("exit 8").run().code, 8);
    for verb in ["pause", "resume"] {
        run(&mut first.named(verb, &[])).success();
    }
    first.force_delete().success();
    assert_eq!(running.finish().code, 137);
    let _ = std::fs::remove_file(scene.log());
}

#[test]
fn vm_killed_at_any_moment_it_leaves_the_machine_as_it_was() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", one.pid)).unwrap().count();
    let before = descriptors();
    let mut second = neighbour(&scene, one.pid, &["ipc"]);
    second.args(&["sleep", "100000"]);
    for delay in (0..200).step_by(25) {
        let mut create = second.named("create", &[]);
        let create = tests::command::start(create.stdin(std::process::Stdio::null()));
        std::thread::sleep(std::time::Duration::from_millis(delay));
        create.signal(Signal::KILL);
        create.finish();
        let _ = std::fs::remove_file(scene.log());
        second.force_delete().success();
    }
    process::wait_until("its descriptors to be closed", || descriptors() <= before + 2);
    assert_eq!(second.sh("echo at last").run().success().stdout, "at last\n");
    assert_eq!(first.exec_sh("ls /sys/fs/cgroup >/dev/null; echo alive").success().stdout, "alive\n");
    first.end(&one);
}

#[test]
fn a_volume_of_both_is_one() {
    let scene = Scene::new();
    let volume = scene.dir().join("volume");
    std::fs::create_dir_all(volume.join("sub")).unwrap();
    let mut first = scene.container();
    let one = first.mount("bind", &volume, "/w", &["rbind", "rprivate"]).idle();
    first.exec_sh("mkfifo /w/sub/fifo; echo before >/w/sub/file; ls -R /w").success();
    let mut second = neighbour(&scene, one.pid, &["ipc"]);
    second.mount("bind", &volume.join("sub"), "/v", &["rbind", "rprivate"]);
    let two = second.idle();
    let ids = |container: &Container, path: &str| container.exec_sh(&format!("stat -c %d:%i {path}")).success().stdout;
    assert_eq!(ids(&first, "/w/sub/fifo"), ids(&second, "/v/fifo"));
    let mut reader = first.command("exec");
    reader.args([&first.id, "timeout", "9", "cat", "/w/sub/fifo"]);
    let reader = reader.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    second.exec_sh("cd /v && echo after >>file && timeout 9 sh -c 'echo through >fifo'").success();
    assert_eq!(reader.wait_with_output().unwrap().stdout, b"through\n");
    assert_eq!(first.exec_sh("cat /w/sub/file").success().stdout, "before\nafter\n");
    second.kill("KILL").success();
    wait_orphan(two.pid);
    second.delete().success();
    assert_eq!(
        first.exec_sh("cat /w/sub/file && ls /w/sub && echo more >/w/sub/new").success().stdout,
        "before\nafter\nfifo\nfile\n"
    );
    first.end(&one);
}
