//! Locks between the processes of one container: of whole files, of ranges, of open file descriptions.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{FlockOperation, flock};

use crate::check::*;
use crate::process::fork;

cases! {
    a_locked_file_is_locked
    shared_locks_go_together
    a_lock_belongs_to_the_open_file
    a_lock_ends_with_its_process
    waiting_for_a_lock
    ranges_are_locked_each_for_itself
    who_has_a_range
    closing_any_descriptor_drops_a_processs_ranges
    ranges_of_an_open_file
    waiting_for_a_range
    waiting_in_a_circle
    waiting_ends_with_a_signal
    what_kind_of_descriptor_a_lock_needs
    locks_without_a_name
}

const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;
const RANGE: (i64, i64) = (0, 10);

/// `fcntl` with a lock.
fn range(fd: &OwnedFd, command: i32, kind: i32, (start, length): (i64, i64)) -> Result<libc::flock, Errno> {
    let (l_type, l_whence) = (kind as i16, libc::SEEK_SET as i16);
    let mut lock = libc::flock { l_type, l_whence, l_start: start, l_len: length, l_pid: 0 };
    // SAFETY: the lock lives across the call.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, &mut lock) };
    if result == 0 { Ok(lock) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()) }
}

fn set(fd: &OwnedFd, kind: i32, what: (i64, i64)) -> Result<(), Errno> {
    range(fd, libc::F_SETLK, kind, what).map(drop)
}

fn opened() -> OwnedFd {
    open("file", OFlags::RDWR | OFlags::CREATE)
}

/// Insists that another process cannot, or can, lock a range.
#[track_caller]
fn another(kind: i32, what: (i64, i64), can: bool) {
    fork(|| {
        let result = set(&opened(), kind, what);
        assert_eq!(result, if can { Ok(()) } else { Err(Errno::AGAIN) }, "{what:?}");
    })
    .join();
}

fn a_locked_file_is_locked() {
    let fd = opened();
    flock(&fd, EXCLUSIVE).unwrap();
    fork(|| {
        fails(flock(opened(), EXCLUSIVE), Errno::WOULDBLOCK);
        fails(flock(opened(), SHARED), Errno::WOULDBLOCK);
    })
    .join();
    flock(&fd, FlockOperation::Unlock).unwrap();
    fork(|| flock(opened(), EXCLUSIVE).unwrap()).join();
}

fn shared_locks_go_together() {
    let fd = opened();
    flock(&fd, SHARED).unwrap();
    fork(|| {
        let other = opened();
        flock(&other, SHARED).unwrap();
        fails(flock(&other, EXCLUSIVE), Errno::WOULDBLOCK);
    })
    .join();
    flock(&fd, EXCLUSIVE).unwrap();
    fails(flock(opened(), SHARED), Errno::WOULDBLOCK);
}

fn a_lock_belongs_to_the_open_file() {
    let fd = opened();
    flock(&fd, EXCLUSIVE).unwrap();
    fails(flock(opened(), EXCLUSIVE), Errno::WOULDBLOCK);
    let copy = rustix::io::dup(&fd).unwrap();
    drop(fd);
    fails(flock(opened(), EXCLUSIVE), Errno::WOULDBLOCK);
    fork(|| flock(&copy, FlockOperation::Unlock).unwrap()).join();
    flock(opened(), EXCLUSIVE).unwrap();
}

fn a_lock_ends_with_its_process() {
    let ready = Gate::new();
    let child = fork(|| {
        let fd = opened();
        flock(&fd, EXCLUSIVE).unwrap();
        set(&fd, libc::F_WRLCK, RANGE).unwrap();
        ready.open();
        nap(100_000);
    });
    ready.pass();
    let fd = opened();
    fails(flock(&fd, EXCLUSIVE), Errno::WOULDBLOCK);
    fails(set(&fd, libc::F_WRLCK, RANGE), Errno::AGAIN);
    child.kill();
    flock(&fd, EXCLUSIVE).unwrap();
    set(&fd, libc::F_WRLCK, RANGE).unwrap();
}

fn waiting_for_a_lock() {
    let fd = opened();
    flock(&fd, EXCLUSIVE).unwrap();
    let (asked, got) = (Gate::new(), Gate::new());
    let child = fork(|| {
        let other = opened();
        asked.open();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        write(&other, b"mine");
        got.open();
    });
    asked.pass();
    nap(50);
    assert_eq!(content("file"), b"");
    flock(&fd, FlockOperation::Unlock).unwrap();
    got.pass();
    child.join();
    assert_eq!(content("file"), b"mine");
}

fn ranges_are_locked_each_for_itself() {
    let fd = opened();
    set(&fd, libc::F_WRLCK, (100, 50)).unwrap();
    another(libc::F_WRLCK, (0, 100), true);
    another(libc::F_WRLCK, (150, 0), true);
    another(libc::F_RDLCK, (149, 1), false);
    another(libc::F_RDLCK, (0, 0), false);
    // A hole in the middle, and a part that others may read.
    set(&fd, libc::F_UNLCK, (110, 10)).unwrap();
    set(&fd, libc::F_RDLCK, (140, 10)).unwrap();
    another(libc::F_WRLCK, (110, 10), true);
    another(libc::F_RDLCK, (140, 10), true);
    another(libc::F_WRLCK, (140, 10), false);
    another(libc::F_WRLCK, (109, 1), false);
    another(libc::F_WRLCK, (120, 1), false);
}

