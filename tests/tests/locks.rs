//! Locks of files on a volume that several containers have, and the host.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tests::command::{Running, start};
use tests::unix::{CLIENT, carry, locker};
use tests::{Scene, Worker, place};

const KINDS: [&str; 3] = ["flock", "posix", "ofd"];
/// How often each of three does something, so that they do it a thousand times together.
const TIMES: u32 = 334;
/// How long that may take on an emulated host.
const LIMIT: Duration = Duration::from_secs(600);

fn volume(scene: &Scene) -> PathBuf {
    let dir = scene.dir().join("volume");
    fs::create_dir_all(&dir).unwrap();
    for kind in KINDS {
        fs::write(dir.join(kind), "").unwrap();
    }
    dir
}

fn worker(scene: &Scene) -> Worker<'_> {
    Worker::start(scene.container(), &volume(scene))
}

#[test]
fn they_hold_between_containers() {
    let scene = Scene::new();
    let (mut one, mut other) = (worker(&scene), worker(&scene));
    for kind in KINDS {
        let lock = |how: &str| format!("{CLIENT}/lock /volume/{kind} {kind} {how}");
        one.tell(&lock("try"));
        assert_eq!(one.line(), "locked", "{kind}");
        other.tell(&format!("{} </dev/null", lock("try")));
        assert_eq!(other.line(), "busy", "{kind}");
        // Who waits gets it when the other one ends.
        other.tell(&lock("wait"));
        one.tell("end of the first");
        assert_eq!(other.line(), "locked", "{kind}");
        one.tell(&format!("{} </dev/null", lock("try")));
        assert_eq!(one.line(), "busy", "{kind}");
        other.tell("end of the second");
    }
    one.end();
    other.end();
}

#[test]
fn they_hold_against_the_host() {
    let scene = Scene::new();
    let mut worker = worker(&scene);
    let file = fs::File::options().write(true).open(volume(&scene).join("flock")).unwrap();
    file.lock().unwrap();
    let lock = format!("{CLIENT}/lock /volume/flock flock try </dev/null");
    worker.tell(&lock);
    assert_eq!(worker.line(), "busy");
    file.unlock().unwrap();
    worker.tell(&format!("{CLIENT}/lock /volume/flock flock try"));
    assert_eq!(worker.line(), "locked");
    assert!(file.try_lock().is_err());
    // They end with the container, however that ends.
    worker.container.kill("KILL").success();
    tests::process::wait_orphan(worker.created.pid);
    file.try_lock().unwrap();
    worker.container.delete().success();
}

#[test]
fn who_waits_can_be_killed() {
    let scene = Scene::new();
    let mut worker = worker(&scene);
    let file = fs::File::options().write(true).open(volume(&scene).join("flock")).unwrap();
    file.lock().unwrap();
    worker.tell(&format!("{CLIENT}/lock /volume/flock flock wait & sleep 1; kill $!; wait $!; echo ended $?"));
    assert_eq!(worker.line(), "ended 143");
    worker.end();
}

/// Waits for something in the background, which must succeed.
#[track_caller]
fn finish(running: Running) {
    running.finish_within(LIMIT).success();
}

/// Two containers and the host count in one file of the volume, each of them locking another (or the same) one meanwhile.
#[track_caller]
fn count_together(locked: &str, counted: &str) {
    let scene = Scene::new();
    let volume = volume(&scene);
    let (mut one, mut other) = (worker(&scene), worker(&scene));
    for kind in KINDS {
        for name in [locked, counted] {
            fs::write(volume.join(name), format!("{:016}", 0)).unwrap();
        }
        let program = format!("{CLIENT}/count /volume/{locked} {kind} {TIMES} /volume/{counted}");
        one.tell(&program);
        other.tell(&program);
        let at = |name: &str| volume.join(name).display().to_string();
        let times = TIMES.to_string();
        let mut host = locker("count", &[&at(locked), kind, &times, &at(counted)]);
        finish(start(host.stdin(Stdio::null())));
        assert_eq!([one.line(), other.line()], ["counted", "counted"], "{kind}");
        let count = fs::read_to_string(volume.join(counted)).unwrap();
        assert_eq!(count.parse(), Ok(3 * TIMES), "{kind}");
    }
    one.end();
    other.end();
}

#[test]
fn nothing_is_lost_that_they_guard() {
    count_together("number", "number");
}

#[test]
fn what_they_guard_may_be_another_file() {
    count_together("lock", "number");
}

