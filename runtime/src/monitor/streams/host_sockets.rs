//! Connections of a container's processes to sockets of the host, and to the resolver of its network.
//!
//! The guest names a socket by its number among those that the bundle mounts, and a stream; what is dialed here becomes
//! that stream, and from then on is the vsock device's alone. So nothing of a connection passes through this thread.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::anyhow;
use protocol::{
    AcceptSocketResponse, MAX_SOCKET_CONNECTIONS, RESOLVER_DATAGRAMS, RESOLVER_STREAM, STREAM_PORT, StreamHeader,
};
use tokio::task::JoinSet;
use vmm::virtio::vsock::Handle;

use super::connections::{Connections, Room};
use crate::host;
use crate::ipc::Descriptor;
use crate::log::{self, Level};
use crate::monitor::network::helper::NetworkHelper;
use crate::monitor::network::resolver::Announcement;
use crate::monitor::vm::agent_client::Agent;

/// The sockets of one container. When this is dropped its connections end.
pub struct Sockets {
    sockets: Arc<Vec<Descriptor>>,
    connections: Rc<Connections>,
    /// Whether the container's network has a resolver.
    resolver: Rc<Announcement>,
}

impl Sockets {
    /// These, and the resolver if there will be one in the namespace of this helper. This process's working directory is to be
    /// that of its descriptors.
    pub fn new(sockets: Vec<Descriptor>, helper: Option<NetworkHelper>) -> Self {
        let (sockets, resolver) = (Arc::new(sockets), Rc::new(Announcement::new(helper)));
        Self { sockets, connections: Rc::new(Connections::new(MAX_SOCKET_CONNECTIONS)), resolver }
    }

    /// To be told once the container's network has a resolver.
    pub fn resolver(&self) -> Rc<Announcement> {
        Rc::clone(&self.resolver)
    }

    /// Connects whoever wants to be connected; until the container's end, or until this is dropped.
    pub async fn serve(self, vsock: Handle, agent: Agent) {
        if self.sockets.is_empty() {
            self.resolver.made().await;
        }
        let mut answers = JoinSet::new();
        loop {
            let Some(room) = self.connections.room().await else { return };
            let request = match agent.accept_socket().await {
                Ok(request) => request,
                Err(error) => {
                    return log::repeated(Level::Debug, &format!("connections to sockets of the host: {error:#}"));
                }
            };
            while answers.try_join_next().is_some() {}
            if request.socket >= RESOLVER_DATAGRAMS && !self.resolver.is_there() {
                log::repeated(Level::Debug, "the guest asks for a resolver that there is not");
                continue;
            }
            if request.socket == RESOLVER_DATAGRAMS {
                answers.spawn_local(Rc::clone(&self.resolver).serve(vsock.clone(), request.stream));
                continue;
            }
            let wanted = Wanted { vsock: vsock.clone(), request, room };
            let dialed = dial(Arc::clone(&self.sockets), Rc::clone(&self.resolver), wanted.request.socket);
            answers.spawn_local(wanted.connect(dialed, Rc::clone(&self.connections)));
        }
    }
}

/// A connection that a process of the guest waits for.
struct Wanted {
    vsock: Handle,
    request: AcceptSocketResponse,
    room: Room,
}

impl Wanted {
    async fn connect(self, dialed: impl Future<Output = anyhow::Result<OwnedFd>>, connections: Rc<Connections>) {
        let Self { vsock, request, room } = self;
        let joined = match dialed.await {
            Ok(stream) => connections.join(&vsock, stream, room, request.stream),
            Err(error) => {
                log::repeated(Level::Debug, &format!("connect to socket {} of the host: {error:#}", request.socket));
                // A stream that is at its end.
                let header = StreamHeader { id: request.stream }.to_bytes();
                vsock.connect(STREAM_PORT).and_then(|mut stream| stream.write_all(&header))
            }
        };
        if let Err(error) = joined {
            log::repeated(Level::Debug, &format!("open a stream to the guest: {error}"));
        }
    }
}

async fn dial(sockets: Arc<Vec<Descriptor>>, resolver: Rc<Announcement>, number: u32) -> anyhow::Result<OwnedFd> {
    if number == RESOLVER_STREAM {
        return resolver.connect().await;
    }
    let dial = move || {
        let socket = usize::try_from(number).ok().and_then(|number| sockets.get(number));
        Ok(host::sockets::dial(socket.ok_or_else(|| anyhow!("the bundle mounts no such socket"))?)?.into())
    };
    // It may take a while.
    tokio::task::spawn_blocking(dial).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn no_socket_but_the_plans_is_dialed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let id = crate::host::file_id::of(&rustix::fs::stat(&path).unwrap());
        let opened = host::sockets::open(&[crate::plan::SocketPlan { source: path, id }]).unwrap();
        let opened = Arc::new(opened);
        let resolver = Rc::new(Announcement::new(None));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .on_thread_start(host::sockets::tests::go_to_descriptors)
            .build()
            .unwrap();
        let dialed = |number| runtime.block_on(dial(Arc::clone(&opened), Rc::clone(&resolver), number));
        assert!(dialed(0).is_ok());
        for number in [1, 2, u32::MAX - 2] {
            assert_eq!(dialed(number).unwrap_err().to_string(), "the bundle mounts no such socket");
        }
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_ok() && listener.accept().is_err());
    }
}
