//! Bind mounts of the host's Unix sockets: connections reach whoever listens there.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use serde_json::{Value, json};
use tests::command::run;
use tests::docker::Docker;
use tests::podman::Podman;
use tests::process::{wait_orphan, wait_until};
use tests::unix::{CLIENT, Server, client};
use tests::{Container, Created, PATIENCE, Scene};

/// Where the socket is in the container.
const HERE: &str = "/run/host.sock";

/// How many connections a container may have at a time.
const MOST: usize = 256;

/// A container to be that may use the host's sockets, and has a client.
fn allowed(scene: &Scene) -> Container<'_> {
    let mut container = scene.container();
    container.set("/annotations", json!({"io.runvm.sockets": "true"}));
    container.mount("bind", client(), CLIENT, &["bind", "ro"]);
    container
}

/// The same with one socket.
fn with<'a>(scene: &'a Scene, socket: &Path) -> Container<'a> {
    let mut container = allowed(scene);
    container.mount("bind", socket, HERE, &["bind"]);
    container
}

/// A script in which `$connect` and `$hold` are the client.
fn script(text: &str) -> String {
    format!("connect={CLIENT}/connect; hold={CLIENT}/hold; {text}")
}

fn socket(scene: &Scene) -> PathBuf {
    scene.dir().join("socket")
}

/// A server that hands each connection to the test.
fn handing(path: &Path) -> (Server, Receiver<UnixStream>) {
    let (sender, accepted) = channel();
    (Server::new(path, move |stream| drop(sender.send(stream))), accepted)
}

