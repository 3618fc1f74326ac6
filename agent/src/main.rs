//! PID 1 of the guest: boot, say hello, serve.

use agent::{Error, Listeners, Result, boot, log, sys, vsock};
use protocol::{Hello, READY_PORT, RPC_PORT, STREAM_PORT, VERSION};
use rustix::fd::IntoRawFd;

fn main() {
    let main_us = sys::boottime_us();
    boot::prepare();
    if let Err(error) = run(main_us) {
        log::error(&error.message);
    }
    // The kernel panics when PID 1 ends, which tells the host less than this does.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
}

fn run(main_us: u32) -> Result<()> {
    let failed = |what: &'static str| move |error| Error::internal(format!("{what}: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.map_err(failed("event loop"))?.block_on(async {
        let listeners = listen()?;
        say_hello(main_us);
        agent::serve(listeners, boot::paths()).await
    })
}

fn listen() -> Result<Listeners> {
    let failed = |what: &'static str| move |errno| Error::internal(format!("{what}: {errno}"));
    let calls = vsock::listen(RPC_PORT).map_err(failed("listen for calls"))?;
    let streams = vsock::listen(STREAM_PORT).map_err(failed("listen for streams"))?;
    let children = sys::child_signal_fd().map_err(failed("signalfd"))?;
    let server = ttrpc::r#async::Server::new();
    // SAFETY: an open vsock listener, handed over for good.
    let calls = unsafe { server.add_vsock_listener(calls.into_raw_fd()) };
    let calls = calls.map_err(|error| Error::internal(format!("listen for calls: {error}")))?;
    Ok(Listeners { calls, streams, children })
}

/// Tells the host that the agent is ready. A host that does not hear that notices by itself.
fn say_hello(main_us: u32) {
    let hello = Hello { version: VERSION, main_us, ready_us: sys::boottime_us() };
    let sent = vsock::connect_host(READY_PORT).and_then(|host| rustix::io::write(&host, &hello.to_bytes()));
    if let Err(errno) = sent {
        log::error(&format!("hello: {errno}"));
    }
}
