//! The `process` section of config.json, as the process itself sees it.

use serde_json::json;
use tests::command::run;
use tests::process::field;
use tests::{Container, Scene};

/// `/proc/self/status` of a container's process.
#[track_caller]
fn status(container: &mut Container) -> String {
    container.args(&["cat", "/proc/self/status"]).run().success().stdout
}

#[test]
fn user_and_groups() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/user", json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6]}));
    let status = status(&mut container);
    assert_eq!(field(&status, "Uid").unwrap(), "1000 1000 1000 1000");
    assert_eq!(field(&status, "Gid").unwrap(), "1001 1001 1001 1001");
    let groups = field(&status, "Groups").unwrap();
    assert!(groups.split(' ').eq(["5", "6"]) || groups.split(' ').eq(["5", "6", "1001"]), "{groups}");
}

#[test]
fn root_has_no_groups_of_the_hosts_caller() {
    let scene = Scene::new();
    let groups = field(&status(&mut scene.container()), "Groups").unwrap();
    assert!(groups.is_empty() || groups == "0", "{groups}");
}

#[test]
fn working_directory() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/cwd", json!("/var/tmp"));
    assert_eq!(container.sh("pwd; readlink /proc/self/cwd").run().success().stdout, "/var/tmp\n/var/tmp\n");
}

#[test]
fn a_missing_working_directory_is_made() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/cwd", json!("/made/for/this"));
    assert_eq!(container.sh("pwd").run().success().line(), "/made/for/this");
}

#[test]
fn a_program_beside_the_working_directory() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/cwd", json!("/bin"));
    assert_eq!(container.args(&["./echo", "found"]).run().success().line(), "found");
}

#[test]
fn environment_is_the_specs_alone() {
    let scene = Scene::new();
    let mut container = scene.container();
    container
        .set("/process/env", json!(["PATH=/bin:/usr/bin", "EMPTY=", "WORDS=two words", "UNICODE=ü✓", "EQUALS=a=b"]));
    let outcome = container.args(&["env"]).run().success();
    let mut lines: Vec<_> = outcome.stdout.lines().filter(|line| *line != "HOME=/root").collect();
    lines.sort_unstable();
    assert_eq!(lines, ["EMPTY=", "EQUALS=a=b", "PATH=/bin:/usr/bin", "UNICODE=ü✓", "WORDS=two words"]);
}

#[test]
fn an_environment_may_be_as_large_as_linux_takes_it() {
    let scene = Scene::new();
    let mut container = scene.container();
    let large = (0..52).map(|number| format!("LARGE_{number}={}", "x".repeat(100_000)));
    let env: Vec<_> = large.chain(["PATH=/bin:/usr/bin".to_owned()]).collect();
    container.set("/process/env", json!(env));
    // Linux takes a quarter of the stack's limit, and 6 MiB at most.
    container.set("/process/rlimits", json!([{"type": "RLIMIT_STACK", "hard": u64::MAX, "soft": u64::MAX}]));
    let mut created = container.sh("env | wc -c; read line").up();
    let size = |text: &str| text.trim().parse::<usize>().unwrap();
    assert!(size(&created.stdout.line()) > 5_200_000);
    // A process has the container's environment.
    assert!(size(&container.exec_sh("env | wc -c").success().stdout) > 5_200_000);
    container.end(&created);
}

#[test]
fn home_comes_from_the_images_passwd() {
    let scene = Scene::new();
    for (uid, home) in [(0, "/root"), (1000, "/home/app"), (4711, "/")] {
        let mut container = scene.container();
        container.set("/process/user/uid", json!(uid));
        assert_eq!(container.sh("echo $HOME").run().success().line(), home, "uid {uid}");
    }
}

#[test]
fn a_home_of_the_spec_wins() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/env", json!(["PATH=/bin", "HOME=/var"]));
    assert_eq!(container.sh("echo $HOME").run().success().line(), "/var");
}

