//! A container that does what it is told, a line each, with [`CLIENT`] and a volume.

use std::path::Path;

use crate::unix::{CLIENT, client};
use crate::{Container, Created, process};

/// A container that runs each line of its standard input.
pub struct Worker<'a> {
    /// The container itself.
    pub container: Container<'a>,
    /// Its process and streams.
    pub created: Created,
}

impl<'a> Worker<'a> {
    /// Starts a container with this folder as `/volume`.
    #[track_caller]
    pub fn start(mut container: Container<'a>, volume: &Path) -> Self {
        container.mount("bind", client(), CLIENT, &["bind", "ro"]);
        container.mount("bind", volume, "/volume", &["bind"]);
        let created = container.sh("while read line; do eval \"$line\"; done").up();
        Self { container, created }
    }

    /// Gives it a line.
    pub fn tell(&self, line: &str) {
        rustix::io::write(self.created.stdin.as_ref().unwrap(), format!("{line}\n").as_bytes()).unwrap();
    }

    /// Its next line.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.created.stdout.line()
    }

    /// Ends its input, waits for its end, which must be a good one, and deletes it.
    #[track_caller]
    pub fn end(mut self) {
        self.created.stdin = None;
        assert_eq!(process::wait_orphan(self.created.pid), 0);
        self.container.delete().success();
    }
}
