//! One test's surroundings.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::command::Outcome;
use crate::container::Container;
use crate::leftovers::Leftovers;
use crate::{place, process};

/// A folder, a `--root` and a log of its own for one test. Its end checks that nothing is left on the host.
pub struct Scene {
    dir: PathBuf,
    before: Leftovers,
    containers: Cell<u32>,
}

impl Scene {
    /// Sets the scene.
    #[expect(clippy::new_without_default, reason = "it changes the world: nothing for a default")]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        process::become_subreaper();
        let before = Leftovers::now();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = place::work().join(format!("scene-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self { dir, before, containers: Cell::new(0) }
    }

    /// The test's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The `--root` of its containers.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The container to be of a new bundle.
    pub fn container(&self) -> Container<'_> {
        Container::new(self, &self.next_name())
    }

    /// The same over another image.
    pub fn container_over(&self, lower: &Path) -> Container<'_> {
        Container::over(self, &self.next_name(), lower)
    }

    fn next_name(&self) -> String {
        let number = self.containers.replace(self.containers.get() + 1);
        let name = self.dir.file_name().unwrap().to_string_lossy().replace("scene", "runvm-test");
        format!("{name}-{number}")
    }

    /// Runs a shell script in a new container.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Outcome {
        self.container().sh(script).run()
    }

    /// The runtime with the global flags that engines give.
    pub fn runtime(&self) -> Command {
        self.runtime_at(&place::runtime())
    }

    /// The same with another binary.
    pub fn runtime_at(&self, binary: &Path) -> Command {
        let mut command = Command::new(binary);
        command.arg("--root").arg(self.root()).arg("--log").arg(self.log()).args(["--log-format", "json"]);
        command
    }

    /// The log file.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log.json")
    }

    /// The messages of level error in the log, in order.
    pub fn errors(&self) -> Vec<String> {
        self.messages("error")
    }

    /// The messages of one level in the log, in order.
    pub fn messages(&self, level: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let message = |line: &str| {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("log line {line:?}: {error}"));
            assert!(value["time"].is_string(), "no time in {line}");
            (value["level"] == level).then(|| value["msg"].as_str().expect("msg is text").to_owned())
        };
        text.lines().filter_map(message).collect()
    }

    /// Insists that a command failed as a good command does: an exit code, one sentence on stderr that names
    /// each of `words`, and the same sentence as the log's last error.
    #[track_caller]
    pub fn refused(&self, outcome: &Outcome, words: &[&str]) {
        assert_ne!(outcome.code, 0, "it should have failed: {outcome:?}");
        if place::has_own_words() {
            return;
        }
        let errors = self.errors();
        let sentence = errors.last().unwrap_or_else(|| panic!("no error in the log; {outcome:?}"));
        for word in words {
            assert!(sentence.contains(word), "{word:?} is not in {sentence:?}");
        }
        if place::is_runvm() {
            assert_eq!(outcome.stderr.trim(), sentence.trim(), "stderr and log tell different things");
            assert_eq!(errors.len(), 1, "more than one error: {errors:#?}");
            assert!(!sentence.contains("panicked at"), "{sentence}");
        }
        let _ = std::fs::remove_file(self.log());
    }

    /// Insists that nothing has been left so far.
    #[track_caller]
    pub fn check(&self) {
        self.before.check();
        let left: Vec<_> = std::fs::read_dir(self.root()).into_iter().flatten().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left in --root: {left:?}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let tidy = failed || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.check())).is_ok();
        if failed || !tidy {
            eprintln!("the runtime's log: {}", std::fs::read_to_string(self.log()).unwrap_or_default());
            self.before.sweep();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
        assert!(tidy, "the test left something behind: see above");
    }
}