#[test]
fn arguments_arrive_as_they_are() {
    let scene = Scene::new();
    let args = ["printf", "[%s]", "two words", "", "new\nline", "ü✓", "$HOME *", "-n", "'\""];
    let outcome = scene.container().args(&args).run().success();
    assert_eq!(outcome.stdout, "[two words][][new\nline][ü✓][$HOME *][-n]['\"]");
}

#[test]
fn many_arguments_arrive() {
    let scene = Scene::new();
    let long = "x".repeat(100_000);
    let args = ["sh", "-c", "echo ${#0} ${#1} $#", long.as_str(), long.as_str(), "z"];
    assert_eq!(scene.container().args(&args).run().success().line(), "100000 100000 2");
}

#[test]
fn capabilities_are_exactly_those_named() {
    let scene = Scene::new();
    let mut container = scene.container();
    let (few, all) = (json!(["CAP_CHOWN"]), json!(["CAP_CHOWN", "CAP_KILL"]));
    let sets = json!({"bounding": all, "permitted": all, "effective": few, "inheritable": few, "ambient": few});
    container.set("/process/capabilities", sets).set("/process/user/uid", json!(1000));
    let status = status(&mut container);
    // After an exec by another user than root, only what is ambient is left.
    for (set, value) in [("CapBnd", 0x21), ("CapInh", 1), ("CapAmb", 1), ("CapPrm", 1), ("CapEff", 1)] {
        assert_eq!(field(&status, set).unwrap(), format!("{value:016x}"), "{set}");
    }
}

#[test]
fn roots_capabilities_are_the_bounding_set() {
    let scene = Scene::new();
    let mut container = scene.container();
    let set = json!(["CAP_NET_BIND_SERVICE", "CAP_KILL", "CAP_SYS_ADMIN"]);
    container.set("/process/capabilities", json!({"bounding": set, "effective": set, "permitted": set}));
    let status = status(&mut container);
    let expected = format!("{:016x}", 1 << 10 | 1 << 5 | 1 << 21);
    for set in ["CapBnd", "CapPrm", "CapEff"] {
        assert_eq!(field(&status, set).unwrap(), expected, "{set}");
    }
    assert_eq!(field(&status, "CapAmb").unwrap(), "0000000000000000");
}

#[test]
fn no_capabilities() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/capabilities", json!({}));
    let status = status(&mut container);
    for set in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(field(&status, set).unwrap(), "0000000000000000", "{set}");
    }
}

#[test]
fn resource_limits() {
    let scene = Scene::new();
    let mut container = scene.container();
    let limit = |kind: &str, soft: u64, hard: u64| json!({"type": kind, "soft": soft, "hard": hard});
    let limits = json!([
        limit("RLIMIT_NOFILE", 1000, 2000),
        limit("RLIMIT_CORE", 0, 0),
        limit("RLIMIT_STACK", 4 << 20, u64::MAX)
    ]);
    container.set("/process/rlimits", limits);
    let outcome = container.args(&["cat", "/proc/self/limits"]).run().success();
    let line = |name: &str| {
        let line = outcome.stdout.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("Max open files"), "1000 2000");
    assert_eq!(line("Max core file size"), "0 0");
    assert_eq!(line("Max stack size"), "4194304 unlimited");
}

#[test]
fn umask() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/user/umask", json!(0o27));
    assert_eq!(container.sh("umask").run().success().line(), "0027");
}

#[test]
fn no_new_privileges() {
    let scene = Scene::new();
    for value in [true, false] {
        let mut container = scene.container();
        container.set("/process/noNewPrivileges", json!(value));
        assert_eq!(field(&status(&mut container), "NoNewPrivs").unwrap(), u8::from(value).to_string());
    }
}

/// Nice value, real-time priority and policy of whoever reads it (proc_pid_stat(5)).
const PLACE: &str = "cut -d' ' -f19,40,41 /proc/self/stat";

