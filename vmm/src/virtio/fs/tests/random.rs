//! Whatever requests come, in whatever order, the answers are well-formed, the server's tables are what a small model of
//! them says, and nothing outside of the share changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};
use zerocopy::{FromBytes, IntoBytes};

use super::super::Fs;
use super::super::fuse::*;
use super::super::table::inode::Anchor;
use super::guest::*;
use crate::virtio::Device;

/// Most objects with a descriptor, and most handles.
const HOT: usize = 8;
const HANDLES: usize = 6;

/// Values that mean something, besides those that mean nothing.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..8u64, Just(u64::MAX), Just(1 << 32), Just(1 << 63), any::<u64>()]
}

/// A body of numbers and a tail of characters that names are made of.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let tail =
        proptest::collection::vec(prop_oneof![Just(0u8), Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..20);
    (proptest::collection::vec(number(), 0..12), tail).prop_map(|(numbers, tail)| [numbers.as_bytes(), &tail].concat())
}

/// What a guest asks for. An [`Index`] chooses among the nodeids or handles that the guest has then.
#[derive(Clone, Debug)]
enum Step {
    /// Any opcode about any nodeid, with any body and this much room for the reply.
    Raw(u32, u64, Vec<u8>, usize),
    /// An opcode about a directory: structures, then names.
    Named(u32, Index, Vec<u8>, Vec<&'static str>),
    /// The same with room for nothing but the reply's header.
    NoRoom(u32, Index, Vec<u8>, Vec<&'static str>),
    /// `LINK` of an object and `RENAME` within or between directories: directory, other nodeid, names.
    Two(u32, Index, Index, Vec<&'static str>),
    Open(u32, Index, i32),
    Truncate(Index),
    Write(Index),
    List(Index, usize),
    Release(Index),
    Forget(Index, u64),
    Init,
    Destroy,
}

fn name() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "b", "c", "sub", "out", "up", ".", "..", "../victim", "sub/a", "up/victim", ""])
}

fn step() -> impl Strategy<Value = Step> {
    // A test that syncs would sync the whole machine, again and again.
    let code = (0..60u32).prop_filter("SYNCFS", |&code| code != opcode::SYNCFS);
    let room = prop_oneof![Just(0usize), Just(200), Just(5000)];
    let zeros = |bytes: usize| Just(vec![0; bytes]);
    let create = select(vec![libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDWR | libc::O_EXCL])
        .prop_map(|flags| CreateIn { flags: flags as u32, mode: 0o644, ..CreateIn::default() }.as_bytes().to_vec());
    let mkdir = MkdirIn { mode: 0o755, umask: 0 }.as_bytes().to_vec();
    let mknod = MknodIn { mode: libc::S_IFIFO | 0o600, ..MknodIn::default() }.as_bytes().to_vec();
    let named = prop_oneof![
        6 => (Just(opcode::LOOKUP), zeros(0), name().prop_map(|name| vec![name])),
        3 => (Just(opcode::CREATE), create, name().prop_map(|name| vec![name])),
        1 => (Just(opcode::MKDIR), Just(mkdir), name().prop_map(|name| vec![name])),
        1 => (Just(opcode::MKNOD), Just(mknod), name().prop_map(|name| vec![name])),
        1 => (Just(opcode::SYMLINK), zeros(0), (name(), name()).prop_map(|(name, target)| vec![name, target])),
        1 => (select(vec![opcode::UNLINK, opcode::RMDIR]), zeros(0), name().prop_map(|name| vec![name])),
    ];
    let open = select(vec![libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC]);
    prop_oneof![
        3 => (code, number(), body(), room).prop_map(|(code, node, body, room)| Step::Raw(code, node, body, room)),
        10 => (any::<Index>(), named.clone()).prop_map(|(node, (code, args, names))| Step::Named(code, node, args, names)),
        1 => (any::<Index>(), named).prop_map(|(node, (code, args, names))| Step::NoRoom(code, node, args, names)),
        2 => (any::<Index>(), any::<Index>(), name())
            .prop_map(|(to, node, name)| Step::Two(opcode::LINK, to, node, vec![name])),
        2 => (any::<Index>(), any::<Index>(), name(), name())
            .prop_map(|(from, to, old, new)| Step::Two(opcode::RENAME, from, to, vec![old, new])),
        3 => (any::<Index>(), open).prop_map(|(node, flags)| Step::Open(opcode::OPEN, node, flags)),
        2 => any::<Index>().prop_map(|node| Step::Open(opcode::OPENDIR, node, 0)),
        2 => any::<Index>().prop_map(Step::Truncate),
        2 => any::<Index>().prop_map(Step::Write),
        2 => (any::<Index>(), select(vec![0usize, 200, 600, 5000])).prop_map(|(fh, room)| Step::List(fh, room)),
        2 => any::<Index>().prop_map(Step::Release),
        3 => (any::<Index>(), prop_oneof![Just(1u64), Just(2), number()]).prop_map(|(node, n)| Step::Forget(node, n)),
        1 => prop_oneof![9 => Just(Step::Init), 1 => Just(Step::Destroy)],
    ]
}

