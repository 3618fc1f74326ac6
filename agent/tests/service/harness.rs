//! Starts an agent and plays the monitor.

use agent::{GuestPaths, Listeners, sys};
use protocol::*;
use rustix::process::Signal;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One test.
pub type Case = for<'h> fn(&'h mut Host) -> Pin<Box<dyn Future<Output = ()> + 'h>>;

/// Where this machine has cgroup2.
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let place = words.next()?;
        (words.next()? == "cgroup2").then(|| place.into())
    })
}

/// A busybox that runs without libraries.
pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| {
        std::fs::read(path).is_ok_and(|elf| !elf.windows(14).take(4096).any(|window| window == b"/lib64/ld-linu"))
    })
}

fn paths(directory: &Path) -> GuestPaths {
    GuestPaths {
        shares: directory.join("shares"),
        more_shares: directory.join("more-shares"),
        shares_tag: None,
        rootfs: directory.join("rootfs"),
        cgroup_root: cgroup2().unwrap(),
        sockets: directory.join("sockets"),
    }
}

/// PID 1 of the test's namespaces: the agent.
pub fn serve(directory: &Path) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let result = runtime.block_on(async {
        let children = sys::child_signal_fd().unwrap();
        let streams = UnixListener::bind(directory.join("streams")).unwrap();
        streams.set_nonblocking(true).unwrap();
        let calls = ttrpc::r#async::Server::new().bind(&address(directory)).unwrap();
        agent::serve(Listeners { calls, streams: streams.into(), children }, paths(directory)).await
    });
    panic!("{result:?}");
}

fn make_directories(directory: &Path) -> PathBuf {
    let root = directory.join("shares/root");
    make_root(&root);
    for empty in ["rootfs", "sockets"] {
        std::fs::create_dir_all(directory.join(empty)).unwrap();
    }
    root
}

fn address(directory: &Path) -> String {
    format!("unix://{}", directory.join("calls").display())
}

/// The host's side of one agent.
pub struct Host {
    /// To call it.
    pub client: AgentClient,
    /// The share "root", a busybox system.
    pub root: PathBuf,
    directory: PathBuf,
    agent: Child,
    containers: Vec<String>,
}

impl Host {
    pub async fn start() -> Self {
        let directory = super::scratch();
        make_directories(&directory);
        let mut agent = Command::new("unshare");
        let killed_with_me = || Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?);
        // SAFETY: one system call between fork and exec.
        unsafe { agent.pre_exec(killed_with_me) };
        let agent = agent
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(std::env::current_exe().unwrap())
            .env("AGENT_TEST_SERVE", &directory)
            .spawn()
            .unwrap();
        let client = loop {
            match ttrpc::r#async::Client::connect(&address(&directory)).await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let root = directory.join("shares/root");
        Self { client: AgentClient::new(client), root, directory, agent, containers: Vec::new() }
    }

    /// Descriptors that the agent has open.
    pub fn agent_descriptors(&self) -> usize {
        let pid = self.agent.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        std::fs::read_dir(format!("/proc/{}/fd", children.trim())).unwrap().count()
    }

    /// Opens a stream and gives its id.
    pub fn stream(&mut self) -> (u64, UnixStream) {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        (id, self.stream_of(id))
    }

