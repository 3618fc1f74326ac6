"""What every benchmark here does: peers that are timed in turn, counts that explain the times, a table and a plot.

Everything that is timed lies on tmpfs. Medians and ratios to the first peer; beside each the VM exits (tracepoint
kvm:kvm_exit) and system calls (strace) of one more run, not timed.
"""

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


def prepare(rootfs, args):
    """Copies what is timed to tmpfs; returns the folder of a bundle with this process."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    shutil.copytree("target/release/guest", WORK / "bin/guest")
    for binary in ("target/release/runvm", shutil.which("crun")):
        shutil.copy(binary, WORK / "bin")
    bundle = WORK / "bundle"
    bundle.mkdir()
    shutil.copytree(rootfs, bundle / "rootfs", symlinks=True)
    subprocess.run([WORK / "bin/runvm", "spec", "--bundle", bundle], check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = args
    config["process"]["terminal"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def rounds(all_peers):
    """Times every peer so many times, after a first time for each that does not count; returns how many."""
    pairs = max(int(os.environ.get("TEST_BENCH_PAIRS", "10")), 1)
    for peer in all_peers:
        peer.checked()
    for number in range(pairs):
        # Each second round backwards, or one would always find the memory that the same other has just left.
        for peer in all_peers if number % 2 == 0 else reversed(all_peers):
            peer.seconds.append(peer.checked())
        print(f"round {number + 1} of {pairs}: "
              + ", ".join(f"{peer.name} {peer.seconds[-1]:.3f} s" for peer in all_peers), flush=True)
    return pairs


def table(title, all_peers, pairs):
    """Lines of Markdown."""
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    where = (f"{pairs} interleaved rounds; kernel {os.uname().release}, {os.cpu_count()} CPUs "
             f"({cpu.group(1) if cpu else 'unknown'}); everything timed on tmpfs.")
    base, first = all_peers[0].median, all_peers[0].name.split()[0]
    lines = [f"# {title}", "", where, "",
             f"| what | median | min–max | {first} ÷ it | VM exits | system calls |", "|---|---|---|---|---|---|"]
    for peer in all_peers:
        ratio = "1" if peer is all_peers[0] else f"{base / peer.median:.2f}"
        spread = f"{min(peer.seconds):.3f}–{max(peer.seconds):.3f} s"
        lines.append(f"| {peer.name} | {peer.median:.3f} s | {spread} | {ratio} | {exits(peer)} | {syscalls(peer)} |")
    return lines


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
