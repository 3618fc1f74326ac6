//! What happens to a container, and what is asked of it.

/// What a request gets: its way is free or its work is done, or else the sentence for the user.
pub type Answer = Result<(), String>;

/// A signal to the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Its number.
    pub number: u32,
    /// Whether all processes get it, and not the first one only.
    pub all: bool,
}

impl Signal {
    /// Whether the signal kills whatever the process does.
    pub fn kills(self) -> bool {
        self.number == libc::SIGKILL as u32
    }
}

/// How the container's life ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The process ended with this code.
    Exited(u8),
    /// The guest stopped under the container, and why.
    VmDied(String),
    /// The container was sent SIGKILL, and the guest did not report its end in time.
    Overdue,
}

/// What somebody wants of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Start the container's process.
    Start,
    /// Run another process in the container.
    Exec,
    /// Write files of the container's cgroup.
    Update,
    /// Read something that only the guest knows.
    Query,
    /// Wait until memory runs out in the guest.
    WatchOom,
    /// Send a signal.
    Signal(Signal),
    /// Pause the container.
    Pause,
    /// Resume the container.
    Resume,
    /// Let another container, of this id, into the VM.
    Join(String),
}

/// What happens to the container. `T` is a ticket: whoever gave it away waits for the answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<T> {
    /// A request came.
    Asked(Request, T),
    /// [`super::Work::Start`] is done, or failed.
    StartDone(Answer),
    /// [`super::Work::Quiesce`] is done.
    Quiesced,
    /// [`super::Work::Freeze`] is done, or failed and is undone.
    Frozen(Answer),
    /// [`super::Work::Thaw`] is done, or failed.
    Thawed(Answer),
    /// The guest's kernel killed a process of the container for lack of memory.
    OutOfMemory,
    /// [`super::Work::ReportOom`] is done.
    OomReported,
    /// The container's process ended.
    Ended {
        /// The exit code.
        code: u8,
        /// Whether the guest's kernel killed something in the container for lack of memory.
        oom_killed: bool,
    },
    /// The guest stopped, and why.
    VmDied(String),
    /// [`super::Work::AwaitEnd`] is done.
    Overdue,
}
