//! Every system call that a filter of the monitor's allows is one that is made: what nobody needs, an attacker does.
//!
//! The host's kernel counts the calls of each thread while containers do what containers do. The list of what the filters allow
//! (`runtime/src/monitor/confine/calls.txt`, which a unit test holds against the tables) says of some calls why they are not seen
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use serde_json::json;
use syscalls::Sysno;
use tests::command::run;
use tests::disk::Disk;
use tests::netns::Netns;
use tests::unix::{CLIENT, Server, client};
use tests::{ConsoleSocket, Container, Created, Scene, Terminal, place, process};

/// What each kind of thread may call, and why a call is not seen here, if it is not.
const ALLOWED: &str = include_str!("../../runtime/src/monitor/confine/calls.txt");

const MIB: u64 = 1 << 20;

/// Calls by thread, as they are counted.
type Calls = BTreeMap<i32, BTreeSet<Sysno>>;

/// Counts system calls while this is there.
struct Counter(PathBuf);

impl Counter {
    const TRIGGER: &str = "events/raw_syscalls/sys_enter/trigger";
    const COUNTS: &str = "hist:keys=common_pid,id:size=65536";

    /// Of these threads and those that they start from now on; of all if none is named.
    fn new(name: &str, of: &[i32]) -> Self {
        let counter = Self(Path::new("/sys/kernel/tracing/instances").join(name));
        fs::create_dir(&counter.0).unwrap();
        let write = |file: &str, text: &str| fs::write(counter.0.join(file), text).unwrap();
        if !of.is_empty() {
            write("options/event-fork", "1");
            write("set_event_pid", &of.iter().map(i32::to_string).collect::<Vec<_>>().join(" "));
        }
        write(Self::TRIGGER, Self::COUNTS);
        counter
    }

    fn calls(&self) -> Calls {
        let text = fs::read_to_string(self.0.join("events/raw_syscalls/sys_enter/hist")).unwrap();
        assert!(text.contains("Dropped: 0"), "not all calls were counted");
        let mut calls = Calls::new();
        for line in text.lines().filter(|line| line.starts_with("{ common_pid:")) {
            let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<usize>().ok());
            let (pid, id) = (numbers.next().unwrap(), numbers.next().unwrap());
            calls.entry(pid as i32).or_default().extend(Sysno::new(id));
        }
        calls
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join(Self::TRIGGER), format!("!{}", Self::COUNTS));
        let _ = fs::remove_dir(&self.0);
    }
}

/// The threads of a process by name.
fn threads(pid: i32) -> Vec<(i32, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let name = |path: PathBuf| fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned();
    tasks.map(|task| (task.file_name().to_str().unwrap().parse().unwrap(), name(task.path()))).collect()
}

/// Kind of a thread of the monitor, by its name.
fn kind(name: &str) -> &'static str {
    match name {
        "virtio-vsock" => "vsock",
        "virtio-fs" => "fs",
        "virtio-net" => "net",
        "virtio-block" => "block",
        "virtio-rng" | "virtio-balloon" => "device",
        name if name.starts_with("vcpu") => "vcpu",
        _ => "main",
    }
}

/// What was seen, by kind.
#[derive(Default)]
struct Seen(BTreeMap<String, BTreeSet<Sysno>>);

impl Seen {
    fn add(&mut self, kind: &str, calls: Option<&BTreeSet<Sysno>>) {
        self.0.entry(kind.to_owned()).or_default().extend(calls.into_iter().flatten());
    }

    /// Calls of the devices' threads, and of processes beside the monitor, from their beginning.
    fn add_devices(&mut self, calls: &Calls, up: &Created) {
        for (id, name) in threads(up.pid).iter().filter(|(_, name)| kind(name) != "main") {
            self.add(kind(name), calls.get(id));
        }
        for (name, kind) in [("node-maker", "nodes"), ("network-helper", "network-helper")] {
            let processes = process::descendants().into_iter().filter(|(_, what)| what.starts_with(name));
            processes.for_each(|(pid, _)| self.add(kind, calls.get(&pid)));
        }
    }

