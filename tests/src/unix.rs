//! Unix sockets of the host, and programs that connect to them, lock files or watch them, from within a container.

use std::fs;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use crate::{command, place};

/// A server on a socket of the host, with a thread for each connection. Ends when it is dropped; its file stays.
pub struct Server {
    listener: Arc<UnixListener>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at this path, where nothing may be.
    pub fn new(path: &Path, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        let listener = Arc::new(UnixListener::bind(path).unwrap());
        let (serve, accepting) = (Arc::new(serve), Arc::clone(&listener));
        let accept = move || {
            while let Ok((stream, _)) = accepting.accept() {
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        };
        Self { listener, thread: Some(std::thread::spawn(accept)) }
    }

    /// One that sends everything back, and ends when the client has.
    pub fn echo(path: &Path) -> Self {
        Self::new(path, |stream| {
            let _ = std::io::copy(&mut &stream, &mut &stream);
            let _ = stream.shutdown(Shutdown::Write);
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Where [`client`] is to be mounted.
pub const CLIENT: &str = "/opt/client";

/// `connect PATH`: standard input goes to the socket, which is then half closed, and what comes from it to standard
/// output; `connect PATH wait` goes on sending after the other side has ended. `hold PATH N`: opens so many connections,
/// says so, and waits for a line before it closes each. Exit code 7: it could not connect.
const SCRIPT: &str = r#"
sub dial {
    socket(my $s, 1, 1, 0) or die "socket: $!";
    connect($s, pack("S a*", 1, "$_[0]\0")) or do { print STDERR "connect: $!\n"; exit 7 };
    return $s;
}
sub copy {
    my ($from, $to) = @_;
    while (my $got = sysread($from, my $bytes, 65536)) {
        for (my $at = 0; $at < $got;) { $at += syswrite($to, $bytes, $got - $at, $at) // return }
    }
}
my ($what, $path, $how) = @ARGV;
$| = 1;
if ($what eq "hold") {
    my @held = map { my $s = dial($path); syswrite($s, "x"); $s } 1 .. $how;
    print "open\n";
    while (@held && <STDIN>) { close(shift @held); print "closed\n" }
    exit 0;
}
my $s = dial($path);
my $sender = fork // die "fork: $!";
if (!$sender) { copy(*STDIN, $s); shutdown($s, 1); exit 0 }
copy($s, *STDOUT);
kill 9, $sender unless $how;
waitpid $sender, 0;
"#;

/// What else the folder has: programs that lock files.
const LOCKER: &str = include_str!("locker.pl");

/// And programs that watch files.
const WATCHER: &str = include_str!("watcher.pl");

/// A folder with programs that connect and lock, and all they need: the host's perl. Busybox has no client for Unix sockets.
pub fn client() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = place::work().join("client");
        fs::create_dir_all(&folder).unwrap();
        let perl = carry(Path::new("/"), "/usr/bin/perl", &folder, CLIENT);
        let scripts = [
            ("dial", SCRIPT, &["connect", "hold"][..]),
            ("locker", LOCKER, &LOCKS),
            ("watcher", WATCHER, &["watch", "count-made"]),
        ];
        for (script, text, verbs) in scripts {
            fs::write(folder.join(script), text).unwrap();
            for what in verbs {
                let run = format!("#!/bin/sh\nexec {perl} {CLIENT}/{script} {what} \"$@\"\n");
                fs::write(folder.join(what), run).unwrap();
                fs::set_permissions(folder.join(what), fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        folder
    })
}

/// What `locker.pl` does.
const LOCKS: [&str; 5] = ["lock", "count", "look", "open", "map"];

/// One of the programs of `locker.pl`, on the host.
pub fn locker(what: &str, args: &[&str]) -> Command {
    let mut command = Command::new("perl");
    command.arg(client().join("locker")).arg(what).args(args);
    command
}

/// Copies a program of a root file system into a folder, with all it needs. Returns how to run it where the folder is mounted.
pub fn carry(root: &Path, program: &str, folder: &Path, mounted: &str) -> String {
    let needed = command::run(Command::new("chroot").arg(root).arg("ldd").arg(program)).success().stdout;
    let libraries = needed.split_whitespace().filter(|word| word.starts_with('/'));
    let mut loader = String::new();
    for file in libraries.chain([program]) {
        let name = file.rsplit('/').next().unwrap_or_default();
        fs::copy(root.join(&file[1..]), folder.join(name)).unwrap();
        if name.starts_with("ld-") {
            loader = name.to_owned();
        }
    }
    let name = program.rsplit('/').next().unwrap_or_default();
    format!("{mounted}/{loader} --library-path {mounted} {mounted}/{name}")
}
