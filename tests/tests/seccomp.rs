//! `linux.seccomp`, seen by what a filter does to processes.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tests::command::run;
use tests::{Container, Scene};

/// Exit code of a process that a filter killed: 128 + SIGSYS.
const KILLED: i32 = 159;

fn forbid(container: &mut Container, names: &[&str], action: &str) {
    let rule = json!({"names": names, "action": action});
    container.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
}

#[test]
fn a_call_that_is_forbidden_fails() {
    let scene = Scene::new();
    let mut container = scene.container();
    forbid(&mut container, &["mkdir", "mkdirat"], "SCMP_ACT_ERRNO");
    let outcome = container.sh("mkdir /tmp/a; touch /tmp/b && echo the rest works").run().success();
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    assert_eq!(outcome.stdout, "the rest works\n");
}

#[test]
fn the_errno_is_the_profiles() {
    let scene = Scene::new();
    let mut container = scene.container();
    let rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28});
    container.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    let outcome = container.args(&["mkdir", "/tmp/a"]).run().failure();
    assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
}

#[test]
fn whoever_makes_a_deadly_call_dies() {
    let scene = Scene::new();
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let mut container = scene.container();
        forbid(&mut container, &["mkdir", "mkdirat"], action);
        assert_eq!(container.args(&["mkdir", "/tmp/a"]).run().code, KILLED, "{action}");
    }
}

#[test]
fn later_processes_have_it_too() {
    let scene = Scene::new();
    let mut container = scene.container();
    forbid(&mut container, &["mkdir", "mkdirat"], "SCMP_ACT_ERRNO");
    let up = container.idle();
    let outcome = container.exec(&["mkdir", "/tmp/a"]).failure();
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome:?}");
    let mode = container.exec_sh("grep Seccomp: /proc/self/status /proc/1/status");
    assert_eq!(mode.stdout, "/proc/self/status:Seccomp:\t2\n/proc/1/status:Seccomp:\t2\n");
    container.end(&up);
}

// Without no_new_privs the filter is there before capabilities go, with it right before the program.
#[test]
fn with_and_without_new_privileges() {
    let scene = Scene::new();
    for no_new_privileges in [false, true] {
        let mut container = scene.container();
        container.set("/process/noNewPrivileges", json!(no_new_privileges));
        container.set("/process/user", json!({"uid": 1000, "gid": 1000}));
        forbid(&mut container, &["mkdir", "mkdirat"], "SCMP_ACT_ERRNO");
        let outcome = container.sh("mkdir /tmp/a && echo made; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status").run();
        let expected = format!("NoNewPrivs:\t{}\nSeccomp:\t2\n", u8::from(no_new_privileges));
        assert_eq!(outcome.stdout, expected, "{outcome:?}");
    }
}

#[test]
fn arguments_are_compared() {
    let scene = Scene::new();
    let mut container = scene.container();
    // kill(2) with signal 0 only, of a process group that is not one's own.
    let arg = |index: u32, value: u64, op: &str| json!({"index": index, "value": value, "op": op});
    let rule = json!({"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
                      "args": [arg(1, 0, "SCMP_CMP_EQ"), arg(0, 1, "SCMP_CMP_NE")]});
    container.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    let outcome = container.sh("kill -0 1 && echo one; sleep 9 & kill -0 $! || echo other; kill -CONT $! && echo CONT");
    let outcome = outcome.run();
    assert_eq!(outcome.stdout, "one\nother\nCONT\n", "{outcome:?}");
}

