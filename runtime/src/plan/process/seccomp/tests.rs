mod oracle;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::program::{AND, Instruction, JUMP, JUMP_EQ, JUMP_GE, JUMP_GT, LOAD, RETURN, instructions};
use super::table::{Condition, KILL_THREAD, Rule, Table, Test};
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL: u32 = 0x8000_0000;

fn profile(json: Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

fn tables(profile: &LinuxSeccomp) -> Vec<Table> {
    let list = architectures(profile, &mut Vec::new()).into_iter();
    list.map(|it| Table::new(profile, it, &mut Vec::new()).unwrap()).collect()
}

/// A profile, ready to be asked.
struct Subject(Vec<Instruction>);

impl Subject {
    fn new(json: Value) -> Self {
        Self(instructions(&tables(&profile(json))))
    }

    fn ask(&self, architecture: Architecture, number: u32, arguments: &[u64]) -> u32 {
        execute(&self.0, architecture.audit(), number, arguments)
    }

    fn named(&self, name: &str, arguments: &[u64]) -> u32 {
        self.ask(Architecture::X86_64, Architecture::X86_64.number(name).unwrap(), arguments)
    }
}

/// What the kernel does with a filter.
fn execute(program: &[Instruction], audit: u32, number: u32, arguments: &[u64]) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let it = program[at];
        at += 1;
        let mut jump = |taken: bool| at += usize::from(if taken { it.if_true } else { it.if_false });
        match it.code {
            LOAD => {
                accumulator = match it.k {
                    0 => number,
                    4 => audit,
                    offset => {
                        let argument = arguments.get((offset as usize - 16) / 8).copied().unwrap_or(0);
                        (argument >> (8 * (offset % 8))) as u32
                    }
                }
            }
            AND => accumulator &= it.k,
            JUMP => at += it.k as usize,
            JUMP_EQ => jump(accumulator == it.k),
            JUMP_GT => jump(accumulator > it.k),
            JUMP_GE => jump(accumulator >= it.k),
            RETURN => return it.k,
            code => panic!("no instruction {code:#x}"),
        }
    }
}

fn holds(condition: &Condition, arguments: &[u64]) -> bool {
    let (argument, value) = (arguments.get(condition.index as usize).copied().unwrap_or(0), condition.value);
    match condition.test {
        Test::Ne => argument != value,
        Test::Lt => argument < value,
        Test::Le => argument <= value,
        Test::Eq => argument == value,
        Test::Ge => argument >= value,
        Test::Gt => argument > value,
        Test::Masked(mask) => argument & mask == value,
    }
}

/// The same, read straight off the table.
fn look_up(table: &Table, number: u32, arguments: &[u64]) -> u32 {
    if table.architecture == Architecture::X86_64 && number >= 0x4000_0000 {
        return ENOSYS;
    }
    if table.newer.is_some_and(|first| number >= first) {
        return ENOSYS;
    }
    let holding = |rule: &&Rule| rule.conditions.iter().all(|condition| holds(condition, arguments));
    let rules = table.calls.get(&number).into_iter().flatten();
    { rules }.find(holding).map_or(table.default, |rule| rule.action)
}

#[test]
fn a_list_of_what_is_allowed() {
    let subject = Subject::new(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["read", "write", "close", "exit_group", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    }));
    let table: [(&str, &[u64], u32); 10] = [
        ("read", &[], ALLOW),
        ("write", &[7, 7], ALLOW),
        ("mount", &[], EPERM),
        ("personality", &[8], ALLOW),
        ("personality", &[9], EPERM),
        ("personality", &[8 | 1 << 32], EPERM),
        ("clone", &[0x11], ALLOW),
        ("clone", &[0x1000_0011], EPERM),
        ("clone3", &[], ENOSYS),
        ("ptrace", &[], KILL),
    ];
    for (name, arguments, expected) in table {
        assert_eq!(subject.named(name, arguments), expected, "{name} {arguments:?}");
    }
    let newest = Architecture::X86_64.number("clone3").unwrap();
    assert_eq!(subject.ask(Architecture::X86_64, newest + 1, &[]), ENOSYS);
    assert_eq!(subject.ask(Architecture::X86_64, 0x4000_0000, &[]), ENOSYS);
    assert_eq!(subject.ask(Architecture::X86, 3, &[]), ALLOW);
    assert_eq!(execute(&subject.0, 0xc000_00b7, 0, &[]), KILL_THREAD);
}

#[test]
fn a_list_of_what_is_not() {
    let subject = Subject::new(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
            {"names": ["kill"], "action": "SCMP_ACT_TRAP"},
            {"names": ["sync"], "action": "SCMP_ACT_LOG"},
            {"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 9},
            {"names": ["write"], "action": "SCMP_ACT_KILL"},
        ],
    }));
    for (name, expected) in [
        ("chmod", 0x5_0005),
        ("kill", 0x3_0000),
        ("sync", 0x7ffc_0000),
        ("read", 0x7ff0_0009),
        ("write", 0),
        ("open", ALLOW),
    ] {
        assert_eq!(subject.named(name, &[]), expected, "{name}");
    }
    // What is new is allowed as well, and an architecture that is not named is none of ours.
    assert_eq!(subject.ask(Architecture::X86_64, 5000, &[]), ALLOW);
    assert_eq!(subject.ask(Architecture::X86, 1, &[]), KILL_THREAD);
}

#[test]
fn a_rule_without_conditions_wins() {
    let condition = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]);
    let with = json!({"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": condition});
    let without = json!({"names": ["socket"], "action": "SCMP_ACT_KILL_PROCESS"});
    for syscalls in [json!([with, without]), json!([without, with])] {
        let subject = Subject::new(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls}));
        assert_eq!((subject.named("socket", &[1]), subject.named("socket", &[2])), (KILL, KILL));
    }
}

