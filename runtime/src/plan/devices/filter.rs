//! Device rules as a program for the guest's kernel: eBPF of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! The kernel runs the program whenever a process of the container's cgroup opens or makes a device node; the program answers
//! 1 (allowed) or 0 (`EPERM`). The kernel may ask for several accesses at once, and the last rule that names an access decides
//! it. So the program goes through the rules backwards and keeps the undecided accesses:
//!
//! ```text
//!  type, undecided, major, minor = context
//!  for each disk of the host's that the guest has, if it is this one by its number in the guest:
//!      major, minor = those of the host; go to the rules
//!  for each rule, the last first:        one block of instructions each, no loop
//!      unless it names type, major and minor: next
//!      allows:  undecided &= !access; if nothing is left: return 1
//!      denies:  if undecided & access: return 0
//!  return whether the rest is allowed
//! ```
//!
//! Planning does not know the guest's numbers. The agent fills them in at [`Filter::disks_at`].

use super::rules::{Kind, Rule, Rules};

/// `struct bpf_insn`: operation, registers, offset of a jump or in the context, constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    value: i32,
}

// Registers (linux/bpf.h): the answer, the context, and ours.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// Operations, all on 32 bits: class, width or kind of operand, operation.
const LOAD: u8 = 0x61;
const MOVE: u8 = 0xbc;
const SET: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL: u8 = 0x16;
const JUMP_IF_OTHER: u8 = 0x56;
const EXIT: u8 = 0x95;

// `struct bpf_cgroup_dev_ctx`: access in the upper and type in the lower half of a word, major, minor.
const ACCESS_TYPE: i16 = 0;
const MAJOR_AT: i16 = 4;
const MINOR_AT: i16 = 8;
const BLOCK: i32 = 1;
const CHAR: i32 = 2;

/// A compiled program, and where the agent completes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Instructions as the kernel takes them; empty when everything is allowed.
    pub program: Vec<u8>,
    /// For each disk the index of the instruction that compares with its major number in the guest; the next instruction
    /// compares with the minor number. All are 0 when there is no program.
    pub disks_at: Vec<u32>,
}

/// Compiles rules; `disks` are the host's major and minor numbers of the guest's disks.
pub fn compile(rules: &Rules, disks: &[(u32, u32)]) -> Filter {
    if rules.allow_everything() {
        return Filter { program: Vec::new(), disks_at: vec![0; disks.len()] };
    }
    let blocks = rules.rules.iter().rev().flat_map(block);
    let (begin, translation) = (prologue(), translation(disks));
    // The first of the translation asks for the type.
    let disks_at = (0..disks.len()).map(|disk| (begin.len() + 1 + disk * DISK) as u32).collect();
    let program = begin.into_iter().chain(translation).chain(blocks).chain(answer(rules.otherwise));
    Filter { program: program.flat_map(Instruction::bytes).collect(), disks_at }
}

/// Instructions for a disk.
const DISK: usize = 5;

/// Translates the guest's numbers of disks to the host's, which the rules name. There are few disks, so every jump is short.
fn translation(disks: &[(u32, u32)]) -> Vec<Instruction> {
    if disks.is_empty() {
        return Vec::new();
    }
    let jump = |instruction, over: usize| Instruction { offset: over as i16, ..instruction };
    let mut all = vec![jump(leave_unless(KIND, BLOCK), disks.len() * DISK)];
    for (number, (major, minor)) in disks.iter().enumerate() {
        all.extend([
            jump(leave_unless(MAJOR, 0), DISK - 1),
            jump(leave_unless(MINOR, 0), DISK - 2),
            operation(SET, MAJOR, *major as i32),
            operation(SET, MINOR, *minor as i32),
            jump(operation(JUMP, 0, 0), (disks.len() - number - 1) * DISK),
        ]);
    }
    all
}

fn prologue() -> [Instruction; 6] {
    [
        Instruction { from: CONTEXT, offset: ACCESS_TYPE, ..operation(LOAD, KIND, 0) },
        Instruction { from: KIND, ..operation(MOVE, UNDECIDED, 0) },
        operation(AND, KIND, 0xffff),
        operation(SHIFT_RIGHT, UNDECIDED, 16),
        Instruction { from: CONTEXT, offset: MAJOR_AT, ..operation(LOAD, MAJOR, 0) },
        Instruction { from: CONTEXT, offset: MINOR_AT, ..operation(LOAD, MINOR, 0) },
    ]
}

