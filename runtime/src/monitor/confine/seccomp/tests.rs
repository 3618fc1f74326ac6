//! Filters on threads of this process, and on children where the thread ends the process.

use std::io::Read;
use std::os::fd::FromRawFd;

use super::*;

/// `KVM_RUN` of linux/kvm.h.
const KVM_RUN: libc::c_long = 0xae80;

/// Most calls of a kind.
const MOST: usize = 60;

#[test]
fn tables_are_small_and_name_nothing_twice() {
    for kind in Kind::ALL {
        let mut numbers: Vec<_> = kind.calls().map(|call| call.number).collect();
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "{kind:?} names a call twice");
        assert!(count <= MOST, "{kind:?} may make {count} calls");
        println!("{kind:?}: {count} calls, {} instructions", program(kind).unwrap().len() / 8);
    }
}

#[test]
fn nobody_may_do_what_only_an_attacker_wants() {
    use syscalls::Sysno;
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
        Sysno::tkill,
        Sysno::rt_sigqueueinfo,
    ];
    for kind in Kind::ALL {
        let allowed: Vec<_> = kind.calls().map(|call| call.number).filter(|call| never.contains(call)).collect();
        assert!(allowed.is_empty(), "{kind:?} may call {allowed:?}");
    }
}

/// What a child that is confined writes to its log, and how it ends.
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
            if prepare(true).and_then(|()| confine(kind)).is_ok() {
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
        assert_eq!(confined(kind, || call(libc::SYS_close, -1, 0, 0)), (String::new(), 7), "{kind:?}");
    }
}

#[test]
fn another_call_ends_the_process_and_is_named() {
    for kind in Kind::ALL {
        let (line, code) = confined(kind, || call(libc::SYS_setns, -1, 0, 0));
        let name = kind.name();
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
    let tests: [(Kind, fn(), &str); 4] = [
        (Kind::Vcpu, || call(libc::SYS_ioctl, -1, libc::TIOCSTI as libc::c_long, 0), "(ioctl)"),
        (Kind::Net, || call(libc::SYS_ioctl, -1, KVM_RUN, 0), "(ioctl)"),
        (Kind::Vsock, || call(libc::SYS_socket, libc::AF_INET.into(), 3, 0), "(socket)"),
        (Kind::Fs, || call(libc::SYS_kill, 1, 9, 0), "(kill)"),
    ];
    for (kind, act, name) in tests {
        assert!(confined(kind, act).0.contains(name), "{kind:?} {name}");
    }
}