/// A request as it goes into the ring.
struct Sent {
    code: u32,
    nodeid: u64,
    body: Vec<u8>,
    room: usize,
}

/// What the guest has to know, from the answers that it got.
#[derive(Debug, Default)]
struct Model {
    /// Nodeids, and how often the guest was told of each without forgetting it.
    lookups: BTreeMap<u64, u64>,
    /// Handles and their nodeids.
    handles: BTreeMap<u64, u64>,
}

impl Model {
    fn node(&self, index: &Index) -> u64 {
        let known: Vec<u64> = self.lookups.keys().copied().chain([1]).collect();
        known[index.index(known.len())]
    }

    fn handle(&self, index: &Index) -> u64 {
        let open: Vec<u64> = self.handles.keys().copied().chain([u64::MAX]).collect();
        open[index.index(open.len())]
    }

    fn send(&self, step: &Step) -> Sent {
        let strings = |names: &[&str]| names.iter().flat_map(|name| z(name)).collect::<Vec<_>>();
        let sent = |code, nodeid, body: &[u8], room| Sent { code, nodeid, body: body.to_vec(), room };
        match step {
            Step::Raw(code, nodeid, body, room) => sent(*code, *nodeid, body, *room),
            Step::Named(code, node, args, names) => {
                sent(*code, self.node(node), &[&args[..], &strings(names)].concat(), 400)
            }
            Step::NoRoom(code, node, args, names) => {
                sent(*code, self.node(node), &[&args[..], &strings(names)].concat(), 0)
            }
            Step::Two(code, node, other, names) => {
                sent(*code, self.node(node), &[self.node(other).as_bytes(), &strings(names)].concat(), 400)
            }
            Step::Open(code, node, flags) => {
                let args = OpenIn { flags: *flags as u32, open_flags: 0 };
                sent(*code, self.node(node), args.as_bytes(), 100)
            }
            Step::Truncate(node) => {
                let args = SetattrIn { valid: fattr::SIZE | fattr::MODE, mode: 0o600, ..SetattrIn::default() };
                sent(opcode::SETATTR, self.node(node), args.as_bytes(), 200)
            }
            Step::Write(fh) => {
                let args = WriteIn { fh: self.handle(fh), size: 4, ..WriteIn::default() };
                sent(opcode::WRITE, 0, &[args.as_bytes(), b"evil"].concat(), 100)
            }
            Step::List(fh, room) => {
                let args = ReadIn { fh: self.handle(fh), size: *room as u32, ..ReadIn::default() };
                let nodeid = self.handles.get(&args.fh).copied().unwrap_or(1);
                sent(opcode::READDIRPLUS, nodeid, args.as_bytes(), *room)
            }
            Step::Release(fh) => {
                let args = ReleaseIn { fh: self.handle(fh), ..ReleaseIn::default() };
                sent(opcode::RELEASE, 0, args.as_bytes(), 0)
            }
            Step::Forget(node, nlookup) => sent(opcode::FORGET, self.node(node), nlookup.as_bytes(), 0),
            Step::Init => {
                let flags = u32::MAX;
                let first = InitIn { major: 7, minor: 41, max_readahead: 0, flags };
                sent(opcode::INIT, 0, &[first.as_bytes(), InitIn2::default().as_bytes()].concat(), 100)
            }
            Step::Destroy => sent(opcode::DESTROY, 0, &[], 0),
        }
    }

