#!/usr/bin/env python3
"""What runvm's basic operations cost, in counts that are the same on every machine.

    counts.py measure --runtime DIR --program FILE --rootfs DIR --out DIR    in the lab with LAB_ICOUNT=1; writes counts.json and counts.md
    counts.py compare ACCEPTED MEASURED        exit code 1, and a line for each, where figures grew by more than a tenth

DIR of --runtime holds runvm and its guest, FILE is bench/counts.c, compiled. Each operation is performed many times; the cost of a run without any
is taken off, and the rest divided by their number. Medians of several rounds.

    instructions     of the host's processor, the guest's included, without idle time: its clock advances a nanosecond with each, and
                     /proc/schedstat says how long it was busy. Taken without tracing, which costs instructions itself.
    VM exits         tracepoint kvm:kvm_exit
    page faults      of the host's processes and kernel (exceptions:page_fault_*), and the nested ones of the guest (kvm:kvm_page_fault)
    system calls     of all processes of the host (raw_syscalls:sys_enter)
    FUSE requests    by runvm's own count, in the log with the annotation io.runvm.timeline
"""

import argparse
import functools
import gc
import itertools
import json
import os
import pathlib
import re
import select
import shutil
import statistics
import subprocess
import sys
import time

WORK = pathlib.Path("/run/runvm-counts")
EVENTS = pathlib.Path("/sys/kernel/tracing/events")
# The tracepoints of each figure, with a field that takes few values: a histogram over it is a counter without a trace.
COUNTED = {
    "VM exits": {"kvm/kvm_exit": "exit_reason"},
    "page faults": {"exceptions/page_fault_user": "error_code", "exceptions/page_fault_kernel": "error_code", "kvm/kvm_page_fault": "error_code"},
    "system calls": {"raw_syscalls/sys_enter": "id"},
}
FIGURES = ["instructions", *COUNTED, "FUSE requests"]
ROUNDS = 3
SETTLE = 0.05  # seconds for work that goes on in the background; idle time costs nothing here
TIMEOUT = 2  # seconds, two thousand million instructions: a guest that has not answered by then hangs
ATTEMPTS = 5  # for each operation, as the emulator makes a guest hang now and then (docs/lab.md, "Limits and troubles")
ADDRESS = "10.7.0.2"
# Growth that is told, and what is too little of a figure to be told: there are figures of nought.
# Exits and page faults depend on what else is in caches: of two runs one had 6.3 exits for a cold read, the other 7.0.
# A guest's kernel sends FORGET when it gets to it: of two runs one had 0.2 requests more for an unlink, the other for creating the file before.
TOLERATED = 1.1
NOTHING = {"instructions": 0, "VM exits": 0.8, "page faults": 0.8, "system calls": 0.05, "FUSE requests": 0.3}
ACCEPT = "bench/run counts --accept"


def busy():
    """Nanoseconds that the processor has worked: the time of all tasks that have been on it."""
    line = re.search(r"^cpu0 (.*)", pathlib.Path("/proc/schedstat").read_text(), re.M)
    return int(line.group(1).split()[6])


class Tracepoints:
    """Counts events while this is open; `hits` has them afterwards."""

    def __enter__(self):
        for events in COUNTED.values():
            for event, field in events.items():
                (EVENTS / event / "trigger").write_text(f"hist:keys={field}")
        return self

    def __exit__(self, *_):
        self.hits = {figure: sum(map(self._take, events.items())) for figure, events in COUNTED.items()}

    @staticmethod
    def _take(counted):
        event, field = counted
        text = (EVENTS / event / "hist").read_text()
        (EVENTS / event / "trigger").write_text(f"!hist:keys={field}")
        return int(re.search(r"Hits: (\d+)", text).group(1))


def settled(work, count):
    time.sleep(SETTLE)
    work(count)
    time.sleep(SETTLE)


def instructions(work, count):
    before = busy()
    settled(work, count)
    return busy() - before


def events(work, count):
    with Tracepoints() as points:
        settled(work, count)
    return points.hits


