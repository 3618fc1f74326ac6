//! FUSE file systems of the host, whose server can be stopped.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, unmount};
use rustix::process::Signal;

use crate::process;

/// A folder of the host through bindfs(1).
pub struct Bindfs {
    source: PathBuf,
    mount: PathBuf,
    control: PathBuf,
    connection: u32,
    server: Child,
}

impl Bindfs {
    /// Mounts it below this folder; what is in it is in the memory of the server's file system.
    #[track_caller]
    pub fn new(dir: &Path, name: &str) -> Self {
        let at = |kind: &str| dir.join(format!("{name}.{kind}"));
        let [source, mount, control] = ["source", "mount", "control"].map(at);
        for dir in [&source, &mount, &control] {
            fs::create_dir_all(dir).unwrap();
        }
        let _ = crate::command::run(Command::new("modprobe").arg("fuse"));
        rustix::mount::mount("fusectl", &control, "fusectl", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
        let mut server = Command::new("bindfs");
        server.args(["-f", "-o", "attr_timeout=0,entry_timeout=0"]).arg(&source).arg(&mount);
        // A group of its own, so that nobody's terminal stops it.
        server.stdin(Stdio::null()).process_group(0);
        let server = server.spawn().expect("start bindfs(1)");
        let device = |path: &Path| rustix::fs::stat(path).unwrap().st_dev;
        process::wait_until("bindfs to mount", || device(&mount) != device(dir));
        let connection = rustix::fs::minor(device(&mount));
        Self { source, mount, control, connection, server }
    }

    /// The folder as its server has it.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The folder as it is served.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Has the server answer nobody. Nobody waits for it at that moment: who waits for the answer to a request that a server has read
    /// cannot be killed. A guest tells of files that it has closed a little later, so that may take more than one attempt.
    #[track_caller]
    pub fn stop(&self) {
        process::wait_until("bindfs to stop between two requests", || {
            process::wait_until("all requests to be answered", || self.waiting() == 0);
            let pid = self.server.id() as i32;
            process::signal(pid, Signal::STOP);
            process::wait_until("bindfs to stop", || {
                process::status_field(pid, "State").is_some_and(|state| state.starts_with('T'))
            });
            let idle = self.waiting() == 0;
            if !idle {
                self.go_on();
            }
            idle
        });
    }

    /// Has it go on.
    pub fn go_on(&self) {
        process::signal(self.server.id() as i32, Signal::CONT);
    }

    /// Number of requests that have no answer.
    pub fn waiting(&self) -> u32 {
        let path = self.control.join(self.connection.to_string()).join("waiting");
        fs::read_to_string(path).unwrap().trim().parse().unwrap()
    }

    /// Waits until somebody waits for it.
    #[track_caller]
    pub fn await_request(&self) {
        process::wait_until("somebody to ask bindfs", || self.waiting() > 0);
    }

    /// Unmounts it, which takes that nobody has anything open there.
    #[track_caller]
    pub fn unmount(&self) {
        process::wait_until("nothing to be open on bindfs", || unmount(&self.mount, UnmountFlags::empty()).is_ok());
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        self.go_on();
        for mount in [&self.mount, &self.control] {
            let _ = unmount(mount, UnmountFlags::DETACH);
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
