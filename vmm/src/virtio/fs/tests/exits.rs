//! Which requests a vCPU serves itself, and as whom.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zerocopy::IntoBytes;

use super::super::Fs;
use super::super::at_exit::MOST_BYTES;
use super::super::fuse::*;
use super::guest::{Guest, at, share, z};
use crate::virtio::{AtExit, Device};

/// A guest with a file of 8 KiB, open for reading and writing: the share's root, the file and the handle.
fn with_file() -> (Guest, tempfile::TempDir, [u64; 3]) {
    let (mut guest, directory, root) = Guest::with_share();
    let (entry, open) = guest.create(root, "f", libc::O_RDWR, 0o644).unwrap();
    guest.write(open.fh, 0, &[7; 8192]).unwrap();
    (guest, directory, [root, entry.nodeid, open.fh])
}

fn read(fh: u64, size: usize) -> Vec<u8> {
    ReadIn { fh, size: size as u32, ..ReadIn::default() }.as_bytes().to_vec()
}

fn write(fh: u64, size: usize, write_flags: u32) -> Vec<u8> {
    let args = WriteIn { fh, size: size as u32, write_flags, ..WriteIn::default() };
    [args.as_bytes(), &vec![1; size]].concat()
}

#[test]
fn what_ends_at_once_is_served_at_the_exit() {
    let (mut guest, directory, [root, file, fh]) = with_file();
    let attributes = GetattrIn::default();
    let mode = SetattrIn { valid: fattr::MODE, mode: 0o600, ..SetattrIn::default() };
    let name = GetxattrIn { size: 64, padding: 0 };
    let open = OpenIn { flags: libc::O_RDWR as u32, open_flags: 0 };
    let requests: [(u32, u64, Vec<u8>, usize, i32); 9] = [
        (opcode::LOOKUP, root, z("f"), size_of::<EntryOut>(), 0),
        (opcode::LOOKUP, root, z("absent"), size_of::<EntryOut>(), libc::ENOENT),
        (opcode::GETATTR, file, attributes.as_bytes().to_vec(), size_of::<AttrOut>(), 0),
        (opcode::SETATTR, file, mode.as_bytes().to_vec(), size_of::<AttrOut>(), 0),
        (opcode::GETXATTR, file, [name.as_bytes(), &z("user.none")].concat(), 64, libc::ENODATA),
        (opcode::OPEN, file, open.as_bytes().to_vec(), size_of::<OpenOut>(), 0),
        (opcode::READ, file, read(fh, 4096), 4096, 0),
        (opcode::WRITE, file, write(fh, 4096, 0), size_of::<WriteOut>(), 0),
        (opcode::UNLINK, root, z("f"), 0, 0),
    ];
    for (code, nodeid, body, room, errno) in requests {
        assert_eq!(guest.at_exit(code, nodeid, &body, room), Some(errno), "opcode {code}");
    }
    assert!(!at(&directory, "f").exists());
}

#[test]
fn what_may_take_long_is_left_to_the_devices_thread() {
    let (mut guest, directory, [root, file, fh]) = with_file();
    let sync = FsyncIn { fh, ..FsyncIn::default() };
    let space = FallocateIn { fh, length: 1 << 20, ..FallocateIn::default() };
    let size = SetattrIn { valid: fattr::SIZE, size: 3, ..SetattrIn::default() };
    let cut = OpenIn { flags: (libc::O_RDWR | libc::O_TRUNC) as u32, open_flags: 0 };
    let fifo = MknodIn { mode: libc::S_IFIFO | 0o600, ..MknodIn::default() };
    let requests: [(u32, u64, Vec<u8>, usize); 9] = [
        (opcode::FSYNC, file, sync.as_bytes().to_vec(), 0),
        (opcode::SYNCFS, root, vec![0; 8], 0),
        (opcode::FALLOCATE, file, space.as_bytes().to_vec(), 0),
        (opcode::SETATTR, file, size.as_bytes().to_vec(), size_of::<AttrOut>()),
        (opcode::OPEN, file, cut.as_bytes().to_vec(), size_of::<OpenOut>()),
        (opcode::MKNOD, root, [fifo.as_bytes(), &z("p")].concat(), size_of::<EntryOut>()),
        (opcode::READ, file, read(fh, MOST_BYTES), MOST_BYTES),
        (opcode::WRITE, file, write(fh, MOST_BYTES, 0), size_of::<WriteOut>()),
        (opcode::WRITE, file, write(fh, 4096, WRITE_CACHE), size_of::<WriteOut>()),
    ];
    for (code, nodeid, body, room) in requests {
        assert_eq!(guest.at_exit(code, nodeid, &body, room), None, "opcode {code}");
    }
    // And was done there.
    assert!(at(&directory, "p").exists());
    assert_eq!(at(&directory, "f").metadata().unwrap().len(), MOST_BYTES as u64);
}

