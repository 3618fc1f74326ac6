//! Translation of an address in a container's network, as by
//!
//! ```text
//! nft add table ip runvm
//! nft add chain ip runvm resolver '{ type nat hook output priority -100; }'
//! nft add rule ip runvm resolver ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:PORT
//! ```
//!
//! So that the port itself stays free: a container may have a name server of its own. Docker does the same for its
//! resolver, in the namespace on the host.

use crate::network::netlink::{attribute, message};
use std::net::SocketAddrV4;

/// Numbers of `linux/netfilter/nfnetlink.h`: the subsystem, and the messages around a batch.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// Numbers of `linux/netfilter/nf_tables.h`: messages,
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
/// and of values: registers, keys, places in a packet.
const REGISTERS: [u32; 2] = [1, 2];
const KEY_PROTOCOL: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const EQUAL: u32 = 0;
const DESTINATION: u32 = 1;
/// The hook for packets of the namespace's own processes, and the place of translations there (`linux/netfilter_ipv4.h`).
const HOOK_OUTPUT: u32 = 3;
const PRIORITY: i32 = -100;

/// Names of the agent's table, and of its one chain.
const TABLE: &[u8] = b"runvm\0";
const CHAIN: &[u8] = b"resolver\0";

/// A batch of requests that has packets to an address go to other ports: `to` has a port for each IP protocol.
pub fn translate(from: SocketAddrV4, to: &[(u8, u16)]) -> Vec<u8> {
    let table = attribute(1, TABLE);
    let hook = [number(1, HOOK_OUTPUT), number(2, PRIORITY.cast_unsigned())].concat();
    let chain = [attribute(1, TABLE), attribute(3, CHAIN), attribute(4, &hook), attribute(7, b"nat\0")].concat();
    let mut batch = [edge(BATCH_BEGIN), of_nftables(NEW_TABLE, 0, &table), of_nftables(NEW_CHAIN, 0, &chain)].concat();
    for (last, (protocol, port)) in to.iter().enumerate().map(|(at, rule)| (at + 1 == to.len(), rule)) {
        let expressions = rule(from, *protocol, *port);
        let body = [attribute(1, TABLE), attribute(2, CHAIN), attribute(4, &expressions)].concat();
        // One answer for all.
        batch.extend(of_nftables(NEW_RULE, if last { libc::NLM_F_ACK } else { 0 }, &body));
    }
    batch.extend(edge(BATCH_END));
    batch
}

fn rule(from: SocketAddrV4, protocol: u8, port: u16) -> Vec<u8> {
    let [address, target] = REGISTERS;
    [
        payload(NETWORK_HEADER, 16, 4),
        compare(&from.ip().octets()),
        expression(b"meta\0", &[number(2, KEY_PROTOCOL), number(1, address)].concat()),
        compare(&[protocol]),
        payload(TRANSPORT_HEADER, 2, 2),
        compare(&from.port().to_be_bytes()),
        immediate(address, &from.ip().octets()),
        immediate(target, &port.to_be_bytes()),
        expression(
            b"nat\0",
            &[number(1, DESTINATION), number(2, libc::AF_INET as u32), number(3, address), number(5, target)].concat(),
        ),
    ]
    .concat()
}

/// Loads a part of a packet into the first register.
fn payload(header: u32, offset: u32, length: u32) -> Vec<u8> {
    let [register, _] = REGISTERS;
    let body = [number(1, register), number(2, header), number(3, offset), number(4, length)].concat();
    expression(b"payload\0", &body)
}

/// Ends the rule unless that is in the first register.
fn compare(with: &[u8]) -> Vec<u8> {
    let [register, _] = REGISTERS;
    let body = [number(1, register), number(2, EQUAL), attribute(3, &attribute(1, with))].concat();
    expression(b"cmp\0", &body)
}

fn immediate(register: u32, value: &[u8]) -> Vec<u8> {
    expression(b"immediate\0", &[number(1, register), attribute(2, &attribute(1, value))].concat())
}

/// An element of a rule's list.
fn expression(name: &[u8], body: &[u8]) -> Vec<u8> {
    attribute(1, &[attribute(1, name), attribute(2, body)].concat())
}

/// The numbers of nf_tables are big-endian.
fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// `struct nfgenmsg`: family, version, and a number that the batch's edges have the subsystem in.
fn of_nftables(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let header = [libc::AF_INET as u8, 0, 0, 0];
    message(SUBSYSTEM << 8 | kind, flags | libc::NLM_F_CREATE, &[&header, body].concat())
}

fn edge(kind: u16) -> Vec<u8> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    message(kind, 0, &[0, 0, high, low])
}