fn block(rule: &Rule) -> Vec<Instruction> {
    let kind = match rule.kind {
        Kind::Block => BLOCK,
        Kind::Char => CHAR,
    };
    // The kernel compares the low 32 bits: the sign of the constant does not matter.
    let number = |register, number: Option<u32>| number.map(|number| leave_unless(register, number as i32));
    let tests = [Some(leave_unless(KIND, kind)), number(MAJOR, rule.major), number(MINOR, rule.minor)];
    let mut block: Vec<_> = tests.into_iter().flatten().collect();
    let access = rule.access as i32;
    if rule.allow {
        block.push(operation(AND, UNDECIDED, !access));
        block.push(leave_unless(UNDECIDED, 0));
    } else {
        block.push(Instruction { from: UNDECIDED, ..operation(MOVE, SCRATCH, 0) });
        block.push(operation(AND, SCRATCH, access));
        block.push(operation(JUMP_IF_EQUAL, SCRATCH, 0));
    }
    block.extend(answer(rule.allow));
    // Every jump leads behind the block, which has a dozen instructions at most.
    let length = block.len() as i16;
    for (place, instruction) in (1..).zip(&mut block) {
        if matches!(instruction.code, JUMP_IF_OTHER | JUMP_IF_EQUAL) {
            instruction.offset = length - place;
        }
    }
    block
}

fn leave_unless(register: u8, value: i32) -> Instruction {
    operation(JUMP_IF_OTHER, register, value)
}

fn answer(allowed: bool) -> [Instruction; 2] {
    [operation(SET, ANSWER, i32::from(allowed)), operation(EXIT, 0, 0)]
}

fn operation(code: u8, to: u8, value: i32) -> Instruction {
    Instruction { code, to, from: 0, offset: 0, value }
}

