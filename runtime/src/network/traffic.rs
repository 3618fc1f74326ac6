//! Traffic control: redirects what arrives by a link to another one, with nothing rarer than u32 and mirred.
//!
//! Our filters have a mark in place of a class, so that they can be told from others even after a monitor was killed.

use std::collections::BTreeSet;
use std::io;

use anyhow::{Context, bail};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use super::netlink::Socket;

/// The handle of every ingress qdisc.
const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: 0 };
/// Mark of our filters, "rv": a class that no qdisc has.
const MARK: TcHandle = TcHandle { major: u16::MAX, minor: 0x7276 };
/// Slot of the filter that takes every packet; filters that see packets before it have lower numbers.
const EVERYTHING: Slot = Slot { priority: 100, protocol: libc::ETH_P_ALL as u16 };

const ARP: u16 = libc::ETH_P_ARP as u16;
const IPV4: u16 = libc::ETH_P_IP as u16;
const IPV6: u16 = libc::ETH_P_IPV6 as u16;

/// Priority and protocol of filters: the kernel asks those of a lower priority number first.
#[derive(Clone, Copy)]
struct Slot {
    priority: u16,
    protocol: u16,
}

/// Packets of a kind: those of a protocol that match any of some patterns.
struct Kind {
    slot: Slot,
    patterns: &'static [&'static [Word]],
}

/// A pattern: four bytes at an offset from the network header.
struct Word {
    at: i32,
    mask: u32,
    value: u32,
}

const fn word(at: i32, mask: u32, value: u32) -> Word {
    Word { at, mask, value }
}

/// Ports of a reply: from a name server's to those that only the host's sockets have, see [`super::resolver::PORTS`].
const ANSWER: (u32, u32) = (0xffff_ff00, 0x0035_ff00);
/// Pattern of a header without options; the next one of a first fragment: later ones have no ports.
const SHORT: Word = word(0, 0xff00_0000, 0x4500_0000);
const FIRST: Word = word(4, 0x0000_1fff, 0);

/// Replies to the host's resolver, which go to the host alone.
const ANSWERS: [Kind; 2] = [
    Kind {
        slot: Slot { priority: 1, protocol: IPV4 },
        patterns: &[
            &[SHORT, FIRST, word(8, 0x00ff_0000, 0x0011_0000), word(20, ANSWER.0, ANSWER.1)],
            &[SHORT, FIRST, word(8, 0x00ff_0000, 0x0006_0000), word(20, ANSWER.0, ANSWER.1)],
        ],
    },
    Kind {
        slot: Slot { priority: 2, protocol: IPV6 },
        patterns: &[
            &[word(4, 0x0000_ff00, 0x0000_1100), word(40, ANSWER.0, ANSWER.1)],
            &[word(4, 0x0000_ff00, 0x0000_0600), word(40, ANSWER.0, ANSWER.1)],
        ],
    },
];

/// ARP and neighbour discovery, for the host as well as for the guest.
const NEIGHBOURS: [Kind; 2] = [
    Kind { slot: Slot { priority: 3, protocol: ARP }, patterns: &[&[]] },
    Kind {
        slot: Slot { priority: 4, protocol: IPV6 },
        patterns: &[
            &[word(4, 0x0000_ff00, 0x0000_3a00), word(40, 0xff00_0000, 0x8700_0000)],
            &[word(4, 0x0000_ff00, 0x0000_3a00), word(40, 0xff00_0000, 0x8800_0000)],
        ],
    },
];

/// Effect of a filter on a packet.
#[derive(Clone, Copy)]
enum Fate {
    /// Sends the packet out by a link, and nowhere else.
    Redirect(u32),
    /// Sends the packet out by a link, and passes it to the host.
    Copy(u32),
    /// Passes the packet to the host.
    Pass,
}

