//! Guests whose agent lies: it says that it kills and kills nothing. SIGKILL is the host's all the same.

use rustix::process::Signal;
use serde_json::json;
use tests::command::{run, start};
use tests::disk::Tmpfs;
use tests::process::{self, wait_orphan};
use tests::stream::{Reader, pipe};
use tests::{Container, Created, Scene, place};

/// Makes a container's process one that has the VM's agent lie, and starts it.
fn lie(container: &mut Container) -> Created {
    let liar = place::bin().join("liar");
    container.mount("bind", &liar, "/liar", &["bind", "ro"]).args(&["/liar"]).namespace("pid", None);
    for set in ["bounding", "effective", "permitted"] {
        let pointer = format!("/process/capabilities/{set}");
        container.spec.pointer_mut(&pointer).unwrap().as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
    }
    let mut created = container.up();
    created.stdout.expect("lying\n");
    created
}

/// How often the log warns of this.
fn warned(scene: &Scene, of: &str) -> usize {
    scene.messages("warning").iter().filter(|line| line.contains(of)).count()
}

#[test]
fn vm_a_container_is_killed_whatever_its_agent_says() {
    for flags in [&[][..], &["--all"]] {
        let scene = Scene::new();
        let mut container = scene.container();
        let created = lie(&mut container);
        let running = start(&mut container.named("exec", &["sh", "-c", "touch /up; sleep 100000"]));
        process::wait_until("the exec", || container.rootfs().join("up").exists());
        run(container.command("kill").args(flags).args([&container.id, "KILL"])).success();
        assert_eq!(wait_orphan(created.pid), 137);
        assert_eq!(running.finish().code, 137);
        assert_eq!(container.status(), "stopped");
        assert_eq!(warned(&scene, "its VM is stopped"), 1, "{:?}", scene.messages("warning"));
        container.delete().success();
    }
}

#[test]
fn vm_a_paused_container_is_killed_whatever_its_agent_says() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = lie(&mut container);
    run(&mut container.named("pause", &[])).success();
    assert_eq!(container.end(&created), 137);
}

#[test]
fn vm_an_exec_whose_proxy_is_killed_lets_its_pipes_go() {
    let scene = Scene::new();
    let mut container = scene.container();
    let created = lie(&mut container);
    let (read, write) = pipe();
    let mut output = Reader::new(read);
    let mut command = container.named("exec", &["sh", "-c", "echo up; sleep 100000"]);
    let mut proxy = command.stdout(write).spawn().unwrap();
    drop(command);
    output.expect("up\n");
    process::signal(proxy.id() as i32, Signal::KILL);
    proxy.wait().unwrap();
    assert_eq!(output.rest(), "");
    assert_eq!(container.exec_sh("echo on").success().stdout, "on\n", "the container goes on");
    assert_eq!(container.end(&created), 137);
}

#[test]
fn vm_a_joined_container_is_killed_and_the_first_goes_on() {
    let scene = Scene::new();
    let mut first = scene.container();
    let one = first.idle();
    let volume = Tmpfs::new(scene.dir().join("volume"));
    let mut second = scene.container();
    second.namespace("ipc", Some(json!({"type": "ipc", "path": format!("/proc/{}/ns/ipc", one.pid)})));
    second.mount("bind", volume.path(), "/volume", &["bind", "rprivate"]);
    let two = lie(&mut second);
    let running = start(&mut second.named("exec", &["sh", "-c", "exec >/volume/file; sleep 100000"]));
    process::wait_until("the exec", || volume.path().join("file").exists());
    second.kill("KILL").success();
    assert_eq!(wait_orphan(two.pid), 137);
    assert_eq!(running.finish().code, 137);
    assert_eq!(second.status(), "stopped");
    assert_eq!(warned(&scene, "ends with the VM"), 1, "{:?}", scene.messages("warning"));
    // The device has let it go.
    rustix::mount::unmount(volume.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    second.delete().success();
    assert_eq!(first.exec_sh("echo on").success().stdout, "on\n");
    assert_eq!(first.end(&one), 137);
}
