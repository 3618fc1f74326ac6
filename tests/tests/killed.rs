//! SIGKILL for any process of a container, at any moment of its life: `delete --force` leaves nothing of it.

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

/// The commands of a life, one after the other, from a thread; some fail where a process is missing.
fn begin_life(container: &Container) -> JoinHandle<()> {
    let mut commands = [
        container.named("create", &[]),
        container.named("start", &[]),
        container.named("exec", &["true"]),
        container.named("kill", &["KILL"]),
        container.named("delete", &[]),
    ];
    std::thread::spawn(move || commands.iter_mut().for_each(|command| drop(command::run(command))))
}

/// The runtime's processes, by pid, with what each is.
fn processes() -> Vec<(i32, String)> {
    process::descendants().into_iter().filter(|(_, what)| what.contains("runvm")).collect()
}

/// Kills one of the runtime's processes and says which, or that there was none.
fn kill_one(random: &mut Random) -> String {
    let processes = processes();
    let Some((pid, what)) = processes.get(random.below(processes.len() as u64) as usize) else {
        return "nobody".to_owned();
    };
    process::signal(*pid, Signal::KILL);
    format!("{pid} {what}")
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
        let mut container = scene.container();
        container.namespace("network", Some(json!({"type": "network", "path": namespace.path()})));
        container.args(&["sleep", "100"]);
        let started = Instant::now();
        let life = begin_life(&container);
        // The first one is not disturbed: it says how long a life is.
        let victim = whole.map(|whole: Duration| {
            std::thread::sleep(Duration::from_micros(random.below(whole.as_micros() as u64)));
            format!("{} at {:?} of {whole:?}", kill_one(&mut random), started.elapsed())
        });
        let case = format!("seed {seed}, moment {moment}: {victim:?}");
        println!("{case}");
        life.join().unwrap_or_else(|_| panic!("{case}: a command does not end"));
        whole.get_or_insert_with(|| started.elapsed());
        command::run(&mut container.named("delete", &["--force"]));
        process::wait_until(&case, || {
            process::reap();
            processes().is_empty()
        });
        assert_eq!(namespace.traffic_control(), untouched, "{case}");
        drop(container);
        scene.check();
    }
}
