//! More of an unmodified dockerd, whose default runtime is the one under test and whose containers outlive it.

use std::fs::File;
use std::path::PathBuf;

use tests::command::{Running, run, run_with_input, start};
use tests::docker::{Docker, IMAGE};
use tests::stream::pipe;
use tests::unix::{CLIENT, client};
use tests::{Reader, place, process};

/// Ends at TERM with 9, tells both its beginning and its end.
const POLITE: &str = "trap 'echo stopping; exit 9' TERM; echo started; sleep 100000 & while :; do wait $!; done";

fn docker() -> Docker {
    Docker::with(&["--default-runtime", "vm", "--live-restore"])
}

/// A detached container that waits until it is killed.
#[track_caller]
fn idle(docker: &Docker, name: &str, flags: &[&str]) {
    run(&mut docker.container(&[&["--detach", "--name", name], flags].concat(), &["sleep", "100000"])).success();
}

#[track_caller]
fn remove(docker: &Docker, name: &str) {
    docker.run(&["rm", "--force", name]).success();
}

#[track_caller]
fn inspect(docker: &Docker, name: &str, what: &str) -> String {
    docker.run(&["inspect", "--format", &format!("{{{{{what}}}}}"), name]).success().line().to_owned()
}

#[track_caller]
fn wait_for(docker: &Docker, name: &str, what: &str, wanted: &str) {
    process::wait_until(wanted, || inspect(docker, name, what) == wanted);
}

#[track_caller]
fn wait_for_logs(docker: &Docker, name: &str, wanted: &str) {
    process::wait_until("the container's log", || docker.run(&["logs", name]).stdout == wanted);
}

