//! What a container is promised.

use crate::harness::*;
use protocol::*;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// Every case with its name.
        pub const ALL: &[(&str, Case)] = &[$((stringify!($name), |host| Box::pin($name(host)))),*];
    };
}

cases![
    output_and_exit_code,
    a_signal_is_an_exit_code,
    stdin_reaches_the_process_and_ends,
    stdout_can_be_opened_by_its_name,
    the_root_is_the_share_and_nothing_else,
    devices_and_links_are_there,
    masked_and_readonly_paths,
    a_read_only_root,
    binds_and_their_flags,
    a_tmpfs_may_be_filled_from_below,
    namespaces_are_its_own,
    user_groups_and_capabilities,
    limits_and_scores,
    sysctls_are_set,
    a_place_among_others,
    personality_and_clocks,
    a_working_directory_is_made,
    commands_that_can_not_run,
    a_failed_create_leaves_the_name_free,
    a_seccomp_filter_applies,
    a_terminal_is_one,
    created_containers_can_be_killed,
    a_second_process,
    a_second_process_that_can_not_run,
    a_second_process_with_a_terminal,
    a_second_process_goes_where_init_went,
    exec_in_a_stopped_container,
    signals_find_their_process,
    processes_are_listed,
    a_user_namespace,
    namespaces_are_shared,
    a_container_is_deleted_and_another_stays,
    what_cannot_be_shared,
    sockets_of_the_host,
    a_file_is_made_and_a_port_connected,
    a_network_is_set_up,
    a_network_that_can_not_be_set_up,
    the_networks_resolver_is_asked,
    without_a_pid_namespace_nothing_is_left,
    closing_stdout_breaks_the_pipe,
    a_large_request_comes_ahead_of_its_call,
    what_comes_ahead_is_bounded,
    nothing_leaks_per_exec,
    the_machine_is_configured,
    // The last: the agent ends the machine a little later.
    shutdown_ends_containers,
];

async fn output_and_exit_code(host: &mut Host) {
    let request = host.request("echo out; echo err >&2; exit 3");
    assert_eq!(host.run(request).await, (3, "out\n".into(), "err\n".into()));
}

async fn a_signal_is_an_exit_code(host: &mut Host) {
    let id = host.sleeper().await;
    host.kill(&id).await;
    assert_eq!(sentence(host.signal(&id, "", 9, false).await).1, "container not running");
}

async fn stdin_reaches_the_process_and_ends(host: &mut Host) {
    let mut request = host.request("cat; echo end");
    let (id, mut stdin) = host.stream();
    request.process.mut_or_insert_default().stdin = id;
    let text = "0123456789".repeat(50_000);
    let writer = std::thread::spawn({
        let text = text.clone();
        move || {
            stdin.write_all(text.as_bytes()).unwrap();
            stdin.shutdown(Shutdown::Write).unwrap();
            stdin
        }
    });
    assert!(host.output_of(request).await == text + "end\n");
    drop(writer.join().unwrap());
}

async fn stdout_can_be_opened_by_its_name(host: &mut Host) {
    let mut request = host.request("echo a > /dev/stdout; echo b > /proc/self/fd/1");
    let process = request.process.mut_or_insert_default();
    (process.uid, process.gid) = (1000, 1000);
    assert_eq!(host.output_of(request).await, "a\nb\n");
}

async fn the_root_is_the_share_and_nothing_else(host: &mut Host) {
    let mounts = host.output("cat /proc/mounts; ls -a /").await;
    assert!(!mounts.contains("/agent-service-") && mounts.contains("/dev/pts"), "{mounts}");
    assert!(mounts.contains("etc") && !mounts.contains("home"), "{mounts}");
    assert_eq!(host.output("ls /proc/self/fd").await, "0\n1\n2\n3\n");
}

async fn devices_and_links_are_there(host: &mut Host) {
    let mut request =
        host.request("stat -c '%n %t,%T %a' /dev/null /dev/tty /dev/fuse; readlink /dev/ptmx; readlink /dev/fd");
    let fuse =
        Device { path: "/dev/fuse".into(), kind: "c".into(), major: 10, minor: 229, mode: 0o660, ..Default::default() };
    request.devices = vec![fuse];
    let expected = "/dev/null 1,3 666\n/dev/tty 5,0 666\n/dev/fuse a,e5 660\npts/ptmx\n/proc/self/fd\n";
    assert_eq!(host.output_of(request).await, expected);
}

async fn masked_and_readonly_paths(host: &mut Host) {
    let mut request = host.request("cat /etc/secret; ls /root; touch /etc/x || echo ro; cat /proc/kcore | wc -c");
    std::fs::write(host.root.join("root/hidden"), "").unwrap();
    request.masked_paths = ["/etc/secret", "/root", "/proc/kcore", "/none", "/etc/secret/none"].map(Into::into).into();
    request.readonly_paths = vec!["/etc".into(), "/none".into()];
    assert_eq!(host.output_of(request).await, "ro\n0\n");
}

async fn a_read_only_root(host: &mut Host) {
    let mut request =
        host.request("touch /x 2>/dev/null || echo ro; touch /tmp/x /dev/y && echo rw; touch /late/z || echo late");
    request.rootfs_readonly = true;
    request.mounts.push(mount("/late", "tmpfs", "", libc::MS_RDONLY));
    assert_eq!(host.output_of(request).await, "ro\nrw\nlate\n");
}

