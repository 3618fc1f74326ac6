use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::*;

/// What a device has before each frame: nothing to say.
const VNET: [u8; 10] = [0; 10];
const HERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
const THERE: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn file(tap: &OwnedFd) -> std::fs::File {
    tap.try_clone().unwrap().into()
}

/// Frames that a tap gives until nothing comes for a while.
fn frames(tap: &OwnedFd) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(150) {
        let mut buffer = vec![0; 2048];
        match file(tap).read(&mut buffer) {
            Ok(length) => {
                found.push(buffer[VNET.len()..length].to_vec());
                last = Instant::now();
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    found
}

fn holds(frames: &[Vec<u8>], text: &[u8]) -> bool {
    frames.iter().any(|frame| frame.windows(text.len()).any(|part| part == text))
}

fn send(tap: &OwnedFd, frame: &[u8]) {
    file(tap).write_all(&[&VNET, frame].concat()).unwrap();
}

fn ethernet(protocol: u16, payload: &[u8]) -> Vec<u8> {
    [&HERE[..], &THERE, &protocol.to_be_bytes(), payload].concat()
}

/// From 10.0.0.1 to 10.0.0.2, with this first byte and netns of the fragment.
fn ipv4(first: u8, fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![first, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    header.resize(usize::from(first & 15) * 4, 1);
    let length = u16::try_from(header.len() + payload.len()).unwrap();
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    let sum: u32 = header.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(0x0800, &[&header, payload].concat())
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let addresses = "fd00::1 fd00::2".split(' ').map(|a| a.parse::<std::net::Ipv6Addr>().unwrap().octets());
    let addresses = addresses.collect::<Vec<_>>().concat();
    ethernet(0x86dd, &[&[0x60, 0, 0, 0, length[0], length[1], next, 64], &addresses[..], payload].concat())
}

/// A header as UDP has it, and as TCP has it that far.
fn ports(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0, 8, 0, 0], &[0; 16]].concat()
}

#[test]
fn packets_go_where_they_belong() {
    isolated(|| {
        let (inside, outside) = (TestNamespace::new(), TestNamespace::new());
        inside.connect(&outside);
        let mut attached = inside.attached_links();
        let link = attached.scan().unwrap().remove(0);
        let host = UdpSocket::bind("10.0.0.2:8080").unwrap();
        host.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let tap = attached.attach(&link).unwrap();
        let mac = outside.sh("ip -o link show peer");
        let mac = mac.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let there: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        outside.sh("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev peer nud permanent");
        outside.enter();
        let far = UdpSocket::bind("10.0.0.1:7000").unwrap();
        far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        frames(&tap);
        far.send_to(b"for the guest", "10.0.0.2:8080").unwrap();
        assert!(holds(&frames(&tap), b"for the guest"));
        assert!(host.recv(&mut [0; 99]).is_err(), "the host's stack has seen it");
        // What the guest sends.
        let mut frame =
            ipv4(0x45, 0, 17, &[&8080u16.to_be_bytes()[..], &7000u16.to_be_bytes(), &[0, 12, 0, 0], b"hola"].concat());
        frame[..6].copy_from_slice(&there);
        frame[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        send(&tap, &frame);
        let mut text = [0; 9];
        let (length, from) = far.recv_from(&mut text).unwrap();
        assert_eq!((&text[..length], from.to_string().as_str()), (&b"hola"[..], "10.0.0.2:8080"));
        inside.enter();
        attached.detach_all().unwrap();
        outside.sh("ip neigh del 10.0.0.2 dev peer");
        far.send_to(b"detached", "10.0.0.2:8080").unwrap();
        assert_eq!(host.recv(&mut [0; 99]).unwrap(), 8, "the host's stack does not get it any more");
    });
}

#[test]
fn the_hosts_resolver_gets_its_answers() {
    isolated(|| {
        let (inside, outside) = (TestNamespace::new(), TestNamespace::new());
        inside.connect(&outside);
        outside.sh("ip addr add fd00::5/64 dev peer nodad; ip addr add 10.0.0.5/24 dev peer");
        let mut attached = inside.attached_links();
        assert!(!attached.resolver().unwrap());
        let name_server = UdpSocket::bind("127.0.0.11:0").unwrap();
        assert!(attached.resolver().unwrap());
        drop(name_server);
        let link = attached.scan().unwrap().remove(0);
        let tap = attached.attach(&link).unwrap();
        attached.keep_replies(&link).unwrap();
        for (server, any) in [("10.0.0.1:53", "0.0.0.0:0"), ("[fd00::1]:53", "[::]:0")] {
            outside.enter();
            let server = UdpSocket::bind(server).unwrap();
            inside.enter();
            let asks = UdpSocket::bind(any).unwrap();
            asks.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            frames(&tap);
            // Both sides must learn the other's Ethernet address first.
            asks.send_to(b"question", server.local_addr().unwrap()).unwrap();
            let (_, from) = server.recv_from(&mut [0; 99]).expect("no question came");
            assert!(from.port() >= 65280, "{from}");
            server.send_to(b"answer", from).unwrap();
            assert_eq!(asks.recv(&mut [0; 99]).expect("no answer came"), 6);
            let seen = frames(&tap);
            assert!(!holds(&seen, b"answer"), "the guest has seen the answer");
            let neighbours =
                |frame: &Vec<u8>| frame[12..14] == [8, 6] || frame[20] == 58 && matches!(frame[54], 135 | 136);
            assert!(seen.iter().any(neighbours), "the guest has not seen who has which address");
            // The same port, but no name server's.
            outside.enter();
            let other = UdpSocket::bind((server.local_addr().unwrap().ip(), 54)).unwrap();
            other.send_to(b"other", from).unwrap();
            assert!(holds(&frames(&tap), b"other"));
        }
        inside.enter();
        attached.detach_all().unwrap();
        assert!(UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port() < 65280);
    });
}

#[test]
fn nothing_but_answers_is_kept() {
    isolated(|| {
        let netns = TestNamespace::new();
        // A link whose other end is the test.
        let mut attached = netns.attached_links();
        let far = tap::make(attached.files.devices().unwrap(), &attached.socket).unwrap();
        netns.sh("ip link set runvm0 name eth0; ip link set eth0 up address 02:00:00:00:00:02");
        let link = named(attached.scan().unwrap(), "eth0");
        let tap = attached.attach(&link).unwrap();
        let (answer, udp, tcp) = (ports(53, 65300), 17, 6);
        let neighbour = |kind: u8| ipv6(58, &[&[kind], &[0; 23][..]].concat());
        let vlan = [&HERE[..], &THERE, &[0x81, 0, 0, 7, 8, 0], &ipv4(0x45, 0, udp, &answer)[14..]].concat();
        let cases = [
            (ipv4(0x45, 0, udp, &answer), false),
            (ipv4(0x45, 0, tcp, &answer), false),
            (ipv4(0x45, 0x2000, udp, &answer), false),
            (ipv6(udp, &answer), false),
            (ipv6(tcp, &answer), false),
            (ipv4(0x45, 0, udp, &ports(53, 65279)), true),
            (ipv4(0x45, 0, udp, &ports(53, 40000)), true),
            (ipv4(0x45, 0, udp, &ports(54, 65300)), true),
            (ipv4(0x45, 0, tcp, &ports(0x3500, 65300)), true),
            (ipv4(0x45, 0, 132, &answer), true),
            (ipv4(0x45, 1, udp, &answer), true),
            (ipv4(0x45, 0x1000, udp, &answer), true),
            (ipv4(0x46, 0, udp, &answer), true),
            (ipv6(udp, &ports(53, 65279)), true),
            (ipv6(udp, &ports(1053, 65300)), true),
            (ipv6(44, &answer), true),
            (neighbour(128), true),
            (neighbour(134), true),
            (neighbour(135), true),
            (neighbour(136), true),
            (ethernet(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), true),
            (ethernet(0x88cc, &[0; 50]), true),
            (vlan, true),
            (ethernet(0x0800, &[0x45]), true),
        ];
        frames(&tap);
        for kept in [false, true] {
            for (number, (frame, guests)) in cases.iter().enumerate() {
                send(&far.file, frame);
                // The tap may have frames of the host's own besides.
                let seen = frames(&tap).contains(frame);
                assert_eq!(seen, *guests || !kept, "frame {number}, answers kept: {kept}");
            }
            attached.keep_replies(&link).unwrap();
        }
    });
}

#[test]
fn a_tap_is_quiet() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("ip tuntap add eth0 mode tap; ip link set eth0 up");
        let mut attached = netns.attached_links();
        let link = attached.scan().unwrap().remove(0);
        let tap = attached.attach(&link).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(frames(&tap), Vec::<Vec<u8>>::new());
    });
}