#[track_caller]
fn next(accepted: &Receiver<UnixStream>) -> UnixStream {
    let stream = accepted.recv_timeout(PATIENCE).expect("nobody connected");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn rest(mut stream: &UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Whether the other side is gone, and not only done with sending.
fn is_broken(mut stream: &UnixStream) -> bool {
    stream.write(b"x").is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn descriptors(created: &Created) -> usize {
    fs::read_dir(format!("/proc/{}/fd", created.pid)).unwrap().count()
}

#[test]
fn a_server_of_the_host_answers() {
    let scene = Scene::new();
    let _server = Server::new(&socket(&scene), |mut stream| {
        // It knows the question only when the client has half closed the connection.
        let question = rest(&stream);
        stream.write_all(format!("you asked: {question}").as_bytes()).unwrap();
    });
    let mut container = with(&scene, &socket(&scene));
    let outcome = container.sh(&script(&format!("echo why | $connect {HERE}; echo how | $connect {HERE}"))).run();
    assert_eq!(outcome.success().stdout, "you asked: why\nyou asked: how\n");
    assert!(fs::metadata(container.rootfs().join("run/host.sock")).unwrap().is_file(), "the mount point");
}

#[test]
fn the_server_may_end_its_direction_first() {
    let scene = Scene::new();
    let (_server, accepted) = handing(&socket(&scene));
    let mut container = with(&scene, &socket(&scene));
    let mut created = container.sh(&script(&format!("$connect {HERE} wait; echo end"))).up();
    let mut stream = next(&accepted);
    stream.write_all(b"go\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    created.stdout.expect("go\n");
    std::thread::sleep(Duration::from_millis(200));
    rustix::io::write(created.stdin.as_ref().unwrap(), b"still heard").unwrap();
    created.stdin = None;
    assert_eq!(rest(&stream), "still heard");
    assert_eq!(created.stdout.line(), "end");
    assert_eq!(wait_orphan(created.pid), 0);
}

#[test]
fn much_goes_through_unharmed_both_ways() {
    let scene = Scene::new();
    let _server = Server::echo(&socket(&scene));
    let text = format!(
        "head -c 8388608 /dev/urandom >/dev/shm/sent; $connect {HERE} </dev/shm/sent >/dev/shm/back
        wc -c </dev/shm/back; md5sum </dev/shm/sent; md5sum </dev/shm/back"
    );
    let mut container = with(&scene, &socket(&scene));
    let outcome = container.sh(&script(&text)).run().success();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!((lines[0], lines[1]), ("8388608", lines[2]));
}

#[test]
fn a_slow_server_holds_the_client_up() {
    let scene = Scene::new();
    let (_server, accepted) = handing(&socket(&scene));
    let mut container = with(&scene, &socket(&scene));
    let text = "n=0; while head -c 65536 /dev/zero; do n=$((n + 1)); echo $n >/dev/shm/count; done";
    let created = container.sh(&script(&format!("({text}) | $connect {HERE}"))).up();
    let stream = next(&accepted);
    let sent = || container.exec_sh("cat /dev/shm/count").stdout.trim().parse::<u64>().unwrap_or(0) << 16;
    wait_until("the buffers to be full", || {
        let before = sent();
        std::thread::sleep(Duration::from_secs(1));
        before > 0 && sent() == before
    });
    assert!(sent() < 4 << 20, "{} bytes went somewhere", sent());
    drop(stream);
    assert_eq!(wait_orphan(created.pid), 0);
}

#[test]
fn many_connections_leave_nothing() {
    let scene = Scene::new();
    let together = Arc::new(Barrier::new(20));
    let (alone, crowd) = (socket(&scene), scene.dir().join("crowd"));
    let _alone = Server::echo(&alone);
    let _crowd = Server::new(&crowd, move |mut stream| {
        // Nobody gets an answer before all are there.
        together.wait();
        stream.write_all(rest(&stream).as_bytes()).unwrap();
    });
    let mut container = with(&scene, &alone);
    container.mount("bind", &crowd, "/run/crowd.sock", &["bind"]);
    let created = container.idle();
    container.exec_sh(&script(&format!("echo warm | $connect {HERE}"))).success();
    let before = descriptors(&created);
    let row = format!("for n in $(seq 40); do echo $n | $connect {HERE}; done | md5sum; seq 40 | md5sum");
    let outcome = container.exec_sh(&script(&row)).success();
    let sums: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(sums[0], sums[1]);
    let crowd = "for n in $(seq 20); do echo $n | $connect /run/crowd.sock & done | sort -n | md5sum; seq 20 | md5sum";
    let outcome = container.exec_sh(&script(crowd)).success();
    let sums: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(sums[0], sums[1]);
    wait_until("the monitor to have no more descriptors than before", || descriptors(&created) <= before);
    container.end(&created);
}

#[test]
fn vm_connections_are_bounded() {
    let scene = Scene::new();
    let (_server, accepted) = handing(&socket(&scene));
    let mut container = with(&scene, &socket(&scene));
    // One that nobody connects to takes no room.
    let idle = Server::echo(&scene.dir().join("idle"));
    container.mount("bind", &scene.dir().join("idle"), "/run/idle.sock", &["bind"]);
    let mut created = container.sh(&script(&format!("$hold {HERE} {}", MOST + 4))).up();
    let mut held: Vec<_> = (0..MOST).map(|_| next(&accepted)).collect();
    created.stdout.expect("open\n");
    assert!(accepted.recv_timeout(Duration::from_secs(2)).is_err(), "more than {MOST} connections");
    rustix::io::write(created.stdin.as_ref().unwrap(), &[b'\n'; 4]).unwrap();
    held.extend((0..4).map(|_| next(&accepted)));
    created.stdin = None;
    assert_eq!(wait_orphan(created.pid), 0);
    assert!(held.iter().all(|stream| rest(stream) == "x"), "what was sent before the end");
    drop(idle);
}

#[test]
fn vm_without_the_annotation_sockets_are_refused() {
    let scene = Scene::new();
    let _server = Server::echo(&socket(&scene));
    for annotations in [json!({}), json!({"io.runvm.sockets": "false"})] {
        let mut container = with(&scene, &socket(&scene));
        container.set("/annotations", annotations);
        let expected = [HERE, "is a socket of the host", "annotation io.runvm.sockets"];
        scene.refused(&container.try_create(), &expected);
    }
    let features: Value = serde_json::from_str(&run(scene.runtime().arg("features")).success().stdout).unwrap();
    let unsafe_ones = features["potentiallyUnsafeConfigAnnotations"].as_array().unwrap();
    assert!(unsafe_ones.contains(&json!("io.runvm.sockets")), "engines are told that it is one to be careful with");
    let mut container = with(&scene, &socket(&scene));
    container.set("/annotations", json!({"io.runvm.sockets": "yes"}));
    scene.refused(&container.try_create(), &["io.runvm.sockets", "\"yes\" is neither true nor false"]);
}

#[test]
fn vm_sockets_for_messages_are_refused() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    let scene = Scene::new();
    let (datagrams, packets) = (scene.dir().join("datagrams"), scene.dir().join("packets"));
    let _datagrams = UnixDatagram::bind(&datagrams).unwrap();
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&packets).unwrap()).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    for path in [&datagrams, &packets] {
        let outcome = with(&scene, path).try_create();
        scene.refused(&outcome, &[HERE, path.to_str().unwrap(), "datagram or seqpacket socket"]);
    }
}

#[test]
fn owner_and_mode_are_the_hosts_and_hold() {
    let scene = Scene::new();
    let _server = Server::echo(&socket(&scene));
    std::os::unix::fs::chown(socket(&scene), Some(1000), Some(50)).unwrap();
    let as_user = |mode: u32, uid: u32, gid: u32| {
        fs::set_permissions(socket(&scene), fs::Permissions::from_mode(mode)).unwrap();
        let mut container = with(&scene, &socket(&scene));
        container.set("/process/user", json!({"uid": uid, "gid": gid}));
        let text = format!("stat -c '%F %a %u %g' {HERE}; echo in | $connect {HERE}");
        container.sh(&script(&text)).run()
    };
    assert_eq!(as_user(0o640, 1000, 1000).success().stdout, "socket 640 1000 50\nin\n");
    assert_eq!(as_user(0o660, 77, 50).success().stdout, "socket 660 1000 50\nin\n");
    let refused = as_user(0o640, 77, 50);
    assert_eq!((refused.code, refused.stderr.as_str()), (7, "connect: Permission denied\n"));
}

#[test]
fn in_a_user_namespace_and_read_only() {
    let scene = Scene::new();
    let _server = Server::echo(&socket(&scene));
    fs::set_permissions(socket(&scene), fs::Permissions::from_mode(0o666)).unwrap();
    let mut container = allowed(&scene);
    container.mount("bind", &socket(&scene), HERE, &["bind", "ro", "nosuid", "noexec"]);
    // Nobody in there may make mount points in the host's directories.
    fs::write(container.rootfs().join("run/host.sock"), "").unwrap();
    fs::create_dir_all(container.rootfs().join("opt/client")).unwrap();
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    container.namespace("user", Some(json!({"type": "user"})));
    container.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping);
    let text =
        format!("echo in | $connect {HERE}; stat -c %u {HERE}; grep {HERE} /proc/mounts | grep -o ' ro,[a-z,]*'");
    let outcome = container.sh(&script(&text)).run().success();
    let lines: Vec<_> = outcome.stdout.lines().collect();
    // The host's root is nobody there.
    assert_eq!(lines[..2], ["in", "65534"]);
    assert!(lines[2].contains("nosuid") && lines[2].contains("noexec"), "{outcome:?}");
}