/// runc knows it from 1.2 on.
#[test]
fn vm_scheduler() {
    let scene = Scene::new();
    let table = [
        (json!({"policy": "SCHED_OTHER", "nice": 5}), "5 0 0"),
        (json!({"policy": "SCHED_BATCH", "nice": -3}), "-3 0 3"),
        (json!({"policy": "SCHED_IDLE"}), "0 0 5"),
        (json!({"policy": "SCHED_FIFO", "priority": 7}), "0 7 1"),
        (json!({"policy": "SCHED_RR", "priority": 99, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}), "0 99 2"),
    ];
    for (scheduler, expected) in table {
        let mut container = scene.container();
        container.set("/process/scheduler", scheduler).set("/process/user/uid", json!(1000));
        // No shell between: the flag makes children ordinary again.
        let outcome = container.args(&["cut", "-d", " ", "-f19,40,41", "/proc/self/stat"]).run().success();
        assert_eq!(outcome.line(), expected);
    }
    let mut container = scene.container();
    let times =
        json!({"policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 20_000_000, "period": 30_000_000});
    container.set("/process/scheduler", times);
    assert_eq!(container.args(&["cut", "-d", " ", "-f41", "/proc/self/stat"]).run().success().line(), "6");
}

#[test]
fn vm_io_priority() {
    let scene = Scene::new();
    for (class, priority, expected) in
        [("RT", 3, "realtime: prio 3"), ("BE", 6, "best-effort: prio 6"), ("IDLE", 0, "idle")]
    {
        let mut container = scene.container();
        container.set("/process/ioPriority", json!({"class": format!("IOPRIO_CLASS_{class}"), "priority": priority}));
        assert_eq!(container.sh("ionice -p $$").run().success().line(), expected);
    }
}

#[test]
fn vm_an_exec_has_the_containers_place_or_its_own() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.annotate("io.runvm.vcpus", "2");
    container.set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 9}));
    container.set("/process/execCPUAffinity", json!({"initial": "0", "final": "1"}));
    let up = container.idle();
    let script = format!("{PLACE}; grep Cpus_allowed_list /proc/self/status; ionice -p $$");
    let outcome = container.exec_sh(&script).success();
    assert!(outcome.stdout.starts_with("9 0 3\nCpus_allowed_list:\t1\nnone: "), "{outcome:?}");
    let mut process = container.spec["process"].clone();
    process["args"] = json!(["sh", "-c", script]);
    process["scheduler"] = json!({"policy": "SCHED_RR", "priority": 2});
    process["execCPUAffinity"] = json!({"final": "0"});
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE"});
    let file = container.bundle().join("process.json");
    let exec = |process: &serde_json::Value| {
        std::fs::write(&file, process.to_string()).unwrap();
        tests::command::run(container.command("exec").arg("--process").arg(&file).arg(&container.id))
    };
    assert_eq!(exec(&process).success().stdout, "0 2 2\nCpus_allowed_list:\t0\nidle\n");
    process["execCPUAffinity"] = json!({"final": "2-5"});
    scene.refused(&exec(&process), &["execCPUAffinity.final", "2-5", "the VM has CPUs 0 to 1"]);
    container.end(&up);
}

#[test]
fn vm_other_cpus_come_up_after_the_start() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.annotate("io.runvm.vcpus", "2");
    let up = container.idle();
    // A little later, so that a process that does little needn't share the one CPU with that work.
    let script = "until [ $(nproc) = 2 ]; do sleep 0.1; done; cat /sys/devices/system/cpu/online";
    assert_eq!(container.exec_sh(script).success().line(), "0-1");
    container.end(&up);
}

#[test]
fn vm_a_place_that_does_not_exist_is_refused() {
    let scene = Scene::new();
    let refused = |field: &str, value: serde_json::Value, words: &[&str]| {
        let mut container = scene.container();
        container.set(field, value);
        scene.refused(&container.try_create(), words);
    };
    refused("/process/scheduler", json!({"policy": "SCHED_RR", "priority": 100}), &["scheduler.priority 100"]);
    refused("/process/scheduler", json!({"policy": "SCHED_NONE"}), &["SCHED_NONE", "config.json"]);
    refused("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), &["ioPriority.Priority: 8"]);
    refused("/process/user/umask", json!(0o1000), &["process.user.umask 512"]);
    refused("/process/user/additionalGids", json!([u32::MAX]), &["process.user.additionalGids 4294967295"]);
}

#[test]
fn oom_score() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/process/oomScoreAdj", json!(321));
    assert_eq!(container.args(&["cat", "/proc/self/oom_score_adj"]).run().success().line(), "321");
}

