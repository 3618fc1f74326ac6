//! The virtual machine monitor by itself, without runtime and agent: `vmm/examples/boot` boots the guest kernel with a small
//! initrd.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::command::run;
use tests::{Outcome, Scene, place};

/// An initrd whose init is this shell script.
fn initrd(scene: &Scene, script: &str) -> PathBuf {
    let tree = scene.dir().join("initrd");
    for directory in ["bin", "dev", "proc", "sys"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    fs::copy(place::base_rootfs().join("bin/busybox"), tree.join("bin/busybox")).unwrap();
    let init = format!("#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t devtmpfs dev /dev\n{script}\n");
    fs::write(tree.join("init"), init).unwrap();
    run(Command::new("chmod").arg("755").arg(tree.join("init"))).success();
    let archive = scene.dir().join("initrd.cpio");
    let mut cpio = Command::new("busybox");
    cpio.args(["cpio", "-o", "-H", "newc"]).current_dir(&tree).stdin(Stdio::piped());
    let mut cpio = cpio.stdout(fs::File::create(&archive).unwrap()).spawn().unwrap();
    let names = run(Command::new("find").arg(".").current_dir(&tree)).success().stdout;
    cpio.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
    assert!(cpio.wait().unwrap().success());
    archive
}

fn boot(initrd: &Path, options: &[&str]) -> Outcome {
    let bin = place::runtime().parent().unwrap().to_owned();
    run(Command::new(bin.join("boot")).arg(bin.join("guest/vmlinux")).arg(initrd).args(options))
}

/// The number before a word in the output.
fn number_before(output: &str, word: &str) -> u64 {
    let words: Vec<&str> = output.split_whitespace().collect();
    let at = words.iter().position(|found| found.trim_end_matches(',') == word).unwrap_or_else(|| panic!("{output}"));
    words[at - 1].parse().unwrap_or_else(|_| panic!("{output}"))
}

#[test]
fn vm_a_machine_that_is_quiesced_again_and_again_loses_nothing() {
    let scene = Scene::new();
    // Processor and virtio-rng are both at work while the machine is stopped.
    let script = "n=0; while [ $n -lt 300 ]; do n=$((n + 1)); head -c 512 /dev/hwrng | wc -c; done >/all
        [ $(sort -u /all) = 512 ] && [ $(wc -l </all) = 300 ] && echo all there >/dev/console
        reboot -f";
    let initrd = initrd(&scene, script);
    let output = boot(&initrd, &["--console", "--pause"]).success().stdout;
    assert!(output.contains("all there") && output.contains("ended by Some(Reset)"), "{output}");
    assert!(number_before(&output, "pauses") > 3, "{output}");
}

#[test]
fn vm_a_stopped_machine_gives_its_state() {
    let scene = Scene::new();
    let initrd = initrd(&scene, "head -c 16 /dev/hwrng >/x; while :; do :; done");
    let output = boot(&initrd, &["--save", "--cpus", "2"]).success().stdout;
    assert!(output.contains("exit None"), "{output}");
    assert_eq!(number_before(&output, "vCPUs"), 2);
    assert!(number_before(&output, "MSRs") > 10, "{output}");
    // The entropy device, DRIVER_OK among its status.
    assert!(output.contains("device 4: Registers { status: 15"), "{output}");
}

#[test]
fn vm_guests_see_virtualisation_only_where_it_is_meant() {
    let scene = Scene::new();
    let script = "mount -t proc proc /proc; echo $(grep -E -c '^flags.* (svm|vmx)( |$)' /proc/cpuinfo) that-virtualise >/dev/console; reboot -f";
    let initrd = initrd(&scene, script);
    let seen = |options: &[&str]| {
        number_before(&boot(&initrd, &[&["--console"], options].concat()).success().stdout, "that-virtualise")
    };
    assert_eq!(seen(&[]), 0);
    let nested = ["kvm_amd", "kvm_intel"].map(|module| format!("/sys/module/{module}/parameters/nested"));
    let offered = nested
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .any(|value| value.trim() != "0" && value.trim() != "N");
    assert_eq!(seen(&["--nested"]), u64::from(offered));
}

#[test]
fn vm_a_kernel_that_is_none_is_refused() {
    let scene = Scene::new();
    let file = scene.dir().join("not-a-kernel");
    fs::write(&file, "text").unwrap();
    let boot = place::runtime().parent().unwrap().join("boot");
    let outcome = run(Command::new(boot).arg(&file).arg(&file)).failure();
    assert!(outcome.stderr.contains("not a usable kernel"), "{}", outcome.stderr);
}
