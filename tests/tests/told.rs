//! inotify(7) in a container, on a volume that others change: the host, and containers in other VMs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::unix::CLIENT;
use tests::{Scene, Worker, command};

/// All but what reading is.
const CHANGES: &str = "0xfce";
/// Changes of one test, several times what the host keeps while nobody takes it.
const MANY: usize = 100_000;

fn volume(scene: &Scene) -> PathBuf {
    let dir = scene.dir().join("volume");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// A container that watches these paths for changes.
fn watching<'a>(scene: &'a Scene, paths: &str) -> Worker<'a> {
    let mut worker = Worker::start(scene.container(), &volume(scene));
    worker.tell(&format!("{CLIENT}/watch {CHANGES} {paths}"));
    assert_eq!(worker.line(), "ready");
    worker
}

/// Lines of the events that a container has heard of, up to the one that ends the test.
fn heard(worker: &mut Worker) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let line = worker.line();
        if line.contains("/end") {
            // The rest of it.
            return lines;
        }
        lines.push(line);
    }
}

fn on_host(directory: &Path, script: &str) {
    command::run(Command::new("sh").arg("-ec").arg(script).current_dir(directory)).success();
}

/// Changes that others make in the tests, each step by another process; `HEARD` has the events of them.
const STEPS: &str = "sh -c 'echo >f'; chmod 600 f; mv f g; mkdir d; mv g d/h; mv d/h i; rm i; rmdir d; touch end";
const HEARD: [&str; 12] = [
    "CREATE 0/f",
    "MODIFY 0/f",
    "CLOSE_WRITE 0/f",
    "ATTRIB 0/f",
    "MOVED_FROM 0/f 1",
    "MOVED_TO 0/g 1",
    "CREATE|ISDIR 0/d",
    "MOVED_FROM 0/g 2",
    "MOVED_TO 0/i 3",
    "DELETE 0/i",
    "DELETE|ISDIR 0/d",
    "CREATE 0/end",
];

#[test]
fn vm_what_the_host_does_is_heard() {
    let scene = Scene::new();
    let mut worker = watching(&scene, "/volume");
    on_host(&volume(&scene), STEPS);
    assert_eq!(heard(&mut worker), HEARD[..11]);
    worker.end();
}

#[test]
fn vm_what_another_vm_does_is_heard_and_what_one_does_itself_is_heard_once() {
    let scene = Scene::new();
    let mut worker = watching(&scene, "/volume");
    let other = Worker::start(scene.container(), &volume(&scene));
    other.tell(&format!("cd /volume; {STEPS}"));
    assert_eq!(heard(&mut worker), HEARD[..11]);
    worker.tell(&format!("rm /volume/end; {CLIENT}/watch {CHANGES} /volume & sleep 2; cd /volume; {STEPS}"));
    while worker.line() != "ready" {}
    assert_eq!(heard(&mut worker), HEARD[..11]);
    worker.end();
    other.end();
}

#[test]
fn vm_a_file_by_itself_is_watched_to_its_end() {
    let scene = Scene::new();
    let directory = volume(&scene);
    fs::write(directory.join("f"), "").unwrap();
    let mut worker = watching(&scene, "/volume/f /volume");
    on_host(&directory, "sh -c 'echo >>f'; rm f; touch end");
    let heard = heard(&mut worker);
    let of_file: Vec<&str> = heard.iter().map(String::as_str).filter(|line| line.ends_with(" 0/")).collect();
    assert_eq!(of_file, ["MODIFY 0/", "CLOSE_WRITE 0/", "ATTRIB 0/", "DELETE_SELF 0/", "IGNORED 0/"]);
    assert!(heard.contains(&"DELETE 1/f".to_owned()), "{heard:?}");
    worker.end();
}

#[test]
fn vm_what_was_heard_of_is_read_as_it_is() {
    let scene = Scene::new();
    let directory = volume(&scene);
    fs::write(directory.join("f"), "before").unwrap();
    let mut worker = watching(&scene, "/volume &");
    worker.tell("exec 5</volume/f; cat /volume/f; echo; ls /volume/absent; stat -c %s /volume/f");
    assert_eq!(worker.line(), "before");
    assert_eq!(worker.line(), "6");
    on_host(&directory, "sh -c 'echo the other one >f'; touch absent end");
    heard(&mut worker);
    worker.tell("wait; stat -c %s /volume/f; cat <&5; ls /volume/absent");
    while worker.line() != "14" {}
    assert_eq!((worker.line(), worker.line()), ("the other one".to_owned(), "/volume/absent".to_owned()));
    worker.end();
}

#[test]
fn vm_many_changes_are_heard_or_some_are_said_to_be_missing() {
    let scene = Scene::new();
    let directory = volume(&scene);
    let mut worker = Worker::start(scene.container(), &directory);
    // The container's own queue is to hold them all.
    worker.tell(&format!("{CLIENT}/count-made /volume"));
    assert_eq!(worker.line(), "ready");
    for number in 0..MANY {
        let made = directory.join(number.to_string());
        fs::write(&made, "").unwrap();
        fs::remove_file(made).unwrap();
    }
    fs::write(directory.join("end"), "").unwrap();
    let line = worker.line();
    println!("{line}");
    assert!(line == format!("{MANY} made") || line.ends_with("made, some missing"), "{line}");
    worker.end();
}

#[test]
fn vm_many_directories_are_watched() {
    let scene = Scene::new();
    let directory = volume(&scene);
    let names: Vec<String> = (0..500).map(|number| format!("d{number}")).collect();
    names.iter().for_each(|name| fs::create_dir(directory.join(name)).unwrap());
    let mut worker = watching(&scene, "/volume/d* /volume");
    names.iter().for_each(|name| fs::create_dir(directory.join(name).join("sub")).unwrap());
    fs::write(directory.join("end"), "").unwrap();
    assert_eq!(heard(&mut worker).iter().filter(|line| line.starts_with("CREATE|ISDIR ")).count(), 500);
    worker.end();
}

#[test]
fn vm_a_read_only_volume_is_watched_and_forgotten() {
    let scene = Scene::new();
    let directory = volume(&scene);
    let mut container = scene.container();
    container.mount("bind", &directory, "/other", &["bind", "ro"]);
    let mut worker = Worker::start(container, &directory);
    for _ in 0..3 {
        worker.tell(&format!("{CLIENT}/watch {CHANGES} /other"));
        assert_eq!(worker.line(), "ready");
        on_host(&directory, STEPS);
        assert_eq!(heard(&mut worker), HEARD[..11]);
        fs::remove_file(directory.join("end")).unwrap();
    }
    worker.end();
}
