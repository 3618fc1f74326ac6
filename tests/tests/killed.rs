//! SIGKILL for any process of two containers in one VM, at any moment of their lives: `delete --force` leaves nothing of them.
//!
//! The processes are commands, exec proxies, the monitor, a join proxy, two network helpers, and two that make device nodes, one
//! of which came with the joined container and one with an exec.

use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use serde_json::json;
use tests::netns::Netns;
use tests::{Container, Scene, command, process};

/// Moments that are tried; `TEST_KILLS` says another number.
const MOMENTS: u32 = 8;

/// Numbers that look random, from a seed that a failure prints (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit.max(1)
    }
}

/// A container with the links of this namespace, and one that joins its VM, as Kubernetes has it, and may make device nodes.
fn containers<'a>(scene: &'a Scene, namespace: &Netns) -> [Container<'a>; 2] {
    let mut first = scene.container();
    first.namespace("network", Some(json!({"type": "network", "path": namespace.path()})));
    let mut second = scene.container();
    let pod = |role: &str| json!({"io.kubernetes.cri.container-type": role, "io.kubernetes.cri.sandbox-id": first.id});
    let (sandbox, member) = (pod("sandbox"), pod("container"));
    first.set("/annotations", sandbox).args(&["sleep", "100"]);
    second.set("/annotations", member).args(&["sleep", "100"]);
    for set in ["bounding", "effective", "permitted"] {
        let pointer = format!("/process/capabilities/{set}");
        second.spec.pointer_mut(&pointer).unwrap().as_array_mut().unwrap().push(json!("CAP_MKNOD"));
    }
    [first, second]
}

/// The commands of two lives, one after the other, from a thread; some fail where a process is missing. Gives how many did.
fn begin_lives([first, second]: &[Container; 2]) -> JoinHandle<usize> {
    let mut exec = first.command("exec");
    exec.args(["--cap", "CAP_MKNOD"]).arg(&first.id).args(["mknod", "/node", "c", "1", "3"]);
    let mut commands = [
        first.named("create", &[]),
        first.named("start", &[]),
        exec,
        second.named("create", &[]),
        second.named("start", &[]),
        second.named("exec", &["mknod", "/node", "c", "1", "3"]),
        second.named("kill", &["KILL"]),
        second.named("delete", &["--force"]),
        first.named("kill", &["KILL"]),
        first.named("delete", &["--force"]),
    ];
    std::thread::spawn(move || {
        commands.iter_mut().map(|command| command::run(command).code).filter(|code| *code != 0).count()
    })
}

/// The runtime's processes, by pid, with what each is.
fn processes() -> Vec<(i32, String)> {
    process::descendants().into_iter().filter(|(_, what)| what.contains("runvm")).collect()
}

/// Kills one of the runtime's processes and says which, if there is one.
fn kill_one(random: &mut Random) -> Option<String> {
    let processes = processes();
    let (pid, what) = processes.get(random.below(processes.len() as u64) as usize)?;
    process::signal(*pid, Signal::KILL);
    Some(format!("{pid} {what}"))
}

#[test]
fn vm_at_any_moment_and_nothing_is_left() {
    let moments = std::env::var("TEST_KILLS").map_or(MOMENTS, |count| count.parse().expect("TEST_KILLS is a number"));
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut random = Random(seed);
    let namespace = Netns::new("runvm-test");
    namespace.veth(77, ("rvt0", "eth0"));
    let untouched = namespace.traffic_control();
    let mut whole = None;
    for moment in 0..=moments {
        let scene = Scene::new();
        let containers = containers(&scene, &namespace);
        let started = Instant::now();
        let lives = begin_lives(&containers);
        // The first ones are not disturbed: they say how long it takes.
        let victim = whole.map(|whole: Duration| {
            std::thread::sleep(Duration::from_micros(random.below(whole.as_micros() as u64)));
            let victim = kill_one(&mut random);
            (victim, started.elapsed())
        });
        let case = format!("seed {seed}, moment {moment} of {whole:?}: {victim:?}");
        println!("{case}");
        let failed = lives.join().unwrap_or_else(|_| panic!("{case}: a command does not end"));
        assert!(victim.is_some() || failed == 0, "{failed} commands fail undisturbed");
        // Where nobody was left to be killed, it took less than thought: the first ones are slower than others.
        let over = victim.and_then(|(victim, at)| victim.is_none().then_some(at));
        let before = *whole.get_or_insert_with(|| started.elapsed());
        whole = Some(over.filter(|at| *at > before / 2).unwrap_or(before));
        containers.iter().rev().for_each(|container| drop(command::run(&mut container.named("delete", &["--force"]))));
        process::wait_until(&case, || {
            process::reap();
            processes().is_empty()
        });
        assert_eq!(namespace.traffic_control(), untouched, "{case}");
        drop(containers);
        scene.check();
    }
}
