//! The `process` section of config.json, as the process itself sees it.

use serde_json::json;
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
