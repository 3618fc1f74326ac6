//! Which devices a container may use: the rules of `linux.resources.devices`.

use serde_json::{Value, json};
use tests::command::run;
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
    let disk = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0, "fileMode": 0o660}]);
    let mut refused = container(&scene, json!([all(false)]));
    refused.set("/linux/devices", disk.clone());
    scene.refused(&refused.try_create(), &["/dev/sda", "b 8:0", "does not exist in a VM"]);
    let mut privileged = container(&scene, json!([all(true)]));
    privileged.set("/linux/devices", disk);
    assert_eq!(privileged.sh("ls /dev/sda || echo left out").run().success().stdout, "left out\n");
}
