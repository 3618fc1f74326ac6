//! Which devices a container may use: the rules of `linux.resources.devices`, and disks of the host.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::command::run;
use tests::disk::Disk;
use tests::{Container, Scene};

/// A device that no container may use unasked: fuse.
const NUMBER: (u32, u32) = (10, 229);

/// Makes its node and says which accesses succeed.
const TRY: &str = "[ -e /dev/tried ] || mknod /dev/tried c 10 229 && echo made
    (: </dev/tried) 2>/dev/null && echo read
    (: >/dev/tried) 2>/dev/null && echo write
    (: <>/dev/tried) 2>/dev/null && echo both; true";

fn rule(allow: bool, access: &str) -> Value {
    json!({"allow": allow, "type": "c", "major": NUMBER.0, "minor": NUMBER.1, "access": access})
}

fn all(allow: bool) -> Value {
    json!({"allow": allow, "access": "rwm"})
}

/// A container with these rules, which may make nodes.
fn container(scene: &Scene, rules: Value) -> Container<'_> {
    let mut container = scene.container();
    let capabilities = json!(["CAP_MKNOD"]);
    container.set(
        "/process/capabilities",
        json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities}),
    );
    container.set("/linux/resources", json!({"devices": rules}));
    container
}

#[track_caller]
fn can(rules: Value, expected: &str) {
    let scene = Scene::new();
    let outcome = container(&scene, rules).sh(TRY).run().success();
    assert_eq!(outcome.stdout.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{outcome:?}");
}

#[test]
fn a_device_of_no_rule_can_be_made_but_not_used() {
    can(json!([all(false)]), "made");
    can(json!([]), "made");
}

#[test]
fn a_device_of_a_rule_can_be_used() {
    can(json!([all(false), rule(true, "rwm")]), "made read write both");
}

#[test]
fn accesses_are_allowed_one_by_one() {
    can(json!([all(false), rule(true, "r")]), "made read");
    can(json!([all(false), rule(true, "w")]), "made write");
}

#[test]
fn numbers_may_be_left_open() {
    can(
        json!([all(false), {"allow": true, "type": "c", "major": NUMBER.0, "minor": -1, "access": "rw"}]),
        "made read write both",
    );
    can(json!([all(false), {"allow": true, "type": "b", "access": "rwm"}]), "made");
}

#[test]
fn everything_may_be_allowed() {
    can(json!([all(true)]), "made read write both");
    can(json!([all(false), all(true)]), "made read write both");
    can(json!([all(true), all(false)]), "made");
}

/// runc takes no rule that is narrower than an earlier one.
#[test]
fn vm_the_last_rule_decides() {
    can(json!([all(false), {"allow": true, "type": "c", "access": "rw"}, rule(false, "w")]), "made read");
    can(json!([all(true), rule(false, "rwm")]), "made");
    can(json!([all(true), rule(false, "rwm"), rule(true, "r")]), "made read");
}

#[test]
fn the_rules_hold_for_what_is_executed_and_after_an_update() {
    let scene = Scene::new();
    let mut container = container(&scene, json!([all(false), rule(true, "r")]));
    let up = container.idle();
    assert_eq!(container.exec_sh(TRY).success().stdout, "made\nread\n");
    let mut command = container.command("update");
    run(command.args(["--pids-limit", "50"]).arg(&container.id)).success();
    assert_eq!(container.exec_sh(TRY).success().stdout, "made\nread\n");
    container.end(&up);
}

#[test]
fn the_usual_devices_need_no_rule() {
    let scene = Scene::new();
    let script = "echo x >/dev/null && head -c 1 /dev/zero | wc -c && head -c 1 /dev/urandom | wc -c && (: <>/dev/ptmx) && echo ptmx";
    let outcome = container(&scene, json!([all(false)])).sh(script).run().success();
    assert_eq!(outcome.stdout, "1\n1\nptmx\n");
}

#[test]
fn what_is_no_rule_is_refused() {
    let scene = Scene::new();
    for (rules, words) in [
        (json!([all(false), {"allow": true, "type": "c"}]), ["access", "1"]),
        (json!([{"allow": true, "type": "p", "access": "r"}]), ["type", "p"]),
    ] {
        let outcome = container(&scene, rules).try_create();
        scene.refused(&outcome, if tests::place::is_runvm() { &words } else { &[] });
    }
}

#[test]
fn vm_hardware_of_the_host_is_refused_unless_everything_is_listed() {
    let scene = Scene::new();
    let kvm = json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232, "fileMode": 0o660}]);
    let mut refused = container(&scene, json!([all(false)]));
    refused.set("/linux/devices", kvm);
    scene.refused(&refused.try_create(), &["/dev/kvm", "c 10:232", "does not exist in a VM"]);
    let disk = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0, "fileMode": 0o660}]);
    let mut privileged = container(&scene, json!([all(true)]));
    privileged.set("/linux/devices", disk);
    assert_eq!(privileged.sh("ls /dev/sda || echo left out").run().success().stdout, "left out\n");
}

