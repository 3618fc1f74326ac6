//! Locks of files on a volume that several containers have, and the host.

use std::fs;
use std::path::PathBuf;

use tests::unix::{CLIENT, client};
use tests::{Container, Created, Scene};

const KINDS: [&str; 3] = ["flock", "posix", "ofd"];

fn volume(scene: &Scene) -> PathBuf {
    let dir = scene.dir().join("volume");
    fs::create_dir_all(&dir).unwrap();
    for kind in KINDS {
        fs::write(dir.join(kind), "").unwrap();
    }
    dir
}

/// A container with the volume that does what it is told, a line each.
fn worker<'a>(scene: &'a Scene) -> (Container<'a>, Created) {
    let mut container = scene.container();
    container.mount("bind", client(), CLIENT, &["bind", "ro"]);
    container.mount("bind", &volume(scene), "/volume", &["bind"]);
    let created = container.sh("while read line; do eval \"$line\"; done").up();
    (container, created)
}

fn tell(created: &Created, line: &str) {
    rustix::io::write(created.stdin.as_ref().unwrap(), format!("{line}\n").as_bytes()).unwrap();
}

fn end((mut container, mut created): (Container<'_>, Created)) {
    created.stdin = None;
    assert_eq!(tests::process::wait_orphan(created.pid), 0);
    container.delete().success();
}

#[test]
fn they_hold_between_containers() {
    let scene = Scene::new();
    let (mut one, mut other) = (worker(&scene), worker(&scene));
    for kind in KINDS {
        let lock = |how: &str| format!("{CLIENT}/lock /volume/{kind} {kind} {how}");
        tell(&one.1, &lock("try"));
        assert_eq!(one.1.stdout.line(), "locked", "{kind}");
        tell(&other.1, &format!("{} </dev/null", lock("try")));
        assert_eq!(other.1.stdout.line(), "busy", "{kind}");
        // Who waits gets it when the other one ends.
        tell(&other.1, &lock("wait"));
        tell(&one.1, "end of the first");
        assert_eq!(other.1.stdout.line(), "locked", "{kind}");
        tell(&one.1, &format!("{} </dev/null", lock("try")));
        assert_eq!(one.1.stdout.line(), "busy", "{kind}");
        tell(&other.1, "end of the second");
    }
    end(one);
    end(other);
}

#[test]
fn they_hold_against_the_host() {
    let scene = Scene::new();
    let mut worker = worker(&scene);
    let file = fs::File::options().write(true).open(volume(&scene).join("flock")).unwrap();
    file.lock().unwrap();
    let lock = format!("{CLIENT}/lock /volume/flock flock try </dev/null");
    tell(&worker.1, &lock);
    assert_eq!(worker.1.stdout.line(), "busy");
    file.unlock().unwrap();
    tell(&worker.1, &format!("{CLIENT}/lock /volume/flock flock try"));
    assert_eq!(worker.1.stdout.line(), "locked");
    assert!(file.try_lock().is_err());
    // They end with the container, however that ends.
    worker.0.kill("KILL").success();
    tests::process::wait_orphan(worker.1.pid);
    file.try_lock().unwrap();
    worker.0.delete().success();
}

#[test]
fn who_waits_can_be_killed() {
    let scene = Scene::new();
    let mut worker = worker(&scene);
    let file = fs::File::options().write(true).open(volume(&scene).join("flock")).unwrap();
    file.lock().unwrap();
    tell(&worker.1, &format!("{CLIENT}/lock /volume/flock flock wait & sleep 1; kill $!; wait $!; echo ended $?"));
    assert_eq!(worker.1.stdout.line(), "ended 143");
    end(worker);
}
