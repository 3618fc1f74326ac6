//! An unmodified podman that runs containers with the runtime under test.

use std::fs::File;

use tests::command::{code, run, run_with_input, start};
use tests::disk;
use tests::podman::{IMAGE, Podman};
use tests::{Terminal, process};

#[test]
fn exit_codes() {
    let podman = Podman::new();
    for wanted in [0, 3] {
        podman.once(&["sh", "-c", &format!("exit {wanted}")]).exits(wanted);
    }
    let missing = podman.once(&["no-such-program"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert!(missing.stderr.contains("executable file") && missing.stderr.contains("not found"), "{missing:?}");
    let denied = podman.once(&["/etc/passwd"]);
    assert_eq!(denied.code, 126, "{denied:?}");
    assert!(denied.stderr.to_lowercase().contains("permission denied"), "{denied:?}");
}

#[test]
fn a_killed_container_is_137() {
    let podman = Podman::new();
    let name = "runvm-test-killed";
    run(&mut podman.container(&["--detach", "--name", name], &["sleep", "100000"])).success();
    podman.run(&["kill", name]).success();
    assert_eq!(podman.run(&["wait", name]).success().line(), "137");
    assert_eq!(podman.inspect(name, ".State.ExitCode"), "137");
    assert_eq!(podman.inspect(name, ".State.Status"), "exited");
    podman.run(&["rm", name]).success();
}

#[test]
fn vm_a_container_whose_agent_lies_is_killed() {
    let podman = Podman::new();
    let name = "runvm-test-liar";
    let liar = format!("{}:/liar:ro", tests::place::bin().join("liar").display());
    let flags = ["--detach", "--pid", "host", "--cap-add", "SYS_PTRACE", "--volume", &liar, "--name", name];
    run(&mut podman.container(&flags, &["/liar"])).success();
    wait_for_logs(&podman, name, "lying\n");
    podman.run(&["kill", name]).success();
    assert_eq!(podman.run(&["wait", name]).success().line(), "137");
    podman.run(&["rm", name]).success();
}

#[test]
fn a_signal_reaches_the_process() {
    let podman = Podman::new();
    let name = "runvm-test-signal";
    let script = "trap 'exit 42' USR1; echo up; sleep 100000 & wait $!";
    let attached =
        start(podman.container(&["--rm", "--name", name], &["sh", "-c", script]).stdin(std::process::Stdio::null()));
    wait_for_logs(&podman, name, "up\n");
    podman.run(&["kill", "--signal", "USR1", name]).success();
    let outcome = attached.finish();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (42, "up\n"), "{outcome:?}");
}

#[test]
fn input_comes_out_again() {
    let podman = Podman::new();
    let path = tests::place::work().join("podman-input");
    let bytes: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    std::fs::write(&path, &bytes).unwrap();
    let mut command = podman.container(&["--rm", "--interactive"], &["cat"]);
    let outcome = run_with_input(&mut command, File::open(&path).unwrap()).success();
    std::fs::remove_file(&path).unwrap();
    assert!(outcome.stdout == bytes, "what came out is not what went in: {} bytes", outcome.stdout.len());
}

#[test]
fn a_terminal_of_the_right_size() {
    let podman = Podman::new();
    let mut terminal = Terminal::open(33, 101);
    let script = "until [ \"$(stty size)\" = '33 101' ]; do sleep 0.05; done; tty; trap 'stty size; exit 5' WINCH
        echo up; while :; do sleep 0.1; done";
    let mut command = podman.container(&["--rm", "--interactive", "--tty"], &["sh", "-c", script]);
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    terminal.expect("/dev/pts/0\r\n");
    terminal.expect("up\r\n");
    terminal.resize(44, 77);
    terminal.expect("44 77\r\n");
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE));
    assert_eq!(code(child.wait().unwrap()), 5);
}

#[test]
fn the_life_of_a_detached_container() {
    let podman = Podman::new();
    let name = "runvm-test-life";
    let script = "trap 'echo stopping; exit 9' TERM; echo started; sleep 100000 & while :; do wait $!; done";
    run(&mut podman.container(&["--detach", "--name", name], &["sh", "-c", script])).success();
    wait_for_logs(&podman, name, "started\n");
    let outcome = podman.run(&["exec", name, "sh", "-c", "echo from exec; echo data >/file; exit 4"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, "from exec\n"));
    podman.run(&["exec", name, "no-such-program"]).exits(127);
    podman.run(&["stop", name]).success();
    assert_eq!(podman.inspect(name, ".State.ExitCode"), "9");
    assert_ne!(podman.run(&["exec", name, "true"]).code, 0);
    podman.run(&["start", name]).success();
    wait_for_logs(&podman, name, "started\nstopping\nstarted\n");
    assert_eq!(podman.run(&["exec", name, "cat", "/file"]).success().stdout, "data\n");
    let refused = podman.run(&["rm", name]).failure();
    assert!(refused.stderr.contains("running"), "{refused:?}");
    podman.run(&["rm", "--force", "--time", "0", name]).success();
    assert_eq!(podman.run(&["ps", "--all", "--quiet"]).stdout, "");
}