    /// Opens a stream of this id.
    pub fn stream_of(&self, id: u64) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.join("streams")).unwrap();
        stream.write_all(&StreamHeader { id }.to_bytes()).unwrap();
        stream
    }

    /// The sockets that the agent has made for those of the host.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.join("sockets")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// A request for an ordinary container that runs a script.
    pub fn request(&mut self, script: &str) -> CreateContainerRequest {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = format!("agent-test-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        self.containers.push(id.clone());
        let mut request = CreateContainerRequest::new();
        request.cgroup_path = format!("/{id}");
        request.container_id = id;
        request.hostname = "box".into();
        use NamespaceKind::*;
        request.namespaces = [PID, NETWORK, MOUNT, IPC, UTS, CGROUP].map(namespace).into();
        request.share = "root".into();
        request.mounts = vec![
            mount("/proc", "proc", "", 0),
            mount("/dev", "tmpfs", "mode=755", libc::MS_NOSUID),
            mount("/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620", libc::MS_NOSUID | libc::MS_NOEXEC),
            mount("/tmp", "tmpfs", "", 0),
        ];
        request.process = Some(process(&["sh", "-c", script])).into();
        request
    }

    /// Gives a process streams for stdout and stderr and returns the host's ends.
    pub fn capture(&mut self, process: &mut Process) -> (UnixStream, UnixStream) {
        let (stdout, stderr) = (self.stream(), self.stream());
        (process.stdout, process.stderr) = (stdout.0, stderr.0);
        (stdout.1, stderr.1)
    }

    /// Creates and starts a container.
    pub async fn launch(&self, request: &CreateContainerRequest) -> ttrpc::Result<()> {
        self.create(request).await?;
        self.start_created(&request.container_id).await
    }

    pub async fn create(&self, request: &CreateContainerRequest) -> ttrpc::Result<u32> {
        Ok(self.client.create_container(context(), request).await?.pid)
    }

    /// Sends a request ahead of its call.
    pub async fn send_ahead(&self, request: &impl protobuf::Message) -> ttrpc::Result<()> {
        for (number, piece) in request.write_to_bytes().unwrap().chunks(1 << 20).enumerate() {
            self.send_piece((number as u64) << 20, piece.to_owned()).await?;
        }
        Ok(())
    }

    pub async fn send_piece(&self, offset: u64, bytes: Vec<u8>) -> ttrpc::Result<()> {
        let request = SendAheadRequest { offset, bytes, ..Default::default() };
        self.client.send_ahead(context(), &request).await.map(drop)
    }

    pub async fn start_created(&self, id: &str) -> ttrpc::Result<()> {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        self.client.start_container(context(), &request).await.map(drop)
    }

    pub async fn wait(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let request = WaitProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        Ok(self.client.wait_process(context(), &request).await?.exit_code)
    }

    pub async fn signal(&self, id: &str, exec_id: &str, signal: i32, all: bool) -> ttrpc::Result<()> {
        let request = SignalProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            signal: signal as u32,
            all,
            ..Default::default()
        };
        self.client.signal_process(context(), &request).await.map(drop)
    }

    pub async fn delete(&self, id: &str) -> ttrpc::Result<()> {
        let request = DeleteContainerRequest { container_id: id.into(), ..Default::default() };
        self.client.delete_container(context(), &request).await.map(drop)
    }

    pub async fn exec(&self, id: &str, exec_id: &str, process: Process) -> ttrpc::Result<u32> {
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            process: Some(process).into(),
            ..Default::default()
        };
        Ok(self.client.exec_process(context(), &request).await?.pid)
    }

    /// Runs a container to its end: exit code, stdout, stderr.
    pub async fn run(&mut self, mut request: CreateContainerRequest) -> (u32, String, String) {
        let (stdout, stderr) = self.capture(request.process.mut_or_insert_default());
        let (stdout, stderr) = (reader(stdout), reader(stderr));
        self.launch(&request).await.unwrap();
        let code = self.wait(&request.container_id, "").await.unwrap();
        (code, stdout.await, stderr.await)
    }

    /// Runs a script in an ordinary container: its stdout, when it succeeded.
    pub async fn output(&mut self, script: &str) -> String {
        let request = self.request(script);
        self.output_of(request).await
    }

    /// Runs a container: its stdout, when it succeeded.
    pub async fn output_of(&mut self, request: CreateContainerRequest) -> String {
        let (code, stdout, stderr) = self.run(request).await;
        assert_eq!(code, 0, "{stdout}{stderr}");
        stdout
    }

    /// A container that stays until it is killed.
    pub async fn sleeper(&mut self) -> String {
        let request = self.request("exec sleep 1000");
        self.launch(&request).await.unwrap();
        request.container_id
    }

    pub async fn kill(&self, id: &str) {
        self.signal(id, "", libc::SIGKILL, false).await.unwrap();
        assert_eq!(self.wait(id, "").await.unwrap(), 137);
    }

    /// Runs a process in a container to its end: exit code and stdout.
    pub async fn exec_output(&mut self, id: &str, exec_id: &str, mut process: Process) -> (u32, String) {
        let (stdout, _stderr) = self.capture(&mut process);
        let stdout = reader(stdout);
        self.exec(id, exec_id, process).await.unwrap();
        (self.wait(id, exec_id).await.unwrap(), stdout.await)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The namespaces' PID 1 and with it everything in them dies with unshare.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        std::thread::sleep(Duration::from_millis(50));
        for name in &self.containers {
            let _ = std::fs::remove_dir(cgroup2().unwrap().join(name));
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "dev", "tmp", "sys", "root"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy(busybox().unwrap(), root.join("bin/busybox")).unwrap();
    let list = Command::new(busybox().unwrap()).arg("--list").output().unwrap();
    for name in String::from_utf8(list.stdout).unwrap().lines().filter(|&name| name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:\n").unwrap();
    std::fs::write(root.join("etc/secret"), "secret\n").unwrap();
}

pub fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(20))
}

pub fn namespace(kind: NamespaceKind) -> Namespace {
    Namespace { kind: kind.into(), ..Default::default() }
}

pub fn mount(destination: &str, kind: &str, data: &str, flags: u64) -> Mount {
    let (destination, kind, data) = (destination.into(), kind.into(), data.into());
    Mount { destination, source: String::clone(&kind), kind, data, flags, ..Default::default() }
}

pub fn process(args: &[&str]) -> Process {
    let mut process = Process::new();
    process.args = args.iter().map(|&arg| arg.into()).collect();
    process.env = vec!["PATH=/usr/bin:/bin".into()];
    process.cwd = "/".into();
    process
}

/// Reads a stream to its end, on another thread, from now on.
pub fn reader(mut stream: UnixStream) -> impl Future<Output = String> {
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    async { read.await.unwrap() }
}

/// Reads a stream until `end` has been read; more may be left in it.
pub async fn until(stream: &UnixStream, end: &str) -> String {
    let (mut stream, end) = (stream.try_clone().unwrap(), end.to_owned());
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        let mut byte = [0];
        while !text.contains(&end) {
            stream.read_exact(&mut byte).unwrap();
            text.push(byte[0].into());
        }
        text
    });
    read.await.unwrap()
}

/// The sentence of a failed call.
pub fn sentence<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code.enum_value().unwrap(), status.message),
        other => panic!("{other:?}"),
    }
}
