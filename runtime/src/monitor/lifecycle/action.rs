//! What the lifecycle has done.

use super::event::{Answer, Ending, Signal};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<T> {
    /// Answer a request.
    Answer(T, Answer),
    /// Begin something that takes a while.
    Begin(Work),
    /// Hold new requests to the guest back.
    CloseGate,
    /// Let requests to the guest through again.
    OpenGate,
    /// Stop the virtual CPUs.
    PauseVcpus,
    /// Let the virtual CPUs run.
    ResumeVcpus,
    /// Send a signal, and answer how that went.
    Signal(Signal, T),
    /// Send signals that came during a pause, one after the other, then answer.
    Deliver(Vec<Signal>, T),
    /// Enter a container among those in the VM, and answer.
    Admit(String, T),
    /// Deliver the last output, clean up, and exit.
    Finish(Ending),
}

/// What takes a while. The event that ends it has a like name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Mirror the network into the guest, then start the process.
    Start,
    /// Wait until no request to the guest is in flight.
    Quiesce,
    /// Freeze the container's cgroup.
    Freeze,
    /// Thaw the container's cgroup.
    Thaw,
    /// Tell the host that memory ran out in the guest.
    ReportOom,
    /// Give the guest a while to report the end of what was sent SIGKILL.
    AwaitEnd,
}
