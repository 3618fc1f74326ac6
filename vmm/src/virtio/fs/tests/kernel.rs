//! The server under this machine's own kernel: requests from `/dev/fuse` go through the ring, replies
//! go back. Linux' FUSE client is the same there and in a guest, but for automatic submounts.
//!
//! Every test mounts in a mount namespace of its thread's, so nothing stays behind. Where `/dev/fuse`
//! can't be opened a test says so and does nothing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use zerocopy::FromBytes;

use super::super::Fs;
use super::super::fuse::*;
use super::guest::*;
use crate::virtio::Device;

/// Largest request: a write of 1 MiB with its headers.
const REQUEST: usize = (1 << 20) + 4096;
/// Room for any reply but that of a read.
const REPLY: usize = 80 << 10;

/// A mounted device, its share's directory and where the share is in the mount.
struct Mounted {
    directory: tempfile::TempDir,
    mount: tempfile::TempDir,
    bridge: Option<JoinHandle<()>>,
}

/// How a test's device is.
#[derive(Clone, Copy)]
struct Nature {
    /// Most descriptors of known objects.
    descriptors: usize,
    /// After so many requests another device goes on in its place.
    life: usize,
}

impl Mounted {
    fn new() -> Self {
        Self::of(Nature { descriptors: 1 << 14, life: usize::MAX })
    }

    fn of(nature: Nature) -> Self {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = device.expect("these tests mount: they want root and the module fuse");
        let (directory, mount) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // SAFETY: plain flags; the namespace is this test's thread's only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let fd = device.as_raw_fd();
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other");
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("shares", mount.path(), "fuse", MountFlags::empty(), options.as_c_str()).unwrap();
        let path = directory.path().to_owned();
        let fs = move || Fs::with_limits(vec![share("s", &path, false)], nature.descriptors, 1000).unwrap();
        let bridge = Some(std::thread::spawn(move || bridge(device, fs, nature.life)));
        Self { directory, mount, bridge }
    }

    /// The share as the kernel sees it.
    fn share(&self) -> PathBuf {
        self.mount.path().join("s")
    }

    /// Runs a shell script in the mounted share, whose host directory is `$HOST`.
    fn run(&self, script: &str) {
        let mut command = Command::new("sh");
        command.args(["-euc", script]).current_dir(self.share()).env("HOST", self.directory.path());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{}\n{errors}", String::from_utf8_lossy(&output.stdout));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.mount.path(), UnmountFlags::DETACH);
        let result = self.bridge.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(result, Some(Ok(()))), "the bridge failed");
    }
}

fn bridge(mut device: File, fs: impl Fn() -> Fs, life: usize) {
    let mut guest = Guest::unborn(fs());
    let (mut request, mut age, mut lives) = (vec![0; REQUEST], 0, 1);
    while let Ok(length) = device.read(&mut request) {
        if age >= life {
            let state = guest.device.save().unwrap();
            let mut next = fs();
            next.restore(&state).unwrap();
            (guest, age, lives) = (Guest::unborn(next), 0, lives + 1);
        }
        age += 1;
        let request = &request[..length];
        let (header, body) = InHeader::read_from_prefix(request).unwrap();
        let room = match header.opcode {
            opcode::READ => ReadIn::read_from_prefix(body).unwrap().0.size as usize,
            _ => REPLY,
        };
        let reply = guest.raw(request, 16 + room).unwrap();
        if !reply.is_empty() {
            // Whoever waited for it may be gone.
            let _ = device.write(&reply);
        }
    }
    assert!(life == usize::MAX || lives > 5, "one life is not what this is about");
}

