#!/usr/bin/env python3
"""Start-to-end time of `runvm run true` against its peers, interleaved within one run.

Everything that is timed lies on tmpfs. Medians and ratios to runvm; beside each the counts that explain it:
VM exits (tracepoint kvm:kvm_exit) and system calls (strace), taken in runs of their own, not timed.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

WORK = pathlib.Path("/run/runvm-bench")
TRACE = pathlib.Path("/sys/kernel/tracing")
TIMEOUT = 120


class Peer:
    """Something that is started, does nothing, and ends."""

    def __init__(self, name, command, before=None):
        self.name, self.command, self.before = name, command, before
        self.seconds = []

    def once(self, prefix=()):
        if self.before:
            self.before()
        begin = time.monotonic()
        done = subprocess.run([*prefix, *self.command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=TIMEOUT)
        return time.monotonic() - begin, done

    def checked(self, prefix=()):
        seconds, done = self.once(prefix)
        if done.returncode != 0:
            sys.exit(f"{self.name}: exit code {done.returncode}: {done.stdout.decode(errors='replace')[-2000:]}")
        return seconds

    @property
    def median(self):
        return statistics.median(self.seconds)


def prepare(rootfs):
    """Copies what is timed to tmpfs; returns the folder of the bundle."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    shutil.copytree("target/release/guest", WORK / "bin/guest")
    for binary in ("target/release/runvm", shutil.which("crun"), "target/bench/init"):
        shutil.copy(binary, WORK / "bin")
    bundle = WORK / "bundle"
    bundle.mkdir()
    shutil.copytree(rootfs, bundle / "rootfs", symlinks=True)
    subprocess.run([WORK / "bin/runvm", "spec", "--bundle", bundle], check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["true"]
    config["process"]["terminal"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    pack_initrd(WORK / "bin/init", WORK / "initrd")
    return bundle


def pack_initrd(init, out):
    """An initial RAM disk that holds nothing but this /init."""
    tree = WORK / "tree"
    tree.mkdir()
    shutil.copy(init, tree / "init")
    packed = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=b"init\n", cwd=tree, check=True,
                            stdout=subprocess.PIPE).stdout
    out.write_bytes(packed)


def peers(bundle, memory):
    """runvm first: the others are compared with it."""
    kernel = WORK / "bin/guest/vmlinux"
    runvm = [WORK / "bin/runvm", "--root", WORK / "runvm", "run", "--bundle", bundle, "bench"]
    crun = [WORK / "bin/crun", "--root", WORK / "crun", "run", "--bundle", bundle, "bench"]
    qemu = ["qemu-system-x86_64", "-M", "microvm,accel=kvm,acpi=off,rtc=off,pit=off,pic=off,isa-serial=off",
            "-cpu", "host", "-m", str(memory), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", kernel, "-initrd", WORK / "initrd", "-append", "reboot=t panic=-1 quiet 8250.nr_uarts=0"]
    found = [Peer("runvm run true", runvm), Peer("crun run true", crun),
             Peer("QEMU microvm, same kernel, init that exits", qemu)]
    firecracker = os.environ.get("TEST_FIRECRACKER")
    if firecracker:
        found.append(firecracker_peer(firecracker, kernel, memory))
    return found


def firecracker_peer(binary, kernel, memory):
    config = {
        "boot-source": {"kernel_image_path": str(kernel), "initrd_path": str(WORK / "initrd"),
                        "boot_args": "reboot=t panic=-1 quiet 8250.nr_uarts=0"},
        "drives": [], "machine-config": {"vcpu_count": 1, "mem_size_mib": memory},
    }
    path = WORK / "firecracker.json"
    path.write_text(json.dumps(config))
    return Peer("Firecracker, same kernel, init that exits", [binary, "--no-api", "--config-file", path])


def exits(peer):
    """VM exits of one run, by the kernel's tracepoint; None where there is none."""
    event = TRACE / "events/kvm/kvm_exit"
    if not event.is_dir():
        return None
    (event / "trigger").write_text("hist:keys=exit_reason")
    try:
        peer.checked()
        text = (event / "hist").read_text()
    finally:
        (event / "trigger").write_text("!hist:keys=exit_reason")
    return sum(int(count) for count in re.findall(r"hitcount:\s+(\d+)", text))


def syscalls(peer):
    """System calls of one run with all its processes."""
    out = WORK / "strace"
    peer.once(["strace", "-f", "-c", "-o", out])
    total = [line.split() for line in out.read_text().splitlines() if line.endswith(" total")]
    return int(total[0][-3 if len(total[0]) > 4 else -2]) if total else None


def timeline(bundle, runs):
    """Medians of the steps that runvm itself prints."""
    config = json.loads((bundle / "config.json").read_text())
    config["annotations"] = {"io.runvm.timeline": "true"}
    (bundle / "config.json").write_text(json.dumps(config))
    steps, order = {}, []
    for number in range(runs):
        log = WORK / "log"
        log.unlink(missing_ok=True)
        command = [WORK / "bin/runvm", "--log", log, "--root", WORK / "runvm", "run", "--bundle", bundle, f"time{number}"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT)
        found = re.search(r"timeline \(ms\): ([^;]*);", log.read_text(errors="replace"))
        for step in found.group(1).split(", ") if found else []:
            name, value = step.rsplit(" ", 1)
            if name not in steps:
                order.append(name)
            steps.setdefault(name, []).append(float(value))
    return [(name, statistics.median(steps[name])) for name in order]


def report(all_peers, counts, steps, where):
    base = all_peers[0].median
    lines = ["# Start to end of `true`", "", where, "",
             "| what | median | min–max | runvm ÷ it | VM exits | system calls |", "|---|---|---|---|---|---|"]
    for peer in all_peers:
        ratio = "1" if peer is all_peers[0] else f"{base / peer.median:.2f}"
        spread = f"{min(peer.seconds):.3f}–{max(peer.seconds):.3f} s"
        exit_count, call_count = counts[peer.name]
        lines.append(f"| {peer.name} | {peer.median:.3f} s | {spread} | {ratio} | {exit_count} | {call_count} |")
    lines += ["", "Where runvm's time goes (medians, by the annotation `io.runvm.timeline`):", "",
              "| until | ms |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in steps]
    return "\n".join(lines) + "\n"


def plot(all_peers):
    """Bars of the medians with a line from the fastest to the slowest run."""
    scale = 480 / max(max(peer.seconds) for peer in all_peers)
    rows = []
    for number, peer in enumerate(all_peers):
        y = 20 + number * 44
        low, high = 320 + min(peer.seconds) * scale, 320 + max(peer.seconds) * scale
        rows.append(f'<text x="310" y="{y + 17}" text-anchor="end">{peer.name}</text>'
                    f'<rect x="320" y="{y}" width="{peer.median * scale:.1f}" height="24" fill="#4878a8"/>'
                    f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 12}" y2="{y + 12}" stroke="#222"/>'
                    f'<text x="{high + 6:.1f}" y="{y + 17}">{peer.median:.3f} s</text>')
    height = 30 + len(all_peers) * 44
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="900" height="{height}" font-family="sans-serif" '
            f'font-size="13">{"".join(rows)}</svg>\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rootfs", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--memory", type=int, default=2048, help="MiB of the peers' machines")
    arguments = parser.parse_args()
    bundle = prepare(arguments.rootfs)
    all_peers = peers(bundle, arguments.memory)
    pairs = max(int(os.environ.get("TEST_BENCH_PAIRS", "10")), 1)
    for peer in all_peers:
        peer.checked()
    for number in range(pairs):
        # Each second round backwards, or one would always find the memory that the same other has just left.
        for peer in all_peers if number % 2 == 0 else reversed(all_peers):
            peer.seconds.append(peer.checked())
        print(f"round {number + 1} of {pairs}: "
              + ", ".join(f"{peer.name} {peer.seconds[-1]:.3f} s" for peer in all_peers), flush=True)
    counts = {peer.name: (exits(peer), syscalls(peer)) for peer in all_peers}
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    where = (f"{pairs} interleaved rounds; kernel {os.uname().release}, {os.cpu_count()} CPUs "
             f"({cpu.group(1) if cpu else 'unknown'}); everything timed on tmpfs.")
    (arguments.out / "start.md").write_text(report(all_peers, counts, timeline(bundle, 5), where))
    (arguments.out / "start.svg").write_text(plot(all_peers))
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
