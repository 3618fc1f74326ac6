//! What the fuzzer calls (docs/fuzzing.md): the places where bytes of others come in. Only in its build.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use ::protobuf::Message;
use protocol::{Hello, Process};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use crate::bundle::{self, Bundle};
use crate::commands::{events, ps};
use crate::control::{Reply, Request};
use crate::host::facts;
use crate::ipc;
use crate::monitor::network::datagrams::Tagged;
use crate::monitor::network::passt_relay;
use crate::monitor::node_maker::process as node_maker;
use crate::monitor::vm::agent_client::Agent;
use crate::network::messages as helper;
use crate::parcel::{Label, Parcel};
use crate::plan::facts::{
    DiskFact, Facts, FileId, FileSystemKind, NamespaceId, NetworkFact, Peer, SocketFact, SourceFact, SourceKind,
};
use crate::plan::{self, Options};

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    /// Descriptors that come with messages.
    static DESCRIPTORS: [File; 2] = ["/", "/dev/null"].map(|path| File::open(path).unwrap());
}

/// Takes bytes of an agent in the guest: the first says which call it answers, the others are what it sends.
pub fn agent(data: &[u8]) {
    let Some((&call, sent)) = data.split_first() else { return };
    if let Some(hello) = sent.first_chunk() {
        // Whatever is taken for one is one.
        assert!(Hello::from_bytes(*hello).is_none_or(|read| read.to_bytes() == *hello));
    }
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // More than the socket takes is not sent.
    theirs.set_nonblocking(true).unwrap();
    let _ = theirs.write(sent);
    theirs.shutdown(Shutdown::Write).unwrap();
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let agent = Agent::new(ours, "fuzz").unwrap();
            let answered = tokio::time::timeout(Duration::from_secs(5), ask(&agent, call)).await;
            answered.expect("the connection has ended, and the call has not");
        });
    });
}

async fn ask(agent: &Agent, call: u8) {
    match call % 9 {
        0 => drop(agent.wait("").await),
        1 => drop(agent.processes().await.map(show)),
        2 => drop(agent.read_cgroup(Vec::new()).await.map(show)),
        3 => drop(agent.wait_oom(0).await),
        4 => drop(agent.accept_socket().await),
        5 => drop(agent.connect_port(1, false).await),
        6 => drop(agent.configure(8, &[]).await),
        7 => drop(agent.start().await),
        _ => drop(agent.exec("e", Process::default()).await),
    }
}

/// Shows an answer as the commands `ps` and `events` do.
fn show(reply: Reply) {
    match reply {
        Reply::Processes(list) => assert!(!ps::full_table(list).contains('\x1b')),
        Reply::Files(files) => drop(events::stats::stats(&files)),
        _ => {}
    }
}

/// Takes bytes of another process: the first says which message is expected, and whether the lengths before it are made right; the
/// second how many descriptors come with it.
pub fn messages(data: &[u8]) {
    let Some((&[kind, descriptors], bytes)) = data.split_first_chunk() else { return };
    let framed = if kind & 8 == 0 { None } else { framed(bytes, descriptors % 8) };
    let sent = framed.as_deref().unwrap_or(bytes);
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    DESCRIPTORS.with(|kinds| {
        let fds: Vec<_> = kinds.iter().cycle().map(File::as_fd).take(usize::from(descriptors % 8)).collect();
        // More than the socket takes is not sent.
        let _ = ipc::send_fds(&theirs, sent, &fds);
    });
    drop(theirs);
    match kind % 8 {
        0 => drop(again::<Request>(&ours)),
        1 => drop(again::<Reply>(&ours)),
        2 => drop(again::<Label>(&ours)),
        3 => drop(again::<Parcel>(&ours).map(unpack)),
        4 => drop(again::<helper::Request>(&ours)),
        5 => drop(again::<helper::Reply>(&ours)),
        6 => datagrams(ours),
        _ => {
            // Of what passt sends, all that is taken is frames and what is before them.
            let mut taken = 0;
            let whole = passt_relay::deliver(sent, |frame| taken += frame.len() + 4);
            assert!(whole.is_err() || whole.is_ok_and(|whole| whole == taken && whole <= sent.len()));
        }
    }
}

/// Takes what a monitor that is taken over asks for device nodes: the first byte says how many descriptors come along.
pub fn nodes(data: &[u8]) {
    let Some((&descriptors, sent)) = data.split_first() else { return };
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    DESCRIPTORS.with(|kinds| {
        let fds: Vec<_> = kinds.iter().cycle().map(File::as_fd).take(usize::from(descriptors % 4)).collect();
        let _ = ipc::send_fds(&theirs, sent, &fds);
    });
    drop(theirs);
    let mut bytes = [0; node_maker::REQUEST];
    // One request may be taken for several, as the socket is a stream.
    while let Some((length, _directory)) = node_maker::receive(&ours, &mut bytes).unwrap() {
        let Ok(request) = node_maker::Request::parse(&bytes[..length]) else { continue };
        let name = request.name.to_bytes();
        assert!(!matches!(name, b"" | b"." | b"..") && !name.contains(&b'/'), "{request:?}");
        assert!(matches!(request.mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK), "{request:?}");
    }
}

