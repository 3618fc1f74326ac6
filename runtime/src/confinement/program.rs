//! Lists of calls as classic BPF over `struct seccomp_data`, made when this binary is compiled.
//!
//! ```text
//!  another architecture? ─▶ trap
//!  number ─▶ binary search over ranges of numbers ─▶ allow · trap · no such call
//!                                               └─▶ look at one argument ─▶ allow · trap
//! ```
//!
//! The kernel runs such a program for each of its calls when the filter is set (seccomp_is_const_allow()), and afterwards no more
//! for calls that are always allowed: so it uses only instructions that this understands, and the architecture comes first.

use libc::sock_filter;

use super::calls::{Call, When};

/// Most calls of a program.
const CALLS: usize = 96;
/// Most ranges of numbers: one for each call, the gaps between them, and the ends.
const RANGES: usize = 2 * CALLS + 1;
/// Most instructions. The offset of a jump has eight bits.
const MOST: usize = 256;

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
const X86_64: u32 = 0xc000_003e;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

// linux/bpf_common.h: BPF_LD | BPF_W | BPF_ABS and so on.
const LOAD: u16 = 0x20;
const JUMP_EQ: u16 = 0x15;
const JUMP_GE: u16 = 0x35;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

// linux/seccomp.h
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const ALLOW: u32 = 0x7fff_0000;

/// Place that a jump leads to: an instruction by its number, or one of the returns at the end.
type Target = usize;
const TO_ALLOW: Target = usize::MAX;
const TO_TRAP: Target = usize::MAX - 1;
const TO_ABSENT: Target = usize::MAX - 2;

/// A filter program.
pub struct Program {
    code: [sock_filter; MOST],
    length: usize,
}

/// Numbers of calls, from this one up to the next range, that are treated alike.
#[derive(Clone, Copy)]
struct Range {
    first: u32,
    when: Option<When>,
}

/// A program in the making: jumps have targets, not offsets yet.
struct Builder {
    program: Program,
    targets: [(Target, Target); MOST],
}

impl Program {
    /// Makes the program that allows these calls. A constant of it that is wrong does not compile.
    pub const fn new(lists: &[&[Call]]) -> Self {
        let none = sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
        let program = Self { code: [none; MOST], length: 0 };
        let mut builder = Builder { program, targets: [(0, 0); MOST] };
        builder.push(LOAD, ARCHITECTURE, 1, 1);
        builder.push(JUMP_EQ, X86_64, 2, TO_TRAP);
        builder.push(LOAD, NUMBER, 3, 3);
        let (calls, count) = sorted(lists);
        let (ranges, count) = ranges(&calls, count);
        builder.search(&ranges, 0, count);
        builder.finish()
    }

    /// Its instructions.
    pub fn instructions(&self) -> &[sock_filter] {
        self.code.get(..self.length).unwrap_or_default()
    }
}

/// All calls in the order of their numbers.
const fn sorted(lists: &[&[Call]]) -> ([Option<Call>; CALLS], usize) {
    let (mut calls, mut count) = ([None; CALLS], 0);
    let mut list = 0;
    while list < lists.len() {
        let mut index = 0;
        while index < lists[list].len() {
            let call = lists[list][index];
            let mut at = count;
            while at > 0 && number(&calls[at - 1]) >= call.number.id() as u32 {
                assert!(number(&calls[at - 1]) != call.number.id() as u32, "a call is listed twice");
                calls[at] = calls[at - 1];
                at -= 1;
            }
            calls[at] = Some(call);
            (index, count) = (index + 1, count + 1);
        }
        list += 1;
    }
    (calls, count)
}

const fn number(call: &Option<Call>) -> u32 {
    match call {
        Some(call) => call.number.id() as u32,
        None => u32::MAX,
    }
}

/// Ranges of all numbers; neighbours that are always allowed share one. The last one is a gap.
const fn ranges(calls: &[Option<Call>; CALLS], count: usize) -> ([Range; RANGES], usize) {
    let mut ranges = [Range { first: 0, when: None }; RANGES];
    let (mut made, mut index) = (1, 0);
    while index < count {
        if let Some(call) = calls[index] {
            let first = call.number.id() as u32;
            if ranges[made - 1].first == first {
                // The gap before it is empty.
                made -= 1;
            }
            let goes_on = made > 0 && is_always(ranges[made - 1].when) && is_always(Some(call.when));
            if !goes_on {
                ranges[made] = Range { first, when: Some(call.when) };
                made += 1;
            }
            ranges[made] = Range { first: first + 1, when: None };
            made += 1;
        }
        index += 1;
    }
    (ranges, made)
}

const fn is_always(when: Option<When>) -> bool {
    matches!(when, Some(When::Always))
}

impl Builder {
    const fn push(&mut self, code: u16, k: u32, if_true: Target, if_false: Target) {
        let at = self.program.length;
        self.program.code[at] = sock_filter { code, jt: 0, jf: 0, k };
        self.targets[at] = (if_true, if_false);
        self.program.length += 1;
    }