/// Joins a link and a tap: each sends out what arrives by the other. Says whether the link had an ingress qdisc already.
///
/// # Errors
/// Something takes packets off the link already, or the kernel refuses. Then the link is as it was.
pub fn join(socket: &mut Socket, link: u32, tap: u32) -> anyhow::Result<bool> {
    add_qdisc(socket, tap).context("add an ingress qdisc to its tap")?;
    redirect(socket, tap, link).context("redirect what comes from its tap")?;
    let had = match add_qdisc(socket, link) {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            // Left by a monitor that was killed just then, or by somebody who does not use it.
            if !busy(socket)?.contains(&link) || !filters(socket, link)?.is_empty() {
                bail!(
                    "another program already filters its incoming packets (by an ingress or clsact qdisc); remove the \
                     filters, or give the container a link of its own"
                );
            }
            true
        }
        Err(error) => return Err(error).context("add an ingress qdisc (is the kernel's sch_ingress there?)"),
    };
    redirect(socket, link, tap).context("redirect what comes in").inspect_err(|_| {
        if !had {
            // The first error says more than one of cleaning up.
            let _ = remove_qdisc(socket, link);
        }
    })?;
    Ok(had)
}

fn redirect(socket: &mut Socket, from: u32, to: u32) -> io::Result<()> {
    // Nothing to match: even a mask of zeros passes over packets that are shorter than it.
    add_filter(socket, from, EVERYTHING, &[], Fate::Redirect(to))
}

/// Keeps packets on the host that its own resolver waits for.
///
/// # Errors
/// The kernel refuses. Then the link is as it was.
pub fn keep(socket: &mut Socket, link: u32, tap: u32) -> anyhow::Result<()> {
    let kinds = ANSWERS.iter().map(|kind| (kind, Fate::Pass));
    let kinds = kinds.chain(NEIGHBOURS.iter().map(|kind| (kind, Fate::Copy(tap))));
    for (kind, fate) in kinds {
        for pattern in kind.patterns {
            if let Err(error) = add_filter(socket, link, kind.slot, pattern, fate) {
                let _ = give(socket, link);
                return Err(error).context("filter what is for the host's own resolver");
            }
        }
    }
    Ok(())
}

/// Undoes [`keep`].
///
/// # Errors
/// Names the first filter that stays.
pub fn give(socket: &mut Socket, link: u32) -> io::Result<()> {
    let found = filters(socket, link)?;
    remove_ours(socket, link, &found, |filter| filter.priority() != EVERYTHING.priority)
}

/// Removes our filters from a link, if they lead to this tap or nowhere, and the qdisc unless it is to be kept. Filters of others
/// stay.
///
/// # Errors
/// The kernel's.
pub fn part(socket: &mut Socket, link: u32, tap: Option<u32>, keep_qdisc: bool) -> io::Result<()> {
    let found = filters(socket, link)?;
    let target = found.iter().filter(|filter| filter.ours).find_map(|filter| filter.target);
    if target != Some(0) && (tap.is_none() || target != tap) {
        return Ok(());
    }
    match keep_qdisc || found.iter().any(|filter| !filter.ours) {
        true => remove_ours(socket, link, &found, |_| true),
        false => match remove_qdisc(socket, link) {
            // Unless somebody else has done so meanwhile.
            Err(error) if filters(socket, link)?.iter().any(|filter| filter.ours) => Err(error),
            _ => Ok(()),
        },
    }
}

fn remove_ours(socket: &mut Socket, link: u32, found: &[Filter], wanted: impl Fn(&Filter) -> bool) -> io::Result<()> {
    let mut result = Ok(());
    let mut removed = BTreeSet::new();
    for filter in found.iter().filter(|filter| filter.ours && wanted(filter)) {
        // Unless somebody else has filters in the slot, all of it is removed together.
        let shared = found.iter().any(|other| other.info == filter.info && !other.ours);
        if !shared && !removed.insert(filter.info) {
            continue;
        }
        let handle = if shared { filter.handle } else { TcHandle::UNSPEC };
        let mut message = at_link(link, handle, INGRESS);
        message.header.info = filter.info;
        match socket.request(RouteNetlinkMessage::DelTrafficFilter(message), 0) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => result = result.and(Err(error)),
            _ => {}
        }
    }
    result
}

/// Indexes of the links that have an ingress qdisc.
pub fn busy(socket: &mut Socket) -> io::Result<Vec<u32>> {
    let found = socket.dump(&RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))?;
    let ingress = |message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(message) if message.header.parent == TcHandle::INGRESS => {
            let kind = message.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "ingress"));
            kind.then_some(message.header.index as u32)
        }
        _ => None,
    };
    Ok(found.into_iter().filter_map(ingress).collect())
}

