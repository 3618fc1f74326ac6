//! Program: tables as classic BPF over `struct seccomp_data`.
//!
//! Uses only instructions that the kernel's seccomp_is_const_allow() understands: for calls that are always allowed the kernel
//! then does not run the program.

use anyhow::bail;

use super::names::Architecture;
use super::table::{Condition, KILL_THREAD, NO_SUCH_CALL, Rule, Table, Test};

/// Most instructions of a program: `BPF_MAXINSNS` of linux/bpf_common.h.
const MOST: usize = 4096;

/// Bit in call numbers of the x32 architecture, which the guest's kernel does not have.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `BPF_LD | BPF_W | BPF_ABS` and the like of linux/bpf_common.h.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQ: u16 = 0x15;
pub(super) const JUMP_GT: u16 = 0x25;
pub(super) const JUMP_GE: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub k: u32,
}

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, k }
}

fn branch(code: u16, k: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, k }
}

/// A range of call numbers, up to the next range, and what happens to them.
struct Range<'a> {
    first: u32,
    rules: &'a [Rule],
    otherwise: u32,
}

/// Bytes of the program for all tables.
pub fn compile(tables: &[Table]) -> anyhow::Result<Vec<u8>> {
    let program = instructions(tables);
    if program.len() > MOST {
        bail!("linux.seccomp: the profile takes {} instructions, and the kernel runs {MOST} at most", program.len());
    }
    let bytes = |it: &Instruction| {
        let ([a, b], [c, d, e, f]) = (it.code.to_ne_bytes(), it.k.to_ne_bytes());
        [a, b, it.if_true, it.if_false, c, d, e, f]
    };
    Ok(program.iter().flat_map(bytes).collect())
}

/// Programs of the architectures one after the other; a call of another architecture kills the process.
pub(super) fn instructions(tables: &[Table]) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD, ARCHITECTURE)];
    for table in tables {
        let section = section(table);
        program.push(branch(JUMP_EQ, table.architecture.audit(), 1, 0));
        program.push(plain(JUMP, section.len() as u32));
        program.extend(section);
    }
    program.push(plain(RETURN, KILL_THREAD));
    program
}

fn section(table: &Table) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD, NUMBER)];
    if table.architecture == Architecture::X86_64 {
        program.extend([branch(JUMP_GE, X32, 0, 1), plain(RETURN, NO_SUCH_CALL)]);
    }
    program.extend(search(&ranges(table)));
    program
}

/// Ranges of all numbers; adjacent numbers with the same outcome share a range.
fn ranges(table: &Table) -> Vec<Range<'_>> {
    let gap = |first| Range { first, rules: &[], otherwise: table.default };
    let mut ranges = vec![gap(0)];
    for (&number, rules) in &table.calls {
        let always = rules.first().filter(|rule| rule.conditions.is_empty());
        match always {
            Some(rule) => ranges.push(Range { first: number, rules: &[], otherwise: rule.action }),
            None => ranges.push(Range { first: number, rules, otherwise: table.default }),
        }
        ranges.push(gap(number + 1));
    }
    if let Some(first) = table.newer {
        ranges.push(Range { first, rules: &[], otherwise: NO_SUCH_CALL });
    }
    // Of several that begin at one number, the last says what happens there.
    ranges.dedup_by(|next, before| {
        let same = next.first == before.first;
        if same {
            std::mem::swap(next, before);
        }
        same
    });
    ranges.dedup_by(|next, before| {
        next.rules.is_empty() && before.rules.is_empty() && next.otherwise == before.otherwise
    });
    ranges
}

/// Binary search for the loaded number.
fn search(ranges: &[Range]) -> Vec<Instruction> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (Some(middle), false) = (upper.first(), lower.is_empty()) else {
        return ranges.first().map(leaf).unwrap_or_default();
    };
    let (low, high) = (search(lower), search(upper));
    let mut program = match u8::try_from(low.len()) {
        Ok(over) => vec![branch(JUMP_GE, middle.first, over, 0)],
        Err(_) => vec![branch(JUMP_GE, middle.first, 0, 1), plain(JUMP, low.len() as u32)],
    };
    program.extend(low);
    program.extend(high);
    program
}

fn leaf(range: &Range) -> Vec<Instruction> {
    let mut program: Vec<_> = range.rules.iter().flat_map(rule).collect();
    program.push(plain(RETURN, range.otherwise));
    program
}

/// Block for one rule: returns the action, or falls out at its end when a condition doesn't hold. Built from the end, since
/// each condition has to know how far away that is.
fn rule(rule: &Rule) -> Vec<Instruction> {
    let mut program = vec![plain(RETURN, rule.action)];
    for one in rule.conditions.iter().rev() {
        // At most one for each of six arguments, of six instructions.
        let rest = program.len() as u8;
        program.splice(0..0, condition(one, rest));
    }
    program
}

/// Block for one condition: falls out at its end when the condition holds, else `rest` instructions later.
fn condition(condition: &Condition, rest: u8) -> Vec<Instruction> {
    let low = ARGUMENTS + 8 * condition.index;
    let (load_low, load_high) = (plain(LOAD, low), plain(LOAD, low + 4));
    let (value_low, value_high) = (condition.value as u32, (condition.value >> 32) as u32);
    // What is greater in its upper half passes either test, what is less fails it.
    let ordered = |test, if_true, if_false| {
        vec![
            load_high,
            branch(JUMP_GT, value_high, 3 + if_true, 0),
            branch(JUMP_EQ, value_high, 0, 2 + if_false),
            load_low,
            branch(test, value_low, if_true, if_false),
        ]
    };
    match condition.test {
        Test::Eq => {
            vec![load_high, branch(JUMP_EQ, value_high, 0, 2 + rest), load_low, branch(JUMP_EQ, value_low, 0, rest)]
        }
        Test::Ne => {
            vec![load_high, branch(JUMP_EQ, value_high, 0, 2), load_low, branch(JUMP_EQ, value_low, rest, 0)]
        }
        Test::Ge => ordered(JUMP_GE, 0, rest),
        Test::Gt => ordered(JUMP_GT, 0, rest),
        Test::Lt => ordered(JUMP_GE, rest, 0),
        Test::Le => ordered(JUMP_GT, rest, 0),
        Test::Masked(mask) => vec![
            load_high,
            plain(AND, (mask >> 32) as u32),
            branch(JUMP_EQ, value_high, 0, 3 + rest),
            load_low,
            plain(AND, mask as u32),
            branch(JUMP_EQ, value_low, 0, rest),
        ],
    }
}
