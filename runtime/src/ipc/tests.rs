use std::fs::File;
use std::io::{Read, Write};

use ::protobuf::MessageField;
use protocol::{CreateContainerRequest, Process};
use serde::Deserialize;

use super::*;

#[derive(Serialize, Deserialize)]
struct Letter {
    name: String,
    #[serde(with = "super::protobuf")]
    container: CreateContainerRequest,
    files: Vec<Descriptor>,
    terminal: Option<Descriptor>,
}

fn letter(files: usize) -> Letter {
    let file = Descriptor::from(tempfile::tempfile().unwrap());
    Letter {
        name: "c1".to_owned(),
        container: CreateContainerRequest { container_id: "c1".to_owned(), ..Default::default() },
        files: vec![file; files],
        terminal: None,
    }
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

/// What `receive` says to these bytes and descriptors, after which the sender is gone.
fn refusal(bytes: &[u8], files: usize) -> String {
    let (a, b) = pair();
    let file = tempfile::tempfile().unwrap();
    send_fds(&a, bytes, &vec![file.as_fd(); files]).unwrap();
    drop(a);
    format!("{:#}", receive::<Letter>(&b).err().expect("it was taken for a message"))
}

fn encoded(head: &str, tail: usize, descriptors: u32) -> Vec<u8> {
    let lengths = [head.len() as u32, tail as u32, descriptors].map(u32::to_le_bytes);
    [lengths.as_flattened(), head.as_bytes(), &vec![0; tail]].concat()
}

#[test]
fn files_and_protobuf_arrive_as_they_are() {
    let (a, b) = pair();
    let (mut mine, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    mine.write_all(b"here").unwrap();
    send(&a, &Letter { files: vec![other.into(), mine.into()], ..letter(0) }).unwrap();
    let mut got: Letter = receive(&b).unwrap().unwrap();
    assert_eq!((got.name.as_str(), got.container.container_id.as_str(), got.files.len()), ("c1", "c1", 2));
    let mut file = File::from(got.files.remove(1).into_owned().unwrap());
    std::io::Seek::rewind(&mut file).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "here");
    let flags = rustix::io::fcntl_getfd(&file).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "a child would inherit it");
    drop(a);
    assert!(receive::<Letter>(&b).unwrap().is_none());
}

#[test]
fn more_descriptors_than_linux_passes_at_a_time_arrive() {
    let (a, b) = pair();
    for files in [CHUNK, CHUNK + 1, 2 * CHUNK + 14] {
        send(&a, &letter(files)).unwrap();
        send(&a, &letter(1)).unwrap();
        assert_eq!(receive::<Letter>(&b).unwrap().unwrap().files.len(), files);
        assert_eq!(receive::<Letter>(&b).unwrap().unwrap().files.len(), 1, "after {files}");
    }
}

#[test]
fn the_largest_environment_that_linux_takes_fits_and_more_does_not() {
    let with = |mib: usize| {
        let process = Process { env: vec!["x".repeat(1 << 20); mib], ..Default::default() };
        let container = CreateContainerRequest { process: MessageField::some(process), ..Default::default() };
        Frame::new(&Letter { container, ..letter(0) })
    };
    let (a, b) = pair();
    let frame = with(6).unwrap();
    assert!(frame.bytes.len() < (6 << 20) + 300, "bytes became longer on their way: {}", frame.bytes.len());
    let sender = std::thread::spawn(move || frame.send(&a).unwrap());
    assert_eq!(receive::<Letter>(&b).unwrap().unwrap().container.process.env.len(), 6);
    sender.join().unwrap();
    let error = with(17).err().unwrap().to_string();
    assert!(error.contains("is too long: 16777216 is the most"), "{error}");
}

#[test]
fn a_frame_is_passed_on_unread() {
    let ((a, b), (c, d)) = (pair(), pair());
    send(&a, &letter(3)).unwrap();
    Frame::receive(&b).unwrap().unwrap().send(&c).unwrap();
    assert_eq!(receive::<Letter>(&d).unwrap().unwrap().files.len(), 3);
}