#[test]
fn no_descriptors_but_the_standard_ones() {
    let scene = Scene::new();
    // The shell's own listing holds one for the directory, and none is left from the runtime.
    let outcome = scene.sh("for fd in /proc/self/fd/*; do [ -e $fd ] && echo ${fd##*/}; done; true").success();
    assert_eq!(outcome.stdout, "0\n1\n2\n");
}

#[test]
fn no_signal_is_blocked_or_ignored() {
    let scene = Scene::new();
    let status = status(&mut scene.container());
    for mask in ["SigBlk", "SigIgn"] {
        let value = u64::from_str_radix(&field(&status, mask).unwrap(), 16).unwrap();
        // The real-time ones belong to the language runtimes: Go leaves 32 ignored.
        assert_eq!(value & 0x7fff_ffff, 0, "{mask} {value:x}");
    }
}

#[test]
fn a_missing_program_is_named_in_runcs_words() {
    let scene = Scene::new();
    for program in ["no-such-program", "/no/such/program"] {
        let outcome = scene.container().args(&[program]).run();
        let words =
            if program.starts_with('/') { "no such file or directory" } else { "executable file not found in $PATH" };
        scene.refused(&outcome, &[&format!("exec: \"{program}\": "), words]);
    }
}

#[test]
fn what_is_no_program_is_named_in_runcs_words() {
    let scene = Scene::new();
    for program in ["/etc/passwd", "/etc"] {
        let outcome = scene.container().args(&[program]).run();
        let error = scene.errors().pop().unwrap();
        assert!(error.contains("permission denied") || error.contains("is a directory"), "{error}");
        scene.refused(&outcome, &[&format!("exec: \"{program}\": ")]);
    }
}

/// Seconds since 1970, as a container says them.
fn time_in(container: &Container) -> i64 {
    container.exec(&["date", "+%s"]).success().line().parse().unwrap()
}

#[test]
fn the_clock_is_the_hosts_also_when_it_is_set() {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let scene = Scene::new();
    let mut container = scene.container();
    let up = container.idle();
    assert!((time_in(&container) - now()).abs() <= 2);
    // Not the clock of somebody's machine.
    if tests::place::host_is_ours() {
        for step in [100_000, -100_000] {
            run(std::process::Command::new("date").args(["--set", &format!("@{}", now() + step)])).success();
            let near = || (time_in(&container) - now()).abs() <= 2;
            tests::process::wait_until("the new time in the container", near);
        }
    }
    container.end(&up);
}

#[test]
fn vm_no_two_machines_are_alike() {
    let scene = Scene::new();
    // The first that a process can ask: the pool must be ready, and another one's.
    let script = "head -c 24 /dev/urandom | base64; cd /proc/sys/kernel/random && cat entropy_avail boot_id uuid";
    let (one, two) = (scene.sh(script).success().stdout, scene.sh(script).success().stdout);
    let (one, two): (Vec<&str>, Vec<&str>) = (one.lines().collect(), two.lines().collect());
    assert_eq!((one.len(), one[1], two[1]), (4, "256", "256"), "{one:?}");
    for line in [0, 2, 3] {
        assert_ne!(one[line], two[line]);
    }
}

#[test]
fn vm_virtualisation_is_there_where_it_is_allowed() {
    let scene = Scene::new();
    let seen = |container: &mut tests::Container| {
        let outcome = container.sh("grep -E -w -c 'svm|vmx' /proc/cpuinfo").run();
        outcome.line() != "0"
    };
    assert!(!seen(&mut scene.container()));
    let nested = ["kvm_amd", "kvm_intel"].map(|module| format!("/sys/module/{module}/parameters/nested"));
    let offered =
        nested.iter().any(|file| matches!(std::fs::read_to_string(file).unwrap_or_default().trim(), "1" | "Y"));
    assert_eq!(seen(scene.container().annotate("io.runvm.nested", "true")), offered);
}