#[test]
fn an_argument_compared_twice_makes_two_rules() {
    let either = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 5, "op": "SCMP_CMP_GT"}]);
    let both = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 5, "op": "SCMP_CMP_GT"}]);
    let subject = Subject::new(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": either},
        {"names": ["bind"], "action": "SCMP_ACT_ERRNO", "args": both},
    ]}));
    let table: [(&str, [u64; 2], u32); 6] = [
        ("socket", [1, 0], EPERM),
        ("socket", [6, 0], EPERM),
        ("socket", [5, 0], ALLOW),
        ("bind", [1, 6], EPERM),
        ("bind", [1, 5], ALLOW),
        ("bind", [2, 6], ALLOW),
    ];
    for (name, arguments, expected) in table {
        assert_eq!(subject.named(name, &arguments), expected, "{name} {arguments:?}");
    }
}

#[test]
fn older_calls_do_not_lead_around_a_rule() {
    let subject = Subject::new(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{"names": ["connect", "shmat"], "action": "SCMP_ACT_ERRNO"}],
    }));
    let number = |name| Architecture::X86.number(name).unwrap();
    let table = [
        ("connect", 0, EPERM),
        ("socketcall", 3, EPERM),
        ("socketcall", 2, ALLOW),
        ("ipc", 21, EPERM),
        ("ipc", 22, ALLOW),
    ];
    for (name, first, expected) in table {
        assert_eq!(subject.ask(Architecture::X86, number(name), &[first]), expected, "{name} {first}");
    }
    assert_eq!(subject.named("connect", &[]), EPERM);
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    let call = |call: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call]});
    let argument = |index: u32| json!({"index": index, "value": 1, "op": "SCMP_CMP_EQ"});
    let table = [
        (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY of "),
        (call(json!({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"})), "SCMP_ACT_NOTIFY of "),
        (call(json!({"names": [""], "action": "SCMP_ACT_ERRNO"})), "empty string is not a valid syscall"),
        (
            call(json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})),
            "errnoRet 4096 of mount is larger than any errno (4095)",
        ),
        (call(json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": [argument(6)]})), "args.index 6 of mount"),
    ];
    for (json, words) in table {
        let spec: Spec = serde_json::from_value(json!({"linux": {"seccomp": json}})).unwrap();
        let error = plan(&spec, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains(words), "{json}: {error}");
    }
}

#[test]
fn a_profile_that_is_too_long_is_refused() {
    let calls: Vec<Value> = (0..1000)
        .map(|n| json!({"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": n, "op": "SCMP_CMP_EQ"}]}))
        .collect();
    let spec = json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": calls}}});
    let error = plan(&serde_json::from_value(spec).unwrap(), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("instructions, and the kernel runs 4096 at most"), "{error}");
}

#[test]
fn flags_and_notes() {
    let ask = |json: Value| {
        let mut notes = Vec::new();
        let spec = serde_json::from_value(json!({"linux": {"seccomp": json}})).unwrap();
        (plan(&spec, &mut notes).unwrap().flags, notes)
    };
    assert_eq!(ask(json!({"defaultAction": "SCMP_ACT_ALLOW"})), (FLAG_SPEC_ALLOW, vec![]));
    let (flags, notes) = ask(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"],
        "architectures": ["SCMP_ARCH_NATIVE", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": ["arm_fadvise64_64"], "action": "SCMP_ACT_ERRNO"}],
    }));
    assert_eq!((flags, notes.len()), (FLAG_LOG, 3), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("arm_fadvise64_64")), "{notes:?}");
}

fn some_number() -> impl Strategy<Value = u64> {
    prop_oneof![0..4u64, (0..4u64).prop_map(|n| n << 32), (0..4u64).prop_map(|n| n | 1 << 32), any::<u64>()]
}

fn some_call() -> impl Strategy<Value = Value> {
    const NAMES: [&str; 8] = ["read", "write", "open", "socket", "clone", "clone3", "mount", "semctl"];
    const ACTIONS: [&str; 4] = ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG"];
    const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let argument = (0..6usize, some_number(), some_number(), 0..OPERATORS.len()).prop_map(|(index, value, two, op)| {
        json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{}", OPERATORS[op])})
    });
    let names = proptest::sample::subsequence(&NAMES[..], 1..4);
    (names, 0..ACTIONS.len(), proptest::collection::vec(argument, 0..4))
        .prop_map(|(names, action, args)| json!({"names": names, "action": ACTIONS[action], "args": args}))
}

proptest! {
    #[test]
    fn the_program_does_what_the_table_says(
        calls in proptest::collection::vec(some_call(), 0..12),
        lenient in any::<bool>(),
        questions in proptest::collection::vec((0..500u32, proptest::collection::vec(some_number(), 6)), 1..40),
    ) {
        let default = if lenient { "SCMP_ACT_ALLOW" } else { "SCMP_ACT_ERRNO" };
        let json = json!({"defaultAction": default, "architectures": ["SCMP_ARCH_X86"], "syscalls": calls});
        let tables = tables(&profile(json));
        let program = instructions(&tables);
        for table in &tables {
            let named = table.calls.keys().map(|&number| (number, questions[0].1.clone()));
            for (number, arguments) in questions.iter().cloned().chain(named) {
                // As the kernel shows the arguments of a 32-bit call.
                let arguments: Vec<u64> = arguments.iter().map(|it| it & table.architecture.word()).collect();
                let got = execute(&program, table.architecture.audit(), number, &arguments);
                prop_assert_eq!(got, look_up(table, number, &arguments), "{} {} {:?}", table.architecture, number, arguments);
            }
        }
    }
}
