//! The file system's server: requests that are nearly right, about what earlier replies named, with snapshots in between.
//! Whatever they are, nothing outside of the shares changes, nor in a read-only one, and a share's policy holds.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use vmm::virtio::fs::{Cache, Common, Fs, IdSet, Ids, Policy, Share};

use crate::input::Input;
use crate::rig::{BUFFERS, Buffer, Rig};

const STEPS: usize = 64;
/// Ring of requests.
const REQUESTS: usize = 1;
/// Bytes of the headers of requests and replies.
const HEADER: usize = 40;
const REPLY: usize = 16;
/// Ring of buffers for events.
const EVENTS: usize = 2;
/// Feature bit for that ring.
const FEATURE_EVENTS: u64 = 1 << 20;
/// Opcode of INIT.
const INIT: u32 = 26;
/// Opcode of WATCH, and the one of no request that stands for it in the input.
const WATCH: u32 = 29303;
const FOR_WATCH: u32 = 63;
/// Where replies go.
const ROOM: u64 = BUFFERS + 0x2_0000;
/// Files of root where one can write.
const ROOTS: usize = 4;
/// The other user than root.
const USER: u32 = 1000;
const SECRET: &str = "nobody's business";
const NAMES: [&[u8]; 20] = [
    b"w",
    b"r",
    b"f",
    b"g",
    b"d",
    b"link",
    b"out",
    b".",
    b"..",
    b"",
    b"a/b",
    b"../secret",
    b"new",
    b"user.x",
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"trusted.x",
    &[b'n'; 255],
    &[b'n'; 256],
];

/// A folder with what is shared and what is not.
pub struct Place {
    _folder: tempfile::TempDir,
    root: PathBuf,
    writable: PathBuf,
    read_only: PathBuf,
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

impl Place {
    /// Has something done in a place that is as it was at first; and checks that what is not shared stayed so.
    pub fn with(act: impl FnOnce(&Place)) {
        PLACE.with_borrow_mut(|place| {
            let place = place.get_or_insert_with(Self::new);
            place.renew();
            act(place);
            place.check();
        });
    }

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let (writable, read_only) = (root.join("w"), root.join("r"));
        fs::create_dir(&read_only).unwrap();
        fs::write(read_only.join("f"), SECRET).unwrap();
        fs::write(root.join("secret"), SECRET).unwrap();
        Self { _folder: folder, root, writable, read_only }
    }

    /// Makes what can be written to as it is at first: files of root.
    fn renew(&self) {
        let _ = fs::remove_dir_all(&self.writable);
        fs::create_dir_all(self.writable.join("d")).unwrap();
        fs::write(self.writable.join("f"), "content").unwrap();
        symlink("../secret", self.writable.join("out")).unwrap();
        symlink("f", self.writable.join("link")).unwrap();
    }

    fn check(&self) {
        let names = |folder: &Path| {
            let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&self.root), ["r", "secret", "w"]);
        assert_eq!(names(&self.read_only), ["f"]);
        for file in [self.root.join("secret"), self.read_only.join("f")] {
            assert_eq!(fs::read_to_string(file).unwrap(), SECRET);
        }
    }
}

/// The policy of a share whose container's process has no way to be somebody else.
fn strict() -> Policy {
    let ids = || Ids { uids: IdSet::of([USER..=USER]), gids: IdSet::of([USER..=USER]) };
    Policy {
        device_nodes: false,
        file_capabilities: false,
        any_owner: false,
        keeps_set_id: false,
        set_id: false,
        known: Ids::all(),
        makers: ids(),
        own: ids(),
    }
}

/// Checks that a folder has nothing that the strict policy lets no guest make; adds the files of root.
fn check_files(folder: &Path, of_root: &mut BTreeSet<u64>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let kind = meta.file_type();
        assert!(!kind.is_block_device() && (!kind.is_char_device() || meta.rdev() == 0), "{path:?} is a device node");
        assert!(meta.mode() & 0o6000 == 0 || kind.is_dir(), "{path:?} has mode {:o}", meta.mode());
        match (meta.uid(), meta.gid()) {
            (0, 0) => drop(of_root.insert(meta.ino())),
            owner => assert_eq!(owner, (USER, USER), "owner of {path:?}"),
        }
        if meta.is_dir() {
            check_files(&path, of_root);
        }
    }
}

/// A device with both shares, of which one can be written to, within this policy.
pub fn device(place: &Place, policy: &Policy) -> Fs {
    let share = |name: &str, path: &Path, read_only: bool| Share {
        name: name.to_owned(),
        root: rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap(),
        read_only,
        cache: Cache { valid: Duration::from_secs(1), exclusive: false, host_locks: !read_only },
        policy: policy.clone(),
        common: Common::Nothing,
    };
    Fs::new("fuzz", vec![share("w", &place.writable, false), share("r", &place.read_only, true)]).unwrap()
}

