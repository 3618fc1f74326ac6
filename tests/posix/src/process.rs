//! Processes of a case: forked, so that what they change about themselves ends with them.

/// A user without any rights of its own.
pub const ALICE: u32 = 1000;
/// Another one.
pub const BOB: u32 = 1001;

/// A forked process. It must be joined, killed or waited for.
#[must_use]
pub struct Child(libc::pid_t);

/// How a process ended: its exit code, or the signal that killed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited.
    Code(i32),
    /// It was killed.
    Signal(i32),
}

/// Forks a process that does this. A failed assertion in it ends it with exit code 1.
pub fn fork(work: impl FnOnce()) -> Child {
    // SAFETY: this program has one thread, so the child may do anything.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        work();
        // SAFETY: ends the process without running what the parent has registered for its own exit.
        unsafe { libc::_exit(0) };
    }
    Child(pid)
}

impl Child {
    /// Waits for its end.
    pub fn end(self) -> End {
        let mut status = 0;
        // SAFETY: status outlives the call; the pid is a child of ours that nobody else waits for.
        let got = unsafe { libc::waitpid(self.0, &mut status, 0) };
        assert_eq!(got, self.0, "waitpid: {}", std::io::Error::last_os_error());
        if libc::WIFSIGNALED(status) {
            End::Signal(libc::WTERMSIG(status))
        } else {
            End::Code(libc::WEXITSTATUS(status))
        }
    }

    /// Waits for its end, which must be a good one.
    #[track_caller]
    pub fn join(self) {
        assert_eq!(self.end(), End::Code(0), "a process of the case failed");
    }

    /// Kills it.
    pub fn kill(self) {
        // SAFETY: kill has no pointers; the pid is a child's that was not waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        self.end();
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0
    }
}

/// Does something as another user, in a group of the same number and in no other.
#[track_caller]
pub fn as_user(user: u32, work: impl FnOnce()) {
    as_member(user, user, &[], work);
}

/// Does something as another user in these groups.
#[track_caller]
pub fn as_member(user: u32, group: u32, groups: &[u32], work: impl FnOnce()) {
    fork(|| {
        become_user(user, group, groups);
        work();
    })
    .join();
}

/// Makes this process another user's, for good.
pub fn become_user(user: u32, group: u32, groups: &[u32]) {
    // SAFETY: the list of groups lives across the call; the others have no pointers.
    let result = unsafe {
        libc::setgroups(groups.len(), groups.as_ptr())
            | libc::setresgid(group, group, group)
            | libc::setresuid(user, user, user)
    };
    assert_eq!(result, 0, "become user {user}: {}", std::io::Error::last_os_error());
}