    /// Finds the range of the loaded number among these; tells where that begins.
    const fn search(&mut self, ranges: &[Range; RANGES], from: usize, to: usize) -> Target {
        if to - from == 1 {
            return self.decide(ranges[from].when);
        }
        let (middle, at) = (from.midpoint(to), self.program.length);
        self.push(JUMP_GE, ranges[middle].first, 0, 0);
        let low = self.search(ranges, from, middle);
        let high = self.search(ranges, middle, to);
        self.targets[at] = (high, low);
        at
    }

    const fn decide(&mut self, when: Option<When>) -> Target {
        let at = self.program.length;
        match when {
            None => return TO_TRAP,
            Some(When::Always) => return TO_ALLOW,
            Some(When::Absent) => return TO_ABSENT,
            Some(When::Without(argument, bits)) => {
                self.push(LOAD, ARGUMENTS + 8 * argument, at + 1, at + 1);
                self.push(JUMP_SET, bits, TO_TRAP, TO_ALLOW);
            }
            Some(When::OneOf(argument, values)) => {
                self.push(LOAD, ARGUMENTS + 8 * argument, at + 1, at + 1);
                let mut index = 0;
                while index < values.len() {
                    let other = if index + 1 < values.len() { self.program.length + 1 } else { TO_TRAP };
                    self.push(JUMP_EQ, values[index], TO_ALLOW, other);
                    index += 1;
                }
            }
        }
        at
    }

    /// Adds the returns, and turns targets into offsets.
    const fn finish(mut self) -> Program {
        let end = self.program.length;
        self.push(RETURN, ALLOW, end + 1, end + 1);
        self.push(RETURN, TRAP, end + 2, end + 2);
        self.push(RETURN, ERRNO | libc::ENOSYS as u32, end + 3, end + 3);
        let mut at = 0;
        while at < end {
            if self.program.code[at].code != LOAD {
                let (if_true, if_false) = self.targets[at];
                self.program.code[at].jt = offset(at, if_true, end);
                self.program.code[at].jf = offset(at, if_false, end);
            }
            at += 1;
        }
        self.program
    }
}

/// How many instructions a jump skips.
const fn offset(at: usize, target: Target, end: usize) -> u8 {
    let target = match target {
        TO_ALLOW => end,
        TO_TRAP => end + 1,
        TO_ABSENT => end + 2,
        other => other,
    };
    assert!(target > at && target - at <= 256, "a jump that leads too far");
    (target - at - 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confinement::{absent, any, one_of, without};
    use syscalls::Sysno;

    const LISTS: &[&[Call]] = &[
        &[any(Sysno::read), any(Sysno::write), one_of(Sysno::ioctl, 1, &[7, 9]), absent(Sysno::clone3)],
        &[without(Sysno::mmap, 2, 4), any(Sysno::close), any(Sysno::exit_group), one_of(Sysno::open, 0, &[5])],
    ];
    static PROGRAM: Program = Program::new(LISTS);

    /// Runs the program for a call: what it says, and after how many instructions.
    fn run(program: &Program, architecture: u32, number: u32, arguments: [u32; 6]) -> (u32, usize) {
        let (mut at, mut loaded, mut steps) = (0, 0, 0);
        loop {
            let one = program.instructions()[at];
            (at, steps) = (at + 1, steps + 1);
            let over = |holds| usize::from(if holds { one.jt } else { one.jf });
            match one.code {
                LOAD if one.k == NUMBER => loaded = number,
                LOAD if one.k == ARCHITECTURE => loaded = architecture,
                LOAD => loaded = arguments[(one.k as usize - 16) / 8],
                JUMP_EQ => at += over(loaded == one.k),
                JUMP_GE => at += over(loaded >= one.k),
                JUMP_SET => at += over(loaded & one.k != 0),
                RETURN => return (one.k, steps),
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn said(number: u32, arguments: [u32; 6]) -> u32 {
        run(&PROGRAM, X86_64, number, arguments).0
    }

    #[test]
    fn every_number_gets_what_the_lists_say() {
        const ABSENT: u32 = ERRNO | libc::ENOSYS as u32;
        // Arguments that no list has.
        let other = |number| match Sysno::new(number as usize) {
            Some(Sysno::read | Sysno::write | Sysno::close | Sysno::exit_group) => ALLOW,
            Some(Sysno::mmap) => TRAP,
            Some(Sysno::clone3) => ABSENT,
            _ => TRAP,
        };
        for number in (0..700).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            assert_eq!(said(number, [6; 6]), other(number), "{number}");
            assert_eq!(run(&PROGRAM, 0x4000_0003, number, [6; 6]), (TRAP, 3), "another architecture");
        }
        let number = |call: Sysno| call.id() as u32;
        for (value, result) in [(7, ALLOW), (8, TRAP), (9, ALLOW)] {
            assert_eq!(said(number(Sysno::ioctl), [0, value, 0, 0, 0, 0]), result);
        }
        assert_eq!(said(number(Sysno::open), [5, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(said(number(Sysno::mmap), [7, 7, 3, 7, 7, 7]), ALLOW);
    }

    #[test]
    fn the_search_is_short() {
        let most = (0..500).map(|number| run(&PROGRAM, X86_64, number, [0; 6]).1).max();
        assert!(most <= Some(11), "{most:?}");
        assert!(PROGRAM.instructions().len() < 40);
    }
}