/// A tree of small files of all kinds.
fn make_tree(root: &Path, directories: usize, files: usize) {
    for directory in 0..directories {
        let path = root.join(format!("dir-{directory}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..files {
            fs::write(path.join(format!("file-{file}")), format!("{directory} {file}").repeat(file + 1)).unwrap();
        }
        std::os::unix::fs::symlink("file-0", path.join("link")).unwrap();
        fs::hard_link(path.join("file-1"), path.join("hard")).unwrap();
    }
}

#[test]
fn trees_are_copied_packed_compared_and_removed() {
    for descriptors in [1 << 14, 100] {
        let mounted = Mounted::of(Nature { descriptors, life: usize::MAX });
        storm(&mounted);
    }
}

#[test]
fn servers_come_and_go_and_nobody_notices() {
    for (descriptors, life) in [(1 << 14, 200), (100, 200), (100, 1)] {
        let mounted = Mounted::of(Nature { descriptors, life });
        let files = if life == 1 { 5 } else { 40 };
        make_tree(&mounted.directory.path().join("tree"), 10, files);
        mounted.run("cp -a tree copy && diff -r --no-dereference tree copy");
        mounted.run(
            "exec 3<tree/dir-1/file-3 4>>log; cd copy/dir-2; for i in $(seq 100); do echo $i >&4; done
             mv ../dir-3 ../moved; cat ../moved/file-4 >/dev/null; test $(wc -l < ../../log) = 100; echo x > here
             cat <&3 | cmp - $HOST/tree/dir-1/file-3; test -f $HOST/copy/dir-2/here; rm here
             tar cf ../../all.tar -C ../.. tree; mv ../moved ../dir-3; tar df ../../all.tar -C ../../ tree",
        );
        mounted.run(
            "diff -r --no-dereference tree copy && test $(find tree | wc -l) = $(find $HOST/tree | wc -l)
             rm -r tree copy all.tar log && test -z \"$(ls -A $HOST)\"",
        );
    }
}

fn storm(mounted: &Mounted) {
    make_tree(&mounted.directory.path().join("tree"), 20, 40);
    mounted
        .run("cp -a tree copy && diff -r --no-dereference tree copy && diff -r --no-dereference $HOST/tree $HOST/copy");
    mounted.run("tar cf all.tar tree && mkdir out && tar xf all.tar -C out && diff -r --no-dereference tree out/tree");
    mounted.run("test $(find tree | wc -l) = $(find $HOST/tree | wc -l)");
    mounted.run("test $(stat -c %h copy/dir-3/hard) = 2 && test copy/dir-3/hard -ef copy/dir-3/file-1");
    mounted.run("mv out/tree/dir-1 copy/dir-2/moved && test -f copy/dir-2/moved/file-30 && cp -al copy linked");
    mounted.run("cd copy/dir-2/moved && rm -r ../moved && test $(stat -c %h .) = 0");
    mounted.run("rm -r linked tree copy out all.tar && test -z \"$(ls -A $HOST)\"");
}

#[test]
fn big_files_keep_every_byte() {
    let mounted = Mounted::new();
    mounted.run(
        "head -c 60000001 /dev/urandom > big && cmp big $HOST/big && cp big copy && cmp copy $HOST/big
         dd if=big of=part bs=65537 skip=3 count=50 2>/dev/null
         dd if=$HOST/big bs=65537 skip=3 count=50 2>/dev/null | cmp - $HOST/part
         dd if=big of=direct bs=1M iflag=direct 2>/dev/null && cmp direct $HOST/big
         dd if=big of=direct bs=1M count=20 oflag=direct 2>/dev/null && cmp -n 20971520 direct $HOST/big
         truncate -s 5000000000 sparse && echo end >> sparse && test $(stat -c %s $HOST/sparse) = 5000000004
         test $(stat -c %b $HOST/sparse) -lt 100 && tail -c 4 sparse | grep -q end",
    );
}

#[test]
fn shells_append_truncate_execute_and_keep_open_files() {
    let mounted = Mounted::new();
    mounted.run(
        "for i in 1 2 3 4; do (for j in $(seq 200); do echo line-$i-$j >> log; done) & done; wait
         test $(sort -u log | wc -l) = 800 && test $(sort -u $HOST/log | wc -l) = 800
         exec 3>>log; echo host >> $HOST/log; echo guest >&3; tail -n 2 $HOST/log | tr '\\n' ' ' | grep -q 'host guest'
         echo short > log && test $(cat $HOST/log) = short
         cp /bin/true program && ./program && cp /bin/sh $HOST/shell && ./shell -c 'exit 0'
         exec 4<log; rm log; read line <&4; test $line = short
         mkfifo pipe; (echo through > pipe) & read line < pipe; test $line = through
         mknod null c 1 3 && echo x > null && test -c $HOST/null
         ln -s nowhere dangling && test -L dangling && ! test -e dangling
         echo one > a; echo two > b; mv a b; test $(cat b) = one; mv -n b program; test -e b",
    );
}

#[test]
fn owners_modes_and_setuid() {
    let mounted = Mounted::new();
    mounted.run(
        "chmod 755 . && mkdir -m 1777 public && cp /bin/true program && chmod 6755 program
         chown 1000:1000 program && test $(stat -c %a program) = 755
         chmod 4777 program && setpriv --reuid 1000 --regid 1000 --clear-groups sh -c 'echo x >> program'
         test $(stat -c %a $HOST/program) = 777
         chmod 4777 program && echo x >> program && test $(stat -c %a $HOST/program) = 4777
         cd public && setpriv --reuid 1000 --regid 1001 --clear-groups sh -c 'umask 027; touch f; mkdir d; ln -s x l'
         test $(stat -c %u:%g:%a $HOST/public/f) = 1000:1001:640 && test $(stat -c %u:%g:%a d) = 1000:1001:750
         test $(stat -c %u l) = 1000
         ! setpriv --reuid 2000 --regid 2000 --clear-groups rm -f f 2>/dev/null
         mkdir -m 2770 team && chown 0:500 team && chmod 2770 team
         setpriv --reuid 2000 --regid 2000 --groups 500 touch team/file
         test $(stat -c %u:%g $HOST/public/team/file) = 2000:500",
    );
}

#[test]
fn many_entries() {
    let mounted = Mounted::new();
    fs::create_dir(mounted.directory.path().join("many")).unwrap();
    for number in 0..5000 {
        File::create(mounted.directory.path().join(format!("many/file-{number}"))).unwrap();
    }
    mounted.run("test $(ls many | sort -u | wc -l) = 5000 && test $(ls -l many | wc -l) = 5001");
    mounted.run("rm many/file-1* && test $(ls many | wc -l) = $(ls $HOST/many | wc -l) && rm -r many");
}