fn who_has_a_range() {
    let fd = opened();
    set(&fd, libc::F_WRLCK, (5, 10)).unwrap();
    let owner = rustix::process::getpid().as_raw_nonzero().get();
    fork(|| {
        let found = range(&opened(), libc::F_GETLK, libc::F_RDLCK, (0, 0)).unwrap();
        assert_eq!((found.l_type, found.l_start, found.l_len), (libc::F_WRLCK as i16, 5, 10));
        assert_eq!(found.l_pid, owner);
        let found = range(&opened(), libc::F_GETLK, libc::F_WRLCK, (15, 0)).unwrap();
        assert_eq!(found.l_type, libc::F_UNLCK as i16);
    })
    .join();
}

fn closing_any_descriptor_drops_a_processs_ranges() {
    let fd = opened();
    set(&fd, libc::F_WRLCK, RANGE).unwrap();
    // A child has none of its parent's.
    fork(|| fails(set(&fd, libc::F_WRLCK, RANGE), Errno::AGAIN)).join();
    another(libc::F_WRLCK, RANGE, false);
    drop(open("file", OFlags::RDONLY));
    another(libc::F_WRLCK, RANGE, true);
}

fn ranges_of_an_open_file() {
    let (one, two) = (opened(), opened());
    let lock = |fd: &OwnedFd, kind| range(fd, libc::F_OFD_SETLK, kind, RANGE).map(drop);
    lock(&one, libc::F_WRLCK).unwrap();
    fails(lock(&two, libc::F_RDLCK), Errno::AGAIN);
    drop(open("file", OFlags::RDONLY));
    fails(lock(&two, libc::F_RDLCK), Errno::AGAIN);
    another(libc::F_WRLCK, RANGE, false);
    let found = range(&two, libc::F_OFD_GETLK, libc::F_WRLCK, (0, 0)).unwrap();
    assert_eq!((found.l_type, found.l_pid), (libc::F_WRLCK as i16, -1));
    drop(one);
    lock(&two, libc::F_WRLCK).unwrap();
}

fn waiting_for_a_range() {
    let fd = opened();
    set(&fd, libc::F_WRLCK, RANGE).unwrap();
    let asked = Gate::new();
    let child = fork(|| {
        let other = opened();
        asked.open();
        range(&other, libc::F_SETLKW, libc::F_WRLCK, RANGE).unwrap();
        assert_eq!(content("file"), b"done");
    });
    asked.pass();
    nap(50);
    write(&fd, b"done");
    set(&fd, libc::F_UNLCK, RANGE).unwrap();
    child.join();
}

fn waiting_in_a_circle() {
    // SAFETY: no pointers. Where nobody notices the circle, it would go on for as long as a case may take.
    unsafe { libc::alarm(20) };
    let fd = opened();
    set(&fd, libc::F_WRLCK, (0, 1)).unwrap();
    let ready = Gate::new();
    let child = fork(|| {
        let other = opened();
        set(&other, libc::F_WRLCK, (1, 1)).unwrap();
        ready.open();
        range(&other, libc::F_SETLKW, libc::F_WRLCK, (0, 1)).unwrap();
    });
    ready.pass();
    nap(100);
    fails(range(&fd, libc::F_SETLKW, libc::F_WRLCK, (1, 1)), Errno::DEADLK);
    set(&fd, libc::F_UNLCK, (0, 1)).unwrap();
    child.join();
}

fn waiting_ends_with_a_signal() {
    extern "C" fn nothing(_: i32) {}
    let fd = opened();
    flock(&fd, EXCLUSIVE).unwrap();
    set(&fd, libc::F_WRLCK, RANGE).unwrap();
    fork(|| {
        // SAFETY: the handler does nothing, and lives as long as the program.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
            libc::alarm(1);
        }
        fails(flock(opened(), FlockOperation::LockExclusive), Errno::INTR);
        // SAFETY: no pointers.
        unsafe { libc::alarm(1) };
        fails(range(&opened(), libc::F_SETLKW, libc::F_WRLCK, RANGE), Errno::INTR);
    })
    .join();
}

fn what_kind_of_descriptor_a_lock_needs() {
    drop(opened());
    let (reader, writer) = (open("file", OFlags::RDONLY), open("file", OFlags::WRONLY));
    fails(set(&reader, libc::F_WRLCK, RANGE), Errno::BADF);
    fails(set(&writer, libc::F_RDLCK, RANGE), Errno::BADF);
    set(&reader, libc::F_RDLCK, RANGE).unwrap();
    flock(&reader, EXCLUSIVE).unwrap();
    dir("dir", 0o755);
    let (one, two) = (open("dir", OFlags::RDONLY), open("dir", OFlags::RDONLY));
    flock(&one, EXCLUSIVE).unwrap();
    fails(flock(&two, SHARED), Errno::WOULDBLOCK);
}

fn locks_without_a_name() {
    let (one, two) = (opened(), opened());
    rustix::fs::unlink("file").unwrap();
    flock(&one, EXCLUSIVE).unwrap();
    fails(flock(&two, EXCLUSIVE), Errno::WOULDBLOCK);
    let other = opened();
    flock(&other, EXCLUSIVE).unwrap();
}