async fn binds_and_their_flags(host: &mut Host) {
    let shares = host.root.parent().unwrap().to_owned();
    std::fs::create_dir_all(shares.join("volume")).unwrap();
    std::fs::write(shares.join("volume/f"), "in volume\n").unwrap();
    std::fs::write(shares.join("hosts"), "hosts\n").unwrap();
    std::os::unix::fs::symlink("/data", host.root.join("link")).unwrap();
    let mut request =
        host.request("cat /data/dir/f /etc/hosts; touch /data/dir/x || echo ro; echo > /etc/hosts && cat /guest");
    let bind =
        |destination: &str, share: &str, flags| Mount { share: share.into(), ..mount(destination, "bind", "", flags) };
    let volume = Mount { source_is_dir: true, recursive: true, ..bind("/link/dir", "volume", libc::MS_RDONLY) };
    let guest = Mount { source: "/dev/null".into(), ..bind("/guest", "", 0) };
    request.mounts.extend([volume, bind("/etc/hosts", "hosts", 0), guest]);
    assert_eq!(host.output_of(request).await, "in volume\nhosts\nro\n");
    assert_eq!(std::fs::read_to_string(shares.join("hosts")).unwrap(), "\n");

    let mut request = host.request("true");
    request.mounts.push(bind("/missing", "missing", 0));
    let (_, message) = sentence(host.create(&request).await);
    assert_eq!(message, "error mounting \"missing\" to rootfs at \"/missing\": no such file or directory");
}

async fn a_tmpfs_may_be_filled_from_below(host: &mut Host) {
    let mut request = host.request("cat /etc/secret && echo changed > /etc/secret && stat -f -c %T /etc");
    request.mounts.push(Mount { copy_up: true, ..mount("/etc", "tmpfs", "", 0) });
    assert_eq!(host.output_of(request).await, "secret\ntmpfs\n");
    assert_eq!(std::fs::read_to_string(host.root.join("etc/secret")).unwrap(), "secret\n");
}

async fn namespaces_are_its_own(host: &mut Host) {
    let text =
        host.output("hostname; echo $$; cat /proc/self/cgroup | grep ^0; ip -o link show up | cut -d: -f2").await;
    assert_eq!(text, "box\n1\n0::/\n lo\n");
}

async fn user_groups_and_capabilities(host: &mut Host) {
    let mut request = host.request("id -u; id -G; echo $HOME; umask; grep -E 'Cap|NoNew' /proc/self/status");
    let process = request.process.mut_or_insert_default();
    (process.uid, process.gid, process.additional_gids) = (1000, 1000, vec![5, 6]);
    (process.has_umask, process.umask, process.no_new_privileges) = (true, 0o27, true);
    let mut capabilities = Capabilities::new();
    (capabilities.bounding, capabilities.permitted, capabilities.effective) = (0x401, 0x401, 0x400);
    (capabilities.inheritable, capabilities.ambient) = (0x400, 0x400);
    process.capabilities = Some(capabilities).into();
    let text = host.output_of(request).await;
    let expected = "1000\n1000 5 6\n/home/user\n0027\n";
    assert!(text.starts_with(expected), "{text}");
    // After exec only the ambient one is left.
    for (name, value) in [("Inh", 0x400), ("Prm", 0x400), ("Eff", 0x400), ("Bnd", 0x401), ("Amb", 0x400)] {
        assert!(text.contains(&format!("Cap{name}:\t{value:016x}")), "{text}");
    }
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
}

async fn limits_and_scores(host: &mut Host) {
    let mut request = host.request("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj");
    let process = request.process.mut_or_insert_default();
    process.rlimits = vec![Rlimit { resource: libc::RLIMIT_NOFILE, soft: 500, hard: 600, ..Default::default() }];
    (process.has_oom_score_adj, process.oom_score_adj) = (true, 321);
    assert_eq!(host.output_of(request).await, "500\n600\n321\n");
}

async fn a_place_among_others(host: &mut Host) {
    let mut request = host.request("exec sleep 1000");
    let init = request.process.mut_or_insert_default();
    init.scheduler = Some(Scheduler { policy: 3, nice: 7, ..Default::default() }).into();
    (init.io_priority, init.final_cpus) = (2 << 13 | 6, 1);
    host.launch(&request).await.unwrap();
    let id = &request.container_id;
    // Nice value and policy, of whoever reads its own.
    let script = "cut -d' ' -f19,41 /proc/self/stat; ionice -p $$; grep -c Cpus_allowed_list:.0$ /proc/self/status";
    let (_, text) = host.exec_output(id, "as-init", process(&["sh", "-c", script])).await;
    assert_eq!(text, "7 3\nbest-effort: prio 6\n1\n");
    let mut own = process(&["sh", "-c", script]);
    own.scheduler = Some(Scheduler { policy: 5, ..Default::default() }).into();
    own.io_priority = 3 << 13;
    let (_, text) = host.exec_output(id, "own", own).await;
    // With this policy the kernel leaves the nice value as it is: here the agent's, which is ours.
    let nice = rustix::process::getpriority_process(None).unwrap();
    assert_eq!(text, format!("{nice} 5\nidle\n1\n"));
    let mut nowhere = process(&["true"]);
    nowhere.final_cpus = 1 << 63;
    let failed = host.exec(id, "nowhere", nowhere).await;
    assert_eq!(sentence(failed).1, "set execCPUAffinity 0x8000000000000000: invalid argument");
    host.kill(id).await;
}

