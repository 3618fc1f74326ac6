//! FIFOs, sockets and devices in the file system.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use rustix::fs::{makedev, mknodat};

use crate::check::*;
use crate::process::{ALICE, as_user, fork};

cases! {
    a_fifo_carries_bytes
    a_fifo_without_a_partner
    devices_are_made_with_their_numbers
    a_device_works
    devices_are_roots
    a_plain_file_made_as_a_node
    a_socket_is_connected_by_name
    a_socket_needs_the_right_to_write
    a_sockets_name_outlives_it
    datagrams_by_name
    a_socket_is_renamed_and_linked
}

const RW: Mode = Mode::from_raw_mode(0o644);

fn a_fifo_carries_bytes() {
    mknodat(HERE, "fifo", FileType::Fifo, Mode::from_raw_mode(0o622), 0).unwrap();
    assert_eq!((kind("fifo"), mode("fifo")), (FileType::Fifo, 0o600));
    let child = fork(|| write(open("fifo", OFlags::WRONLY), b"through the fifo"));
    assert_eq!(content("fifo"), b"through the fifo");
    child.join();
    assert_eq!(stat("fifo").st_size, 0);
    rustix::fs::rename("fifo", "moved").unwrap();
    let (reader, writer) = (open("moved", OFlags::RDONLY | OFlags::NONBLOCK), open("moved", OFlags::WRONLY));
    write(&writer, b"x");
    let mut bytes = [0; 2];
    assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(1));
}

fn a_fifo_without_a_partner() {
    mknodat(HERE, "fifo", FileType::Fifo, RW, 0).unwrap();
    fails(try_open("fifo", OFlags::WRONLY | OFlags::NONBLOCK), Errno::NXIO);
    let reader = open("fifo", OFlags::RDONLY | OFlags::NONBLOCK);
    fails(rustix::fs::seek(&reader, SeekFrom::Start(0)), Errno::SPIPE);
    fails(mknodat(HERE, "fifo", FileType::Fifo, RW, 0), Errno::EXIST);
}

fn devices_are_made_with_their_numbers() {
    let devices = [
        (FileType::CharacterDevice, 1, 3),
        (FileType::CharacterDevice, 4095, 0xf_ffff),
        (FileType::BlockDevice, 8, 255),
        (FileType::BlockDevice, 259, 256),
    ];
    for (of_kind, major, minor) in devices {
        mknodat(HERE, "device", of_kind, Mode::from_raw_mode(0o640), makedev(major, minor)).unwrap();
        assert_eq!((kind("device"), stat("device").st_rdev, mode("device")), (of_kind, makedev(major, minor), 0o640));
        rustix::fs::unlink("device").unwrap();
    }
}

fn a_device_works() {
    mknodat(HERE, "zero", FileType::CharacterDevice, RW, makedev(1, 5)).unwrap();
    let fd = open("zero", OFlags::RDWR);
    assert_eq!(pread(&fd, 10, 0), [0; 10]);
    write(&fd, b"swallowed");
    rustix::fs::rename("zero", "moved").unwrap();
    assert_eq!(pread(open("moved", OFlags::RDONLY), 3, 0), [0; 3]);
    // Truncating a device does nothing to it.
    open("moved", OFlags::WRONLY | OFlags::TRUNC | OFlags::CREATE);
}

fn devices_are_roots() {
    dir("dir", 0o777);
    as_user(ALICE, || {
        fails(mknodat(HERE, "dir/null", FileType::CharacterDevice, RW, makedev(1, 3)), Errno::PERM);
        mknodat(HERE, "dir/fifo", FileType::Fifo, RW, 0).unwrap();
        mknodat(HERE, "dir/socket", FileType::Socket, RW, 0).unwrap();
    });
    assert_eq!((stat("dir/fifo").st_uid, stat("dir/socket").st_uid), (ALICE, ALICE));
}

fn a_plain_file_made_as_a_node() {
    mknodat(HERE, "file", FileType::RegularFile, Mode::from_raw_mode(0o666), 0).unwrap();
    assert_eq!((kind("file"), mode("file"), stat("file").st_size), (FileType::RegularFile, 0o644, 0));
    fails(mknodat(HERE, "file", FileType::RegularFile, RW, 0), Errno::EXIST);
    file("file", "content", 0o644);
    assert_eq!(content("file"), b"content");
}

fn a_socket_is_connected_by_name() {
    let listener = UnixListener::bind("socket").unwrap();
    assert_eq!((kind("socket"), mode("socket")), (FileType::Socket, 0o755));
    let child = fork(|| {
        let mut stream = UnixStream::connect("socket").unwrap();
        stream.write_all(b"ping").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "pong");
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut question = [0; 4];
    stream.read_exact(&mut question).unwrap();
    stream.write_all(b"pong").unwrap();
    drop(stream);
    child.join();
    assert_eq!(&question, b"ping");
    fails(try_open("socket", OFlags::RDWR), Errno::NXIO);
}

fn a_socket_needs_the_right_to_write() {
    let _listener = UnixListener::bind("socket").unwrap();
    let error = || UnixStream::connect("socket").err().and_then(|error| error.raw_os_error());
    as_user(ALICE, || assert_eq!(error(), Some(libc::EACCES)));
    chmod("socket", 0o777);
    as_user(ALICE, || assert_eq!(error(), None));
    chmod(".", 0o700);
    as_user(ALICE, || assert_eq!(error(), Some(libc::EACCES)));
}

fn a_sockets_name_outlives_it() {
    drop(UnixListener::bind("socket").unwrap());
    let connect = || UnixStream::connect("socket").err().and_then(|error| error.raw_os_error());
    assert_eq!(connect(), Some(libc::ECONNREFUSED));
    let again = UnixListener::bind("socket").map_err(|error| error.raw_os_error());
    assert_eq!(again.err(), Some(Some(libc::EADDRINUSE)));
    rustix::fs::unlink("socket").unwrap();
    assert_eq!(connect(), Some(libc::ENOENT));
    let _listener = UnixListener::bind("socket").unwrap();
    assert_eq!(connect(), None);
    file("file", "", 0o644);
    let no_socket = UnixStream::connect("file").err().and_then(|error| error.raw_os_error());
    assert_eq!(no_socket, Some(libc::ECONNREFUSED));
}

fn datagrams_by_name() {
    let receiver = UnixDatagram::bind("receiver").unwrap();
    let sender = UnixDatagram::bind("sender").unwrap();
    sender.send_to(b"message", "receiver").unwrap();
    let mut bytes = [0; 20];
    let (length, from) = receiver.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"message");
    assert_eq!(from.as_pathname().unwrap().to_str(), Some("sender"));
}

fn a_socket_is_renamed_and_linked() {
    let listener = UnixListener::bind("socket").unwrap();
    rustix::fs::rename("socket", "moved").unwrap();
    rustix::fs::link("moved", "link").unwrap();
    assert_eq!(stat("link").st_nlink, 2);
    for name in ["moved", "link"] {
        let _stream = UnixStream::connect(name).unwrap();
        listener.accept().unwrap();
    }
}