/// Makes a message with the lengths that it has; its first byte is the length of the tail.
fn framed(bytes: &[u8], descriptors: u8) -> Option<Vec<u8>> {
    let (&tail, rest) = bytes.split_first()?;
    let tail = rest.len().min(tail.into());
    let lengths = [rest.len() - tail, tail, descriptors.into()];
    Some(lengths.iter().flat_map(|&length| (length as u32).to_le_bytes()).chain(rest.iter().copied()).collect())
}

/// Takes datagrams of the guest's on one stream, for a published port and for the resolver.
fn datagrams(stream: UnixStream) {
    stream.set_nonblocking(true).unwrap();
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (mut stream, _) = tokio::net::UnixStream::from_std(stream).unwrap().into_split();
            while let Ok(tagged) = Tagged::read(&mut stream).await {
                assert!(tagged.to_bytes().ends_with(&tagged.datagram));
            }
        });
    });
}

/// Does with a parcel what the monitor does before there is a VM.
fn unpack(parcel: Parcel) {
    let _ = parcel.mounts();
    parcel.shares.into_iter().for_each(|share| drop(share.into_device(&parcel.file_rights)));
    parcel.disks.into_iter().for_each(|disk| drop(disk.into_device()));
    drop(parcel.streams.into_files());
}

/// Receives a message, and if it is one sends it on: what was understood can be said.
fn again<T: DeserializeOwned + Serialize>(stream: &UnixStream) -> Option<T> {
    let message = ipc::receive::<T>(stream).ok()??;
    drop(ipc::Frame::new(&message).expect("a message that came can be sent"));
    Some(message)
}

/// Takes the text of a config.json up to the plan; the first byte chooses options of the command line.
pub fn config(data: &[u8]) {
    let Some((&choice, text)) = data.split_first() else { return };
    let Ok(bundle) = str::from_utf8(text).map_err(anyhow::Error::from).and_then(|text| bundle::of("/b".into(), text))
    else {
        return;
    };
    let options = Options {
        id: "box".to_owned(),
        systemd_cgroup: choice & 1 != 0,
        user_network: choice & 2 != 0,
        publish: if choice & 4 != 0 { vec!["8080:80/udp".to_owned()] } else { Vec::new() },
        allowed_annotations: if choice & 8 != 0 { vec!["*".to_owned()] } else { Vec::new() },
        ..Options::default()
    };
    if let Ok(plan) = plan::plan(&bundle, &made_up(&bundle, choice), &options) {
        assert!(plan.container.write_to_bytes().is_ok());
        assert!(plan.shares.iter().any(|share| share.name == plan.container.share), "a container without its root");
    }
}

/// Makes up facts about the files that a bundle names, by their names: of every kind.
fn made_up(bundle: &Bundle, choice: u8) -> Facts {
    static HERE: OnceLock<Facts> = OnceLock::new();
    let here =
        || facts::gather(&bundle::of("/b".into(), "{\"ociVersion\":\"1.0.2\"}").unwrap(), Path::new("/nonexistent"));
    let mut facts = HERE.get_or_init(|| here().unwrap()).clone();
    let sources = bundle.spec.mounts().iter().flatten().filter_map(|mount| plan::bind_source(mount, &bundle.dir));
    facts.sources = sources.map(|path| (path.clone(), source(path))).collect();
    facts.rootfs = plan::rootfs_path(bundle).map(source);
    facts.disks =
        BTreeMap::from([((8, 0), DiskFact::At("/dev/sda".into())), ((8, 1), DiskFact::Missing("gone".into()))]);
    let network = NamespaceId { device: 4, inode: 2 };
    facts.network = match choice >> 4 & 3 {
        0 => NetworkFact::NotGiven,
        1 => NetworkFact::Is(network),
        2 => NetworkFact::NotNamespace,
        _ => NetworkFact::Missing("gone".into()),
    };
    let (id, sandbox) = ("peer".to_owned(), "peer".to_owned());
    facts.peers = vec![Peer { id, pid: 7, sandbox, network: Some(network), memory_mib: 256, vcpus: 1 }];
    facts
}

fn source(path: PathBuf) -> SourceFact {
    let last = path.as_os_str().as_encoded_bytes().last().copied().unwrap_or_default();
    let kind = match last % 16 {
        0 => SourceKind::File,
        1 => SourceKind::CharDevice { major: 1, minor: u32::from(last) },
        2 => SourceKind::BlockDevice,
        3 => SourceKind::Socket(SocketFact { mode: 0o660, uid: 1, gid: 2, carries_messages: last & 16 != 0 }),
        4 => SourceKind::Fifo,
        5 => SourceKind::Missing("no such file or directory".to_owned()),
        _ => SourceKind::Directory,
    };
    let file_system = match last % 13 {
        0 => FileSystemKind::Proc,
        1 => FileSystemKind::Sys,
        2 => FileSystemKind::Cgroup,
        3 => FileSystemKind::Dev,
        _ => FileSystemKind::Ordinary,
    };
    SourceFact {
        canonical: path,
        id: FileId::default(),
        kind,
        file_system,
        system: format!("8:{}", last % 3),
        remote: last % 11 == 0,
        has_mounts: last % 7 == 0,
        tmpfs_size: (last % 5 == 0).then_some(1 << 20),
    }
}