async fn personality_and_clocks(host: &mut Host) {
    let mut request = host.request("uname -m; cut -d. -f1 /proc/uptime");
    request.personality = 8;
    request.namespaces.push(Namespace { kind: NamespaceKind::TIME.into(), ..Default::default() });
    request.time_offsets = "boottime 1000000000 0\nmonotonic 5 500\n".into();
    let output = host.output_of(request).await;
    let (machine, uptime) = output.trim().split_once('\n').unwrap();
    assert_eq!(machine, "i686");
    assert!(uptime.parse::<u64>().unwrap() >= 1_000_000_000, "{uptime}");
}

async fn sysctls_are_set(host: &mut Host) {
    let mut request = host.request("cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/shm_rmid_forced");
    let sysctl = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into(), ..Default::default() };
    request.sysctls = vec![sysctl("net/ipv4/ip_default_ttl", "33"), sysctl("kernel/shm_rmid_forced", "1")];
    assert_eq!(host.output_of(request.clone()).await, "33\n1\n");
    request.container_id += "-2";
    request.process.mut_or_insert_default().stdout = 0;
    request.process.mut_or_insert_default().stderr = 0;
    request.sysctls = vec![sysctl("net/none", "1")];
    let (_, message) = sentence(host.create(&request).await);
    assert_eq!(message, "write sysctl net/none = \"1\": no such file or directory");
}

async fn a_working_directory_is_made(host: &mut Host) {
    let mut request = host.request("pwd");
    request.process.mut_or_insert_default().cwd = "/srv/app".into();
    assert_eq!(host.output_of(request).await, "/srv/app\n");
    let mut request = host.request("pwd");
    request.process.mut_or_insert_default().cwd = "/etc/passwd".into();
    let (_, message) = sentence(host.create(&request).await);
    assert_eq!(message, "chdir to cwd (\"/etc/passwd\") set in config.json failed: not a directory");
}

