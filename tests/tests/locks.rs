//! Locks of files on a volume that several containers have, and the host.

use std::fs;
use std::path::PathBuf;

use tests::unix::CLIENT;
use tests::{Scene, Worker};

const KINDS: [&str; 3] = ["flock", "posix", "ofd"];

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