#[test]
fn the_one_thread_of_the_monitor_sends_and_receives() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (a, b) = tokio::net::UnixStream::pair().unwrap();
        // More than the sockets hold: the two take turns.
        let mut big = letter(CHUNK + 1);
        big.name = "x".repeat(1 << 20);
        let (sent, got) = tokio::join!(send_async(&a, &big), receive_async::<Letter>(&b));
        sent.unwrap();
        let got = got.unwrap().unwrap();
        assert_eq!((got.name.len(), got.files.len()), (1 << 20, CHUNK + 1));
        drop(a);
        assert!(receive_async::<Letter>(&b).await.unwrap().is_none());
    });
}

#[test]
fn a_sender_that_is_killed_in_the_middle_is_noticed_at_any_byte() {
    let whole = Frame::new(&letter(0)).unwrap().bytes;
    for end in 1..whole.len() {
        let why = refusal(&whole[..end], 0);
        assert!(why.contains(&format!("ended after {end} of")), "{end}: {why}");
    }
}

#[test]
fn a_receiver_that_was_killed_is_gone_and_not_an_error() {
    let (a, b) = pair();
    send(&a, &letter(0)).unwrap();
    // With what was sent unread.
    drop(b);
    assert!(receive::<Letter>(&a).unwrap().is_none());
    let error = Frame::new(&letter(0)).unwrap().send(&a).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn lengths_that_no_message_has_are_refused_before_there_is_room_for_them() {
    for lengths in [[u32::MAX; 3], [MAX_BYTES as u32, 1, 0], [0, u32::MAX, 0], [2, 0, 1 << 20]] {
        let bytes = lengths.map(u32::to_le_bytes);
        let why = refusal(bytes.as_flattened(), 0);
        assert!(why.contains("is refused: 16777216 bytes are the most"), "{why}");
    }
}

#[test]
fn as_many_descriptors_come_as_are_named() {
    let head = |files: &str| format!(r#"{{"name":"","container":[0,0],"files":[{files}],"terminal":null}}"#);
    let table = [
        (encoded(&head("0,1"), 0, 2), 1, "a message of 2 descriptors came with 1"),
        (encoded(&head("0"), 0, 1), 2, "a message of 1 descriptors came with 2"),
        (encoded(&head("0"), 0, 0), 1, "a message of 0 descriptors came with 1"),
        (encoded(&head("1"), 0, 1), 1, "descriptor 1 did not come with the message"),
        (encoded(&head("0,0"), 0, 1), 1, "descriptor 0 is named twice"),
        (encoded(&head("0"), 0, 3), 3, "a message came with 2 descriptors that it does not name"),
    ];
    for (bytes, files, wanted) in table {
        let why = refusal(&bytes, files);
        assert!(why.contains(wanted), "{why}");
    }
}

#[test]
fn what_is_no_message_is_refused() {
    let head = |place: &str| format!(r#"{{"name":"","container":{place},"files":[],"terminal":null}}"#);
    let table = [
        (encoded("nonsense", 0, 0), "understand a message"),
        (encoded(r#"{"name":"x"}"#, 0, 0), "missing field"),
        (encoded(&head("[0,9]"), 8, 0), "bytes are missing in its tail"),
        (encoded(&head("[9,0]"), 8, 0), "bytes are missing in its tail"),
        (encoded(&head("[0,1]"), 1, 0), "understand a message"),
    ];
    for (bytes, wanted) in table {
        let why = refusal(&bytes, 0);
        assert!(why.contains(wanted), "{why}");
    }
}

#[test]
fn only_a_number_that_is_open_is_taken_over() {
    for number in [-1, 2, 1 << 20] {
        // SAFETY: nothing is open under these numbers, or nothing is taken of what is.
        let error = unsafe { inherited(number) }.unwrap_err();
        assert!(format!("{error:#}").contains(&format!("descriptor {number} was not inherited")));
    }
}
