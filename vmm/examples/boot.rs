//! Boots a kernel and an initrd, and says where time and exits went. The test area `vmm` runs it.
//!
//! ```text
//! boot KERNEL INITRD [--memory MIB] [--cpus N] [--console] [--times N] [--save] [--pause] [--nested] [ARGUMENT...]
//! ```
//!
//! With `--console` the serial console goes to standard output. `--times` boots that often and
//! prints medians. `--pause` quiesces and resumes the machine again and again while the guest runs. `--save` stops
//! a guest that doesn't end within ten seconds and prints what its state has. With `--nested` the guest sees VMX or SVM.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use vmm::virtio::rng::Rng;
use vmm::{Machine, MachineSpec, OnThread, Running};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Default)]
struct Options {
    files: Vec<String>,
    memory: u32,
    cpus: u8,
    console: bool,
    times: usize,
    save: bool,
    pause: bool,
    nested: bool,
    arguments: String,
}

fn main() -> Result<()> {
    let options = options()?;
    let mut totals = Vec::new();
    for _ in 0..options.times {
        totals.push(boot(&options)?);
    }
    totals.sort();
    if let (Some(least), Some(median)) = (totals.first(), totals.get(totals.len() / 2)) {
        println!("total of {}: least {least:.1?}, median {median:.1?}", totals.len());
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options { memory: 256, cpus: 1, times: 1, ..Options::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or("a value is missing");
        match word.as_str() {
            "--memory" => options.memory = value()?.parse()?,
            "--cpus" => options.cpus = value()?.parse()?,
            "--times" => options.times = value()?.parse()?,
            "--console" => options.console = true,
            "--save" => options.save = true,
            "--pause" => options.pause = true,
            "--nested" => options.nested = true,
            _ if options.files.len() < 2 => options.files.push(word),
            _ => options.arguments = format!("{} {word}", options.arguments).trim().to_owned(),
        }
    }
    Ok(options)
}

fn boot(options: &Options) -> Result<Duration> {
    let [kernel, initrd] = &options.files[..] else { return Err("usage: boot KERNEL INITRD [OPTION...]".into()) };
    let console = options.console.then(|| std::io::stdout().as_fd().try_clone_to_owned()).transpose()?;
    let spec = MachineSpec {
        kvm: vmm::open_kvm()?,
        memory_mib: options.memory,
        vcpus: options.cpus,
        kernel: kernel.into(),
        initrd: initrd.into(),
        cmdline: options.arguments.clone(),
        console,
        nested: options.nested,
        on_thread: OnThread::default(),
    };
    let begin = Instant::now();
    let running = Machine::build(spec, vec![Box::new(Rng)], vec![])?.start()?;
    if options.save {
        return save(running, begin);
    }
    let mut pauses = 0;
    while !ended(&running, if options.pause { 20 } else { 60_000 }) {
        if !options.pause {
            return Err("the guest didn't end".into());
        }
        running.quiesce();
        running.resume();
        pauses += 1;
    }
    let total = begin.elapsed();
    report(&running, total, pauses);
    drop(running.stop());
    Ok(total)
}

fn ended(running: &Running, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd { fd: running.ended().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours, alive across the call.
    unsafe { libc::poll(&mut poll, 1, milliseconds) == 1 }
}

fn report(running: &Running, total: Duration, pauses: u32) {
    let mut previous = None;
    for (what, when) in running.timeline().moments() {
        let step = previous.map_or(Duration::ZERO, |previous| *when - previous);
        println!("  {what}: {step:.2?}");
        previous = Some(*when);
    }
    println!("  all: {total:.1?}, {pauses} pauses, ended by {:?}", running.exit());
    let exits: Vec<_> = running.exits().each().iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("  exits to user space: {}", exits.join(", "));
    if let Some(words) = running.last_words() {
        println!("  last words:\n{words}");
    }
}

fn save(running: Running, begin: Instant) -> Result<Duration> {
    ended(&running, 10_000);
    let exit = running.exit();
    let begin_stop = Instant::now();
    let stopped = running.stop();
    let stop = begin_stop.elapsed();
    let state = stopped.state(vmm::open_kvm()?)?;
    let (vcpu, device) = (&state.vcpus[0], &state.devices[0]);
    println!("  stopped in {stop:.2?}, exit {exit:?}; state in {:.2?}", begin_stop.elapsed() - stop);
    println!("  {} vCPUs, rip {:#x}, {} MSRs", state.vcpus.len(), vcpu.regs.rip, vcpu.msrs.len());
    println!("  device {}: {:?}, {:?}", device.id, device.registers, device.queues);
    Ok(begin.elapsed())
}
