//! Filters on threads of this process, and on children where the thread ends the process.

use std::io::Read;
use std::os::fd::FromRawFd;

use syscalls::Sysno;

use super::tables::{KICK, Kind};
use crate::confinement::{Call, When, list, prepare};

/// `KVM_RUN` of linux/kvm.h.
const KVM_RUN: libc::c_long = 0xae80;

fn calls(kind: Kind) -> impl Iterator<Item = &'static Call> {
    kind.calls().iter().copied().flatten()
}

#[test]
fn tables_are_small() {
    for kind in Kind::ALL {
        // What docs/security.md says.
        let most = match kind {
            Kind::Main => 52,
            Kind::Fs => 51,
            _ => 45,
        };
        let count = calls(kind).filter(|call| !matches!(call.when, When::Absent)).count();
        assert!(count <= most, "{kind:?} may make {count} calls");
        println!("{kind:?}: {count} calls, {} instructions", kind.filter().program.instructions().len());
    }
}

#[test]
fn nobody_may_do_what_only_an_attacker_wants() {
    let never = [
        Sysno::execve,
        Sysno::execveat,
        Sysno::ptrace,
        Sysno::process_vm_writev,
        Sysno::mount,
        Sysno::move_mount,
        Sysno::open_tree,
        Sysno::setns,
        Sysno::open_by_handle_at,
        Sysno::bpf,
        Sysno::io_uring_setup,
        Sysno::userfaultfd,
        Sysno::perf_event_open,
        Sysno::init_module,
        Sysno::finit_module,
        Sysno::pidfd_open,
        Sysno::pidfd_getfd,
        Sysno::keyctl,
        Sysno::add_key,
        Sysno::chroot,
        Sysno::pivot_root,
        Sysno::setuid,
        Sysno::capset,
        Sysno::bind,
        Sysno::listen,
        Sysno::kill,
        Sysno::tkill,
        Sysno::rt_sigqueueinfo,
    ];
    for kind in Kind::ALL {
        // Threads of NICs that are hot-plugged give up what the main thread has: nobody gets more by this.
        let own = |call: &Sysno| kind == Kind::Main && *call == Sysno::capset;
        let allowed: Vec<_> =
            calls(kind).map(|call| call.number).filter(|call| never.contains(call) && !own(call)).collect();
        assert!(allowed.is_empty(), "{kind:?} may call {allowed:?}");
    }
}

/// Has a child that is confined act: what it writes to its log, and its exit code.
fn confined(kind: Kind, act: fn()) -> (String, i32) {
    let mut pipe = [0; 2];
    // SAFETY: the array has room for both; the child makes system calls only, apart from what compiles the filter, for
    // which the C library's fork leaves the allocator in order.
    unsafe {
        assert_eq!(libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC), 0);
        let child = libc::fork();
        if child == 0 {
            libc::dup2(pipe[1], libc::STDERR_FILENO);
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if prepare(true).and_then(|()| kind.filter().confine()).is_ok() {
                act();
            }
            libc::_exit(7)
        }
        libc::close(pipe[1]);
        let mut text = String::new();
        std::fs::File::from_raw_fd(pipe[0]).read_to_string(&mut text).unwrap();
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        (text, libc::WEXITSTATUS(status))
    }
}

/// Makes a system call that takes numbers, and does nothing here.
fn call(number: libc::c_long, first: libc::c_long, second: libc::c_long, third: libc::c_long) {
    // SAFETY: none of the arguments is a pointer to something.
    unsafe { libc::syscall(number, first, second, third) };
}

#[test]
fn a_call_of_its_own_is_made() {
    for kind in Kind::ALL {
        assert_eq!(confined(kind, || call(libc::SYS_write, -1, 0, 0)), (String::new(), 7), "{kind:?}");
    }
}

#[test]
fn another_call_ends_the_process_and_is_named() {
    for kind in Kind::ALL {
        let (line, code) = confined(kind, || call(libc::SYS_setns, -1, 0, 0));
        let name = kind.filter().name;
        let expected = format!("runvm: thread {name} made system call 308 (setns), which is not one of its own");
        assert!(line.contains(&expected), "{kind:?}: {line}");
        assert_eq!(code, 255);
    }
}

#[test]
fn arguments_are_looked_at() {
    for kind in Kind::ALL {
        let executable = || call(libc::SYS_mprotect, 0, 0, libc::PROT_EXEC.into());
        assert!(confined(kind, executable).0.contains("(mprotect)"), "{kind:?}");
    }
    let tests: [(Kind, fn(), &str); 8] = [
        (Kind::Vcpu, || call(libc::SYS_ioctl, -1, libc::TIOCSTI as libc::c_long, 0), "(ioctl)"),
        (Kind::Net, || call(libc::SYS_ioctl, -1, KVM_RUN, 0), "(ioctl)"),
        (Kind::Vsock, || call(libc::SYS_socket, libc::AF_INET.into(), 3, 0), "(socket)"),
        (Kind::Fs, || call(libc::SYS_kill, 1, 9, 0), "(kill)"),
        (Kind::Main, || call(libc::SYS_socket, libc::AF_INET.into(), libc::SOCK_RAW.into(), 1), "(socket)"),
        (Kind::Main, || call(libc::SYS_clone, (libc::CLONE_NEWUSER | libc::SIGCHLD).into(), 0, 0), "(clone)"),
        (Kind::Main, || call(libc::SYS_tgkill, 1, 1, libc::SIGKILL.into()), "(tgkill)"),
        (Kind::Proxy, || call(libc::SYS_prctl, libc::PR_SET_DUMPABLE.into(), 1, 0), "(prctl)"),
    ];
    for (kind, act, name) in tests {
        assert!(confined(kind, act).0.contains(name), "{kind:?} {name}");
    }
}

#[test]
fn a_thread_of_the_main_thread_is_one_of_its_own() {
    assert_eq!(KICK, libc::SIGRTMIN() as u32);
    // Threads, and the fork for lack of memory; clone3(2) seems to be missing.
    let fork = || {
        std::thread::spawn(|| {}).join().ok();
        call(libc::SYS_clone3, 0, 0, 0);
        // SAFETY: the child ends at once.
        unsafe {
            if libc::fork() == 0 {
                libc::_exit(0)
            }
        }
    };
    assert_eq!(confined(Kind::Main, fork), (String::new(), 7));
    let other = || drop(std::thread::spawn(|| call(libc::SYS_setns, -1, 0, 0)).join());
    assert!(confined(Kind::Main, other).0.contains("(setns)"));
}

/// The list is there to be read, and for the area `rules`, which looks for calls that nothing makes.
#[test]
fn the_list_is_that_of_the_tables() {
    let list: String = Kind::ALL.iter().map(|kind| list(kind.filter().name, kind.calls())).collect();
    assert!(list == include_str!("calls.txt"), "the list is not the one in calls.txt any more:\n{list}");
}
