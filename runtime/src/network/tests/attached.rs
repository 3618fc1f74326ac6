use super::*;

#[test]
fn wiring_leaves_nothing_behind() {
    isolated(|| {
        let (inside, outside) = (TestNamespace::new(), TestNamespace::new());
        inside.connect(&outside);
        inside.sh("ip tuntap add eth1 mode tap; ip link set eth1 up mtu 1400");
        let before = inside.dump();
        let mut attached = inside.attached_links();
        let links = attached.scan().unwrap();
        assert_eq!(links.len(), 2);
        let taps: Vec<OwnedFd> = links.iter().map(|link| attached.attach(link).unwrap()).collect();
        for link in &links {
            attached.keep_replies(link).unwrap();
            let once = inside.dump();
            attached.keep_replies(link).unwrap();
            assert_eq!(once, inside.dump(), "not idempotent");
        }
        let after = inside.dump();
        assert!(
            after.contains("65280\t65535") && after.contains("mirred (Egress Mirror to device runvm0) pass"),
            "{after}"
        );
        assert!(after.contains("mtu 1400") && after.contains("runvm1"), "{after}");
        // Our own taps are none of the engine's links, and change nothing of these.
        assert_eq!(attached.scan().unwrap(), links);
        attached.detach(links[0].index).unwrap();
        assert!(inside.dump().contains("65280\t65535"), "the other link still needs them");
        attached.detach_all().unwrap();
        assert_eq!(inside.dump(), before);
        drop(taps);
    });
}

#[test]
fn what_takes_packets_already_is_left_alone() {
    isolated(|| {
        let netns = TestNamespace::new();
        for qdisc in ["ingress", "clsact"] {
            netns.sh("ip tuntap add eth0 mode tap");
            netns.sh(&format!("tc qdisc add dev eth0 {qdisc}"));
            netns.sh("tc filter add dev eth0 ingress protocol ip prio 7 u32 match u32 0 0 flowid 1:1");
            let before = netns.dump();
            let mut attached = netns.attached_links();
            let link = named(attached.scan().unwrap(), "eth0");
            let error = format!("{:#}", attached.attach(&link).unwrap_err());
            assert!(
                error.contains("connect link eth0 to the VM: another program already filters its incoming packets"),
                "{error}"
            );
            assert_eq!(netns.dump(), before);
            clean().unwrap();
            attached.detach_all().unwrap();
            assert_eq!(netns.dump(), before);
            netns.sh("ip link del eth0");
        }
    });
}

#[test]
fn an_ingress_qdisc_without_filters_is_used_and_left() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("ip tuntap add eth0 mode tap; tc qdisc add dev eth0 ingress");
        let before = netns.dump();
        let mut attached = netns.attached_links();
        let link = named(attached.scan().unwrap(), "eth0");
        let tap = attached.attach(&link).unwrap();
        attached.keep_replies(&link).unwrap();
        attached.detach_all().unwrap();
        drop(tap);
        assert_eq!(netns.dump(), before);
        netns.sh("tc qdisc del dev eth0 ingress; tc qdisc add dev eth0 clsact");
        assert!(attached.attach(&link).is_err());
    });
}

#[test]
fn filters_of_others_beside_ours_stay() {
    isolated(|| {
        let netns = TestNamespace::new();
        for by_monitor in [true, false] {
            netns.sh("ip tuntap add eth0 mode tap");
            let mut attached = netns.attached_links();
            let link = named(attached.scan().unwrap(), "eth0");
            let tap = attached.attach(&link).unwrap();
            attached.keep_replies(&link).unwrap();
            // One where we have none, and one at a netns of ours.
            netns.sh("tc filter add dev eth0 ingress protocol ip prio 7 u32 match u32 0 0 flowid 1:1");
            netns.sh("tc filter add dev eth0 ingress protocol all prio 100 u32 match u32 0 0 flowid 1:2");
            if by_monitor {
                attached.detach_all().unwrap();
                drop(tap);
            } else {
                drop(tap);
                clean().unwrap();
            }
            let left = netns.sh("tc filter show dev eth0 ingress");
            let places = |text: &str| left.lines().filter(|line| line.contains(text)).count();
            assert_eq!((places("flowid 1:1"), places("flowid 1:2")), (1, 1), "{left}");
            assert!(!left.contains("mirred") && !left.contains("flowid ffff:7276"), "{left}");
            netns.sh("ip link del eth0");
        }
    });
}