async fn commands_that_can_not_run(host: &mut Host) {
    for (command, expected) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/x/y", "exec: \"/x/y\": stat /x/y: no such file or directory"),
        ("/bin", "exec: \"/bin\": is a directory"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ] {
        let mut request = host.request("");
        request.process.mut_or_insert_default().args = vec![command.into()];
        assert_eq!(sentence(host.create(&request).await).1, expected);
    }
    // What only the kernel can tell comes with start.
    std::fs::write(host.root.join("bin/garbage"), "\x7fELFgarbage").unwrap();
    std::fs::set_permissions(host.root.join("bin/garbage"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut request = host.request("");
    request.process.mut_or_insert_default().args = vec!["garbage".into()];
    assert_eq!(sentence(host.launch(&request).await).1, "exec /bin/garbage: exec format error");
}

async fn a_failed_create_leaves_the_name_free(host: &mut Host) {
    let mut request = host.request("true");
    request.process.mut_or_insert_default().args = vec!["nope".into()];
    sentence(host.create(&request).await);
    request.process.mut_or_insert_default().args = vec!["true".into()];
    assert_eq!(host.run(request.clone()).await.0, 0);
    assert_eq!(sentence(host.create(&request).await).0, ttrpc::Code::FAILED_PRECONDITION);
}

/// A filter that fails one system call with ENOTTY and allows the rest.
fn filter(call: libc::c_long) -> Vec<u8> {
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([jt, jf]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    let errno = libc::SECCOMP_RET_ERRNO | libc::ENOTTY as u32;
    [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 0, 1, call as u32),
        instruction(0x06, 0, 0, errno),
        instruction(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
    .concat()
}

async fn a_seccomp_filter_applies(host: &mut Host) {
    for no_new_privileges in [false, true] {
        let mut request = host.request("mkdir /tmp/d; grep Seccomp: /proc/self/status");
        request.process.mut_or_insert_default().no_new_privileges = no_new_privileges;
        request.seccomp.mut_or_insert_default().program = filter(libc::SYS_mkdir);
        let (_, stdout, stderr) = host.run(request).await;
        assert!(stderr.contains("Not a tty") || stderr.contains("Inappropriate ioctl"), "{stderr}");
        assert_eq!(stdout, "Seccomp:\t2\n");
    }
}

async fn a_terminal_is_one(host: &mut Host) {
    let script = "tty; stty size; read line; echo got $line; trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.1; done";
    let mut request = host.request(script);
    let ((stdin_id, mut stdin), (stdout_id, stdout)) = (host.stream(), host.stream());
    let process = request.process.mut_or_insert_default();
    (process.terminal, process.rows, process.columns) = (true, 24, 80);
    (process.stdin, process.stdout) = (stdin_id, stdout_id);
    host.launch(&request).await.unwrap();
    let mut text = until(&stdout, "24 80").await;
    stdin.write_all(b"hello\n").unwrap();
    let mut resize = ResizeTerminalRequest { container_id: request.container_id.clone(), ..Default::default() };
    (resize.rows, resize.columns) = (50, 132);
    text += &until(&stdout, "ready").await;
    host.client.resize_terminal(context(), &resize).await.unwrap();
    text += &reader(stdout).await;
    assert_eq!(host.wait(&request.container_id, "").await.unwrap(), 4, "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines, ["/dev/pts/0", "24 80", "hello", "got hello", "ready", "50 132"], "{text}");
    // Streams that close do the rest.
    drop(stdin);
}

async fn created_containers_can_be_killed(host: &mut Host) {
    for (signal, code) in [(libc::SIGKILL, 137), (libc::SIGTERM, 143)] {
        let request = host.request("true");
        host.create(&request).await.unwrap();
        host.signal(&request.container_id, "", signal, false).await.unwrap();
        assert_eq!(host.wait(&request.container_id, "").await.unwrap(), code);
        let (code, message) = sentence(host.start_created(&request.container_id).await);
        assert_eq!(
            (code, message.as_str()),
            (ttrpc::Code::FAILED_PRECONDITION, "cannot start a container that has stopped")
        );
    }
}

async fn a_second_process(host: &mut Host) {
    let request = host.request("sleep 1000");
    host.create(&request).await.unwrap();
    let id = &request.container_id;
    let (code, text) = host.exec_output(id, "early", process(&["cat", "/proc/1/comm", "/proc/self/comm"])).await;
    assert_eq!(code, 0);
    assert!(text.ends_with("cat\n"), "{text}");
    host.start_created(id).await.unwrap();
    let script = "ls /; hostname; cat /proc/self/cgroup; ls /proc/self/fd; exit 7";
    let (code, text) = host.exec_output(id, "e", process(&["sh", "-c", script])).await;
    assert!(text.contains("box\n") && text.contains("0::/\n") && text.ends_with("0\n1\n2\n3\n"), "{text}");
    assert_eq!(code, 7);
    assert_eq!(sentence(host.wait(id, "e").await).0, ttrpc::Code::NOT_FOUND);
    host.kill(id).await;
}

async fn a_second_process_that_can_not_run(host: &mut Host) {
    let id = host.sleeper().await;
    let failed = host.exec(&id, "e", process(&["nope"])).await;
    assert_eq!(sentence(failed).1, "exec: \"nope\": executable file not found in $PATH");
    let mut elsewhere = process(&["true"]);
    elsewhere.cwd = "/nowhere".into();
    let failed = host.exec(&id, "e", elsewhere).await;
    assert_eq!(sentence(failed).1, "chdir to cwd (\"/nowhere\") set in config.json failed: no such file or directory");
    host.exec(&id, "good", process(&["true"])).await.unwrap();
    assert_eq!(host.wait(&id, "good").await.unwrap(), 0);
    assert_eq!(sentence(host.exec("other", "e", process(&["true"])).await).0, ttrpc::Code::NOT_FOUND);
    host.kill(&id).await;
}

async fn a_second_process_with_a_terminal(host: &mut Host) {
    let id = host.sleeper().await;
    let ((stdin_id, stdin), (stdout_id, stdout)) = (host.stream(), host.stream());
    let mut process = process(&["sh", "-c", "tty; sleep 1000"]);
    (process.terminal, process.stdin, process.stdout) = (true, stdin_id, stdout_id);
    host.exec(&id, "t", process).await.unwrap();
    assert_eq!(until(&stdout, "\n").await, "/dev/pts/0\r\n");
    // The host hangs up.
    drop((stdin, stdout));
    assert_eq!(host.wait(&id, "t").await.unwrap(), 128 + 1);
    host.kill(&id).await;
}

async fn a_second_process_goes_where_init_went(host: &mut Host) {
    let own = "mkdir /sys/fs/cgroup/own && echo $$ >/sys/fs/cgroup/own/cgroup.procs && echo moved; exec sleep 1000";
    let mut request = host.request(own);
    request.mounts.push(mount("/sys/fs/cgroup", "cgroup2", "", 0));
    let (stdout, _stderr) = host.capture(request.process.mut_or_insert_default());
    host.launch(&request).await.unwrap();
    assert_eq!(until(&stdout, "\n").await, "moved\n");
    // Or else it would be in the way of controllers that init hands down.
    let script = "cat /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs";
    let (code, text) = host.exec_output(&request.container_id, "e", process(&["sh", "-c", script])).await;
    assert_eq!((code, text.lines().last()), (0, Some("0::/own")), "{text}");
    host.kill(&request.container_id).await;
}

async fn exec_in_a_stopped_container(host: &mut Host) {
    let id = host.sleeper().await;
    host.kill(&id).await;
    let (code, message) = sentence(host.exec(&id, "e", process(&["true"])).await);
    assert_eq!((code, message.as_str()), (ttrpc::Code::FAILED_PRECONDITION, "cannot exec in a stopped container"));
}

async fn signals_find_their_process(host: &mut Host) {
    let id = host.sleeper().await;
    host.exec(&id, "a", process(&["sleep", "1000"])).await.unwrap();
    host.exec(&id, "b", process(&["sh", "-c", "trap 'exit 9' RTMIN+1; while :; do sleep 0.05; done"])).await.unwrap();
    host.signal(&id, "a", libc::SIGTERM, false).await.unwrap();
    assert_eq!(host.wait(&id, "a").await.unwrap(), 143);
    assert_eq!(sentence(host.signal(&id, "c", 15, false).await).0, ttrpc::Code::NOT_FOUND);
    assert_eq!(sentence(host.signal(&id, "b", 99, false).await).0, ttrpc::Code::INVALID_ARGUMENT);
    host.signal(&id, "", libc::SIGKILL, true).await.unwrap();
    assert_eq!(host.wait(&id, "b").await.unwrap(), 137);
    assert_eq!(host.wait(&id, "").await.unwrap(), 137);
}

async fn processes_are_listed(host: &mut Host) {
    let id = host.sleeper().await;
    let pid = host.exec(&id, "a", process(&["sleep", "1000"])).await.unwrap();
    let request = ListProcessesRequest { container_id: id.clone(), ..Default::default() };
    let list = host.client.list_processes(context(), &request).await.unwrap();
    let executed = list.processes.iter().find(|process| process.args == "sleep 1000").unwrap();
    assert!(list.processes.len() == 2 && executed.comm == "sleep" && executed.pid != pid, "{list}");
    assert!(list.processes.iter().any(|process| process.pid == 1) && list.uptime >= executed.started, "{list}");
    host.kill(&id).await;
    assert_eq!(host.wait(&id, "a").await.unwrap(), 137);
}

async fn a_user_namespace(host: &mut Host) {
    let mut request =
        host.request("id -u; cat /proc/self/uid_map; echo x > /dev/null && echo null; echo y > /dev/stdout; hostname");
    request.namespaces.push(namespace(NamespaceKind::USER));
    let mapping = IdMapping { container_id: 0, host_id: 100_000, size: 65_536, ..Default::default() };
    (request.uid_mappings, request.gid_mappings) = (vec![mapping.clone()], vec![mapping]);
    request.process.mut_or_insert_default().uid = 1000;
    let text = host.output_of(request).await;
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["1000", "0", "100000", "65536", "null", "y", "box"], "{text}");
}

/// A request for a container that shares namespaces of these kinds with another one.
fn peer(host: &mut Host, of: &str, kinds: &[NamespaceKind], script: &str) -> CreateContainerRequest {
    let mut request = host.request(script);
    for namespace in
        request.namespaces.iter_mut().filter(|namespace| kinds.iter().any(|&kind| namespace.kind == kind.into()))
    {
        namespace.container_id = of.into();
    }
    request
}

async fn namespaces_are_shared(host: &mut Host) {
    use NamespaceKind::*;
    let mut first = host.request("echo hi > /dev/shm/file; hostname peer; touch /tmp/ready; exec sleep 1000");
    first.mounts.push(mount("/dev/shm", "tmpfs", "mode=1777,size=1m", 0));
    host.launch(&first).await.unwrap();
    let id = first.container_id;
    let ready = process(&["sh", "-c", "until test -e /tmp/ready; do sleep 0.05; done"]);
    assert_eq!(host.exec_output(&id, "e", ready).await.0, 0);
    let links = "for kind in pid net ipc uts mnt; do readlink /proc/self/ns/$kind; done";
    let (_, theirs) = host.exec_output(&id, "f", process(&["sh", "-c", links])).await;
    let script = format!("{links}; echo $$ $(hostname) $(cat /dev/shm/file) $(cat /proc/1/comm); ls /tmp | wc -l");
    let mut second = peer(host, &id, &[PID, NETWORK, IPC, UTS], &script);
    second.hostname.clear();
    second.mounts.push(Mount {
        container_id: id.clone(),
        source: "/dev/shm".into(),
        ..mount("/dev/shm", "bind", "", 0)
    });
    let text = host.output_of(second).await;
    let (theirs, lines): (Vec<&str>, Vec<&str>) = (theirs.lines().collect(), text.lines().collect());
    assert_eq!((&lines[..4], lines[4] == theirs[4]), (&theirs[..4], false), "{text}");
    let words: Vec<&str> = lines[5].split(' ').collect();
    assert_eq!((words[0] != "1", &words[1..]), (true, &["peer", "hi", "sleep"][..]), "{text}");
    assert_eq!(lines[6], "0", "its /tmp is its own");
    // The agent is where it was.
    assert_eq!(host.output("hostname; echo $$").await, "box\n1\n");
    host.kill(&id).await;
}

async fn sockets_of_the_host(host: &mut Host) {
    let mut request = host.request("stat -c '%F %a %u %g' /new/host.sock; exec sleep 1000");
    let socket = Socket { mode: 0o640, uid: 5, gid: 6, ..Default::default() };
    request.mounts.push(Mount { socket: Some(socket).into(), ..mount("/new/host.sock", "bind", "", 0) });
    let (stdout, _stderr) = host.capture(request.process.mut_or_insert_default());
    host.launch(&request).await.unwrap();
    assert_eq!(until(&stdout, "\n").await, "socket 640 5 6\n");
    let connect = |path| UnixStream::connect(path).unwrap();
    let (mut client, unanswered) = (connect(&host.sockets()[0]), connect(&host.sockets()[0]));
    let id = request.container_id.clone();
    let accept = AcceptSocketRequest { container_id: id.clone(), ..Default::default() };
    let asked = host.client.accept_socket(context(), &accept).await.unwrap();
    assert_eq!((asked.socket, asked.stream & SOCKET_STREAM), (0, SOCKET_STREAM));
    let mut stream = host.stream_of(asked.stream);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reader(stream.try_clone().unwrap()).await, "question");
    stream.write_all(b"answer").unwrap();
    drop(stream);
    assert_eq!(reader(client).await, "answer");
    // What nobody asked for is closed.
    assert_eq!(reader(host.stream_of(asked.stream)).await, "");
    host.delete(&id).await.unwrap();
    assert!(host.sockets().is_empty());
    assert_eq!(reader(unanswered).await, "");
    assert!(host.client.accept_socket(context(), &accept).await.is_err());
}

async fn a_file_is_made_and_a_port_connected(host: &mut Host) {
    let mut request = host.request(
        "stat -c %a /etc/made; cat /etc/made; (echo answer; cat >&2) | nc -l -p 70 & sleep 1; exec sleep 1000",
    );
    request.mounts.push(Mount { content: b"made\n".to_vec(), ..mount("/etc/made", "bind", "", 0) });
    let (stdout, _stderr) = host.capture(request.process.mut_or_insert_default());
    host.launch(&request).await.unwrap();
    assert_eq!(until(&stdout, "made\n").await, "644\nmade\n");
    assert!(host.sockets().is_empty(), "the file has a name still");
    let id = request.container_id.clone();
    let port = |port, datagrams| ConnectPortRequest { container_id: id.clone(), port, datagrams, ..Default::default() };
    // The server takes a moment.
    let stream = loop {
        match host.client.connect_port(context(), &port(70, false)).await {
            Ok(answer) => break answer.stream,
            Err(error) => assert!(error.to_string().contains("refused"), "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert_eq!(stream & SOCKET_STREAM, SOCKET_STREAM);
    assert_eq!(until(&host.stream_of(stream), "answer\n").await, "answer\n");
    for (wrong, why) in [(port(71, false), "refused"), (port(65536, false), "port 65536")] {
        let message = sentence(host.client.connect_port(context(), &wrong).await).1;
        assert!(message.contains(why), "{message}");
    }
    // Nobody listens for datagrams: they are lost, and the stream stays.
    let stream = host.client.connect_port(context(), &port(72, true)).await.unwrap().stream;
    let mut stream = host.stream_of(stream);
    for tag in 0..600u16 {
        stream.write_all(&DatagramHeader { length: 1, tag }.to_bytes()).unwrap();
        stream.write_all(b"x").unwrap();
    }
    assert!(host.agent_descriptors() < 400, "{}", host.agent_descriptors());
    drop(stream);
    host.delete(&id).await.unwrap();
    let message = sentence(host.client.connect_port(context(), &port(70, false)).await).0;
    assert_eq!(message, ttrpc::Code::NOT_FOUND);
}

async fn a_container_is_deleted_and_another_stays(host: &mut Host) {
    let first = host.sleeper().await;
    let mut second =
        peer(host, &first, &[NamespaceKind::PID], "mkdir /sys/fs/cgroup/below; sleep 1000 & exec sleep 1001");
    second.mounts.push(mount("/sys/fs/cgroup", "cgroup2", "", 0));
    let before = host.agent_descriptors();
    for _ in 0..3 {
        host.launch(&second).await.unwrap();
        // Even with a process of its own left in a namespace that stays.
        let cgroup = cgroup2().unwrap().join(&second.cgroup_path[1..]);
        assert!(cgroup.exists());
        host.exec(&second.container_id, "e", process(&["sleep", "1002"])).await.unwrap();
        let wait = host.wait(&second.container_id, "e");
        let (waited, deleted) = tokio::join!(wait, host.delete(&second.container_id));
        deleted.unwrap();
        assert_eq!(waited.unwrap(), 137);
        assert!(!cgroup.exists());
        assert_eq!(sentence(host.wait(&second.container_id, "").await).0, ttrpc::Code::NOT_FOUND);
    }
    assert!(host.agent_descriptors() <= before + 1, "{before} {}", host.agent_descriptors());
    assert_eq!(sentence(host.delete("unknown").await).0, ttrpc::Code::NOT_FOUND);
    assert_eq!(host.exec_output(&first, "e", process(&["echo", "x"])).await.0, 0);
    host.kill(&first).await;
}

async fn what_cannot_be_shared(host: &mut Host) {
    let id = host.sleeper().await;
    let request = peer(host, "nobody", &[NamespaceKind::PID], "true");
    assert_eq!(sentence(host.create(&request).await).0, ttrpc::Code::NOT_FOUND);
    let request = peer(host, &id, &[NamespaceKind::MOUNT], "true");
    assert_eq!(sentence(host.create(&request).await).1, "a MOUNT namespace cannot be shared");
    let mut request = peer(host, &id, &[NamespaceKind::IPC], "true");
    request.mounts.push(Mount {
        container_id: id.clone(),
        source: "/dev/no".into(),
        ..mount("/dev/shm", "bind", "", 0)
    });
    let message = sentence(host.create(&request).await).1;
    assert_eq!(message, "copy the mount at /dev/no of the other container: no such file or directory");
    host.kill(&id).await;
    let request = peer(host, &id, &[NamespaceKind::IPC], "true");
    let message = sentence(host.create(&request).await).1;
    assert_eq!(message, format!("container {id} is not running"));
}

/// A request of rtnetlink(7).
fn netlink(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
    let length = (16 + body.len()) as u32;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], body].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [&(4 + value.len() as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An interface of this index that is up.
fn new_link(index: u32, name: &str) -> Vec<u8> {
    let (up, kind) = (1u32.to_ne_bytes(), attribute(18, &attribute(1, b"veth")));
    let header = [&[0; 4][..], &index.to_ne_bytes(), &up, &up].concat();
    netlink(libc::RTM_NEWLINK, libc::NLM_F_CREATE, &[header, attribute(3, name.as_bytes()), kind].concat())
}

fn new_address(index: u32, address: [u8; 4]) -> Vec<u8> {
    let header = [&[libc::AF_INET as u8, 24, 0, 0][..], &index.to_ne_bytes()].concat();
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    netlink(libc::RTM_NEWADDR, flags, &[header, attribute(2, &address), attribute(1, &address)].concat())
}

async fn a_network_is_set_up(host: &mut Host) {
    let id = host.sleeper().await;
    let messages = vec![new_link(40, "net0"), new_address(40, [10, 9, 8, 7])];
    let request = SetNetworkRequest { container_id: id.clone(), messages, ..Default::default() };
    // What is there already stays.
    for _ in 0..2 {
        host.client.set_network(context(), &request).await.unwrap();
    }
    let show = process(&["sh", "-c", "ip -o -4 addr show net0; ip route"]);
    let (_, text) = host.exec_output(&id, "e", show).await;
    assert!(text.starts_with("40: net0    inet 10.9.8.7/24") && text.contains("10.9.8.0/24 dev net0"), "{text}");
    host.kill(&id).await;
}

async fn a_network_that_can_not_be_set_up(host: &mut Host) {
    let mut request = host.request("sleep 1000");
    request.namespaces.retain(|namespace| namespace.kind != NamespaceKind::NETWORK.into());
    host.launch(&request).await.unwrap();
    let ask = |id: &str| SetNetworkRequest { container_id: id.into(), ..Default::default() };
    let without = ask(&request.container_id);
    let (code, text) = sentence(host.client.set_network(context(), &without).await);
    assert!(
        code == ttrpc::Code::FAILED_PRECONDITION && text.ends_with("has no network namespace of its own"),
        "{text}"
    );
    let id = host.sleeper().await;
    // The first call opens a socket there, for as long as there is the container.
    host.client.set_network(context(), &ask(&id)).await.unwrap();
    let before = host.agent_descriptors();
    for message in [new_address(77, [1, 2, 3, 4]), b"short".to_vec(), Vec::new()] {
        let request = SetNetworkRequest { messages: vec![message], ..ask(&id) };
        let (_, text) = sentence(host.client.set_network(context(), &request).await);
        assert!(text.starts_with("set up the container's network (rtnetlink request"), "{text}");
    }
    let nic = Nic { device: 4000, kernel_parameter: "nonsense".into(), name: "eth0".into(), ..Default::default() };
    let request = SetNetworkRequest { added_nics: vec![nic], ..ask(&id) };
    let (_, text) = sentence(host.client.set_network(context(), &request).await);
    assert!(text.starts_with("add virtio-mmio device nonsense to the guest's kernel"), "{text}");
    let unknown = SetNetworkRequest { removed_nics: vec![55], ..ask(&id) };
    host.client.set_network(context(), &unknown).await.unwrap();
    assert_eq!(host.agent_descriptors(), before);
    host.kill(&id).await;
    host.kill(&without.container_id).await;
}

fn read_datagram(stream: &mut UnixStream) -> (u16, Vec<u8>) {
    let mut header = [0; DatagramHeader::SIZE];
    stream.read_exact(&mut header).unwrap();
    let header = DatagramHeader::from_bytes(header);
    let mut bytes = vec![0; header.length.into()];
    stream.read_exact(&mut bytes).unwrap();
    (header.tag, bytes)
}

fn write_datagram(stream: &mut UnixStream, tag: u16, bytes: &[u8]) {
    let header = DatagramHeader { length: bytes.len() as u16, tag };
    stream.write_all(&[&header.to_bytes(), bytes].concat()).unwrap();
}

/// 10.1.2.3 for a question of type A, nothing for others.
fn dns_answer(question: &[u8]) -> Vec<u8> {
    let is_a = question[question.len() - 3] == 1;
    let counts = [0, 1, 0, u8::from(is_a), 0, 0, 0, 0];
    let mut answer = [&question[..2], &[0x81, 0x80], &counts, &question[12..]].concat();
    if is_a {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3]);
    }
    answer
}

async fn the_networks_resolver_is_asked(host: &mut Host) {
    let id = host.sleeper().await;
    let request = SetNetworkRequest { container_id: id.clone(), resolver: true, ..Default::default() };
    for _ in 0..2 {
        host.client.set_network(context(), &request).await.unwrap();
    }
    let accept = AcceptSocketRequest { container_id: id.clone(), ..Default::default() };
    // All datagrams share a stream.
    let mut stream = None;
    for exec in ["first", "second"] {
        let mut asker = process(&["nslookup", "db.test", "127.0.0.11"]);
        let (stdout, _stderr) = host.capture(&mut asker);
        host.exec(&id, exec, asker).await.unwrap();
        if stream.is_none() {
            let asked = host.client.accept_socket(context(), &accept).await.unwrap();
            assert_eq!(asked.socket, RESOLVER_DATAGRAMS);
            stream = Some(host.stream_of(asked.stream));
        }
        let stream = stream.as_mut().unwrap();
        // It asks for an address of either kind.
        let questions = [read_datagram(stream), read_datagram(stream)];
        for (tag, question) in questions.iter().rev() {
            write_datagram(stream, tag.wrapping_add(100), b"nobody's");
            write_datagram(stream, *tag, &dns_answer(question));
        }
        assert_eq!(host.wait(&id, exec).await.unwrap(), 0);
        let text = reader(stdout).await;
        assert!(text.contains("10.1.2.3"), "{text}");
    }
    let mut asker = process(&["sh", "-c", "echo question | nc 127.0.0.11 53"]);
    let (stdout, _stderr) = host.capture(&mut asker);
    host.exec(&id, "tcp", asker).await.unwrap();
    let asked = host.client.accept_socket(context(), &accept).await.unwrap();
    assert_eq!(asked.socket, RESOLVER_STREAM);
    let mut connection = host.stream_of(asked.stream);
    assert_eq!(until(&connection, "\n").await, "question\n");
    connection.write_all(b"answer\n").unwrap();
    drop(connection);
    assert_eq!(until(&stdout, "\n").await, "answer\n");
    host.kill(&id).await;
}

async fn without_a_pid_namespace_nothing_is_left(host: &mut Host) {
    let mut request = host.request("sleep 1000 & echo left");
    request.namespaces.retain(|namespace| namespace.kind != NamespaceKind::PID.into());
    // The reader only comes to an end when the sleeper is dead.
    assert_eq!(host.output_of(request).await, "left\n");
}

async fn closing_stdout_breaks_the_pipe(host: &mut Host) {
    let mut request = host.request("yes; exit $?");
    let (stdout, _stderr) = host.capture(request.process.mut_or_insert_default());
    host.launch(&request).await.unwrap();
    until(&stdout, "y\n").await;
    drop(stdout);
    assert_eq!(host.wait(&request.container_id, "").await.unwrap(), 128 + 13);
}

async fn a_large_request_comes_ahead_of_its_call(host: &mut Host) {
    let large = |process: &mut Process| {
        process.env.extend((0..52).map(|number| format!("LARGE_{number}={}", "x".repeat(100_000))));
        process.rlimits.push(Rlimit {
            resource: libc::RLIMIT_STACK,
            soft: u64::MAX,
            hard: u64::MAX,
            ..Default::default()
        });
    };
    let mut request = host.request("env | wc -c; exec sleep 1000");
    large(request.process.mut_or_insert_default());
    let (stdout, _stderr) = host.capture(request.process.mut_or_insert_default());
    let id = request.container_id.clone();
    host.send_ahead(&request).await.unwrap();
    let rest = CreateContainerRequest { sent_ahead: true, ..Default::default() };
    host.create(&rest).await.unwrap();
    host.start_created(&id).await.unwrap();
    let size = |text: &str| text.trim().parse::<usize>().unwrap();
    assert!(size(&until(&stdout, "\n").await) > 5_200_000);
    // A process likewise; one that was given up before is forgotten.
    let mut process = process(&["sh", "-c", "env | wc -c"]);
    large(&mut process);
    let (stdout, _stderr) = host.capture(&mut process);
    let (container_id, exec_id) = (id.clone(), "e".to_owned());
    let request = ExecProcessRequest { container_id, exec_id, process: Some(process).into(), ..Default::default() };
    host.send_piece(0, vec![1; 100]).await.unwrap();
    host.send_ahead(&request).await.unwrap();
    let rest = ExecProcessRequest { sent_ahead: true, ..Default::default() };
    host.client.exec_process(context(), &rest).await.unwrap();
    assert!(size(&reader(stdout).await) > 5_200_000);
    // There is nothing left of it.
    let again = sentence(host.client.exec_process(context(), &rest).await);
    assert_eq!(again, (ttrpc::Code::FAILED_PRECONDITION, "no request was sent ahead".into()));
    host.kill(&id).await;
}

async fn what_comes_ahead_is_bounded(host: &mut Host) {
    let piece = || vec![0; 4_000_000];
    assert_eq!(sentence(host.send_piece(7, piece()).await).1, "a piece at 7 follows 0 bytes");
    for offset in [0, 4_000_000, 8_000_000, 12_000_000] {
        host.send_piece(offset, piece()).await.unwrap();
    }
    let refused = sentence(host.send_piece(16_000_000, piece()).await);
    assert_eq!(refused, (ttrpc::Code::INVALID_ARGUMENT, "a request of more than 16777216 bytes".into()));
    let rest = CreateContainerRequest { sent_ahead: true, ..Default::default() };
    assert_eq!(sentence(host.create(&rest).await).0, ttrpc::Code::INVALID_ARGUMENT);
}

async fn nothing_leaks_per_exec(host: &mut Host) {
    let id = host.sleeper().await;
    let mut before = 0;
    for round in 0..60 {
        let (code, text) = host.exec_output(&id, "e", process(&["echo", "x"])).await;
        assert_eq!((code, text.as_str()), (0, "x\n"));
        if round == 10 {
            before = host.agent_descriptors();
        }
    }
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(host.agent_descriptors() <= before + 2, "{before} {}", host.agent_descriptors());
    host.kill(&id).await;
}

async fn the_machine_is_configured(host: &mut Host) {
    let mut request = ConfigureRequest { entropy: vec![7; 300], ..Default::default() };
    host.client.configure(context(), &request).await.unwrap();
    request.realtime_nsec = 1_000_000_000;
    assert_eq!(sentence(host.client.configure(context(), &request).await).0, ttrpc::Code::INVALID_ARGUMENT);
}

async fn shutdown_ends_containers(host: &mut Host) {
    let id = host.sleeper().await;
    host.client.shutdown(context(), &Empty::new()).await.unwrap();
    assert_eq!(host.wait(&id, "").await.unwrap(), 137);
}