#[test]
fn names_and_sizes_are_those_of_the_one_before() {
    let scene = Scene::new();
    let volume = volume(&scene);
    let mut worker = worker(&scene);
    for kind in KINDS {
        fs::write(volume.join("journal"), "text").unwrap();
        worker.tell(&format!("{CLIENT}/look /volume/{kind} {kind} /volume/journal"));
        assert_eq!(worker.line(), "4 bytes", "{kind}");
        fs::write(volume.join("journal"), "longer text").unwrap();
        worker.tell("now lock");
        assert_eq!(worker.line(), "11 bytes", "{kind}");
        worker.tell(&format!("{CLIENT}/look /volume/{kind} {kind} /volume/journal"));
        assert_eq!(worker.line(), "11 bytes", "{kind}");
        fs::remove_file(volume.join("journal")).unwrap();
        worker.tell("now lock");
        assert_eq!(worker.line(), "nothing", "{kind}");
    }
    worker.end();
}

#[test]
fn sqlite_loses_no_transaction() {
    let scene = Scene::new();
    let volume = volume(&scene);
    let program = scene.dir().join("sqlite");
    fs::create_dir(&program).unwrap();
    let sqlite = carry(&place::tools_rootfs(), "/usr/bin/sqlite3", &program, "/opt/sqlite");
    let on_host = sqlite.replace("/opt/sqlite", &program.display().to_string());
    let make = format!("{on_host} {}/db 'CREATE TABLE t(writer, x)'", volume.display());
    tests::command::run(std::process::Command::new("sh").args(["-c", &make])).success();
    let writer = |name: &str, sqlite: &str, volume: &str| {
        let insert = format!("BEGIN IMMEDIATE; INSERT INTO t VALUES ('{name}', $i); COMMIT;");
        let lines =
            format!("echo .timeout 300000; i=0; while [ $i -lt {TIMES} ]; do i=$((i+1)); echo \"{insert}\"; done");
        // One connection for all of it, which keeps what it knows of the file.
        format!("( {lines} ) | {sqlite} -bail {volume}/db && echo written")
    };
    let start_one = || {
        let mut container = scene.container();
        container.mount("bind", &program, "/opt/sqlite", &["bind", "ro"]);
        Worker::start(container, &volume)
    };
    let (mut one, mut other) = (start_one(), start_one());
    one.tell(&writer("one", &sqlite, "/volume"));
    other.tell(&writer("other", &sqlite, "/volume"));
    let host = writer("host", &on_host, &volume.display().to_string());
    finish(start(std::process::Command::new("sh").args(["-c", &host]).stdin(Stdio::null())));
    assert_eq!([one.line(), other.line()], ["written", "written"]);
    let ask = "PRAGMA integrity_check; SELECT count(*), count(DISTINCT writer), sum(x) FROM t";
    let ask = format!("{on_host} {}/db '{ask}'", volume.display());
    let found = tests::command::run(std::process::Command::new("sh").args(["-c", &ask])).success();
    let (count, sum) = (3 * TIMES, 3 * TIMES * (TIMES + 1) / 2);
    assert_eq!(found.stdout, format!("ok\n{count}|3|{sum}\n"));
    one.end();
    other.end();
}

/// What docs/compatibility.md says of shared writable maps of one file in several virtual machines.
#[test]
fn vm_maps_are_coherent_by_locks_alone_and_written_by_whole_pages() {
    let scene = Scene::new();
    let volume = volume(&scene);
    fs::write(volume.join("map"), [b'.'; 4096]).unwrap();
    let (mut one, mut other) = (worker(&scene), worker(&scene));
    for worker in [&mut one, &mut other] {
        worker.tell(&format!("{CLIENT}/map /volume/map"));
        assert_eq!(worker.line(), "mapped");
        assert_eq!(told(worker, "get 0 3"), "...");
    }
    assert_eq!(told(&mut one, "put 0 a"), "done");
    assert_eq!(told(&mut other, "get 0 1"), ".", "nothing tells the other one");
    for verb in ["lock", "put 0 b", "unlock"] {
        assert_eq!(told(&mut one, verb), "done", "{verb}");
    }
    assert_eq!(fs::read(volume.join("map")).unwrap()[0], b'b', "written before the lock's end");
    assert_eq!(told(&mut other, "lock"), "done");
    assert_eq!(told(&mut other, "get 0 1"), "b");
    assert_eq!(told(&mut other, "unlock"), "done");
    // Both change the page at a time, each a byte of its own: the page that comes last takes the other one's place.
    for (worker, put) in [(&mut one, "put 1 x"), (&mut other, "put 2 y")] {
        assert_eq!(told(worker, put), "done");
    }
    for worker in [&mut one, &mut other] {
        assert_eq!(told(worker, "sync"), "done");
    }
    assert_eq!(&fs::read(volume.join("map")).unwrap()[..3], b"b.y");
    for worker in [one, other] {
        worker.tell("end");
        worker.end();
    }
}

/// Tells a worker's program a line; returns its answer.
#[track_caller]
fn told(worker: &mut Worker, line: &str) -> String {
    worker.tell(line);
    worker.line()
}