    /// Calls of the main thread and those that it started, but for threads of devices among these.
    fn add_main(&mut self, calls: &Calls, up: &Created) {
        let devices: BTreeSet<i32> =
            threads(up.pid).into_iter().filter(|(_, name)| kind(name) != "main").map(|(id, _)| id).collect();
        calls.iter().filter(|(id, _)| !devices.contains(id)).for_each(|(_, calls)| self.add("main", Some(calls)));
    }
}

/// A container with all kinds of devices, whose root may do anything.
fn container<'a>(scene: &'a Scene, disk: &Disk, namespace: &Netns, socket: &Path) -> Container<'a> {
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": namespace.path()})));
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_ADMIN",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_ADMIN"
    ]);
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    container.set("/process/capabilities", sets);
    let limits = json!({"limit": 96 * MIB, "swap": 96 * MIB});
    container.set("/linux/resources", json!({"devices": [{"allow": true, "access": "rwm"}], "memory": limits}));
    let (major, minor) = disk.number();
    container.set("/linux/devices", json!([{"path": "/dev/data", "type": "b", "major": major, "minor": minor}]));
    container.set("/annotations", json!({"io.runvm.sockets": "true"}));
    container.mount("bind", client(), CLIENT, &["bind", "ro"]);
    container.mount("bind", socket, "/run/host.sock", &["bind"]);
    let volume = scene.dir().join("volume");
    fs::create_dir_all(&volume).unwrap();
    container.mount("bind", &volume, "/volume", &["bind"]);
    fs::copy(place::bin().join("posix-cases"), container.rootfs().join("posix-cases")).unwrap();
    fs::create_dir(container.rootfs().join("cases")).unwrap();
    container
}

/// What containers do with files, disks, streams and networks.
fn live(container: &Container, namespace: &Netns) {
    // All cases that pass anywhere; which ones do is for another area to say.
    container.exec_sh("for place in /cases /volume; do /posix-cases $place; done");
    let disk = "dd if=/dev/zero of=/dev/data bs=64k count=32 conv=fsync; dd if=/dev/data of=/dev/null bs=64k count=32;
        blkdiscard /dev/data; blkdiscard -z /dev/data; true";
    container.exec_sh(disk).success();
    container.exec_sh("dd if=/dev/zero of=/tmp/fill bs=1M count=20; sync; rm /tmp/fill; mknod /node b 8 0").success();
    container.exec_sh("ping -c 2 -W 9 10.77.0.1; ip link set eth0 mtu 1400").success();
    namespace.ip("addr add 10.77.0.9/24 dev eth0");
    process::wait_until("the address", || container.exec_sh("ip addr").stdout.contains("10.77.0.9"));
    container.exec_sh(&format!("echo hello | {CLIENT}/connect /run/host.sock")).success();
    let terminal = Terminal::open(24, 80);
    let mut command = container.command("exec");
    command.args(["--tty", &container.id, "sh", "-c", "stty size; read line; stty size"]);
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut terminal = terminal;
    terminal.expect("24 80");
    terminal.resize(30, 90);
    terminal.write("\n");
    terminal.expect("30 90");
    assert!(child.wait().unwrap().success());
    for verb in ["pause", "resume", "ps", "events"] {
        let flags: &[&str] = if verb == "events" { &["--stats"] } else { &[] };
        run(container.command(verb).args(flags).arg(&container.id)).success();
    }
    // Memory runs out in the guest, and the host's kernel is made to notice.
    container.exec_sh("awk 'BEGIN { s = \"x\"; while (1) s = s s }'").failure();
}