/// Numbers from replies: of nodes, and of open files.
struct Known(Vec<u64>);

impl Known {
    fn any(&self, input: &mut Input) -> u64 {
        let choice = usize::from(input.byte());
        if choice == 255 { input.quad() } else { self.0[choice % self.0.len()] }
    }
}

/// A request: its header, numbers with what is known put into them, names, and more bytes.
fn request(input: &mut Input, known: &Known) -> Vec<u8> {
    let (opcode, choice) = (u32::from(input.byte() % 64), input.byte());
    let opcode = if opcode == FOR_WATCH { WATCH } else { opcode };
    let nodeid = known.any(input);
    let ids = if choice & 1 == 0 { [0, 0] } else { [1000, 1000] };
    let mut numbers = input.bytes(usize::from(choice >> 4) * 8).to_vec();
    for _ in 0..choice >> 1 & 3 {
        let (place, value) = (usize::from(input.byte() % 8) * 8, known.any(input));
        if let Some(field) = numbers.get_mut(place..place + 8) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
    for _ in 0..input.byte() % 3 {
        numbers.extend(input.pick(&NAMES));
        numbers.push(0);
    }
    let more = input.byte();
    numbers.extend(input.bytes(more.into()));
    let length = (HEADER + numbers.len()) as u32;
    let said = if choice & 8 == 0 { length } else { input.word().into() };
    let mut bytes = [said, opcode].map(u32::to_le_bytes).concat();
    bytes.extend([1u64, nodeid].map(u64::to_le_bytes).concat());
    bytes.extend([ids[0], ids[1], 1, 0].map(u32::to_le_bytes).concat());
    bytes.extend(numbers);
    bytes
}

fn ask(rig: &mut Rig<Fs>, request: &[u8], room: usize, known: &mut Known) {
    rig.write(BUFFERS, request);
    let header = request.len().min(HEADER);
    let buffers = [
        Buffer::readable(BUFFERS, header),
        Buffer::readable(BUFFERS + header as u64, request.len() - header),
        Buffer::writable(ROOM, REPLY),
        Buffer::writable(ROOM + REPLY as u64, room),
    ];
    let there: Vec<Buffer> = buffers.into_iter().filter(|buffer| buffer.length > 0).collect();
    rig.offer(REQUESTS, &there);
    rig.kick(REQUESTS);
    for length in rig.used(REQUESTS) {
        assert!(length as usize <= REPLY + room, "more was written than there was room for");
        let reply = rig.read(ROOM, REPLY + 8);
        if length as usize >= REPLY + 8 && reply[4..8] == [0; 4] && known.0.len() < 250 {
            known.0.push(u64::from_le_bytes(reply[REPLY..].try_into().unwrap()));
        }
    }
}

/// Sends requests.
pub fn target(data: &[u8]) {
    Place::with(|place| {
        let mut input = Input::new(data);
        let is_strict = input.byte() & 1 != 0;
        let policy = if is_strict { strict() } else { Policy::unrestricted() };
        drive(&mut input, || device(place, &policy));
        if is_strict {
            let mut of_root = BTreeSet::new();
            check_files(&place.writable, &mut of_root);
            assert!(of_root.len() <= ROOTS, "{of_root:?} belong to root");
        }
    });
}

/// Begins as a guest's kernel does: with INIT, and both shares known.
fn begin(rig: &mut Rig<Fs>, flags: u64) -> Known {
    let mut known = Known(vec![1]);
    let mut init = [HEADER as u32 + 64, INIT].map(u32::to_le_bytes).concat();
    init.extend([0; 32]);
    init.extend([7, 41, 1 << 17, flags as u32, (flags >> 32) as u32].map(u32::to_le_bytes).concat());
    init.resize(HEADER + 64, 0);
    ask(rig, &init, 64, &mut Known(vec![1]));
    for name in [b"w\0", b"r\0"] {
        let mut lookup = [HEADER as u32 + 2, 1].map(u32::to_le_bytes).concat();
        lookup.extend([1u64, 1].map(u64::to_le_bytes).concat());
        lookup.extend([0; 16]);
        lookup.extend(name);
        ask(rig, &lookup, 128, &mut known);
    }
    known
}

fn drive(input: &mut Input, make: impl Fn() -> Fs) {
    let mut rig = Rig::new(make(), FEATURE_EVENTS);
    rig.offer(EVENTS, &[Buffer::writable(ROOM, 4096)]);
    let mut known = begin(&mut rig, input.quad() | 1 << 30);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.byte() % 16 {
            0 => rig.save_and_restore(make()),
            1 => rig.step(input, &make),
            _ => {
                let request = request(input, &known);
                let room = if input.byte() & 1 == 0 { 4096 } else { input.word().into() };
                ask(&mut rig, &request, room, &mut known);
            }
        }
    }
}