fn disk_rule(disk: &Disk, access: &str) -> Value {
    let (major, minor) = disk.number();
    json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access})
}

fn disk_node(disk: &Disk, path: &str) -> Value {
    let (major, minor) = disk.number();
    json!({"path": path, "type": "b", "major": major, "minor": minor, "fileMode": 0o640, "uid": 5, "gid": 6})
}

/// A container that has this disk as /dev/data, with this access.
fn with_disk<'a>(scene: &'a Scene, disk: &Disk, access: &str) -> Container<'a> {
    let mut container = container(scene, json!([all(false), disk_rule(disk, access)]));
    container.set("/linux/devices", json!([disk_node(disk, "/dev/data")]));
    // Its user is neither the node's owner nor of its group.
    let capabilities = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    container.set("/process/capabilities", sets);
    container
}

/// Checksum of this many MiB of a disk, from this MiB on.
const SUM: &str = r#"sum() { dd if=$1 bs=1M skip=$2 count=$3 status=none | sha256sum; };"#;

/// Fills these MiB of a disk with random bytes, and tells their checksum.
const FILL: &str =
    r#"fill() { dd if=/dev/urandom of=$1 bs=1M seek=$2 count=$3 conv=notrunc,fsync status=none && sum $1 $2 $3; };"#;

/// Runs a script with [`SUM`] and [`FILL`] on the host, where `$disk` is the disk's node.
#[track_caller]
fn on_host(disk: &Disk, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{SUM}{FILL}{script}")]).env("disk", disk.device());
    run(&mut command).success().stdout
}

#[test]
fn what_is_written_to_a_disk_is_on_the_host_and_vice_versa() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let before = on_host(&disk, "fill $disk 8 5");
    let script = format!("{SUM}{FILL} sum /dev/data 8 5; fill /dev/data 20 5");
    let outcome = with_disk(&scene, &disk, "rwm").sh(&script).run().success();
    let (read, written) = outcome.stdout.split_once('\n').unwrap();
    assert_eq!(read, before.trim());
    assert_eq!(written, on_host(&disk, "sum $disk 20 5"));
    assert_eq!(before, on_host(&disk, "sum $disk 8 5"), "what was not written to");
}

#[test]
fn the_node_of_a_disk_is_as_the_bundle_says() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let script = "stat -c '%F %a %u:%g' /dev/data; blockdev --getsize64 /dev/data; blockdev --getro /dev/data";
    let outcome = with_disk(&scene, &disk, "rwm").sh(script).run().success();
    assert_eq!(outcome.stdout, "block special file 640 5:6\n67108864\n0\n");
}

