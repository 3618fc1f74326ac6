//! What containers do, so that each kind of thread of their monitors does all that it is for.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tests::command::run;
use tests::disk::Disk;
use tests::netns::Netns;
use tests::unix::{CLIENT, client};
use tests::{Container, Created, Scene, Terminal, place, process};

const MIB: u64 = 1 << 20;

/// Cases of a file system for calls that a shell does not make.
const CASES: [&str; 7] = [
    "data::flushing",
    "locks::a_locked_file_is_locked",
    "locks::ranges_of_an_open_file",
    "space::data_and_holes_are_found",
    "space::ranges_are_copied",
    "space::space_set_aside",
    "xattrs::set_get_list_remove",
];

/// What a shell does with files.
const FILES: &str = "umask 027; cd /volume && mkdir d && echo text >f && chown 7:8 f && chmod 4711 f && touch -d @7 f
    ln f d/g && ln -s f l && readlink l && mkfifo p && mv d e && ls -l e && cat f && rm -r e f l p && df . && sync";

/// What another user does with files.
const OTHERS_FILES: &str = "cd /volume/everyones && echo text >f && mkdir d && rm -r f d";

/// A question to the resolver by TCP: that it is odd is the resolver's affair.
const BY_TCP: &str = "cd /opt/client; ./ld-* --library-path . ./perl -e 'socket($s, 2, 1, 6);
    connect($s, pack(\"S n C4 x8\", 2, 53, 127, 0, 0, 11)) or die $!; syswrite($s, pack(\"n a2\", 2, \"xx\")); sysread($s, $b, 9) or die $!'";

/// What programs do with a disk; the last one, of the host's perl, has a range made zeroes (`BLKZEROOUT`).
const DISK: &str = "set -e; dd if=/dev/zero of=/dev/data bs=64k count=8 conv=fsync; dd if=/dev/data of=/dev/null bs=64k count=8
    blkdiscard /dev/data; mknod /node b 8 0; cd /opt/client
    ./ld-* --library-path . ./perl -e 'open($d, \"+<\", \"/dev/data\"); $r = pack(\"QQ\", 0, 65536); ioctl($d, 0x127f, $r) or die $!'";

/// Has drivers give devices up and take them again.
const RESET: &str =
    "mount -o remount,rw /sys && for driver in virtio_rng virtio_blk; do cd /sys/bus/virtio/drivers/$driver
    for device in virtio*; do echo $device >unbind && echo $device >bind; done; done";

/// Takes all memory that there is.
pub const FILL_MEMORY: &str = "awk 'BEGIN { s = \"x\"; while (1) s = s s }'";

/// A container with all kinds of devices, whose root may do much.
pub fn container<'a>(scene: &'a Scene, disk: &Disk, namespace: &Netns, socket: &Path) -> Container<'a> {
    let mut container = scene.container();
    container.namespace("network", Some(json!({"type": "network", "path": namespace.path()})));
    let names = "CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_ADMIN NET_RAW SETFCAP SETGID SETUID SYS_ADMIN";
    let capabilities = json!(names.split(' ').map(|name| format!("CAP_{name}")).collect::<Vec<_>>());
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    container.set("/process/capabilities", sets);
    let ((major, minor), limits) = (disk.number(), json!({"limit": 96 * MIB, "swap": 96 * MIB}));
    let devices = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "access": "m"},
        {"allow": true, "type": "b", "major": major, "minor": minor, "access": "rwm"},
    ]);
    container.set("/linux/resources", json!({"devices": devices, "memory": limits}));
    container.set("/linux/devices", json!([{"path": "/dev/data", "type": "b", "major": major, "minor": minor}]));
    container.set("/annotations", json!({"io.runvm.sockets": "true"}));
    container.mount("bind", client(), CLIENT, &["bind", "ro"]);
    container.mount("bind", socket, "/run/host.sock", &["bind"]);
    let volume = scene.dir().join("volume");
    container.mount("bind", &volume, "/volume", &["bind"]);
    fs::copy(place::bin().join("posix-cases"), container.rootfs().join("posix-cases")).unwrap();
    container
}

/// Has a container use files, disks, streams, its network and all of its memory.
pub fn live(container: &Container, namespace: &Netns) {
    let cases = CASES.map(|word| format!("/posix-cases common /volume {word}")).join("; ");
    // Which cases pass is for another area to say.
    container.exec_sh(&cases);
    container.exec_sh(FILES).success();
    // What is watched on a volume is watched on the host as well.
    container
        .exec_sh(&format!(
            "{CLIENT}/watch 0x100 /volume & until >/volume/end; ! sleep 1; do rm /volume/end; done & wait %1"
        ))
        .success();
    container.exec_sh("mkdir -m 777 /volume/everyones").success();
    run(container.command("exec").args(["--user", "1000", &container.id, "sh", "-c", OTHERS_FILES])).success();
    container.exec_sh(DISK).success();
    container.exec_sh(RESET).success();
    container.exec_sh("nslookup db.test 127.0.0.11").success();
    container.exec_sh(BY_TCP).success();
    container.exec_sh("ping -c 1 -W 9 10.77.0.1 && ip link set eth0 mtu 1400").success();
    namespace.ip("addr add 10.77.0.9/24 dev eth0");
    process::wait_until("the address", || container.exec_sh("ip addr").stdout.contains("10.77.0.9"));
    container.exec_sh(&format!("echo hello | {CLIENT}/connect /run/host.sock")).success();
    resize(container);
    // The clock is set, if to what it says: the guest is told.
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, now).unwrap();
    for verb in ["pause", "resume", "ps"] {
        run(container.command(verb).arg(&container.id)).success();
    }
    // The host's kernel is made to notice.
    container.exec_sh(FILL_MEMORY).failure();
}

/// Has a process of the container on a terminal whose size changes.
fn resize(container: &Container) {
    let mut terminal = Terminal::open(24, 80);
    let mut command = container.command("exec");
    command.args(["--tty", &container.id, "sh", "-c", "stty size; until stty size | grep '30 90'; do sleep 0.1; done"]);
    terminal.attach(&mut command);
    let mut child = command.spawn().unwrap();
    drop(command);
    terminal.expect("24 80");
    terminal.resize(30, 90);
    terminal.expect("30 90");
    assert!(child.wait().unwrap().success());
}

/// A container with ports that are published and a network by passt.
pub fn publishing<'a>(scene: &'a Scene) -> (Container<'a>, Created) {
    let mut container = scene.container();
    container.sh("echo page >/tmp/index.html; httpd -p 8080 -h /tmp; echo up; exec /udp-echo 0.0.0.0:7000");
    container.mount("bind", &place::bin().join("udp-echo"), "/udp-echo", &["bind", "ro"]);
    let created = container.create_with(&["--net", "user", "-p", "18080:8080", "-p", "17000:7000/udp"]);
    (container, created)
}

/// Asks at both ports.
pub fn ask() {
    let mut client = TcpStream::connect("127.0.0.1:18080").unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut page = Vec::new();
    // The server may end the connection before it has read all of the question, which is an error to who asks.
    let end = client.read_to_end(&mut page);
    assert!(page.starts_with(b"HTTP/1."), "{end:?}: {}", String::from_utf8_lossy(&page));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    process::wait_until("the echo of a datagram", || {
        udp.send_to(b"datagram", "127.0.0.1:17000").unwrap();
        udp.recv(&mut [0; 16]).is_ok()
    });
}