/// Ports that are published, one of them by passt's network as well.
fn ports(scene: &Scene, seen: &mut Seen) {
    let mut container = scene.container();
    container.sh("echo page >/tmp/index.html; httpd -p 8080 -h /tmp; echo up; exec nc -u -l -p 53");
    let uplink = tests::uplink::Connected::new();
    let mut up = container.create_with(&["--net", "user", "-p", "18080:8080", "-p", "18053:53/udp"]);
    let counter = Counter::new("runvm-ports", &[up.pid]);
    container.start().success();
    up.stdout.expect("up\n");
    let mut client = TcpStream::connect("127.0.0.1:18080").unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = String::new();
    client.read_to_string(&mut page).unwrap();
    assert!(page.contains("page"), "{page}");
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.send_to(b"datagram\n", "127.0.0.1:18053").unwrap();
    up.stdout.expect("datagram\n");
    seen.add_main(&counter.calls(), &up);
    assert_eq!(container.end(&up), 137);
    drop(uplink);
}

#[test]
fn vm_what_filters_allow_is_used() {
    let scene = Scene::new();
    let (disk, namespace) = (Disk::new(scene.dir()), Netns::new("runvm-test"));
    let socket = scene.dir().join("socket");
    let _server = Server::echo(&socket);
    let mut seen = Seen::default();
    let all = Counter::new("runvm-all", &[]);
    let mut first = container(&scene, &disk, &namespace, &socket);
    let console = ConsoleSocket::listen(scene.dir(), "console");
    let _ = &console;
    let up = first.sh("trap 'exit 0' TERM; echo up; sleep 100000 & wait $!").create();
    let main = Counter::new("runvm-main", &[up.pid]);
    // The engine's link comes late, so its NIC's thread is started by a main thread that is confined.
    namespace.veth(77, ("rvt0", "eth0"));
    first.start().success();
    let mut joined = scene.container();
    joined.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", up.pid)})));
    joined.set("/linux/resources", json!({"memory": {"limit": 64 * MIB, "swap": 64 * MIB}}));
    joined.sh("trap 'exit 0' TERM; while :; do sleep 1; done");
    let joins = joined.create();
    let proxy = Counter::new("runvm-proxy", &[joins.pid]);
    joined.start().success();
    live(&first, &namespace);
    joined.exec_sh("awk 'BEGIN { s = \"x\"; while (1) s = s s }'").failure();
    process::signal(joins.pid, rustix::process::Signal::TERM);
    assert_eq!(process::wait_orphan(joins.pid), 0);
    proxy.calls().values().for_each(|calls| seen.add("proxy", Some(calls)));
    joined.delete().success();
    seen.add_devices(&all.calls(), &up);
    seen.add_main(&main.calls(), &up);
    first.end(&up);
    ports(&scene, &mut seen);
    judge(&seen);
}

/// Insists that what is allowed is seen, or has a reason why not, and says what is seen.
fn judge(seen: &Seen) {
    let mut unused = Vec::new();
    let mut allowed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in ALLOWED.lines().filter(|line| !line.is_empty()) {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (call, reason) = rest.split_once(": not seen: ").unwrap_or((rest, ""));
        let name = call.split(' ').next().unwrap();
        allowed.entry(kind).or_default().insert(name);
        let is_seen = seen.0.get(kind).is_some_and(|calls| calls.iter().any(|call| call.name() == name));
        if !is_seen && reason.is_empty() {
            unused.push(line);
        }
    }
    for (kind, calls) in &seen.0 {
        let names: Vec<_> = calls.iter().map(Sysno::name).collect();
        println!("{kind}: {}", names.join(" "));
    }
    // What these may call is counted from when they are confined: all of it is allowed.
    for kind in ["main", "proxy"] {
        let more: Vec<_> = seen.0[kind].iter().map(Sysno::name).filter(|name| !allowed[kind].contains(name)).collect();
        assert!(more.is_empty(), "{kind} called what it may not call: {more:?}");
    }
    assert!(unused.is_empty(), "allowed, and never called: {unused:#?}");
}