#[test]
fn a_disk_that_may_only_be_read_stays_as_it_is() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let sum = on_host(&disk, "sum $disk 0 64");
    let script = format!(
        "{SUM} echo x 2>/dev/null >/dev/data || echo refused; (: <>/dev/data) 2>/dev/null || echo refused
         sum /dev/data 0 64"
    );
    let expected = format!("refused\nrefused\n{sum}");
    assert_eq!(with_disk(&scene, &disk, "r").sh(&script).run().success().stdout, expected);
    // The host's disk cannot be written to: that is no reason to refuse the container.
    disk.make_read_only();
    let script =
        format!("{SUM} echo x 2>/dev/null >/dev/data || echo refused; sum /dev/data 0 64; blockdev --getro /dev/data");
    let outcome = with_disk(&scene, &disk, "rwm").sh(&script).run().success();
    assert_eq!(outcome.stdout, format!("refused\n{sum}1\n"));
    assert_eq!(sum, on_host(&disk, "sum $disk 0 64"));
}

/// With runc only the rules are in the way; here the VM's disk is read-only itself.
#[test]
fn vm_a_disk_that_may_only_be_read_is_read_only() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let outcome = with_disk(&scene, &disk, "r").sh("blockdev --getro /dev/data").run().success();
    assert_eq!(outcome.stdout, "1\n");
}

#[test]
fn a_disk_of_no_rule_cannot_be_used() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let mut container = with_disk(&scene, &disk, "m");
    let script = "[ -b /dev/data ] && echo there; (: </dev/data) 2>/dev/null || echo refused";
    assert_eq!(container.sh(script).run().success().stdout, "there\nrefused\n");
}

#[test]
fn rules_for_many_numbers_hold_for_disks() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let mut container = with_disk(&scene, &disk, "m");
    let rule = json!({"allow": true, "type": "b", "major": disk.number().0, "minor": -1, "access": "rw"});
    container.set("/linux/resources/devices", json!([all(false), rule]));
    assert_eq!(container.sh("(: <>/dev/data) && echo both").run().success().stdout, "both\n");
}

#[test]
fn each_disk_is_itself() {
    let scene = Scene::new();
    let folder = scene.dir().join("other");
    std::fs::create_dir(&folder).unwrap();
    let (one, two) = (Disk::new(scene.dir()), Disk::new(&folder));
    let sums = [on_host(&one, "fill $disk 0 2"), on_host(&two, "fill $disk 0 2")];
    let mut container = with_disk(&scene, &one, "rwm");
    container.set("/linux/resources/devices", json!([all(false), disk_rule(&two, "r"), disk_rule(&one, "rw")]));
    let nodes = [disk_node(&two, "/dev/two"), disk_node(&one, "/dev/one"), disk_node(&two, "/run/again")];
    container.set("/linux/devices", json!(nodes));
    let script = format!(
        "{SUM} sum /dev/one 0 2; sum /dev/two 0 2; sum /run/again 0 2; (: >/dev/two) 2>/dev/null || (: <>/dev/one) && echo both"
    );
    let outcome = container.sh(&script).run().success();
    assert_eq!(outcome.stdout, format!("{}{}{}both\n", sums[0], sums[1], sums[1]));
}

#[test]
fn what_is_executed_has_the_disk_too() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let mut container = with_disk(&scene, &disk, "rwm");
    let up = container.idle();
    for _ in 0..2 {
        let sum = on_host(&disk, "fill $disk 3 2");
        assert_eq!(container.exec_sh(&format!("{SUM} sum /dev/data 3 2")).success().stdout, sum);
        let sum = container.exec_sh(&format!("{SUM}{FILL} fill /dev/data 40 2")).success().stdout;
        assert_eq!(sum, on_host(&disk, "sum $disk 40 2"));
    }
    container.end(&up);
}