    /// Learns from the answer to a request; fails on one that is too short for what it is.
    fn learn(&mut self, sent: &Sent, reply: &Result<Vec<u8>, i32>) {
        let Ok(reply) = reply else { return };
        match sent.code {
            opcode::LOOKUP | opcode::MKDIR | opcode::MKNOD | opcode::SYMLINK | opcode::LINK => {
                self.count(EntryOut::read_from_bytes(reply).unwrap().nodeid);
            }
            opcode::CREATE | opcode::TMPFILE => {
                let (entry, rest) = EntryOut::read_from_prefix(reply).unwrap();
                self.count(entry.nodeid);
                self.handles.insert(OpenOut::read_from_prefix(rest).unwrap().0.fh, entry.nodeid);
            }
            opcode::OPEN | opcode::OPENDIR => {
                self.handles.insert(OpenOut::read_from_prefix(reply).unwrap().0.fh, sent.nodeid);
            }
            opcode::RELEASE | opcode::RELEASEDIR => {
                let fh = ReleaseIn::read_from_prefix(&sent.body).unwrap().0.fh;
                assert!(self.handles.remove(&fh).is_some(), "a handle was released that there was not");
            }
            opcode::READDIRPLUS => self.learn_list(reply),
            opcode::FORGET => {
                if let Ok((args, _)) = ForgetIn::read_from_prefix(&sent.body) {
                    self.forget(sent.nodeid, args.nlookup);
                }
            }
            opcode::BATCH_FORGET => {
                let Ok((args, rest)) = BatchForgetIn::read_from_prefix(&sent.body) else { return };
                let (mut rest, mut left) = (rest, args.count);
                while let (Ok((one, after)), 1..) = (ForgetOne::read_from_prefix(rest), left) {
                    self.forget(one.nodeid, one.nlookup);
                    (rest, left) = (after, left - 1);
                }
            }
            opcode::INIT | opcode::DESTROY => *self = Self::default(),
            _ => {}
        }
    }

    fn learn_list(&mut self, mut reply: &[u8]) {
        while !reply.is_empty() {
            let (entry, rest) = EntryOut::read_from_prefix(reply).unwrap();
            let (dirent, rest) = Dirent::read_from_prefix(rest).unwrap();
            let length = dirent.namelen as usize;
            assert!(length > 0 && !rest[..length].contains(&b'/'), "no name of an entry");
            self.count(entry.nodeid);
            reply = &rest[length.next_multiple_of(8)..];
        }
    }

    fn count(&mut self, nodeid: u64) {
        if nodeid != 0 {
            *self.lookups.entry(nodeid).or_default() += 1;
        }
    }

    fn forget(&mut self, nodeid: u64, count: u64) {
        let left = self.lookups.get(&nodeid).map(|known| known.saturating_sub(count));
        match left {
            Some(0) => drop(self.lookups.remove(&nodeid)),
            Some(left) => drop(self.lookups.insert(nodeid, left)),
            None => {}
        }
    }