#[track_caller]
fn wait_for_logs(podman: &Podman, name: &str, wanted: &str) {
    process::wait_until("the container's log", || podman.run(&["logs", name]).stdout == wanted);
}

#[test]
fn an_exec_has_settings_of_its_own() {
    let podman = Podman::new();
    let name = "runvm-test-exec";
    run(&mut podman.container(&["--detach", "--name", name], &["sleep", "100000"])).success();
    let flags = ["exec", "--user", "1000:1000", "--env", "A=b c", "--workdir", "/tmp", name];
    let outcome = podman.run(&[&flags[..], &["sh", "-c", "echo $A; pwd; id -u; exit 7"]].concat());
    assert_eq!((outcome.code, outcome.stdout.as_str()), (7, "b c\n/tmp\n1000\n"));
    let input = "echo said; exit 6\n";
    let path = tests::place::work().join("podman-exec-input");
    std::fs::write(&path, input).unwrap();
    let mut command = podman.command(&["exec", "--interactive", name, "sh"]);
    let outcome = run_with_input(&mut command, File::open(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (6, "said\n"));
    podman.run(&["rm", "--force", "--time", "0", name]).success();
}

#[test]
fn pause_and_unpause() {
    let podman = Podman::new();
    let name = "runvm-test-pause";
    run(&mut podman.container(&["--detach", "--name", name], &["sleep", "100000"])).success();
    podman.run(&["pause", name]).success();
    assert_eq!(podman.inspect(name, ".State.Status"), "paused");
    assert_ne!(podman.run(&["exec", name, "true"]).code, 0);
    podman.run(&["unpause", name]).success();
    assert_eq!(podman.inspect(name, ".State.Status"), "running");
    podman.run(&["exec", name, "true"]).success();
    podman.run(&["rm", "--force", "--time", "0", name]).success();
}

#[test]
fn a_health_check_says_what_the_container_is() {
    let podman = Podman::new();
    let name = "runvm-test-health";
    // The timer would be systemd's.
    let flags = ["--detach", "--name", name, "--health-interval", "disable", "--health-retries", "1"];
    let flags = [&flags[..], &["--health-cmd", "test -e /healthy"]].concat();
    run(&mut podman.container(&flags, &["sleep", "100000"])).success();
    assert_eq!(podman.inspect(name, ".State.Health.Status"), "starting");
    podman.run(&["healthcheck", "run", name]).exits(1);
    assert_eq!(podman.inspect(name, ".State.Health.Status"), "unhealthy");
    podman.run(&["exec", name, "touch", "/healthy"]).success();
    podman.run(&["healthcheck", "run", name]).success();
    assert_eq!(podman.inspect(name, ".State.Health.Status"), "healthy");
    podman.run(&["rm", "--force", "--time", "0", name]).success();
}

#[test]
fn settings_of_the_command_line() {
    let podman = Podman::new();
    let dir = tests::place::work().join("podman-volume");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("in"), "from the host\n").unwrap();
    let (volume, file) = (format!("{}:/data", dir.display()), format!("{}/in:/etc/single:ro", dir.display()));
    let flags = ["--rm", "--env", "A=b c", "--workdir", "/tmp", "--hostname", "box", "--volume", &volume];
    let more = ["--volume", &file, "--user", "1000:1000", "--memory", "128m", "--pids-limit", "50", "--read-only"];
    let script = "echo $A; pwd; hostname; cat /data/in /etc/single; id -u; touch /x /etc/single 2>/dev/null || echo no
        cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    let outcome = run(&mut podman.container(&[&flags[..], &more].concat(), &["sh", "-c", script])).success();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    let wanted = ["b c", "/tmp", "box", "from the host", "from the host", "1000", "no", "134217728", "50"];
    assert_eq!(lines, wanted, "{outcome:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_changed_can_be_seen_and_kept() {
    let podman = Podman::new();
    let name = "runvm-test-commit";
    run(&mut podman.container(&["--name", name], &["sh", "-c", "echo content >/made"])).success();
    let changes = podman.run(&["diff", name]).success();
    assert!(changes.stdout.contains("A /made\n"), "{changes:?}");
    podman.run(&["commit", "--quiet", name, "runvm-test-made"]).success();
    podman.run(&["rm", name]).success();
    let command = podman.command(&["run", "--rm", "--network", "none", "runvm-test-made", "cat", "/made"]);
    assert_eq!(run(&mut { command }).success().stdout, "content\n");
    podman.run(&["rmi", "runvm-test-made"]).success();
}

#[test]
fn limits_are_updated() {
    let podman = Podman::new();
    let name = "runvm-test-update";
    let flags = ["--detach", "--name", name, "--memory", "200m"];
    run(&mut podman.container(&flags, &["sleep", "100000"])).success();
    podman.run(&["update", "--memory", "100m", "--cpus", "0.5", name]).success();
    let outcome = podman.run(&["exec", name, "sh", "-c", "cd /sys/fs/cgroup; cat memory.max cpu.max"]).success();
    assert_eq!(outcome.stdout, "104857600\n50000 100000\n");
    podman.run(&["rm", "--force", "--time", "0", name]).success();
}

#[test]
fn a_failing_container_is_restarted() {
    let podman = Podman::new();
    let name = "runvm-test-restart";
    let flags = ["--detach", "--restart", "on-failure:2", "--name", name];
    run(&mut podman.container(&flags, &["sh", "-c", "echo run; exit 3"])).success();
    wait_for_logs(&podman, name, "run\nrun\nrun\n");
    process::wait_until("the last end", || podman.inspect(name, ".State.Status") == "exited");
    assert_eq!(podman.inspect(name, ".State.ExitCode"), "3");
    podman.run(&["rm", name]).success();
}

#[test]
fn an_image_is_built() {
    let podman = Podman::new();
    let dir = tests::place::work().join("podman-build");
    std::fs::create_dir_all(&dir).unwrap();
    let steps = "RUN cat /proc/sys/kernel/random/boot_id >/boot\nENV A=b\nRUN echo $A >/a\nRUN cat /boot /a";
    std::fs::write(dir.join("Dockerfile"), format!("FROM {IMAGE}\n{steps}\n")).unwrap();
    let flags = ["build", "--isolation", "oci", "--network", "none", "--force-rm", "--tag", "runvm-test-built"];
    let outcome = podman.run(&[&flags[..], &[&dir.display().to_string()]].concat()).success();
    assert!(outcome.stdout.contains("\nb\n"), "{outcome:?}");
    // Each step ran in the runtime under test: for a machine that is another boot.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(outcome.stdout.contains(boot.trim()), !tests::place::is_runvm(), "{outcome:?}");
    podman.run(&["rmi", "runvm-test-built"]).success();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn vm_processes_of_the_host_are_not_listed() {
    let podman = Podman::new();
    let name = "runvm-test-top";
    run(&mut podman.container(&["--detach", "--name", name], &["sleep", "100000"])).success();
    // Podman looks for a procfs in the mount namespace of the pid, which has none.
    assert_eq!(podman.run(&["top", name, "pid"]).stdout.lines().count(), 1);
    // With ps's own options it has the container's ps tell.
    let listed = podman.run(&["top", name, "-o", "pid,comm"]).success().stdout;
    let rows: Vec<Vec<_>> = listed.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["1", "sleep"], "{listed}");
    assert!(rows.len() <= 2, "{listed}");
    podman.run(&["rm", "--force", "--time", "0", name]).success();
}

#[test]
fn files_go_in_and_out_while_it_runs() {
    let podman = Podman::new();
    let (name, dir) = ("runvm-test-cp", tests::place::work().join("podman-cp"));
    run(&mut podman.container(&["--detach", "--name", name], &["sleep", "100000"])).success();
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("in"), "from the host\n").unwrap();
    // Podman enters the mount namespace of the container's pid for this. The host's /root would be a leak.
    podman.run(&["cp", &dir.join("in").display().to_string(), &format!("{name}:/root/copied")]).success();
    let copied = || podman.run(&["exec", name, "cat", "/root/copied"]).stdout;
    process::wait_until("the copied file", || copied() == "from the host\n");
    assert!(!std::path::Path::new("/root/copied").exists());
    podman.run(&["exec", name, "sh", "-c", "echo from the guest >/root/made"]).success();
    podman.run(&["cp", &format!("{name}:/root/made"), &dir.join("out").display().to_string()]).success();
    assert_eq!(std::fs::read_to_string(dir.join("out")).unwrap(), "from the guest\n");
    podman.run(&["rm", "--force", "--time", "0", name]).success();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn files_go_in_and_out_of_volumes_while_it_runs() {
    let podman = Podman::new();
    let (name, dir) = ("runvm-test-volume", tests::place::work().join("podman-volume"));
    let volume = |kind: &str| dir.join(kind).display().to_string();
    for kind in ["own", "fixed"] {
        std::fs::create_dir_all(dir.join(kind)).unwrap();
    }
    std::fs::write(dir.join("in"), "from the host\n").unwrap();
    let mounts = [format!("{}:/data/own", volume("own")), format!("{}:/data/fixed:ro", volume("fixed"))];
    let flags = ["--detach", "--name", name, "--volume", &mounts[0], "--volume", &mounts[1]];
    run(&mut podman.container(&flags, &["sleep", "100000"])).success();
    podman.run(&["cp", &volume("in"), &format!("{name}:/data/own/copied")]).success();
    assert_eq!(std::fs::read_to_string(dir.join("own/copied")).unwrap(), "from the host\n");
    podman.run(&["cp", &volume("in"), &format!("{name}:/data/fixed/copied")]).failure();
    podman.run(&["exec", name, "sh", "-c", "echo from the guest >/data/own/made"]).success();
    podman.run(&["cp", &format!("{name}:/data/own/made"), &volume("out")]).success();
    assert_eq!(std::fs::read_to_string(dir.join("out")).unwrap(), "from the guest\n");
    podman.run(&["rm", "--force", "--time", "0", name]).success();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_pod_without_an_infra_container() {
    let podman = Podman::new();
    let pod = "runvm-test-pod";
    podman.run(&["pod", "create", "--name", pod, "--infra=false"]).success();
    let outcome = run(&mut podman.container(&["--pod", pod, "--rm"], &["echo", "in the pod"]));
    assert_eq!(outcome.success().stdout, "in the pod\n");
    podman.run(&["pod", "rm", pod]).success();
}

#[test]
fn a_pod_shares_network_ipc_and_host_name() {
    let podman = Podman::new();
    let pod = "runvm-test-infra";
    let infra = ["--infra-image", IMAGE, "--infra-command", "/bin/sleep 100000"];
    // This podman, without systemd, lets nobody open any device in a pod's own cgroup.
    let create = ["pod", "create", "--share-parent=false", "--name", pod, "--hostname", "pod", "--network", "none"];
    podman.run(&[&create[..], &infra[..]].concat()).success();
    let script =
        "hostname; for n in net ipc uts; do readlink /proc/self/ns/$n; done; echo here >/dev/shm/file; sleep 100000";
    podman.run(&["run", "--detach", "--pod", pod, "--name", "runvm-test-a", IMAGE, "sh", "-c", script]).success();
    let logs = || podman.run(&["logs", "runvm-test-a"]).success().stdout;
    process::wait_until("the container's output", || logs().lines().count() == 4);
    let theirs = logs();
    let script = "hostname; for n in net ipc uts; do readlink /proc/self/ns/$n; done; cat /dev/shm/file; exit 4";
    let outcome = podman.run(&["run", "--rm", "--pod", pod, IMAGE, "sh", "-c", script]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, format!("{theirs}here\n").as_str()), "{}", outcome.stderr);
    assert!(theirs.starts_with("pod\n"), "{theirs}");
    assert_eq!(podman.run(&["exec", "runvm-test-a", "echo", "hi"]).success().stdout, "hi\n");
    podman.run(&["pod", "stop", "--time", "1", pod]).success();
    assert_eq!(podman.inspect("runvm-test-a", ".State.Status"), "exited");
    podman.run(&["pod", "start", pod]).success();
    assert_eq!(podman.run(&["exec", "runvm-test-a", "hostname"]).success().stdout, "pod\n");
    podman.run(&["pod", "rm", "--force", "--time", "0", pod]).success();
}

#[test]
fn namespaces_of_another_container() {
    let podman = Podman::new();
    let name = "runvm-test-other";
    run(&mut podman.container(&["--detach", "--name", name], &["sleep", "100000"])).success();
    let other = format!("container:{name}");
    let flags = ["--rm", "--ipc", &other, "--pid", &other, "--network", &other];
    let outcome = podman.run(&[&["run"], &flags[..], &[IMAGE, "sh", "-c", "ps -o args; echo $$"]].concat()).success();
    assert!(outcome.stdout.contains("sleep 100000") && !outcome.stdout.ends_with("\n1\n"), "{outcome:?}");
    podman.run(&["rm", "--force", "--time", "0", name]).success();
}

#[test]
fn a_disk_of_the_host() {
    let podman = Podman::new();
    disk::is_handed_through("podman-disk", |device, script| {
        run(&mut podman.container(&["--rm", device], &["sh", "-c", script])).success().stdout
    });
}