#[test]
fn calls_newer_than_the_profile_do_not_exist() {
    let scene = Scene::new();
    let mut container = scene.container();
    program(&container, "/new", &call(X86_64, 5000));
    // What a runtime written in Go does on the way to the program.
    const GO: &str = "read write close openat fcntl futex nanosleep epoll_pwait epoll_ctl mmap munmap madvise newfstatat \
                      rt_sigprocmask rt_sigreturn rt_sigaction sigaltstack getpid gettid tgkill prctl exit_group execve exit \
                      fstat pread64 lseek getppid readlinkat getdents64 clone clone3 set_robust_list rseq mprotect brk \
                      sched_yield sched_getaffinity capget capset getuid geteuid getgid getegid statfs fstatfs stat access \
                      faccessat faccessat2 chdir getcwd kill dup3 pipe2 eventfd2 fchdir seccomp timer_settime timer_create";
    let rule = json!({"names": GO.split_whitespace().collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW"});
    container.set("/process/noNewPrivileges", json!(true));
    container.set(
        "/linux/seccomp",
        json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]}),
    );
    container.args(&["/new"]).run().exits(38);
}

#[test]
fn the_32_bit_calls_are_of_their_own_architecture() {
    let scene = Scene::new();
    for (architectures, expected) in [(json!(["SCMP_ARCH_X86_64"]), KILLED), (json!(["SCMP_ARCH_X86"]), 5)] {
        let mut container = scene.container();
        program(&container, "/old", &call(X86, 20));
        let rule = json!({"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5});
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": [rule]});
        container.set("/linux/seccomp", profile);
        assert_eq!(container.args(&["/old"]).run().code, expected, "{architectures}");
    }
}

#[test]
fn names_that_the_kernel_does_not_know_are_passed_over() {
    let scene = Scene::new();
    let mut container = scene.container();
    forbid(&mut container, &["no_such_call", "arm_fadvise64_64", "mkdir", "mkdirat"], "SCMP_ACT_ERRNO");
    container.args(&["mkdir", "/tmp/a"]).run().failure();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let scene = Scene::new();
    let table: [(Value, &[&str]); 3] = [
        (json!({"defaultAction": "SCMP_ACT_FORGIVE"}), &["SCMP_ACT_FORGIVE"]),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"]}), &["SCMP_ARCH_ABACUS"]),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [""], "action": "SCMP_ACT_ERRNO"}]}),
            &["empty string is not a valid syscall"],
        ),
    ];
    for (profile, words) in table {
        let mut container = scene.container();
        container.set("/linux/seccomp", profile);
        scene.refused(&container.args(&["true"]).try_create(), words);
    }
    scene.check();
}

#[test]
fn vm_who_would_be_notified_is_on_the_host() {
    let scene = Scene::new();
    let mut container = scene.container();
    forbid(&mut container, &["mkdir"], "SCMP_ACT_NOTIFY");
    container.set("/linux/seccomp/listenerPath", json!("/run/nobody.sock"));
    scene.refused(&container.args(&["true"]).try_create(), &["SCMP_ACT_NOTIFY", "mkdir", "guest's kernel"]);
    drop(container);
    scene.check();
}

#[test]
fn features_list_it() {
    let scene = Scene::new();
    let features: Value = serde_json::from_str(&run(scene.runtime().arg("features")).success().stdout).unwrap();
    let seccomp = &features["linux"]["seccomp"];
    assert_eq!(seccomp["enabled"], true);
    assert!(seccomp["actions"].as_array().unwrap().contains(&json!("SCMP_ACT_ERRNO")), "{seccomp}");
}

const X86_64: [u8; 2] = [0x0f, 0x05];
const X86: [u8; 2] = [0xcd, 0x80];

/// Machine code that makes a system call, one way or the other, and exits with the errno.
fn call(instruction: [u8; 2], number: u32) -> Vec<u8> {
    let mut code = vec![0xb8]; // mov eax, number
    code.extend(number.to_le_bytes());
    code.extend(instruction);
    code.extend([0xf7, 0xd8]); // neg eax
    code.extend([0x89, 0xc7]); // mov edi, eax
    code.extend([0xb8, 60, 0, 0, 0]); // mov eax, exit
    code.extend(X86_64);
    code
}

/// Puts a static program of these instructions into the container: an ELF header, one segment, the code.
fn program(container: &Container, path: &str, code: &[u8]) {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes());
    }
    let size = HEADERS + code.len() as u64;
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    let path = container.rootfs().join(path.trim_start_matches('/'));
    std::fs::write(&path, file).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}
