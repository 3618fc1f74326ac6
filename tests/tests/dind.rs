//! A container that runs an engine of its own: docker in docker.

use std::process::Command;

use tests::Outcome;
use tests::command::run;
use tests::docker::{Docker, IMAGE};
use tests::process::wait_until;

const NAME: &str = "runvm-test-engine";

/// The machine's own programs, in a container: its Debian has an engine.
const PROGRAMS: [&str; 6] = [
    "/usr:/usr:ro",
    "/usr/bin:/bin:ro",
    "/usr/sbin:/sbin:ro",
    "/usr/lib:/lib:ro",
    "/usr/lib64:/lib64:ro",
    "/etc/alternatives:/etc/alternatives:ro",
];

/// What the entry point of docker's own image does: a cgroup with processes of its own cannot hand controllers on.
const START: &str = "cd /sys/fs/cgroup && mkdir init
    until sed 's/ / +/g; s/^/+/' cgroup.controllers >cgroup.subtree_control; do
        xargs -rn1 <cgroup.procs >init/cgroup.procs
    done
    exec dockerd --host=unix:///run/docker.sock";

fn engine(docker: &Docker, flags: &[&str]) -> Command {
    let tar = format!("{}:/image.tar:ro", std::env::var("TEST_IMAGE").expect("TEST_IMAGE is set by tools/test"));
    let volumes: Vec<&str> =
        PROGRAMS.iter().copied().chain([tar.as_str()]).flat_map(|volume| ["--volume", volume]).collect();
    let own =
        ["--detach", "--privileged", "--name", NAME, "--tmpfs", "/run", "--env", "DOCKER_HOST=unix:///run/docker.sock"];
    docker.container(&[&own[..], &volumes, flags].concat(), &["sh", "-c", START])
}

/// A command of the engine's in the container.
fn inside(docker: &Docker, args: &[&str]) -> Outcome {
    docker.run(&[&["exec", NAME, "docker"][..], args].concat())
}

#[test]
fn an_engine_in_a_privileged_container() {
    let docker = Docker::new();
    run(&mut engine(&docker, &["--tmpfs", "/var/lib/docker"])).success();
    wait_until("the inner engine", || {
        let running = docker.run(&["inspect", "--format", "{{.State.Running}}", NAME]).success();
        assert_eq!(running.line(), "true", "it ended: {:?}", docker.run(&["logs", NAME]));
        inside(&docker, &["version"]).code == 0
    });
    assert_eq!(
        inside(&docker, &["info", "--format", "{{.Driver}} {{.CgroupVersion}}"]).success().stdout,
        "overlay2 2\n"
    );
    inside(&docker, &["import", "/image.tar", IMAGE]).success();

    // A container of the inner engine: code, limits, network.
    inside(&docker, &["run", "--rm", IMAGE, "sh", "-c", "exit 7"]).exits(7);
    let limits = [
        "run",
        "--rm",
        "--memory",
        "64m",
        "--pids-limit",
        "33",
        IMAGE,
        "sh",
        "-c",
        "cd /sys/fs/cgroup && cat memory.max pids.max",
    ];
    assert_eq!(inside(&docker, &limits).success().stdout, "67108864\n33\n");
    inside(&docker, &["run", "--rm", IMAGE, "ping", "-c", "1", "172.17.0.1"]).success();
    let server = ["run", "--detach", "--rm", "--name", "server", "--publish", "8080:80", IMAGE];
    inside(&docker, &[&server[..], &["sh", "-c", "echo served >/index.html; httpd -f -h /"]].concat()).success();
    let page = [
        "exec",
        NAME,
        "bash",
        "-c",
        "exec 3<>/dev/tcp/127.0.0.1/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3",
    ];
    wait_until("a page by a published port", || docker.run(&page).stdout.contains("served"));
    let through_nat = inside(&docker, &["run", "--rm", IMAGE, "wget", "-q", "-O", "-", "172.17.0.1:8080"]);
    assert_eq!(through_nat.success().stdout, "served\n");

    // An image is built, by the inner engine's overlay.
    let dockerfile = format!(
        "printf 'FROM {IMAGE}\\nRUN rm /etc/group && echo layer >/etc/layer\\n' | DOCKER_BUILDKIT=0 docker build -t built -"
    );
    docker.run(&["exec", NAME, "sh", "-c", &dockerfile]).success();
    let built = inside(&docker, &["run", "--rm", "built", "sh", "-c", "cat /etc/layer; ls /etc"]).success();
    assert!(built.stdout.starts_with("layer\n") && !built.stdout.contains("group"), "{built:?}");
    docker.run(&["rm", "--force", NAME]).success();
}