/// A folder for a test's files.
fn folder(name: &str) -> PathBuf {
    let dir = place::work().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn create_start_and_attach() {
    let docker = docker();
    let name = "runvm-test-attach";
    let script = "while read line; do echo \"got $line\"; done; exit 5";
    let create = ["create", "--interactive", "--network", "none", "--name", name, IMAGE, "sh", "-c", script];
    docker.run(&create).success();
    assert_eq!(inspect(&docker, name, ".State.Status"), "created");
    docker.run(&["start", name]).success();
    let (stdin, stdout) = (pipe(), pipe());
    let mut command = docker.command(&["attach", name]);
    let mut child = command.stdin(stdin.0).stdout(stdout.1).spawn().unwrap();
    drop(command);
    let mut output = Reader::new(stdout.0);
    rustix::io::write(&stdin.1, b"one\n").unwrap();
    output.expect("got one\n");
    rustix::io::write(&stdin.1, b"two\n").unwrap();
    output.expect("got two\n");
    drop(stdin.1);
    assert!(process::wait_end(child.id() as i32, tests::PATIENCE));
    assert_eq!(tests::command::code(child.wait().unwrap()), 5);
    assert_eq!(docker.run(&["logs", name]).stdout, "got one\ngot two\n");
    remove(&docker, name);
}

#[test]
fn files_go_in_and_out_while_it_runs() {
    let docker = docker();
    let (name, dir) = ("runvm-test-cp", folder("docker-cp"));
    idle(&docker, name, &[]);
    std::fs::write(dir.join("in"), "from the host\n").unwrap();
    docker.run(&["cp", &dir.join("in").display().to_string(), &format!("{name}:/root/copied")]).success();
    process::wait_until("the copied file", || {
        docker.run(&["exec", name, "cat", "/root/copied"]).stdout == "from the host\n"
    });
    docker.run(&["exec", name, "sh", "-c", "echo from the guest >/root/made"]).success();
    docker.run(&["cp", &format!("{name}:/root/made"), &dir.join("out").display().to_string()]).success();
    assert_eq!(std::fs::read_to_string(dir.join("out")).unwrap(), "from the guest\n");
    remove(&docker, name);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_is_copied_into_a_volume_is_heard_of() {
    let docker = docker();
    let (name, dir) = ("runvm-test-heard", folder("docker-heard"));
    let (volume, client) = (format!("{}:/volume", dir.display()), format!("{}:{CLIENT}:ro", client().display()));
    let watch = format!("{CLIENT}/watch 0x100 /volume");
    let flags = ["--detach", "--name", name, "--volume", &volume, "--volume", &client];
    tests::command::run(&mut docker.container(&flags, &["sh", "-c", &watch])).success();
    process::wait_until("the watch", || docker.run(&["logs", name]).stdout == "ready\n");
    std::fs::write(dir.with_extension("in"), "from the host\n").unwrap();
    let from = dir.with_extension("in");
    docker.run(&["cp", &from.display().to_string(), &format!("{name}:/volume/end")]).success();
    assert_eq!(docker.run(&["wait", name]).stdout, "0\n");
    assert_eq!(docker.run(&["logs", name]).stdout, "ready\nCREATE 0/end\n");
    docker.run(&["rm", name]).success();
    std::fs::remove_file(from).unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn what_changed_can_be_seen_kept_and_taken_away() {
    let docker = docker();
    let (name, dir) = ("runvm-test-commit", folder("docker-export"));
    idle(&docker, name, &[]);
    docker.run(&["exec", name, "sh", "-c", "echo content >/made; rm /etc/os-release; echo x >>/etc/group"]).success();
    let changes = docker.run(&["diff", name]).success().stdout;
    let mut lines: Vec<_> = changes.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A /made", "C /etc", "C /etc/group", "D /etc/os-release"]);
    docker.run(&["commit", name, "runvm-test-made"]).success();
    let archive = dir.join("tar");
    docker.run(&["export", "--output", &archive.display().to_string(), name]).success();
    let mut list = std::process::Command::new("tar");
    assert_eq!(run(list.arg("-xOf").arg(&archive).arg("made")).success().stdout, "content\n");
    remove(&docker, name);
    let show = ["run", "--rm", "--network", "none", "runvm-test-made", "sh", "-c", "cat /made; ls /etc/os-release"];
    assert_eq!(docker.run(&show).failure().stdout, "content\n");
    docker.run(&["rmi", "runvm-test-made"]).success();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn figures_of_a_container() {
    let docker = docker();
    let name = "runvm-test-figures";
    idle(&docker, name, &[]);
    let format = "{{.Name}} {{.MemUsage}} {{.PIDs}}";
    let stats = docker.run(&["stats", "--no-stream", "--format", format, name]).success();
    let words: Vec<_> = stats.line().split_whitespace().collect();
    assert_eq!(words[0], name, "{stats:?}");
    assert!(!words[1].starts_with('0') && words.last() != Some(&"0"), "{stats:?}");
    let top = docker.run(&["top", name, "-o", "pid,comm"]).success().stdout;
    let pid = inspect(&docker, name, ".State.Pid");
    let listed: Vec<_> = top.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(listed, [pid.as_str()], "{top}");
    remove(&docker, name);
}

#[test]
fn pause_and_unpause() {
    let docker = docker();
    let name = "runvm-test-pause";
    idle(&docker, name, &[]);
    docker.run(&["pause", name]).success();
    assert_eq!(inspect(&docker, name, ".State.Status"), "paused");
    let refused = docker.run(&["exec", name, "true"]).failure();
    assert!(refused.stderr.contains("paused"), "{refused:?}");
    docker.run(&["unpause", name]).success();
    assert_eq!(inspect(&docker, name, ".State.Status"), "running");
    docker.run(&["exec", name, "true"]).success();
    remove(&docker, name);
}

#[test]
fn limits_are_updated() {
    let docker = docker();
    let name = "runvm-test-update";
    idle(&docker, name, &["--memory", "200m", "--memory-swap", "200m"]);
    let limits = ["--memory", "100m", "--memory-swap", "100m", "--cpus", "0.5", "--pids-limit", "77"];
    docker.run(&[&["update"], &limits[..], &[name]].concat()).success();
    let files = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max";
    let outcome = docker.run(&["exec", name, "sh", "-c", files]).success();
    assert_eq!(outcome.stdout, "104857600\n50000 100000\n77\n");
    remove(&docker, name);
}

#[test]
fn a_failing_container_is_restarted() {
    let docker = docker();
    let name = "runvm-test-restart";
    let flags = ["--detach", "--restart", "on-failure:2", "--name", name];
    run(&mut docker.container(&flags, &["sh", "-c", "echo run; exit 3"])).success();
    wait_for(&docker, name, ".RestartCount", "2");
    wait_for(&docker, name, ".State.Status", "exited");
    assert_eq!(inspect(&docker, name, ".State.ExitCode"), "3");
    assert_eq!(docker.run(&["logs", name]).stdout, "run\nrun\nrun\n");
    remove(&docker, name);
}

#[test]
fn a_health_check_says_what_the_container_is() {
    let docker = docker();
    let name = "runvm-test-health";
    let check = ["--health-cmd", "test -e /healthy", "--health-interval", "1s", "--health-retries", "1"];
    idle(&docker, name, &[&check[..], &["--health-timeout", "60s"]].concat());
    wait_for(&docker, name, ".State.Health.Status", "unhealthy");
    docker.run(&["exec", name, "touch", "/healthy"]).success();
    wait_for(&docker, name, ".State.Health.Status", "healthy");
    remove(&docker, name);
}

#[test]
fn a_process_that_ignores_term_is_killed() {
    let docker = docker();
    let name = "runvm-test-stop";
    let script = "trap '' TERM; echo up; while :; do sleep 1; done";
    run(&mut docker.container(&["--detach", "--name", name], &["sh", "-c", script])).success();
    wait_for_logs(&docker, name, "up\n");
    docker.run(&["stop", "--time", "1", name]).success();
    assert_eq!(inspect(&docker, name, ".State.ExitCode"), "137");
    remove(&docker, name);
}

#[test]
fn a_signal_reaches_the_process() {
    let docker = docker();
    let name = "runvm-test-signal";
    let script = "trap 'exit 42' USR1; echo up; sleep 100000 & wait $!";
    let attached = attached(&docker, name, &["sh", "-c", script]);
    process::wait_until("the container's log", || docker.run(&["logs", name]).stdout == "up\n");
    docker.run(&["kill", "--signal", "USR1", name]).success();
    assert_eq!(attached.finish().code, 42);
}

fn attached(docker: &Docker, name: &str, args: &[&str]) -> Running {
    start(docker.container(&["--rm", "--name", name], args).stdin(std::process::Stdio::null()))
}

#[test]
fn file_systems_of_the_command_line() {
    let docker = docker();
    let dir = folder("docker-mounts");
    std::fs::write(dir.join("file"), "a file\n").unwrap();
    std::fs::create_dir_all(dir.join("inner")).unwrap();
    let at = |source: &str, rest: &str| format!("{}:{rest}", dir.join(source).display());
    let volumes = [at("inner", "/rw"), at("inner", "/ro:ro"), at("file", "/etc/file:ro"), at("file", "/etc/written")];
    let mut flags = vec!["--rm", "--read-only", "--tmpfs", "/scratch:size=1m,mode=1777"];
    volumes.iter().for_each(|volume| flags.extend(["--volume", volume.as_str()]));
    let script = "touch /x || echo no; echo s >/scratch/s && cat /scratch/s; echo made >/rw/made; cat /ro/made
        touch /ro/x || echo no; cat /etc/file; echo more >/etc/file || echo no; echo new >/etc/written; cat /etc/file
        df /scratch | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2";
    let outcome = run(&mut docker.container(&flags, &["sh", "-c", script])).success();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines, ["no", "s", "made", "no", "a file", "no", "new", "1024"], "{outcome:?}");
    assert_eq!(std::fs::read_to_string(dir.join("inner/made")).unwrap(), "made\n");
    assert_eq!(std::fs::read_to_string(dir.join("file")).unwrap(), "new\n");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn an_init_that_reaps() {
    let docker = docker();
    // The shell's orphan becomes a child of docker's init, which is process 1.
    let script =
        "cat /proc/1/comm; (sleep 0.2 & echo $! >/pid); while [ -e /proc/$(cat /pid) ]; do sleep 0.1; done; exit 8";
    let outcome = run(&mut docker.container(&["--rm", "--init"], &["sh", "-c", script]));
    assert_eq!((outcome.code, outcome.stdout.trim_end()), (8, "docker-init"), "{outcome:?}");
}

#[test]
fn an_exec_has_settings_of_its_own() {
    let docker = docker();
    let name = "runvm-test-exec";
    idle(&docker, name, &["--env", "A=outer"]);
    let flags = ["exec", "--user", "1000:1000", "--env", "B=b c", "--workdir", "/tmp", name];
    let outcome = docker.run(&[&flags[..], &["sh", "-c", "echo $A; echo $B; pwd; id -u; exit 7"]].concat());
    assert_eq!((outcome.code, outcome.stdout.as_str()), (7, "outer\nb c\n/tmp\n1000\n"));
    let path = place::work().join("docker-exec-input");
    std::fs::write(&path, "echo said; exit 6\n").unwrap();
    let mut command = docker.command(&["exec", "--interactive", name, "sh"]);
    let outcome = run_with_input(&mut command, File::open(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    assert_eq!((outcome.code, outcome.stdout.as_str()), (6, "said\n"));
    docker.run(&["exec", name, "sh", "-c", "kill -TERM $$"]).exits(143);
    docker.run(&["exec", "--detach", name, "sh", "-c", "echo later >/later"]).success();
    process::wait_until("the detached exec", || docker.run(&["exec", name, "cat", "/later"]).stdout == "later\n");
    remove(&docker, name);
}

#[test]
fn an_image_is_built() {
    let docker = docker();
    let dir = folder("docker-build");
    let steps =
        "RUN echo one >/one && id -u\nENV A=b\nWORKDIR /w\nUSER 1000\nRUN pwd; echo $A; id -u; hostname >/dev/null
        COPY file /copied\nRUN cat /one /copied\nCMD [\"cat\", \"/one\", \"/copied\"]\n";
    std::fs::write(dir.join("Dockerfile"), format!("FROM {IMAGE}\n{steps}")).unwrap();
    std::fs::write(dir.join("file"), "two\n").unwrap();
    let build = |file: &str| {
        let (tag, file) = ("runvm-test-built", dir.join(file).display().to_string());
        let args =
            ["build", "--network", "none", "--force-rm", "--tag", tag, "--file", &file, &dir.display().to_string()];
        run(docker.command(&args).env("DOCKER_BUILDKIT", "0"))
    };
    let outcome = build("Dockerfile").success();
    assert!(outcome.stdout.contains("/w\nb\n1000\n") && outcome.stdout.contains("one\ntwo\n"), "{outcome:?}");
    let shown = docker.run(&["run", "--rm", "--network", "none", "runvm-test-built"]).success();
    assert_eq!(shown.stdout, "one\ntwo\n");
    std::fs::write(dir.join("failing"), format!("FROM {IMAGE}\nRUN exit 11\n")).unwrap();
    let failed = build("failing").failure();
    assert!(failed.stderr.contains("non-zero code: 11"), "{failed:?}");
    docker.run(&["rmi", "runvm-test-built"]).success();
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_container_outlives_the_daemon() {
    let mut docker = docker();
    let name = "runvm-test-outlives";
    run(&mut docker.container(&["--detach", "--name", name], &["sh", "-c", POLITE])).success();
    wait_for_logs(&docker, name, "started\n");
    let pid = inspect(&docker, name, ".State.Pid");
    docker.restart();
    assert_eq!(inspect(&docker, name, ".State.Status"), "running");
    assert_eq!(inspect(&docker, name, ".State.Pid"), pid);
    let outcome = docker.run(&["exec", name, "sh", "-c", "echo from exec; exit 4"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (4, "from exec\n"));
    docker.run(&["stop", name]).success();
    assert_eq!(inspect(&docker, name, ".State.ExitCode"), "9");
    assert_eq!(docker.run(&["logs", name]).stdout, "started\nstopping\n");
    docker.run(&["start", name]).success();
    wait_for_logs(&docker, name, "started\nstopping\nstarted\n");
    remove(&docker, name);
}

#[test]
fn seccomp_profiles() {
    let docker = docker();
    // The default profile keeps those without CAP_SYS_ADMIN from new namespaces.
    let unshare = ["unshare", "-U", "grep", "Seccomp:", "/proc/self/status"];
    let denied = docker.once(&unshare).failure();
    assert!(denied.stderr.contains("Operation not permitted"), "{denied:?}");
    let flags = ["--rm", "--security-opt", "seccomp=unconfined"];
    assert_eq!(run(&mut docker.container(&flags, &unshare)).success().stdout, "Seccomp:\t0\n");
    let file = folder("seccomp").join("profile.json");
    let rule = r#"{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}"#;
    std::fs::write(&file, format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#)).unwrap();
    let flags = ["--rm", "--security-opt", &format!("seccomp={}", file.display())];
    let denied = run(&mut docker.container(&flags, &["mkdir", "/tmp/a"])).failure();
    assert!(denied.stderr.contains("Operation not permitted"), "{denied:?}");
}

#[test]
fn lack_of_memory_is_told() {
    let docker = docker();
    // One that dies of it, one that lives on for a while, and one that has enough. dockerd tells at the end.
    let scripts = [
        ("runvm-test-oom", "exec tail /dev/zero", "137", "true"),
        ("runvm-test-oom-child", "tail /dev/zero; sleep 2; exit 3", "3", "true"),
        ("runvm-test-no-oom", "exit 4", "4", "false"),
    ];
    for (name, script, code, killed) in scripts {
        let flags = ["--detach", "--memory", "48m", "--memory-swap", "48m", "--name", name];
        run(&mut docker.container(&flags, &["sh", "-c", script])).success();
        assert_eq!(docker.run(&["wait", name]).success().line(), code);
        assert_eq!(inspect(&docker, name, ".State.OOMKilled"), killed, "{name}");
        remove(&docker, name);
    }
}

#[test]
fn namespaces_of_another_container() {
    let docker = docker();
    let name = "runvm-test-first";
    let first = ["--detach", "--name", name, "--ipc", "shareable", "--memory", "64m"];
    run(&mut docker.container(&first, &["sh", "-c", "echo here >/dev/shm/file; exec sleep 100000"])).success();
    let other = format!("container:{name}");
    let second = |flags: &[&str], script: &str| {
        let all = [&["run", "--rm", "--runtime", "vm"], flags, &[tests::docker::IMAGE, "sh", "-c", script]].concat();
        docker.run(&all)
    };
    let links = "for n in pid ipc net; do readlink /proc/self/ns/$n; done";
    let theirs = docker.run(&["exec", name, "sh", "-c", links]).success().stdout;
    let flags = ["--pid", &other, "--ipc", &other, "--network", &other];
    let outcome = second(&flags, &format!("{links}; cat /dev/shm/file; ps -o args | grep -c '[s]leep 100000'; exit 6"));
    assert_eq!((outcome.code, outcome.stdout), (6, format!("{theirs}here\n1\n")), "{}", outcome.stderr);
    docker.run(&["rm", "--force", name]).success();
}