#[test]
fn limits_are_told() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("for n in 0 1 2 3; do ip tuntap add eth$n mode tap; done");
        netns.sh("ip link set eth3 mtu 68");
        let mut attached = netns.attached_links();
        let before = netns.dump();
        let mut links = attached.scan().unwrap();
        (links[0].mtu, links[1].mtu, links[2].mtu) = (65535, 67, 65536);
        let failed = |attached: &mut AttachedLinks, at: usize| attached.attach(&links[at]).unwrap_err().to_string();
        let range = "a VM's network device can have 68 to 65535";
        assert_eq!(failed(&mut attached, 1), format!("link eth1 has an MTU of 67: {range}"));
        assert_eq!(failed(&mut attached, 2), format!("link eth2 has an MTU of 65536: {range}"));
        let tap = attached.attach(&links[0]).unwrap();
        assert_eq!(failed(&mut attached, 0), "link eth0 leads to the VM already");
        assert!(attached.follow(&links[3]).is_err() && attached.keep_replies(&links[3]).is_err());
        attached.detach(links[0].index).unwrap();
        drop(tap);
        let tap = attached.attach(&links[3]).unwrap();
        assert!(netns.dump().contains("runvm0: <BROADCAST,MULTICAST,NOARP,UP,LOWER_UP> mtu 68"), "{}", netns.dump());
        netns.sh("ip link set eth3 mtu 1280");
        let grown = attached.scan().unwrap().remove(3);
        attached.follow(&grown).unwrap();
        assert!(netns.sh("ip link show runvm0").contains("mtu 1280"));
        netns.sh("ip link set eth3 mtu 68");
        attached.detach_all().unwrap();
        drop(tap);
        assert_eq!(netns.dump(), before);
    });
}

#[test]
fn a_link_may_be_gone_or_another_one() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("ip link add eth0 type veth peer name far0");
        let mut attached = netns.attached_links();
        let link = named(attached.scan().unwrap(), "eth0");
        let _tap = attached.attach(&link).unwrap();
        netns.sh("ip link del eth0");
        attached.detach(link.index).unwrap();
        assert!(!netns.dump().contains("runvm"));
        netns.sh(&format!("ip link add eth0 index {} type veth peer name far0", link.index));
        let _tap = attached.attach(&link).unwrap();
        netns.sh(&format!(
            "ip link del eth0; ip link add eth5 index {} type veth peer name far0; tc qdisc add dev eth5 ingress",
            link.index
        ));
        attached.detach(link.index).unwrap();
        assert!(netns.sh("tc qdisc show dev eth5").contains("ingress"), "somebody else's qdisc was removed");
    });
}

#[test]
fn leftovers_are_cleaned_and_nothing_else() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("for n in 0 1 2 3; do ip tuntap add eth$n mode tap; done");
        // Somebody else's, of which one leads nowhere, as ours will.
        netns.sh("ip tuntap add away mode tap; tc qdisc add dev eth2 ingress; tc qdisc add dev eth3 ingress");
        netns.sh("tc filter add dev eth2 ingress protocol all prio 100 u32 match u32 0 0 action mirred egress redirect dev away");
        netns.sh("ip link del away");
        let before = netns.dump();
        let mut attached = netns.attached_links();
        let links = attached.scan().unwrap();
        let dead = attached.attach(&links[0]).unwrap();
        attached.keep_replies(&links[0]).unwrap();
        let alive = attached.attach(&links[1]).unwrap();
        let after = netns.dump();
        clean().unwrap();
        assert_eq!(netns.dump(), after, "what leads to a living tap was removed");
        drop(dead);
        // A child that another test forked just now may have the descriptor until it executes its program.
        netns.sh("while [ $(ip -o link | grep -c ' runvm') -gt 1 ]; do sleep 0.01; done");
        clean().unwrap();
        let ingress = |name: &str| netns.sh(&format!("tc qdisc show dev {name}")).contains("ingress");
        assert_eq!(["eth0", "eth1", "eth2", "eth3"].map(ingress), [false, true, true, true]);
        drop((alive, attached));
        clean().unwrap();
        netns.sh("printf '32768\\t60999' > /proc/sys/net/ipv4/ip_local_port_range");
        assert_eq!(netns.dump(), before);
    });
}