impl Instruction {
    fn bytes(self) -> [u8; 8] {
        let [offset_low, offset_high] = self.offset.to_le_bytes();
        let [a, b, c, d] = self.value.to_le_bytes();
        [self.code, self.from << 4 | self.to, offset_low, offset_high, a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rules::{DeviceNumber, MKNOD, READ, WRITE};
    use super::*;

    /// What somebody wants to do with a device.
    #[derive(Clone, Copy, Debug)]
    struct Request {
        kind: Kind,
        major: u32,
        minor: u32,
        access: u32,
    }

    /// Runs a program as the kernel does, with the operations that are used, and insists that it only jumps forwards.
    fn run(program: &[u8], request: Request) -> u32 {
        let kind = if request.kind == Kind::Block { 1 } else { 2 };
        let context = [request.access << 16 | kind, request.major, request.minor];
        let (mut registers, mut next) = ([0_u32; 10], 0);
        loop {
            let code: [u8; 8] = program.chunks_exact(8).nth(next).expect("no way out").try_into().unwrap();
            let (to, from) = (usize::from(code[1] & 15), usize::from(code[1] >> 4));
            let offset = i16::from_le_bytes([code[2], code[3]]);
            let value = u32::from_le_bytes([code[4], code[5], code[6], code[7]]);
            next += 1;
            match code[0] {
                0x61 => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                0xbc => registers[to] = registers[from],
                0xb4 => registers[to] = value,
                0x54 => registers[to] &= value,
                0x74 => registers[to] >>= value,
                0x16 if registers[to] == value => next += usize::try_from(offset).unwrap(),
                0x56 if registers[to] != value => next += usize::try_from(offset).unwrap(),
                0x05 => next += usize::try_from(offset).unwrap(),
                0x16 | 0x56 => {}
                0x95 => return registers[0],
                other => panic!("operation {other:#x}"),
            }
        }
    }

    /// The same question, answered from the rules.
    fn allowed(rules: &Rules, request: Request) -> bool {
        let device = DeviceNumber { kind: request.kind, major: request.major, minor: request.minor };
        let one = |access| rules.allow(device, access);
        [MKNOD, READ, WRITE].into_iter().filter(|access| request.access & access != 0).all(one)
    }

    fn of(json: &str) -> Rules {
        Rules::of(&serde_json::from_str(&format!(r#"{{"linux":{{"resources":{{"devices":{json}}}}}}}"#)).unwrap())
            .unwrap()
    }

    fn program(rules: &Rules) -> Vec<u8> {
        let Filter { program, disks_at } = compile(rules, &[]);
        assert!(disks_at.is_empty());
        program
    }

    /// What the agent does.
    fn fill_in(filter: &mut Filter, guest: &[(u32, u32)]) {
        for (&at, (major, minor)) in filter.disks_at.iter().zip(guest).filter(|(at, _)| **at != 0) {
            for (at, number) in [(at, major), (at + 1, minor)] {
                let at = at as usize * 8;
                assert_eq!(filter.program[at..at + 8][4..], [0; 4]);
                filter.program[at + 4..at + 8].copy_from_slice(&number.to_le_bytes());
            }
        }
    }

    #[test]
    fn disks_have_numbers_of_their_own_in_the_guest() {
        let rules = of(
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"minor":16,"access":"rw"},
                {"allow":true,"type":"b","major":254,"access":"r"},{"allow":false,"type":"b","major":7,"access":"m"}]"#,
        );
        let mut filter = compile(&rules, &[(8, 16), (254, 0), (7, 3)]);
        fill_in(&mut filter, &[(254, 0), (254, 16), (254, 32)]);
        let can = |minor, access| run(&filter.program, Request { kind: Kind::Block, ..char(254, minor, access) });
        assert_eq!((can(0, READ | WRITE), can(16, READ), can(16, WRITE), can(32, READ)), (1, 1, 0, 0));
        assert_eq!((can(0, MKNOD), can(32, MKNOD)), (1, 1));
        // A character device of the same number is another one.
        assert_eq!(run(&filter.program, char(254, 0, READ)), 0);
    }

    fn char(major: u32, minor: u32, access: u32) -> Request {
        Request { kind: Kind::Char, major, minor, access }
    }

    #[test]
    fn the_usual_container() {
        let program = program(&of(r#"[{"allow":false,"access":"rwm"},
                {"allow":true,"type":"c","major":10,"minor":229,"access":"r"}]"#));
        assert_eq!(run(&program, char(1, 3, READ | WRITE)), 1);
        assert_eq!(run(&program, char(136, 77, READ | WRITE)), 1);
        assert_eq!(run(&program, char(10, 229, READ)), 1);
        assert_eq!(run(&program, char(10, 229, READ | WRITE)), 0);
        assert_eq!(run(&program, char(1, 1, READ)), 0);
        assert_eq!(run(&program, char(1, 1, MKNOD)), 1);
        assert_eq!(run(&program, Request { kind: Kind::Block, ..char(8, 0, MKNOD | READ) }), 0);
    }

    #[test]
    fn where_all_is_allowed_there_is_no_program() {
        assert!(program(&of(r#"[{"allow":true,"access":"rwm"}]"#)).is_empty());
        let program = program(&of(r#"[{"allow":true,"access":"rwm"},{"type":"b","major":7,"access":"w"}]"#));
        let block = |access| Request { kind: Kind::Block, ..char(7, 1, access) };
        assert_eq!((run(&program, block(READ)), run(&program, block(READ | WRITE))), (1, 0));
    }

    #[test]
    fn numbers_above_a_signed_integer() {
        let program = program(&of(r#"[{"allow":true,"type":"c","major":4294967295,"minor":3,"access":"r"}]"#));
        assert_eq!(run(&program, char(u32::MAX, 3, READ)), 1);
        assert_eq!(run(&program, char(u32::MAX - 1, 3, READ)), 0);
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Block), Just(Kind::Char)]
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let number = || prop::option::of(0_u32..4);
        (any::<bool>(), any_kind(), number(), number(), 1_u32..8).prop_map(|(allow, kind, major, minor, access)| Rule {
            allow,
            kind,
            major,
            minor,
            access,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn the_program_says_what_the_rules_say(rules in prop::collection::vec(any_rule(), 0..12), otherwise: bool) {
            let rules = Rules { rules, otherwise };
            let program = program(&rules);
            for kind in [Kind::Block, Kind::Char] {
                for (major, minor, access) in (0..5 * 5 * 7).map(|n| (n / 35, n / 7 % 5, n % 7 + 1)) {
                    let request = Request { kind, major, minor, access };
                    let answer = program.is_empty() || run(&program, request) == 1;
                    prop_assert_eq!(answer, allowed(&rules, request), "{:?}", request);
                }
            }
        }

        /// A disk may be used as its number on the host may; what is none, as without disks.
        #[test]
        fn disks_are_translated(rules in prop::collection::vec(any_rule(), 0..6), otherwise: bool,
                                disks in prop::collection::btree_map((0_u32..4, 0_u32..4), (0_u32..4, 0_u32..4), 0..5)) {
            let rules = Rules { rules, otherwise };
            let (guest, host): (Vec<_>, Vec<_>) = disks.iter().map(|(guest, host)| (*guest, *host)).unzip();
            let mut filter = compile(&rules, &host);
            fill_in(&mut filter, &guest);
            for kind in [Kind::Block, Kind::Char] {
                for (major, minor, access) in (0..4 * 4 * 7).map(|n| (n / 28, n / 7 % 4, n % 7 + 1)) {
                    let request = Request { kind, major, minor, access };
                    let disk = disks.get(&(major, minor)).filter(|_| kind == Kind::Block);
                    let (major, minor) = disk.copied().unwrap_or((major, minor));
                    let meant = Request { major, minor, ..request };
                    let answer = filter.program.is_empty() || run(&filter.program, request) == 1;
                    prop_assert_eq!(answer, allowed(&rules, meant), "{:?}", request);
                }
            }
        }
    }
}
