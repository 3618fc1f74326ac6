use super::*;

/// Sends messages as the guest's agent will, in the calling thread's namespace.
fn replay(messages: &[Vec<u8>]) {
    let mut socket = netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    for (sequence, message) in messages.iter().enumerate() {
        let mut message = message.clone();
        assert_eq!(message[8..12], [0; 4], "a sequence number that is the agent's");
        message[8..12].copy_from_slice(&u32::try_from(sequence).unwrap().to_ne_bytes());
        let kind = u16::from_ne_bytes([message[4], message[5]]);
        socket.send(&message, 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        let errno = -i32::from_ne_bytes(answer[16..20].try_into().unwrap());
        let deletion = matches!(kind, libc::RTM_DELADDR | libc::RTM_DELROUTE | libc::RTM_DELNEIGH);
        let gone = deletion && matches!(errno, libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENOENT);
        assert!(errno == 0 || gone, "message {sequence} of kind {kind}: {}", std::io::Error::from_raw_os_error(errno));
    }
}

/// Addresses, routes and neighbours in the words of iproute2.
fn told(netns: &TestNamespace) -> String {
    let text = netns.sh(
        "ip -o -d link show eth0 | grep -o 'mtu [0-9]*\\|link/ether [0-9a-f:]*\\|addrgenmode [a-z0-9]*\\|NOARP\\|,UP'; \
         ip -o addr show dev eth0; { ip route show table all; ip -6 route show table all; } | grep -v peer; \
         ip neigh show nud permanent",
    );
    // Whether it is a kernel, or how long ago, that gave an address.
    text.replace(" tentative", "").replace(" nodad", "").replace(" proto kernel_ll", "")
}

/// A namespace whose eth0 is the guest's network device: the other's number and name, and nothing else.
fn guest(index: u32) -> TestNamespace {
    let guest = TestNamespace::new();
    guest.sh(&format!("ip link add eth0 index {index} type veth peer name peer; ip link set peer up"));
    guest
}

fn scan(netns: &TestNamespace) -> Link {
    let found = named(netns.attached_links().scan().unwrap(), "eth0");
    let travelled: Link = crate::ipc::Frame::new(&found).unwrap().open().unwrap();
    assert_eq!(travelled, found);
    found
}

const SETTINGS: &str = "
    ip link set eth0 mtu 1450
    ip addr add 10.0.1.2/16 brd 10.0.255.255 dev eth0 label eth0:1
    ip addr add 10.0.1.3/16 dev eth0
    ip addr add 192.168.7.1 peer 192.168.7.2/32 dev eth0
    ip addr add 10.9.0.1/24 dev eth0 noprefixroute metric 7
    ip addr add fd00::3/64 dev eth0 nodad
    ip addr add fd00:1::3/128 dev eth0 nodad
    ip route add default via 10.0.0.1 src 10.0.1.3
    ip route add 172.16.0.0/12 via 169.254.1.1 dev eth0 onlink metric 50 mtu 1300
    ip route add 172.17.0.0/16 dev eth0 scope link table 77
    ip route add 172.18.0.0/16 via 172.19.0.9 table 77 dev eth0 onlink advmss 900
    ip route add 172.19.0.0/24 dev eth0 scope link
    ip route add 172.20.0.0/24 via 172.19.0.9
    ip route add 172.21.0.0/24 nexthop via 172.19.0.9 weight 2 nexthop via 10.0.0.1 weight 3
    ip -6 route add default via fd00::1 metric 99
    ip -6 route add fd05::/64 dev eth0
    ip -6 route add fd06::/64 via fd05::1 src fd00::3 mtu 1290
    ip -6 route add fd07::/64 via fe80::1 dev eth0 onlink
    ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
    ip neigh add fd00::77 lladdr 02:00:00:00:00:78 dev eth0 nud permanent
    ip neigh add 10.0.0.78 lladdr 02:00:00:00:00:79 dev eth0 nud stale
";

#[test]
fn a_guest_gets_all_that_is_configured() {
    isolated(|| {
        let (inside, outside) = (TestNamespace::new(), TestNamespace::new());
        inside.connect(&outside);
        inside.sh(SETTINGS);
        inside.sh("sleep 2");
        let link = scan(&inside);
        assert_eq!(link, scan(&inside), "two looks at the same differ");
        let guest = guest(link.index);
        replay(&mirror(None, &link));
        assert!(!guest.sh("ip -6 addr show dev eth0").contains("tentative"), "not of use at once");
        assert_eq!(told(&guest), told(&inside).replace("10.0.0.78 lladdr", ""));
        assert_eq!(scan(&guest), link);
        // Once more does no harm.
        replay(&mirror(None, &link));
        assert_eq!(scan(&guest), link);
        assert!(mirror(Some(&link), &link).is_empty());
    });
}

#[test]
fn a_guest_follows_what_changes() {
    isolated(|| {
        let (inside, outside) = (TestNamespace::new(), TestNamespace::new());
        inside.connect(&outside);
        inside.sh(SETTINGS);
        inside.sh("sleep 2");
        let mut old = scan(&inside);
        let guest = guest(old.index);
        replay(&mirror(None, &old));
        let steps = [
            "ip addr add 10.0.0.9/24 dev eth0",
            "ip route del 172.20.0.0/24; ip neigh del 10.0.0.77 dev eth0",
            "ip route change default via 10.0.0.3",
            "ip addr del 10.0.1.2/16 dev eth0",
            "ip -6 addr del fd00::3/64 dev eth0; ip -6 route del default",
            "ip -6 route add default via fd00::9",
            "ip link set eth0 mtu 1400",
            "ip link set eth0 address 02:00:00:00:00:11",
            "ip link set eth0 arp off",
            "ip link set eth0 arp on; ip link set eth0 down",
            "ip link set eth0 up; ip route add default via 10.0.0.1; sleep 2",
            "ip addr flush dev eth0",
        ];
        for step in steps {
            inside.sh(step);
            inside.sh(TRIED);
            let new = scan(&inside);
            assert_ne!(new, old, "{step}");
            guest.enter();
            replay(&mirror(Some(&old), &new));
            assert_eq!(scan(&guest), new, "{step}");
            assert_eq!(told(&guest), told(&inside), "{step}");
            old = new;
        }
        // One thing that changed is one message, as nothing else went.
        inside.sh("ip addr add 10.3.0.9/24 dev eth0");
        assert_eq!(mirror(Some(&old), &scan(&inside)).len(), 1);
    });
}

/// However long the kernel takes to try the addresses that it has made itself.
const TRIED: &str = "while ip -6 addr show tentative | grep -q inet6; do sleep 0.1; done";

#[test]
fn a_route_of_the_kernels_that_was_removed_does_not_come_back() {
    isolated(|| {
        let (inside, outside) = (TestNamespace::new(), TestNamespace::new());
        inside.connect(&outside);
        // As the CNI's ptp does it.
        inside.sh("ip route del 10.0.0.0/24 dev eth0; ip -6 route del fd00::/64 dev eth0");
        inside.sh("ip route add 10.0.0.1 dev eth0 scope link src 10.0.0.2");
        inside.sh("ip route add 10.0.0.0/24 via 10.0.0.1 src 10.0.0.2; ip addr add 10.8.0.9/32 dev eth0; sleep 2");
        inside.sh(TRIED);
        let old = scan(&inside);
        let guest = guest(old.index);
        replay(&mirror(None, &old));
        assert_eq!((told(&guest).replace(" noprefixroute", ""), scan(&guest)), (told(&inside), old.clone()));
        inside.sh("ip addr add 10.2.0.2/24 dev eth0");
        let new = scan(&inside);
        inside.sh("ip route del 10.2.0.0/24 dev eth0");
        let last = scan(&inside);
        guest.enter();
        replay(&mirror(Some(&old), &new));
        assert!(told(&guest).contains("10.2.0.0/24"));
        replay(&mirror(Some(&new), &last));
        assert_eq!(told(&guest).replace(" noprefixroute", ""), told(&inside));
    });
}

#[test]
fn what_changes_is_looked_at_until_two_looks_agree() {
    let looked = |mut seen: &'static str, looks: &[&'static str]| {
        let mut next = looks.iter();
        settle(&mut seen, || Ok(*next.next().unwrap_or(&"more"))).unwrap();
        (seen, next.len())
    };
    assert_eq!(looked("nothing", &["nothing", "more"]), ("nothing", 1));
    assert_eq!(
        looked("nothing", &["route", "address and route", "address and route", "more"]),
        ("address and route", 1)
    );
    assert_eq!(looked("", &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]), ("9", 1));
}

#[test]
fn a_link_without_ipv6_stays_without() {
    isolated(|| {
        let inside = TestNamespace::new();
        inside.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
        inside.plug_ipv4();
        let link = scan(&inside);
        assert!(!link.link_local);
        let guest = guest(link.index);
        replay(&mirror(None, &link));
        assert_eq!(guest.sh("sleep 0.5; ip -6 addr show dev eth0"), "");
        // Too small for IPv6, and up again.
        inside.sh("ip link set eth0 mtu 1000");
        let small = scan(&inside);
        guest.enter();
        replay(&mirror(Some(&link), &small));
        assert_eq!(scan(&guest).mtu, 1000);
    });
}

impl TestNamespace {
    fn plug_ipv4(&self) {
        self.sh("ip link add eth0 type veth peer name far; ip link set far up; ip link set eth0 up");
        self.sh("ip addr add 10.0.0.2/24 dev eth0");
    }
}