/// A file system that is neither this host's memory nor its disk: somebody may have to answer for it.
#[test]
fn other_file_systems_are_left_to_the_devices_thread() {
    let (directory, elsewhere) = (tempfile::tempdir().unwrap(), Path::new("/proc/sys/kernel"));
    let shares = vec![share("near", directory.path(), false), share("far", elsewhere, true)];
    let mut guest = Guest::of(Fs::new("test", shares).unwrap());
    let [near, far] = ["near", "far"].map(|name| guest.lookup(1, name).unwrap().nodeid);
    let file = guest.lookup(far, "ostype").unwrap().nodeid;
    let fh = guest.open(file, libc::O_RDONLY).unwrap().fh;
    let name = z("ostype");
    assert_eq!(guest.at_exit(opcode::LOOKUP, near, &name, size_of::<EntryOut>()), Some(libc::ENOENT));
    assert_eq!(guest.at_exit(opcode::LOOKUP, far, &name, size_of::<EntryOut>()), None);
    // Whatever the guest says of the object: what counts is the handle.
    assert_eq!(guest.at_exit(opcode::READ, near, &read(fh, 64), 64), None);
    assert_eq!(guest.at_exit(opcode::READ, far, &read(fh, 64), 64), None);
    let link = [LinkIn { oldnodeid: file }.as_bytes(), &z("l")].concat();
    assert_eq!(guest.at_exit(opcode::LINK, near, &link, size_of::<EntryOut>()), None);
    // The share itself, and objects that may be anywhere.
    assert_eq!(guest.at_exit(opcode::LOOKUP, 1, &z("near"), size_of::<EntryOut>()), Some(0));
    assert_eq!(guest.at_exit(opcode::LOOKUP, 1, &z("far"), size_of::<EntryOut>()), None);
    assert_eq!(guest.at_exit(opcode::BATCH_FORGET, 0, &[0; 8], 0), None);
}

#[test]
fn a_device_that_is_set_apart_is_for_its_own_thread() {
    let mut device = Fs::one_of("test", vec![], 1).unwrap();
    assert!(device.enter_vcpu().is_some() && !device.in_reserve());
    device.set_apart();
    assert!(device.enter_vcpu().is_none() && device.in_reserve());
}

#[test]
fn a_vcpu_reads_no_disk_where_the_host_can_tell() {
    let (mut guest, directory, [_, file, fh]) = with_file();
    // The probe itself may have the host read what it asks for, so it is of another file.
    std::fs::copy(at(&directory, "f"), at(&directory, "probe")).unwrap();
    let [host, probe] = ["f", "probe"].map(|name| std::fs::File::open(at(&directory, name)).unwrap());
    for file in [&host, &probe] {
        file.sync_all().unwrap();
        // SAFETY: the call has no pointers.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
    let mut byte = [0u8];
    let buffer = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: the buffer is there across the call.
    let got = unsafe { libc::preadv2(probe.as_raw_fd(), &raw const buffer, 1, 0, libc::RWF_NOWAIT) };
    let tells = got < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    let served = guest.at_exit(opcode::READ, file, &read(fh, 4096), 4096);
    assert_eq!(served, if tells { None } else { Some(0) });
    // Now it is in memory; the end of the file is an end for both.
    assert_eq!(guest.at_exit(opcode::READ, file, &read(fh, 16384), 16384), Some(0));
}

#[test]
fn a_vcpus_thread_acts_as_the_caller_once_it_is_prepared() {
    let (mut guest, directory, root) = Guest::with_share();
    (guest.uid, guest.gid) = (1234, 4321);
    let enter = guest.device.enter_vcpu().unwrap();
    let mut make = |name: &str| {
        let args = CreateIn { flags: libc::O_CREAT as u32, mode: 0o666, umask: 0o27, open_flags: 0 };
        let room = size_of::<EntryOut>() + size_of::<OpenOut>();
        guest.at_exit(opcode::CREATE, root, &[args.as_bytes(), &z(name)].concat(), room)
    };
    std::thread::scope(|scope| {
        let vcpu = scope.spawn(|| {
            assert_eq!(make("early"), Some(libc::EIO));
            enter().unwrap();
            assert_eq!(make("late"), Some(0));
        });
        vcpu.join().unwrap();
    });
    let made = at(&directory, "late").metadata().unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (1234, 4321, 0o640));
    assert!(!at(&directory, "early").exists());
}

#[test]
fn one_exit_serves_a_few_requests() {
    let (mut guest, _directory, root) = Guest::with_share();
    let lookup = guest.message(opcode::LOOKUP, root, &z("absent"));
    guest.offer(&lookup, 16 + size_of::<EntryOut>());
    (0..20).for_each(|_| guest.offer_again());
    assert_eq!(guest.exit().unwrap(), AtExit::Left);
    assert_eq!(guest.finish(0).unwrap(), 2 + 8, "INIT, the lookup of the share, and eight");
}
