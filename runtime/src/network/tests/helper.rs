use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;

use super::*;
use crate::ipc::{self, Frame};
use crate::network::helper::Helper;
use crate::network::messages::{Reply, Request, Sight, Transport};

/// A helper on a thread of its own, and the monitor's end of the connection.
struct Served {
    monitor: UnixStream,
    thread: std::thread::JoinHandle<()>,
}

impl Served {
    fn begin(netns: &TestNamespace, user_network: bool) -> Self {
        let links = Ok(netns.attached_links());
        let (monitor, socket) = UnixStream::pair().unwrap();
        let mut helper = Helper { links, stays: true, user_network, questions: 0 };
        // The thread is in the namespace of the one that makes it.
        Self { monitor, thread: std::thread::spawn(move || helper.serve(&socket)) }
    }

    fn ask(&self, request: &Request) -> Reply {
        ipc::send(&self.monitor, request).unwrap();
        ipc::receive(&self.monitor).unwrap().unwrap()
    }

    fn look(&self, attached: &[u32], free: usize) -> Result<Sight, String> {
        match self.ask(&Request::Look { attached: attached.to_vec(), free }) {
            Reply::Seen(sight) => Ok(sight),
            Reply::Failed(why) => Err(why),
            _ => panic!("another answer"),
        }
    }

    /// Closes the connection, and waits for the helper's end.
    fn close(self) {
        drop(self.monitor);
        self.thread.join().unwrap();
    }
}

fn taps(netns: &TestNamespace) -> usize {
    netns.sh("ip -o link").matches(" runvm").count()
}

#[test]
fn a_look_attaches_what_is_new_and_detaches_what_has_no_nic() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("for n in 0 1; do ip tuntap add eth$n mode tap; done");
        let before = netns.dump();
        let helper = Served::begin(&netns, false);
        let first = helper.look(&[], 4).unwrap();
        let indexes: Vec<u32> = first.links.iter().map(|link| link.index).collect();
        assert_eq!(first.taps.iter().map(|new| new.link).collect::<Vec<_>>(), indexes);
        assert_eq!((taps(&netns), first.resolver), (2, false));
        let again = helper.look(&indexes, 0).unwrap();
        assert!(again.taps.is_empty() && again.links == first.links);
        // The monitor has no NIC for the second after all.
        let again = helper.look(&indexes[..1], 1).unwrap();
        assert_eq!((again.taps[0].link, again.taps.len(), taps(&netns)), (indexes[1], 1, 2));
        netns.sh("ip link del eth0; ip tuntap add eth2 mode tap; ip tuntap add eth3 mode tap");
        let refused = helper.look(&indexes, 0).err().unwrap();
        assert!(
            refused.starts_with("link eth3: the network namespace has 3 links, and a VM at most 4 NICs"),
            "{refused}"
        );
        let last = helper.look(&indexes, 1).unwrap();
        assert_eq!((last.taps.len(), last.links.len(), taps(&netns)), (2, 3, 3));
        netns.sh("ip link del eth2; ip link del eth3; ip tuntap add eth0 mode tap");
        assert!(matches!(helper.ask(&Request::End), Reply::Ended));
        helper.thread.join().unwrap();
        drop((first, last, again));
        let same = |dump: &str| dump.replace(char::is_numeric, "").lines().count();
        assert_eq!(same(&netns.dump()), same(&before));
    });
}

#[test]
fn nothing_is_left_when_the_monitor_is_gone() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("ip tuntap add eth0 mode tap; ip tuntap add eth1 mode tap");
        let _resolver = UdpSocket::bind("127.0.0.11:0").unwrap();
        let before = netns.dump();
        let helper = Served::begin(&netns, false);
        let sight = helper.look(&[], 2).unwrap();
        assert!(sight.resolver && netns.dump().contains("65280\t65535"));
        // The monitor's descriptors of the taps may live on elsewhere.
        helper.close();
        assert_eq!(netns.dump(), before);
        drop(sight);
    });
}