#[test]
fn a_destination_stays_inside_the_root() {
    let scene = Scene::new();
    let _server = Server::echo(&socket(&scene));
    let outside = scene.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let mut container = allowed(&scene);
    symlink(&outside, container.rootfs().join("link")).unwrap();
    container.mount("bind", &socket(&scene), "/link/new/sock", &["bind"]);
    let outcome = container.sh(&script("echo in | $connect /link/new/sock")).run().success();
    assert_eq!(outcome.stdout, "in\n");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(container.rootfs().join(outside.strip_prefix("/").unwrap()).join("new/sock").is_file());
}

#[test]
fn vm_where_nobody_listens_connections_end_at_once() {
    let scene = Scene::new();
    let server = Server::echo(&socket(&scene));
    let mut container = with(&scene, &socket(&scene));
    let created = container.idle();
    let ask = || container.exec_sh(&script(&format!("echo in | $connect {HERE}; echo code $?"))).stdout;
    assert_eq!(ask(), "in\ncode 0\n");
    drop(server);
    assert_eq!(ask(), "code 0\n");
    // It is the socket that is mounted and not its name, as with runc.
    fs::remove_file(socket(&scene)).unwrap();
    let _another = Server::echo(&socket(&scene));
    assert_eq!(ask(), "code 0\n");
    container.end(&created);
}

