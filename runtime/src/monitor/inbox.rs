//! The inbox of a container: everything that happens to it goes in here, one event after the other.

use tokio::sync::{mpsc, oneshot};

use super::lifecycle::{Event, Request, Signal};
use super::vm::request_gate::InFlight;

/// Where the answer to a request goes. A dropped ticket says that the container is gone.
#[derive(Debug)]
pub struct Ticket(oneshot::Sender<Result<InFlight, String>>);

/// Where events of one container are put.
#[derive(Clone)]
pub struct Inbox(mpsc::UnboundedSender<Event<Ticket>>);

/// The events, in the order in which they were put in.
pub type Events = mpsc::UnboundedReceiver<Event<Ticket>>;

impl Ticket {
    /// Answers the request. One that is let through is in flight until who asked has done with it.
    pub fn answer(self, answer: Result<InFlight, String>) {
        // Whoever asked may be gone.
        let _ = self.0.send(answer);
    }
}

impl Inbox {
    /// An empty inbox.
    pub fn new() -> (Self, Events) {
        let (inbox, events) = mpsc::unbounded_channel();
        (Self(inbox), events)
    }

    /// Puts an event in. An event for a container that is gone is lost.
    pub fn put(&self, event: Event<Ticket>) {
        let _ = self.0.send(event);
    }

    /// Asks for something, and waits for the answer. Until what this gives is dropped, the VM is not paused.
    ///
    /// # Errors
    /// What was asked for is not possible, or did not work.
    pub async fn ask(&self, request: Request) -> anyhow::Result<InFlight> {
        let (ticket, answer) = oneshot::channel();
        self.put(Event::Asked(request, Ticket(ticket)));
        let answer = answer.await.unwrap_or_else(|_| Err("container not running".to_owned()));
        answer.map_err(anyhow::Error::msg)
    }

    /// Sends the container a signal, whatever becomes of it.
    pub fn signal(&self, signal: Signal) {
        let (ticket, _) = oneshot::channel();
        self.put(Event::Asked(Request::Signal(signal), Ticket(ticket)));
    }
}
