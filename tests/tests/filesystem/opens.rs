//! Opening and making files, which takes one request where a name is not known yet.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use rustix::process::Signal;
use serde_json::json;
use tests::{Scene, process};

/// FUSE requests of a kind, as the log with the annotation `io.runvm.timeline` tells.
pub fn requests(log: &str, kind: &str) -> u32 {
    let words: Vec<&str> = log.split([' ', ',', ';']).collect();
    let count = words.windows(2).find(|pair| pair[0] == kind).map_or("0", |pair| pair[1]);
    count.parse().unwrap_or_else(|error| panic!("{error}: {log}"))
}

#[test]
fn sizes_of_files_read_for_the_first_time() {
    let scene = Scene::new();
    let mut container = scene.container();
    let sizes = [0, 1, 4095, 4096, 4097, 16_383, 16_384, 16_385, 100_000];
    for size in sizes {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        fs::write(container.rootfs().join(format!("f{size}")), content).unwrap();
    }
    // Whole, once more, beyond what is in the last page, and by a map.
    let script = "for f in /f*; do md5sum <$f; md5sum <$f; dd if=$f bs=1 skip=4090 count=50 2>/dev/null | md5sum; done";
    let seen = container.sh(script).run().success().stdout;
    let shell = std::process::Command::new("sh")
        .current_dir(container.rootfs())
        .args(["-c", &script.replace("/f", "./f")])
        .output();
    assert_eq!(seen, String::from_utf8(shell.unwrap().stdout).unwrap());
}

#[test]
fn kinds_of_opens_are_told_apart() {
    let scene = Scene::new();
    let mut container = scene.container();
    let root = container.rootfs();
    for name in ["kept", "target", "unlinked"] {
        fs::write(root.join(name), name).unwrap();
    }
    let script = r#"
        (set -C; echo lost >/kept) 2>/dev/null || echo "exists: $(cat /kept)"
        ln -s target /link; ln -s new /dangling
        echo through >/link; cat /target
        echo made >/dangling; cat /new
        (echo x >/tmp) 2>/dev/null || echo directory
        cat /absent 2>/dev/null || echo absent; echo now >/absent; cat /absent
        mkfifo /fifo; (echo passed >/fifo) & cat /fifo
        exec 3</unlinked; rm /unlinked; cat <&3; echo
        printf '#!/bin/sh\necho ran\n' >/script; chmod +x /script; /script"#;
    let expected = "exists: kept\nthrough\nmade\ndirectory\nabsent\nnow\npassed\nunlinked\nran\n";
    assert_eq!(container.sh(script).run().success().stdout, expected);
}

/// Found and opened at once, looked up before, and with O_CREAT and O_TRUNC.
#[test]
fn who_may_not_open_a_file_does_not() {
    let scene = Scene::new();
    let mut container = scene.container();
    let secrets = ["a", "b", "c"].map(|name| container.rootfs().join(name));
    for secret in &secrets {
        fs::write(secret, "secret").unwrap();
        fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).unwrap();
    }
    container.set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let outcome = container.sh("cat /a; [ -e /b ] && cat /b; echo x >/c; echo x >>/a; : >/new").run().failure();
    assert_eq!(outcome.stdout, "");
    assert_eq!(outcome.stderr.to_lowercase().matches("permission denied").count(), 5, "{outcome:?}");
    assert!(secrets.iter().all(|secret| fs::read(secret).unwrap() == b"secret"));
}

#[test]
fn vm_a_small_file_is_one_request() {
    let scene = Scene::new();
    let mut container = scene.container();
    container.set("/annotations", json!({"io.runvm.timeline": "true"}));
    for number in 0..200 {
        fs::write(container.rootfs().join(format!("f{number}")), "text\n").unwrap();
    }
    let script = "n=0; while [ $n -lt 200 ]; do read line </f$n; [ $line = text ] || echo wrong; echo x >/new$n; n=$((n + 1)); done";
    assert_eq!(container.sh(script).run().success().stdout, "");
    let log = fs::read_to_string(scene.log()).unwrap();
    // What the shell itself needs is little: some twenty of each.
    for (kind, most) in [("LOOKUP", 60), ("OPEN", 60), ("READ", 100), ("GETATTR", 60)] {
        assert!(requests(&log, kind) < most, "{kind}: {log}");
    }
    for (kind, least) in [("LOOKUP_OPEN", 200), ("CREATE", 200), ("RELEASE", 400)] {
        assert!((least..least + 60).contains(&requests(&log, kind)), "{kind}: {log}");
    }
}

/// A file that was closed is on the host with all its attributes, even if the monitor is killed at once.
#[test]
fn vm_what_was_closed_outlives_the_monitor() {
    let scene = Scene::new();
    let mut container = scene.container();
    let script = "mkdir /d; echo content >/d/f; chmod 751 /d/f; touch -d @1000000000 /d/f; mv /d/f /d/g; ln -s g /d/link; echo closed; exec sleep 1000";
    let mut created = container.sh(script).up();
    created.stdout.expect("closed\n");
    process::signal(created.pid, Signal::KILL);
    assert_eq!(process::wait_orphan(created.pid), 137);
    let directory = container.rootfs().join("d");
    let file = fs::metadata(directory.join("g")).unwrap();
    assert_eq!((file.permissions().mode() & 0o7777, file.mtime()), (0o751, 1_000_000_000));
    assert_eq!(fs::read_to_string(directory.join("link")).unwrap(), "content\n");
    assert!(!directory.join("f").exists());
    container.force_delete().success();
}