#[test]
fn vm_a_socket_in_a_mounted_directory_is_not_passed_on() {
    let scene = Scene::new();
    let dir = scene.dir().join("dir");
    fs::create_dir(&dir).unwrap();
    let _server = Server::echo(&dir.join("socket"));
    let mut container = allowed(&scene);
    container.mount("bind", &dir, "/dir", &["bind"]);
    let outcome = container.sh(&script("echo in | $connect /dir/socket")).run();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (7, "connect: Connection refused\n"));
}

#[test]
fn a_socket_is_found_wherever_it_was_moved() {
    let scene = Scene::new();
    let _server = Server::echo(&socket(&scene));
    let mut container = with(&scene, &socket(&scene));
    let created = container.idle();
    fs::rename(socket(&scene), scene.dir().join("moved")).unwrap();
    let _decoy = UnixListener::bind(socket(&scene)).unwrap();
    assert_eq!(container.exec_sh(&script(&format!("echo in | $connect {HERE}"))).success().stdout, "in\n");
    container.end(&created);
}

#[test]
fn vm_connections_end_with_the_client_and_with_the_container() {
    let scene = Scene::new();
    let (_server, accepted) = handing(&socket(&scene));
    let mut container = with(&scene, &socket(&scene));
    let created = container.idle();
    let held = script(&format!("$hold {HERE} 1 >/dev/null & sleep 1000"));
    let mut exec = container.named("exec", &["--detach"]);
    run(exec.args(["sh", "-c", &held])).success();
    let first = next(&accepted);
    let before = descriptors(&created);
    container.exec_sh("pkill perl || killall perl || kill -9 $(pidof perl ld-linux-x86-64.so.2)");
    assert_eq!(rest(&first), "x");
    wait_until("the client's end to be known", || is_broken(&first));
    wait_until("the monitor to let go", || descriptors(&created) < before);
    let mut exec = container.named("exec", &["--detach"]);
    run(exec.args(["sh", "-c", &held])).success();
    let second = next(&accepted);
    container.end(&created);
    assert_eq!(rest(&second), "x");
    assert!(is_broken(&second));
}

#[test]
fn containers_of_one_vm_have_sockets_of_their_own() {
    let scene = Scene::new();
    let (first_socket, second_socket) = (socket(&scene), scene.dir().join("second"));
    let _first = Server::echo(&first_socket);
    let (_second, accepted) = handing(&second_socket);
    let mut first = with(&scene, &first_socket);
    let one = first.idle();
    let mut before = usize::MAX;
    for _ in 0..3 {
        let mut second = with(&scene, &second_socket);
        second.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", one.pid)})));
        let two = second.sh(&script(&format!("$hold {HERE} 1"))).up();
        let stream = next(&accepted);
        assert_eq!(first.exec_sh(&script(&format!("echo in | $connect {HERE}"))).success().stdout, "in\n");
        second.end(&two);
        assert_eq!(rest(&stream), "x");
        assert!(is_broken(&stream));
        wait_until("the VM's monitor to let go", || descriptors(&one) <= before);
        before = descriptors(&one);
    }
    first.end(&one);
}

#[test]
fn a_container_asks_dockerd() {
    let docker = Docker::new();
    let scene = Scene::new();
    let mut container = with(&scene, &docker.socket());
    let request = "printf 'GET /_ping HTTP/1.1\\r\\nHost: docker\\r\\nConnection: close\\r\\n\\r\\n'";
    let outcome = container.sh(&script(&format!("{request} | $connect {HERE}"))).run().success();
    assert!(outcome.stdout.starts_with("HTTP/1.1 200 OK") && outcome.stdout.ends_with("OK"), "{outcome:?}");
}

#[test]
fn podman_gives_a_socket() {
    let podman = Podman::new();
    let scene = Scene::new();
    let _server = Server::echo(&socket(&scene));
    let (volume, tools) =
        (format!("{}:{HERE}", socket(&scene).display()), format!("{}:{CLIENT}:ro", client().display()));
    let flags = ["--rm", "--annotation", "io.runvm.sockets=true", "-v", &volume, "-v", &tools];
    let text = script(&format!("echo in | $connect {HERE}"));
    let outcome = run(&mut podman.container(&flags, &["sh", "-c", &text])).success();
    assert_eq!(outcome.stdout, "in\n");
}