#[test]
fn rubbish_ends_it_and_leaves_nothing() {
    let named = |head: &str| -> Vec<u8> {
        let lengths = [head.len() as u32, 0, 0].map(u32::to_le_bytes).concat();
        [&lengths, head.as_bytes()].concat()
    };
    let rubbish = [
        vec![0; 12],
        vec![0xff; 64],
        [vec![0, 0, 1, 0], vec![0; 8]].concat(),
        named("\"Look\""),
        named("{\"Look\":{\"attached\":[-1],\"free\":1}}"),
        named("{\"Look\":{\"attached\":[],\"free\":1,\"path\":\"/etc\"}} x"),
        named("{\"Attach\":{\"name\":\"eth0\"}}"),
        named("\"Open"),
        named("{\"Dial\":\"Raw\"}"),
        // In the middle of a frame.
        named("\"Open\"")[..14].to_vec(),
    ];
    isolated(move || {
        let netns = TestNamespace::new();
        netns.sh("ip tuntap add eth0 mode tap");
        let before = netns.dump();
        for bytes in rubbish {
            let mut helper = Served::begin(&netns, false);
            let sight = helper.look(&[], 1).unwrap();
            helper.monitor.write_all(&bytes).unwrap();
            helper.monitor.shutdown(std::net::Shutdown::Write).unwrap();
            let answer = ipc::receive::<Reply>(&helper.monitor);
            assert!(!matches!(answer, Ok(Some(_))), "{bytes:?} was answered");
            helper.close();
            drop(sight);
            assert_eq!(netns.dump(), before, "{bytes:?}");
        }
    });
}

#[test]
fn a_request_comes_without_descriptors_and_absurd_numbers_change_nothing() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("for n in 0 1 2 3 4; do ip tuntap add eth$n mode tap; done");
        let before = netns.dump();
        let helper = Served::begin(&netns, false);
        let most = usize::MAX;
        let five = helper.look(&[], most).err().unwrap();
        assert!(five.contains("has 5 links"), "{five}");
        // Links that it has never seen, again and again.
        assert!(helper.look(&[u32::MAX; 200], most).is_err());
        assert_eq!(netns.dump(), before);
        netns.sh("ip link del eth4");
        for _ in 0..5 {
            let sight = helper.look(&[0, 1, u32::MAX], most).unwrap();
            assert_eq!((sight.taps.len(), taps(&netns)), (4, 4));
        }
        let secret = std::fs::File::open("/").unwrap();
        let head = br#""Open""#;
        let frame = [&[6, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0][..], head].concat();
        ipc::send_fds(&helper.monitor, &frame, &[secret.as_fd()]).unwrap();
        assert!(!matches!(ipc::receive::<Reply>(&helper.monitor), Ok(Some(_))));
        helper.thread.join().unwrap();
        netns.sh("ip tuntap add eth4 mode tap");
        assert_eq!(taps(&netns), 0);
    });
}

#[test]
fn what_is_opened_is_of_the_namespace() {
    isolated(|| {
        let netns = TestNamespace::new();
        let resolver = UdpSocket::bind("127.0.0.11:53").unwrap();
        let _tcp = std::net::TcpListener::bind("127.0.0.11:53").unwrap();
        let helper = Served::begin(&netns, true);
        let Reply::Opened { changes, user_network } = helper.ask(&Request::Open) else { panic!("not opened") };
        assert!(user_network.is_some() && netns.sh("ip addr show eth0").contains("inet "));
        // Once only.
        assert!(matches!(helper.ask(&Request::Open), Reply::Opened { user_network: None, .. }));
        let mut changes = Changes::of(changes.into_owned().unwrap());
        changes.drain().unwrap();
        netns.sh("ip link add eth7 type veth peer name far7");
        assert!(changes.drain().unwrap());
        let Reply::Dialed(udp) = helper.ask(&Request::Dial(Transport::Udp)) else { panic!("not dialed") };
        let udp = UdpSocket::from(udp.into_owned().unwrap());
        udp.send(b"question").unwrap();
        let (_, from) = resolver.recv_from(&mut [0; 99]).unwrap();
        assert!(from.ip().is_loopback() && (20_000..28_000).contains(&from.port()), "{from}");
        let Reply::Dialed(tcp) = helper.ask(&Request::Dial(Transport::Tcp)) else { panic!("not dialed") };
        let tcp = std::net::TcpStream::from(tcp.into_owned().unwrap());
        assert_eq!(tcp.peer_addr().unwrap().to_string(), "127.0.0.11:53");
        // Whether a user-mode network is wanted is not for the monitor to say.
        let other = Served::begin(&TestNamespace::new(), false);
        assert!(matches!(other.ask(&Request::Open), Reply::Opened { user_network: None, .. }));
        let frame = Frame::new(&Request::End).unwrap();
        frame.send(&other.monitor).unwrap();
        other.thread.join().unwrap();
        helper.close();
    });
}
