//! A bundle and the commands on it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};

use crate::command::{self, Outcome};
use crate::stream::{Reader, pipe};
use crate::{Scene, place, process, spec};

/// A container that may or may not exist yet. Deleted by force at its end if a test created it and forgot.
pub struct Container<'a> {
    scene: &'a Scene,
    /// Its name.
    pub id: String,
    /// Its config.json, written before each command.
    pub spec: Value,
    bundle: PathBuf,
    created: bool,
    allowed: Option<&'static str>,
}

/// What `create` leaves: a process, and the far ends of its streams.
pub struct Created {
    /// The pid that the runtime reported.
    pub pid: i32,
    /// The container's standard output, which is that of `create`.
    pub stdout: Reader,
    /// The container's standard error.
    pub stderr: Reader,
    /// The near end of the container's standard input; taken to close it.
    pub stdin: Option<OwnedFd>,
}

impl<'a> Container<'a> {
    /// A new bundle: the base image below, a layer of its own above, as engines do it.
    pub fn new(scene: &'a Scene, id: &str) -> Self {
        Self::over(scene, id, &place::base_rootfs())
    }

    /// The same over another image.
    pub fn over(scene: &'a Scene, id: &str, lower: &Path) -> Self {
        let bundle = scene.dir().join(id);
        for dir in ["rootfs", "upper", "work"] {
            fs::create_dir_all(bundle.join(dir)).unwrap();
        }
        let at = |name: &str| bundle.join(name).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), at("upper"), at("work"));
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("overlay", bundle.join("rootfs"), "overlay", MountFlags::empty(), options.as_c_str())
            .expect("mount an overlay");
        Self { scene, id: id.to_owned(), spec: spec::default(id), bundle, created: false, allowed: None }
    }

    /// The bundle's folder.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The root file system on the host.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// The process's arguments.
    pub fn args(&mut self, args: &[&str]) -> &mut Self {
        self.spec["process"]["args"] = json!(args);
        self
    }

    /// A shell script as the process.
    pub fn sh(&mut self, script: &str) -> &mut Self {
        self.args(&["sh", "-c", script])
    }

    /// Sets a value in config.json by its JSON pointer; the parent must exist.
    pub fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer begins with a slash");
        let parent = self.spec.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}: no such place"));
        parent[key] = value;
        self
    }

    /// Sets an annotation, and allows it as the host's administrator does.
    pub fn annotate(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.allowed = Some(name);
        self.set("/annotations", json!({name: value}))
    }

    /// Adds a mount to config.json.
    pub fn mount(&mut self, kind: &str, source: &Path, destination: &str, options: &[&str]) -> &mut Self {
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// Removes a namespace from config.json, or gives it a path or adds it.
    pub fn namespace(&mut self, kind: &str, entry: Option<Value>) -> &mut Self {
        let list = self.spec["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != kind);
        list.extend(entry);
        self
    }

    /// Writes config.json.
    pub fn write(&self) {
        fs::write(self.bundle.join("config.json"), self.spec.to_string()).unwrap();
    }

    /// `RUNTIME VERB`, its flags still to come; finish with [`Container::named`] or the id.
    pub fn command(&self, verb: &str) -> Command {
        self.command_at(&place::runtime(), verb)
    }

    /// The same with another binary.
    pub fn command_at(&self, binary: &Path, verb: &str) -> Command {
        let mut command = self.scene.runtime_at(binary);
        if let Some(name) = self.allowed {
            command.args(["--allow-annotations", name]);
        }
        command.arg(verb);
        if matches!(verb, "create" | "run") {
            self.write();
            command.arg("--bundle").arg(&self.bundle);
        }
        command
    }

    /// `RUNTIME VERB ID ARGS…`
    pub fn named(&self, verb: &str, args: &[&str]) -> Command {
        let mut command = self.command(verb);
        command.arg(&self.id).args(args);
        command
    }

    /// `run`: to the container's end.
    #[track_caller]
    pub fn run(&mut self) -> Outcome {
        command::run(&mut self.named("run", &[]))
    }

    /// `create` that may fail; its output is kept.
    #[track_caller]
    pub fn try_create(&mut self) -> Outcome {
        let outcome = command::run(&mut self.named("create", &[]));
        // One that failed must have left nothing that would have to be deleted.
        self.created |= outcome.code == 0;
        outcome
    }

    /// `create` as engines do it: pipes for the container's streams, a pid-file.
    #[track_caller]
    pub fn create(&mut self) -> Created {
        self.create_with(&[])
    }

    /// `create` with more flags.
    #[track_caller]
    pub fn create_with(&mut self, flags: &[&str]) -> Created {
        let pid_file = self.bundle.join("pid");
        let (stdin, stdout, stderr) = (pipe(), pipe(), pipe());
        let mut command = self.command("create");
        command.arg("--pid-file").arg(&pid_file).args(flags).arg(&self.id);
        command.stdin(stdin.0).stdout(stdout.1).stderr(stderr.1);
        self.created = true;
        let mut child = command.spawn().unwrap();
        // Our copies of the container's ends would keep its streams open.
        drop(command);
        let (stdout, stderr) = (Reader::new(stdout.0), Reader::new(stderr.0));
        if !process::wait_end(child.id() as i32, command::PATIENCE) {
            let _ = child.kill();
            panic!("create has not finished");
        }
        let code = command::code(child.wait().unwrap());
        assert_eq!(code, 0, "create failed: {:?}", self.scene.errors());
        let pid = fs::read_to_string(pid_file).unwrap().parse().expect("the pid-file holds a number and no more");
        Created { pid, stdout, stderr, stdin: Some(stdin.1) }
    }

    /// `create` and `start`.
    #[track_caller]
    pub fn up(&mut self) -> Created {
        let created = self.create();
        self.start().success();
        created
    }

    /// A started container whose process waits until it is killed.
    #[track_caller]
    pub fn idle(&mut self) -> Created {
        // A shell that has said so reads no more from us: its traps are set, and TERM ends it.
        let mut created = self.sh("trap 'exit 143' TERM; echo up; sleep 100000 & wait $!").up();
        created.stdout.expect("up\n");
        created
    }

    /// `start`
    #[track_caller]
    pub fn start(&self) -> Outcome {
        command::run(&mut self.named("start", &[]))
    }

    /// `kill`
    #[track_caller]
    pub fn kill(&self, signal: &str) -> Outcome {
        command::run(&mut self.named("kill", &[signal]))
    }

    /// `delete`
    #[track_caller]
    pub fn delete(&mut self) -> Outcome {
        let outcome = command::run(&mut self.named("delete", &[]));
        self.created &= outcome.code != 0;
        outcome
    }

    /// `delete --force`
    #[track_caller]
    pub fn force_delete(&mut self) -> Outcome {
        self.created = false;
        let mut command = self.command("delete");
        command::run(command.arg("--force").arg(&self.id))
    }

    /// Kills the container, waits for its end, deletes it; returns the exit code of its pid.
    #[track_caller]
    pub fn end(&mut self, created: &Created) -> i32 {
        self.kill("KILL").success();
        let code = process::wait_orphan(created.pid);
        self.delete().success();
        code
    }

    /// `state`, which must succeed.
    #[track_caller]
    pub fn state(&self) -> Value {
        let outcome = command::run(&mut self.named("state", &[])).success();
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("state: {error}: {}", outcome.stdout))
    }

    /// The status that `state` tells.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("status is text").to_owned()
    }

    /// `exec` to the process's end.
    #[track_caller]
    pub fn exec(&self, args: &[&str]) -> Outcome {
        command::run(&mut self.named("exec", args))
    }

    /// `exec` of a shell script.
    #[track_caller]
    pub fn exec_sh(&self, script: &str) -> Outcome {
        self.exec(&["sh", "-c", script])
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if self.created || std::thread::panicking() {
            let mut command = self.command("delete");
            command.arg("--force").arg(&self.id).stdin(std::process::Stdio::null());
            let _ = command::start(&mut command).try_finish(command::PATIENCE);
            process::reap();
        }
        let rootfs = self.rootfs();
        let unmounted = rustix::mount::unmount(&rootfs, UnmountFlags::NOFOLLOW);
        if unmounted.is_err() && !std::thread::panicking() {
            // The monitor of a container deleted a moment ago may still be closing its files.
            process::wait_until("the root file system to be free", || {
                rustix::mount::unmount(&rootfs, UnmountFlags::NOFOLLOW).is_ok()
            });
        }
    }
}
