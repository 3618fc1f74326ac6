//! `runvm doctor`: checks whether this host can run containers in VMs, and says what to do if not.

use std::fs::File;
use std::path::Path;

use crate::artifacts;
use crate::host::cgroup::{self, Layout};
use crate::host::requirements::{self, Missing, Requirement};

/// Result of a check.
enum Finding {
    /// Good; says what was found.
    Ok(String),
    /// Something does not work; says what, and what to do.
    Warn(String, &'static str),
    /// Containers cannot run; says why, and what to do.
    Fail(String, &'static str),
}

/// A check: its name, and the function that does it.
type Check = (&'static str, fn() -> Finding);

/// A requirement that confines a container's processes on the host, and the function that looks for it.
type Wall = (Requirement, fn() -> Result<String, Missing>);

/// Prints the result of every check; `true` when containers can run.
pub fn run() -> anyhow::Result<bool> {
    let checks: [Check; 6] =
        [("user", user), ("/dev/kvm", kvm), ("ring 0", ring0), ("guest", guest), ("cgroups", cgroups), ("/proc", proc)];
    let mut healthy = true;
    for (name, check) in checks {
        match check() {
            Finding::Ok(seen) => println!("ok    {name}: {seen}"),
            Finding::Warn(seen, remedy) => println!("warn  {name}: {seen} → {remedy}"),
            Finding::Fail(seen, remedy) => {
                healthy = false;
                println!("FAIL  {name}: {seen} → {remedy}");
            }
        }
    }
    let walls: [Wall; 4] = [
        (Requirement::UserNamespaces, requirements::user_namespaces),
        (Requirement::DeviceFilters, cgroup::device_filters),
        (Requirement::Seccomp, requirements::seccomp),
        (Requirement::Tun, requirements::tun),
    ];
    for (requirement, look) in walls {
        match look() {
            Ok(seen) => println!("ok    {}: {seen}", requirement.name()),
            // Not every container has a network.
            Err(missing) if requirement == Requirement::Tun => println!("warn  {missing}"),
            Err(missing) => {
                healthy = false;
                println!("FAIL  {missing}");
            }
        }
    }
    Ok(healthy)
}

fn user() -> Finding {
    match rustix::process::geteuid().as_raw() {
        0 => Finding::Ok("root".to_owned()),
        uid => Finding::Warn(format!("uid {uid}"), "run as root: network and cgroups need it"),
    }
}

fn kvm() -> Finding {
    let path = Path::new("/dev/kvm");
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Finding::Ok(format!("present and permitted{}", module())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let remedy = "modprobe kvm_intel or kvm_amd; in a virtual machine, enable nested virtualization";
            Finding::Fail("missing".to_owned(), remedy)
        }
        Err(error) => Finding::Fail(error.to_string(), "run as root or join the group kvm"),
    }
}

/// Name of the kernel module for KVM; KVM may also be built in.
fn module() -> String {
    let modules = ["kvm_intel", "kvm_amd"].into_iter().filter(|name| Path::new("/sys/module").join(name).exists());
    modules.map(|name| format!(", {name}")).collect()
}

fn ring0() -> Finding {
    let why = match vmm::probe::ring0() {
        Ok(report) if !report.emulated => {
            return Finding::Ok(format!("real: 10,000 iterations took {:.2?}", report.counting));
        }
        Ok(report) => {
            let time = report.counting;
            format!("emulated in software: 10,000 iterations took {time:.2?}; ordinary kernels do not boot")
        }
        Err(error) => error.to_string(),
    };
    Finding::Fail(why, "use a host with hardware virtualization, or nested virtualization enabled")
}

fn guest() -> Finding {
    let found = artifacts::find().and_then(|found| found.manifest.verify().map(|()| found));
    match found {
        Ok(found) => {
            let (release, place) = (&found.manifest.kernel.release, found.dir.display());
            let seen = format!("kernel {release} and initrd in {place} are whole and match this version");
            match found.kernel(None).ok().and_then(|kernel| kernel.losses()) {
                Some(losses) => Finding::Warn(format!("{seen}; {losses}"), "make build without KERNEL_SRC"),
                None => Finding::Ok(seen),
            }
        }
        Err(error) => Finding::Fail(format!("{error:#}"), "make build, or make install"),
    }
}

fn cgroups() -> Finding {
    match Layout::detect() {
        Ok(found) => Finding::Ok(found.describe()),
        Err(error) => Finding::Fail(format!("{error:#}"), "mount cgroup2 at /sys/fs/cgroup"),
    }
}

fn proc() -> Finding {
    if Path::new("/proc/self/exe").exists() {
        return Finding::Ok("mounted".to_owned());
    }
    Finding::Fail("not mounted".to_owned(), "mount -t proc proc /proc")
}