#[test]
fn a_disk_can_be_mounted_and_discarded() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    on_host(&disk, "fill $disk 60 2");
    let script = "blkdiscard -o 62914560 -l 1048576 /dev/data && mkdir -p /mnt && mount -t ext4 /dev/data /mnt
        echo from inside >/mnt/file && dd if=/dev/urandom of=/mnt/big bs=1M count=8 status=none
        sha256sum </mnt/big; umount /mnt";
    let outcome = with_disk(&scene, &disk, "rwm").sh(script).run().success();
    assert_eq!(on_host(&disk, "dd if=$disk bs=1M skip=60 count=1 status=none | tr -d '\\0' | wc -c"), "0\n");
    assert_ne!(on_host(&disk, "dd if=$disk bs=1M skip=61 count=1 status=none | tr -d '\\0' | wc -c"), "0\n");
    let volume = disk.mount();
    assert_eq!(std::fs::read_to_string(volume.join("file")).unwrap(), "from inside\n");
    let big = std::fs::File::open(volume.join("big")).unwrap();
    assert_eq!(tests::command::run_with_input(&mut Command::new("sha256sum"), big).success().stdout, outcome.stdout);
}

/// runc binds the host's node, with the host's owner.
#[test]
fn vm_in_a_user_namespace_the_disk_belongs_to_whom_the_bundle_says() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let mut container = with_disk(&scene, &disk, "rwm");
    container.namespace("user", Some(json!({"type": "user"})));
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 5000}]);
    container.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping);
    container.set("/process/user", json!({"uid": 5, "gid": 6}));
    let none = json!([]);
    container.set("/process/capabilities", json!({"bounding": none, "effective": none, "permitted": none}));
    let script = format!("{SUM}{FILL} stat -c '%F %a %u:%g' /dev/data; fill /dev/data 2 1");
    let outcome = container.sh(&script).run().success();
    let sum = on_host(&disk, "sum $disk 2 1");
    assert_eq!(outcome.stdout, format!("block special file 640 5:6\n{sum}"));
}

fn device_at(path: &Path, (major, minor): (u32, u32)) -> Value {
    json!([{"path": path, "type": "b", "major": major, "minor": minor, "fileMode": 0o660}])
}

/// runc makes the node all the same, which then leads nowhere.
#[test]
fn vm_a_disk_that_is_not_there_is_refused() {
    let scene = Scene::new();
    let mut container = container(&scene, json!([all(false)]));
    container.set("/linux/devices", device_at(Path::new("/dev/none"), (8, 200)));
    scene.refused(&container.try_create(), &["linux.devices[0]", "/dev/none", "b 8:200", "no such block device"]);
    // There is a node, but nothing behind it.
    let node = scene.dir().join("node");
    run(Command::new("mknod").arg(&node).args(["b", "8", "200"])).success();
    container.set("/linux/devices", device_at(&node, (8, 200)));
    let node = node.display().to_string();
    scene.refused(&container.try_create(), &["linux.devices", &node, "8:200", "open it", "No such device"]);
}

#[test]
fn vm_a_vm_that_runs_gets_no_more_disks() {
    let scene = Scene::new();
    let disk = Disk::new(scene.dir());
    let mut first = scene.container();
    let up = first.idle();
    let mut second = with_disk(&scene, &disk, "rwm");
    second.namespace("pid", Some(json!({"type": "pid", "path": format!("/proc/{}/ns/pid", up.pid)})));
    scene.refused(&second.try_create(), &["linux.devices[0]", "/dev/data", &first.id, "gets no more disks"]);
    first.end(&up);
}