def each(name, work, count):
    """All figures but FUSE requests of one operation, where work(n) performs n of them."""
    work(max(count // 10, 1))  # what the first ones cost is not of interest
    found = {figure: [] for figure in FIGURES[:-1]}
    for _ in range(ROUNDS):
        found["instructions"].append((instructions(work, count) - instructions(work, 0)) / count)
        some, none = events(work, count), events(work, 0)
        for figure in COUNTED:
            found[figure].append((some[figure] - none[figure]) / count)
    spread = max(found["instructions"]) / min(found["instructions"])
    print(f"{name}: {', '.join(f'{value:,.0f}' for value in found['instructions'])} instructions, {spread * 100 - 100:.1f} % apart", flush=True)
    return {figure: statistics.median(values) for figure, values in found.items()}


def performed(count):
    """How many operations each() performs."""
    return max(count // 10, 1) + 2 * ROUNDS * count


class Hung(Exception):
    """A guest that does not answer, or was reset: the emulator does both to it now and then."""


def hung(what):
    """The error for such a guest, which is killed and cleaned up after first."""
    for state in (WORK / "state").iterdir():
        subprocess.run([WORK / "bin/runvm", "--root", WORK / "state", "delete", "--force", state.name], check=False)
    return Hung(what)


def finishes(command, bundle=None):
    """Runs a command of the host, which must not take long, on this bundle's container if any."""
    what = " ".join(map(str, command))
    try:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise hung(f"{what} has not ended") from None
    except subprocess.CalledProcessError as error:
        if bundle and bundle.was_reset():
            raise hung(f"{bundle.name} was reset") from None
        sys.exit(f"{error}{bundle.said() if bundle else ''}")


class Bundle:
    """A bundle of an overlay on tmpfs, as engines make it, mounted while this is open."""

    numbers = itertools.count()

    def __init__(self, name, args, netns=None):
        self.name, self.args, self.netns = f"{name}{next(self.numbers)}", args, netns
        self.dir = WORK / self.name
        self.log = self.dir / "log"

    def __enter__(self):
        for part in ("upper", "work", "rootfs"):
            (self.dir / part).mkdir(parents=True)
        options = f"lowerdir={WORK / 'lower'},upperdir={self.dir / 'upper'},workdir={self.dir / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", self.dir / "rootfs"], check=True)
        subprocess.run([WORK / "bin/runvm", "spec", "--bundle", self.dir], check=True)
        config = json.loads((self.dir / "config.json").read_text())
        config["process"].update(args=self.args, terminal=False)
        config["root"]["readonly"] = False
        config["annotations"] = {"io.runvm.timeline": "true"}
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network" and self.netns:
                namespace["path"] = f"/run/netns/{self.netns}"
        (self.dir / "config.json").write_text(json.dumps(config))
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", self.dir / "rootfs"], check=True)

    def command(self, *verb):
        return [WORK / "bin/runvm", "--log", self.log, "--root", WORK / "state", *verb]

    def run(self):
        return self.command("run", "--bundle", self.dir, self.name)

    def said(self):
        """The end of the log, for a message."""
        return f"; the log of {self.name} ends:\n{self.log.read_text(errors='replace')[-2000:]}"

    def was_reset(self):
        return "the guest stopped (reset)" in self.log.read_text(errors="replace")

    def requests(self):
        """FUSE requests of all containers that this bundle's log tells of."""
        found = re.findall(r"FUSE requests: ([^;]*);", self.log.read_text(errors="replace"))
        if not found:
            sys.exit(f"no FUSE requests are told of{self.said()}")
        return sum(int(number) for line in found for number in re.findall(r" (\d+)", line))


class Session(Bundle):
    """A running container whose process performs operations on demand."""

    def __init__(self, name, netns=None):
        super().__init__(name, ["/counts"], netns)

    def __enter__(self):
        super().__enter__()
        self.process = subprocess.Popen(self.run(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.ask("none", 0)
        return self

    def __exit__(self, *failure):
        self.process.stdin.close()
        late = None
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            late = hung(f"{self.name} has not ended")
        super().__exit__()
        if late:
            raise late
        if self.process.returncode and not failure[0]:
            if self.was_reset():
                raise hung(f"{self.name} was reset")
            sys.exit(f"the container ended with {self.process.returncode}{self.said()}")

    def ask(self, operation, count):
        self.process.stdin.write(f"{operation} {count}\n".encode())
        self.process.stdin.flush()
        answered, _, _ = select.select([self.process.stdout], [], [], TIMEOUT)
        if not answered:
            raise hung(f"{self.name} has not answered")
        if self.process.stdout.readline() != f"done {count}\n".encode():
            if self.was_reset():
                raise hung(f"{self.name} was reset")
            sys.exit(f"{operation} {count}: the container has not done it{self.said()}")


def repeat(command, bundle):
    """work(n) for a command of the host that has to do with a bundle's container."""
    return lambda count: finishes([WORK / "bin/counts", "repeat", str(count), *command], bundle)


def starts(name, count, netns=None):
    with Bundle(name, ["true"], netns) as bundle:
        found = each(name, repeat(bundle.run(), bundle), count)
        found["FUSE requests"] = bundle.requests() / performed(count)
    return found


@functools.cache
def requests_without(netns, before):
    """FUSE requests of a session that does no more than what comes before a measurement."""
    with Session("idle", netns) as session:
        for operation, number in before:
            session.ask(operation, number)
    return session.requests()


def in_session(name, count, make_work, netns=None, before=()):
    """Figures of what make_work(session) does."""
    with Session(name, netns) as session:
        for operation, number in before:
            session.ask(operation, number)
        found = each(name, make_work(session), count)
    found["FUSE requests"] = (session.requests() - requests_without(netns, before)) / performed(count)
    return found


def operation(name):
    return lambda session: lambda count: session.ask(name, count)


def by_network(session):
    return lambda count: finishes([WORK / "bin/counts", "rr", ADDRESS, str(count)], session)


def execs(session):
    return repeat(session.command("exec", session.name, "true"), session)


def link(netns):
    """A network namespace with one veth pair to the host."""
    script = f"""ip netns add {netns}; ip -n {netns} link set lo up
        ip link add counts0 type veth peer name eth0 netns {netns}; ip addr add 10.7.0.1/24 dev counts0; ip link set counts0 up
        ip -n {netns} addr add {ADDRESS}/24 dev eth0; ip -n {netns} link set eth0 up"""
    subprocess.run(["sh", "-ec", script], check=True)


def set_up(runtime, program, rootfs):
    """Everything on tmpfs: what is read from this host's disk comes over 9p, at a time of its own."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    (WORK / "bin").mkdir()
    shutil.copytree(runtime / "guest", WORK / "bin/guest")
    shutil.copy(runtime / "runvm", WORK / "bin/runvm")
    shutil.copy(program, WORK / "bin/counts")
    lower = WORK / "lower"
    shutil.copytree(rootfs, lower, symlinks=True)
    shutil.copy(program, lower / "counts")
    (lower / "new").mkdir()
    (lower / "tree").mkdir()
    for number in range(performed(FILES) + 1):
        (lower / f"tree/{number}").write_bytes(b"x" * 2048)


# How many operations a round has. The instructions of a start are 1 % apart between rounds, those of other operations up to 6 %.
STARTS, EXECS, FILES, CALLS = 2, 10, 200, 500
MEASUREMENTS = {
    "run true": lambda: starts("run", STARTS),
    "run true, one link": lambda: starts("link", STARTS, "counts"),
    "exec true": lambda: in_session("exec", EXECS, execs),
    "getxattr": lambda: in_session("getxattr", CALLS, operation("getxattr")),
    "open, read, close, cold": lambda: in_session("read", FILES, operation("read")),
    "create, write, chmod, utimens, close": lambda: in_session("create", FILES, operation("create")),
    "unlink": lambda: in_session("unlink", FILES, operation("unlink"), before=(("create", performed(FILES)),)),
    "one byte there and back": lambda: in_session("bytes", CALLS, by_network, "counts", before=(("serve", 0),)),
}


def version(path, pattern):
    """A version that a binary carries in itself."""
    found = re.search(pattern, path.read_bytes())
    return found.group(1).decode() if found else "unknown"


def conditions():
    emulator = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    kernel = re.search(r"Debian (\S+)", os.uname().version)
    return {
        "emulator": re.search(r"version (\S+)", emulator).group(1),
        "guest kernel": version(WORK / "bin/guest/vmlinux", rb"Linux version (\S+)"),
        "host kernel": kernel.group(1) if kernel else os.uname().release,
        "rustc": version(WORK / "bin/runvm", rb"rustc version (\S+)"),
    }


def rounded(value):
    return round(value) if value >= 1000 else round(value, 2)


def attempted(work):
    """What work() gives, once no guest hangs in it."""
    for left in reversed(range(ATTEMPTS)):
        try:
            return work()
        except Hung as error:
            print(f"{error}: {'again' if left else 'given up'}", flush=True)
    sys.exit(f"a guest hung in each of {ATTEMPTS} attempts")


def measure(arguments):
    if os.environ.get("LAB_ICOUNT") != "1":
        sys.exit("counts are taken where each instruction takes a nanosecond: in the lab with LAB_ICOUNT=1")
    set_up(arguments.runtime, arguments.program, arguments.rootfs)
    link("counts")
    gc.disable()
    wanted = {name: work for name, work in MEASUREMENTS.items() if arguments.only in name}
    found = {name: {figure: rounded(value) for figure, value in attempted(work).items()} for name, work in wanted.items()}
    result = {"conditions": conditions(), "figures": found}
    (arguments.out / "counts.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    (arguments.out / "counts.md").write_text("\n".join(table(result)) + "\n")
    shutil.rmtree(WORK, ignore_errors=True)
    return 0


def table(result):
    where = "; ".join(f"{name} {value}" for name, value in result["conditions"].items())
    lines = ["# Counts", "", f"Each operation's share of many, medians of {ROUNDS} rounds; {where}.", "",
             f"| operation | {' | '.join(FIGURES)} |", "|---|" + "---|" * len(FIGURES)]
    return lines + [f"| {name} | {' | '.join(f'{figures[figure]:,}' for figure in FIGURES)} |" for name, figures in result["figures"].items()]


def compare(arguments):
    accepted, measured = (json.loads(path.read_text()) for path in (arguments.accepted, arguments.measured))
    dearer = 0
    for name, figures in measured["figures"].items():
        for figure, new in figures.items():
            old = accepted["figures"].get(name, {}).get(figure)
            if old is None:
                print(f"{name}: nobody has accepted a number of {figure} yet ({new:,} measured): {ACCEPT}")
                dearer += 1
            elif new > old * TOLERATED + NOTHING[figure]:
                more = f", {new / old * 100 - 100:.0f} % more" if old else ""
                print(f"{name}: {figure} grew from {old:,} to {new:,}{more}. If it has to be so, say why in the commit, with what `{ACCEPT}` writes")
                dearer += 1
            elif new * TOLERATED + NOTHING[figure] < old:
                print(f"{name}: {figure} fell from {old:,} to {new:,}; `{ACCEPT}` keeps it there")
    for name in accepted["figures"].keys() - measured["figures"].keys():
        print(f"{name}: accepted, but not measured any more: {ACCEPT}")
        dearer += 1
    for condition, old in accepted["conditions"].items():
        new = measured["conditions"].get(condition)
        if dearer and new != old:
            print(f"the accepted figures are those of another {condition}: {old}, and not {new}")
    return 1 if dearer else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    for option in ("--runtime", "--program", "--rootfs", "--out"):
        one.add_argument(option, required=True, type=pathlib.Path)
    one.add_argument("--only", default="", help="operations whose name contains this")
    one.set_defaults(run=measure)
    two = commands.add_parser("compare")
    for name in ("accepted", "measured"):
        two.add_argument(name, type=pathlib.Path)
    two.set_defaults(run=compare)
    arguments = parser.parse_args()
    sys.exit(arguments.run(arguments))


if __name__ == "__main__":
    main()
