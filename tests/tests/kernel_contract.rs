//! What the guest kernel owes the runtime, and that a kernel without any patch of ours is enough to run containers.

use std::fs;

use serde_json::{Value, json};
use tests::command::run;
use tests::netns::Netns;
use tests::unix::CLIENT;
use tests::{Container, Scene, Worker, place, process};

/// Patches that the runtime or the VMM relies on: guest-kernel/patches/required.
const REQUIRED: [&str; 5] = [
    "fuse-submount-acls",
    "fuse-locks-of-the-server",
    "virtio-mmio-plug",
    "virtio-mmio-runvm",
    "fuse-events-of-the-server",
];
/// The kernel of `guest-kernel/build --stock`, where tools/test puts it.
const STOCK: &str = "stock";

/// A container on the kernel without patches.
fn on_stock(scene: &Scene) -> Container<'_> {
    let mut container = scene.container();
    container.annotate("io.runvm.kernel", STOCK);
    container
}

/// Gives a container a network namespace of an engine's, and what ping needs.
fn give_network(container: &mut Container<'_>, namespace: &Netns) {
    container.namespace("network", Some(json!({"type": "network", "path": namespace.path()})));
    let capabilities = json!(["CAP_NET_RAW"]);
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    container.set("/process/capabilities", sets);
}

fn worker(scene: &Scene) -> Worker<'_> {
    let volume = scene.dir().join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("file"), "").unwrap();
    Worker::start(on_stock(scene), &volume)
}

#[test]
fn vm_the_manifest_names_the_patches() {
    let manifest = place::runtime().with_file_name("guest").join("manifest.json");
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    let patches = manifest["kernel"]["patches"].as_array().expect("a list of patches");
    for patch in REQUIRED {
        assert!(patches.iter().any(|name| name == patch), "{patch} is not in {patches:?}");
    }
}

#[test]
fn vm_what_a_kernel_lacks_is_said_once() {
    let scene = Scene::new();
    let outcome = on_stock(&scene).args(&["uname", "-r"]).run().success();
    assert!(outcome.stdout.ends_with("-stock\n"), "{outcome:?}");
    let warnings = scene.messages("warning");
    let [warning] = &warnings[..] else { panic!("not one warning: {warnings:?}") };
    for words in ["kernels/stock", "file locks on volumes hold inside one VM only", "POSIX ACLs on volumes"] {
        assert!(warning.contains(words), "{words:?} is not in {warning:?}");
    }
    fs::remove_file(scene.log()).unwrap();
    scene.sh("true").success();
    assert_eq!(scene.messages("warning"), Vec::<String>::new(), "the usual kernel lacks nothing");
}

#[test]
fn vm_stock_has_links_from_the_start_and_later() {
    let scene = Scene::new();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    let mut container = on_stock(&scene);
    give_network(&mut container, &namespace);
    let created = container.idle();
    container.exec_sh("ping -c 1 -W 5 10.77.0.1").success();
    namespace.veth(78, ("rvt1", "eth1"));
    process::wait_until("the other link", || container.exec_sh("ping -c 1 -W 5 10.78.0.1").code == 0);
    container.end(&created);
}

#[test]
fn vm_stock_has_locks_within_one_vm() {
    let scene = Scene::new();
    let (mut one, mut other) = (worker(&scene), worker(&scene));
    for kind in ["flock", "posix", "ofd"] {
        let lock = format!("{CLIENT}/lock /volume/file {kind}");
        // What the warning says: two VMs have it at a time, two processes of one do not.
        for worker in [&mut one, &mut other] {
            worker.tell(&format!("{lock} try"));
            assert_eq!(worker.line(), "locked", "{kind}");
        }
        assert_eq!(one.container.exec_sh(&format!("{lock} try </dev/null")).stdout, "busy\n", "{kind}");
        // The line that ends it has to be read before the next one is written: it reads as much as there is.
        for worker in [&one, &other] {
            worker.tell("end");
            let free = || worker.container.exec_sh(&format!("{lock} try </dev/null")).stdout == "locked\n";
            process::wait_until("the lock's end", free);
        }
    }
    one.end();
    other.end();
}

#[test]
fn vm_stock_has_volumes_exec_and_pause() {
    let scene = Scene::new();
    let volume = scene.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("from-host"), "host").unwrap();
    let mut container = on_stock(&scene);
    container.mount("bind", &volume, "/volume", &["bind"]);
    let created = container.idle();
    let script = "cat /volume/from-host; dd if=/dev/zero of=/volume/large bs=1M count=8 2>/dev/null
        mkdir /volume/d && mv /volume/large /volume/d/ && ln -s large /volume/d/link && rm /volume/from-host; exit 3";
    assert_eq!(container.exec_sh(script).exits(3).stdout, "host");
    assert_eq!(fs::metadata(volume.join("d/link")).unwrap().len(), 8 << 20);
    assert!(!volume.join("from-host").exists());
    run(&mut container.named("pause", &[])).success();
    assert_eq!(container.status(), "paused");
    run(&mut container.named("resume", &[])).success();
    container.exec_sh("test -d /volume/d").success();
    let memory = json!({"memory": {"limit": 64 << 20}}).to_string();
    let file = scene.dir().join("resources");
    fs::write(&file, memory).unwrap();
    run(&mut container.named("update", &["--resources", file.to_str().unwrap()])).success();
    assert_eq!(container.exec_sh("cat /sys/fs/cgroup/memory.max").stdout, "67108864\n");
    container.end(&created);
}

#[test]
fn vm_a_second_container_in_a_stock_vm_has_a_link() {
    let scene = Scene::new();
    let mut first = on_stock(&scene);
    first.set("/annotations/io.kubernetes.cri.container-type", json!("sandbox"));
    first.set("/annotations/io.kubernetes.cri.sandbox-id", json!(first.id.clone()));
    let created = first.idle();
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    let mut second = scene.container();
    second.set(
        "/annotations",
        json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": first.id}),
    );
    give_network(&mut second, &namespace);
    assert!(second.sh("uname -r; ping -c 1 -W 5 10.77.0.1").run().success().stdout.contains("-stock\n"));
    first.end(&created);
}