#[test]
fn vm_a_vm_has_only_so_many_disks() {
    let scene = Scene::new();
    run(Command::new("modprobe").args(["brd", "rd_nr=16", "rd_size=1024"])).success();
    let node = |number: u32| {
        let path = scene.dir().join(format!("disk{number}"));
        run(Command::new("mknod").arg(&path).args(["b", "1", &number.to_string()])).success();
        std::fs::write(&path, format!("disk {number}\n")).unwrap();
        json!({"path": path, "type": "b", "major": 1, "minor": number})
    };
    let nodes: Vec<Value> = (0..16).map(node).collect();
    let mut container = container(&scene, json!([all(false), {"allow": true, "type": "b", "major": 1, "access": "r"}]));
    container.set("/linux/devices", json!(nodes));
    scene.refused(&container.try_create(), &["linux.devices[11]", "at most 11 disks"]);
    container.set("/linux/devices", json!(nodes[..11]));
    let script = format!("cd {} && for n in $(seq 0 10); do head -n 1 disk$n; done", scene.dir().display());
    let names: String = (0..11).map(|number| format!("disk {number}\n")).collect();
    assert_eq!(container.sh(&script).run().success().stdout, names);
    let _ = run(Command::new("modprobe").args(["--remove", "brd"]));
}

/// A container with this image as the disk /dev/data.
fn with_image<'a>(scene: &'a Scene, image: &Path, options: &[&str]) -> Container<'a> {
    let mut container = container(scene, json!([all(false)]));
    container.mount("bind", image, "/dev/data", options).set("/annotations", json!({"io.runvm.disks": "/dev/data"}));
    let capabilities = json!(["CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
    let sets = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    container.set("/process/capabilities", sets);
    container
}

fn image(scene: &Scene) -> PathBuf {
    let image = scene.dir().join("image.raw");
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&image)).success();
    image
}

#[test]
fn vm_a_raw_image_becomes_a_disk() {
    let scene = Scene::new();
    let image = image(&scene);
    let script = "stat -c '%F %a %u:%g' /dev/data; blockdev --getsize64 /dev/data
        mkdir -p /mnt && mount -t ext4 /dev/data /mnt && echo from inside >/mnt/file && umount /mnt
        dd if=/dev/urandom of=/dev/data bs=1M seek=60 count=4 conv=fsync status=none
        blkdiscard -o 62914560 -l 2097152 /dev/data";
    let outcome = with_image(&scene, &image, &["bind"]).sh(script).run().success();
    assert_eq!(outcome.stdout, "block special file 660 0:0\n67108864\n");
    let host = format!(
        "debugfs -R 'cat file' {0} 2>/dev/null; dd if={0} bs=1M skip=60 count=2 status=none | tr -d '\\0' | wc -c",
        image.display()
    );
    assert_eq!(run(Command::new("sh").args(["-c", &host])).success().stdout, "from inside\n0\n");
}

#[test]
fn vm_a_raw_image_is_written_by_one_or_read_by_many() {
    let scene = Scene::new();
    let image = image(&scene);
    let mut reader = with_image(&scene, &image, &["bind", "ro"]);
    let up = reader.idle();
    let script = "blockdev --getro /dev/data; (echo x >/dev/data) 2>/dev/null || echo refused";
    assert_eq!(with_image(&scene, &image, &["bind", "ro"]).sh(script).run().success().stdout, "1\nrefused\n");
    let name = image.display().to_string();
    scene.refused(&with_image(&scene, &image, &["bind"]).try_create(), &["io.runvm.disks", &name, "in use"]);
    reader.end(&up);
    with_image(&scene, &image, &["bind"]).sh("echo x >/dev/data").run().success();
}

#[test]
fn vm_what_is_no_raw_image_is_refused() {
    let scene = Scene::new();
    let annotated = |value: &str| {
        let mut container = with_image(&scene, scene.dir(), &["bind"]);
        container.set("/annotations", json!({"io.runvm.disks": value}));
        container.try_create()
    };
    let folder = scene.dir().display().to_string();
    scene.refused(&annotated("/dev/data"), &["mount /dev/data", &folder, "not a regular file"]);
    scene.refused(&annotated("/dev/other"), &["io.runvm.disks", "/dev/other", "is not a bind mount"]);
    scene.refused(&annotated("data"), &["io.runvm.disks", "\"data\"", "absolute"]);
}