/// A filter of a link's ingress qdisc.
struct Filter {
    handle: TcHandle,
    /// Slot of the filter: priority and protocol.
    info: u32,
    ours: bool,
    /// Index of the link that it redirects to; 0 if that is gone.
    target: Option<u32>,
}

impl Filter {
    /// Reads a filter; none for the tables of u32's filters, which the kernel lists as well.
    fn of(message: &TcMessage) -> Option<Self> {
        let kind = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == TcFilterU32::KIND);
        let u32s = message.attributes.iter().any(kind);
        let options = message.attributes.iter().find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options.as_slice()),
            _ => None,
        });
        let options = options.unwrap_or_default();
        let has =
            |wanted: fn(&TcFilterU32Option) -> bool| options.iter().any(|o| matches!(o, TcOption::U32(o) if wanted(o)));
        if u32s && !has(|option| matches!(option, TcFilterU32Option::Selector(_))) {
            return None;
        }
        Some(Self {
            handle: message.header.handle,
            info: message.header.info,
            ours: u32s && has(|option| *option == TcFilterU32Option::ClassId(MARK)),
            target: options.iter().find_map(redirected),
        })
    }

    fn priority(&self) -> u16 {
        (self.info >> 16) as u16
    }
}

fn filters(socket: &mut Socket, link: u32) -> io::Result<Vec<Filter>> {
    let asked = at_link(link, TcHandle::UNSPEC, INGRESS);
    let found = socket.dump(&RouteNetlinkMessage::GetTrafficFilter(asked))?;
    let filter = |message: &RouteNetlinkMessage| match message {
        RouteNetlinkMessage::NewTrafficFilter(message) => Filter::of(message),
        _ => None,
    };
    Ok(found.iter().filter_map(filter).collect())
}

fn redirected(option: &TcOption) -> Option<u32> {
    let TcOption::U32(TcFilterU32Option::Action(actions)) = option else { return None };
    let options = actions.iter().flat_map(|action| &action.attributes).filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(to)) if to.eaction == TcMirrorActionType::EgressRedir => {
            Some(to.ifindex)
        }
        _ => None,
    })
}

fn at_link(link: u32, handle: TcHandle, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(link as i32);
    (message.header.handle, message.header.parent) = (handle, parent);
    message
}

fn add_qdisc(socket: &mut Socket, link: u32) -> io::Result<()> {
    let mut message = at_link(link, INGRESS, TcHandle::INGRESS);
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    socket.request(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn remove_qdisc(socket: &mut Socket, link: u32) -> io::Result<()> {
    socket.request(RouteNetlinkMessage::DelQueueDiscipline(at_link(link, INGRESS, TcHandle::INGRESS)), 0)
}

fn add_filter(socket: &mut Socket, link: u32, slot: Slot, pattern: &[Word], fate: Fate) -> io::Result<()> {
    let mut message = at_link(link, TcHandle::UNSPEC, INGRESS);
    message.header.info = info(slot);
    let mut options = vec![TcFilterU32Option::ClassId(MARK), TcFilterU32Option::Selector(selector(pattern))];
    options.extend(action(fate).map(|action| TcFilterU32Option::Action(vec![action])));
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::U32).collect()),
    ];
    socket.request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Slot as the kernel's number, with the protocol in network byte order.
fn info(slot: Slot) -> u32 {
    u32::from(slot.priority) << 16 | u32::from(slot.protocol.to_be())
}

fn selector(pattern: &[Word]) -> TcU32Selector {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = u8::try_from(pattern.len()).unwrap_or(u8::MAX);
    let key = |word: &Word| {
        let mut key = TcU32Key::default();
        (key.off, key.mask, key.val) = (word.at, word.mask, word.value);
        key
    };
    selector.keys = pattern.iter().map(key).collect();
    selector
}

/// Action of a filter; a filter without one ends the search, and passes the packet to the host.
fn action(fate: Fate) -> Option<TcAction> {
    let (kind, then, to) = match fate {
        Fate::Redirect(to) => (TcMirrorActionType::EgressRedir, TcActionType::Stolen, to),
        Fate::Copy(to) => (TcMirrorActionType::EgressMirror, TcActionType::Ok, to),
        Fate::Pass => return None,
    };
    let mut mirror = TcMirror::default();
    (mirror.eaction, mirror.ifindex, mirror.generic.action) = (kind, to, then);
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    Some(action)
}