    /// Compares the server's tables with what the guest has to know.
    fn check(&self, guest: &mut Guest, outside: &BTreeSet<u64>) {
        let server = guest.device.server();
        let known: BTreeMap<u64, u64> =
            server.inodes.known().map(|nodeid| (nodeid, server.inodes.peek(nodeid).unwrap().lookups)).collect();
        assert_eq!(known, self.lookups, "what the server thinks that the guest knows");
        let open: Vec<u64> = self.handles.keys().copied().filter(|fh| server.handles.get(*fh).is_ok()).collect();
        assert_eq!((open.len(), server.handles.len()), (self.handles.len(), self.handles.len()), "handles");
        assert!(open.len() <= HANDLES);
        let mut hot = 0;
        for (entry, inode) in server.inodes.slab.iter() {
            let nodeid = entry + super::super::table::inode::FIRST_ID;
            hot += usize::from(matches!(inode.anchor, Anchor::Hot(_)));
            let opens = self.handles.values().filter(|of| **of == nodeid).count();
            assert_eq!(inode.opens as usize, opens, "handles of {nodeid}");
            assert!(inode.pinned || inode.lookups > 0, "{nodeid} is in the table for nobody");
            let number = inode.key.inode;
            assert!(!outside.contains(&number), "the guest knows an object outside of the share: inode {number}");
        }
        assert_eq!(server.inodes.hot, hot, "objects with a descriptor");
        assert!(hot <= HOT);
    }
}

/// All that can be seen of a file, and its content.
type Seen = (u64, u32, u64, i64, i64, i64, i64, Vec<u8>);

/// Everything below a directory except the share in it.
fn look(directory: &Path, share: &Path, seen: &mut BTreeMap<std::path::PathBuf, Seen>) {
    let metadata = fs::symlink_metadata(directory).unwrap();
    let content = if metadata.is_file() { fs::read(directory).unwrap() } else { Vec::new() };
    let (changed, changed_ns) = (metadata.ctime(), metadata.ctime_nsec());
    let (modified, modified_ns) = (metadata.mtime(), metadata.mtime_nsec());
    let of = (metadata.ino(), metadata.mode(), metadata.nlink(), changed, changed_ns, modified, modified_ns, content);
    seen.insert(directory.to_owned(), of);
    if metadata.is_dir() {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path != share).for_each(|path| look(&path, share, seen));
    }
}

/// A directory with a share in it, things beside the share, and ways in the share that lead there.
fn scene() -> tempfile::TempDir {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir_all(at(&top, "share/sub")).unwrap();
    fs::create_dir_all(at(&top, "sub")).unwrap();
    for file in ["share/a", "share/sub/a", "victim", "sub/a"] {
        fs::write(at(&top, file), file).unwrap();
    }
    symlink("../victim", at(&top, "share/out")).unwrap();
    symlink("..", at(&top, "share/up")).unwrap();
    top
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sequences_of_requests(steps in proptest::collection::vec(step(), 1..60)) {
        let top = scene();
        let (share_path, mut before) = (at(&top, "share"), BTreeMap::new());
        look(top.path(), &share_path, &mut before);
        let outside: BTreeSet<u64> = before.values().map(|seen| seen.0).collect();
        let shares = vec![share("a", &share_path, false)];
        let mut guest = Guest::of(Fs::with_limits(shares, HOT, HANDLES).unwrap());
        let mut model = Model::default();
        model.count(guest.lookup(1, "a").unwrap().nodeid);
        for step in &steps {
            let sent = model.send(step);
            let reply = guest.request(sent.code, sent.nodeid, &sent.body, sent.room);
            if let Err(error) = reply {
                prop_assert!((1..4096).contains(&error), "{step:?}: {error}");
            }
            if sent.code == opcode::INIT && !guest.device.server().session.is_open() {
                // One without room for the answer has started afresh all the same.
                model = Model::default();
            }
            model.learn(&sent, &reply);
            model.check(&mut guest, &outside);
        }
        let mut after = BTreeMap::new();
        look(top.path(), &share_path, &mut after);
        prop_assert_eq!(before, after);
        guest.device.reset();
        Model::default().check(&mut guest, &outside);
    }

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 1..200), room in 0..300usize) {
        let mut guest = Guest::of(Fs::new("test", vec![]).unwrap());
        let reply = guest.raw(&bytes, room).unwrap_or_default();
        if !reply.is_empty() {
            let (header, _) = OutHeader::read_from_prefix(&reply).unwrap();
            prop_assert_eq!(header.len as usize, reply.len());
            prop_assert!(header.error <= 0 && header.error > -4096);
        }
    }
}