#[test]
fn only_links_like_ethernet_are_found() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("ip tuntap add tun0 mode tun; ip tuntap add tap0 mode tap; ip tuntap add dum0 mode tap");
        netns.sh("ip tuntap add runvm7 mode tap; ip link add v0 type veth peer name v1");
        netns.sh("ip link add mac0 link v0 type macvlan || true; ip link add sit1 type sit local 10.0.0.1 || true");
        let found = netns.attached_links().scan().unwrap();
        let mut names: Vec<&str> = found.iter().map(|link| link.name.as_str()).filter(|name| *name != "mac0").collect();
        assert!(found.is_sorted_by_key(|link| link.index));
        names.sort_unstable();
        assert_eq!(names, ["dum0", "tap0", "v0", "v1"]);
    });
}

#[test]
fn a_helper_without_dev_and_proc_can_do_it() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("ip tuntap add eth0 mode tap");
        let _resolver = std::net::UdpSocket::bind("127.0.0.11:0").unwrap();
        let mut attached = netns.attached_links();
        // As the helper is: with a root that has nothing.
        let root = tempfile::tempdir().unwrap();
        rustix::mount::mount("none", root.path(), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        std::env::set_current_dir("/").unwrap();
        nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
        rustix::process::chdir(root.path()).unwrap();
        rustix::process::pivot_root(".", ".").unwrap();
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(tap::open_devices().is_err() && resolver::open_range().is_err());
        let link = named(attached.scan().unwrap(), "eth0");
        let tap = attached.attach(&link).unwrap();
        assert!(attached.resolver().unwrap());
        attached.keep_replies(&link).unwrap();
        assert_eq!(resolver::set_apart(&attached.files.range).unwrap(), "32768\t60999", "what it was is forgotten");
        assert!(attached.ports.is_some());
        attached.detach_all().unwrap();
        assert!(traffic::busy(&mut attached.socket).unwrap().is_empty());
        drop(tap);
    });
}

#[test]
fn changes_of_others_are_told() {
    isolated(|| {
        let netns = TestNamespace::new();
        netns.sh("ip tuntap add eth0 mode tap; ip link set eth0 up; sleep 0.1");
        let mut changes = Changes::of(changes::watch().unwrap());
        assert!(!changes.drain().unwrap());
        let mut attached = netns.attached_links();
        let link = named(attached.scan().unwrap(), "eth0");
        let tap = attached.attach(&link).unwrap();
        attached.keep_replies(&link).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!changes.drain().unwrap(), "our own doing");
        attached.detach_all().unwrap();
        drop(tap);
        assert!(!changes.drain().unwrap(), "our own undoing");
        let others = [
            "ip link add eth1 type veth peer name far1",
            "ip addr add 10.0.0.1/24 dev eth0",
            "ip route add 10.1.0.0/16 via 10.0.0.9",
            "ip -6 addr add fd00::1/64 dev eth0 nodad",
            "ip -6 route add fd01::/64 via fd00::9",
            "ip addr del 10.0.0.1/24 dev eth0",
            "ip link set eth0 mtu 1300",
            "ip neigh add 10.0.0.7 lladdr 02:00:00:00:00:07 dev eth0 nud permanent",
            "ip neigh del 10.0.0.7 dev eth0",
            "ip link del eth1",
        ];
        for other in others {
            netns.sh(other);
            assert!(changes.drain().unwrap(), "{other}");
            assert!(!changes.drain().unwrap(), "told twice");
        }
        netns.sh("ip neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev eth0 nud stale");
        assert!(!changes.drain().unwrap(), "what the kernel learns by itself");
        // More than the socket holds.
        netns
            .sh("for n in $(seq 300); do echo link add x$n type veth peer name y$n; echo link del x$n; done | ip -b -");
        assert!(changes.drain().unwrap() && !changes.drain().unwrap());
    });
}
