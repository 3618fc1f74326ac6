#!/usr/bin/env python3
"""What containers do with files on their root file system: runvm, runc, and QEMU with virtiofsd, in turns within one run.

All three have an overlay of the same lower directory, on tmpfs; QEMU has runvm's kernel. Times are taken inside, by
bench/files.c, in a fresh container or machine each time: so `find`, `readall`, `seqread` and `randread` find the guest's caches empty
(the host has everything in memory), `stat` finds them warm.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import time

from peers import WORK

TIMEOUT = 600
PHASES = ["find", "stat", "readall", "untar", "rm", "seqwrite", "seqread", "randread"]
MEANING = {
    "find": "readdir and lstat of a tree of 5,000 files, cold", "stat": "lstat of the 5,000, warm",
    "readall": "open, read, close of the 5,000 (2 KiB each)", "untar": "create, write, chmod, utimens, close of 5,000",
    "rm": "readdir, lstat, unlink of these", "seqwrite": "256 MiB written, fsync", "seqread": "256 MiB read",
    "randread": "5,000 pages read in random order",
}
DIRS, FILES, SIZE, BIG = 50, 100, 2048, 256 << 20
VIRTIOFSD = next((path for path in ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd") if os.path.exists(path)), None)


def lower(rootfs, program):
    """The directory below all overlays."""
    base = WORK / "lower"
    shutil.copytree(rootfs, base, symlinks=True)
    shutil.copy(program, base / "files")
    for d in range(DIRS):
        (base / f"tree/d{d}").mkdir(parents=True)
        for f in range(FILES):
            (base / f"tree/d{d}/f{f}").write_bytes(b"x" * SIZE)
    for name in ("big", "random"):
        (base / name).write_bytes(os.urandom(1 << 20) * (BIG >> 20))
    return base


class Overlay:
    """A fresh overlay, mounted while this is open."""

    def __init__(self, name):
        self.dir = WORK / name

    def __enter__(self):
        for part in ("upper", "work", "rootfs"):
            (self.dir / part).mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={WORK / 'lower'},upperdir={self.dir / 'upper'},workdir={self.dir / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", self.dir / "rootfs"], check=True)
        return self.dir / "rootfs"

    def __exit__(self, *_):
        subprocess.run(["umount", self.dir / "rootfs"], check=True)
        for part in ("upper", "work"):
            shutil.rmtree(self.dir / part)


def output(command, **more):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT, **more)
    return done.stdout.decode(errors="replace")


def container(runtime, phases, annotations=None):
    """What `files` and the runtime's log say, in a container of this runtime."""
    with Overlay(runtime) as rootfs:
        bundle = rootfs.parent
        subprocess.run([WORK / "bin/runvm", "spec", "--bundle", bundle], check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(args=["/files", "/", *phases], terminal=False)
        config["root"]["readonly"] = False
        config["annotations"] = annotations or {}
        (bundle / "config.json").write_text(json.dumps(config))
        log = bundle / "log"
        log.unlink(missing_ok=True)
        said = output([WORK / "bin" / runtime, "--log", log, "--root", WORK / f"{runtime}.state", "run", "--bundle", bundle, "bench"])
        (bundle / "config.json").unlink()
        return said + (log.read_text(errors="replace") if log.exists() else "")


def qemu(_, phases):
    """The same in a machine of QEMU's, with virtiofsd as Debian ships it and by its defaults."""
    with Overlay("qemu") as rootfs:
        socket = WORK / "virtiofsd.sock"
        daemon = subprocess.Popen([VIRTIOFSD, f"--socket-path={socket}", "-o", f"source={rootfs}"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not socket.exists():
            time.sleep(0.01)
        command = ["qemu-system-x86_64", "-global", "virtio-mmio.force-legacy=false", "-M", "microvm,accel=kvm,acpi=off,rtc=off,pit=off,pic=off,memory-backend=memory", "-cpu", "host",
                   "-m", "1024", "-object", "memory-backend-memfd,id=memory,size=1024M,share=on", "-smp", str(os.cpu_count()),
                   "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
                   "-chardev", f"socket,id=fs,path={socket}", "-device", "vhost-user-fs-device,chardev=fs,tag=files,queue-size=1024",
                   "-kernel", WORK / "bin/guest/vmlinux", "-initrd", WORK / "initrd",
                   "-append", "console=ttyS0 8250.nr_uarts=1 reboot=t panic=-1 quiet phases=" + ",".join(phases)]
        try:
            return output(command)
        finally:
            daemon.terminate()
            daemon.wait()
            socket.unlink(missing_ok=True)


PEERS = {"runvm": container, "runc": container, "QEMU + virtiofsd": qemu}


def seconds(said, phases):
    """Of each phase, from what was said."""
    found = {name: float(value) for name, value in re.findall(r"^(\w+) (\d+\.\d+) \d+\s*$", said, re.M)}
    missing = [phase for phase in phases if phase not in found]
    if missing:
        raise SystemExit(f"no time of {missing} in what was said:\n{said[-3000:]}")
    return found


def requests(phases):
    """FUSE requests of a container that does this, by name."""
    said = container("runvm", phases, {"io.runvm.timeline": "true"})
    found = re.search(r"FUSE requests: ([^;]*);", said)
    return {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", found.group(1))} if found else {}


def counts():
    """Lines about the FUSE requests of each phase alone."""
    nothing = requests(["none"])
    lines = ["", "FUSE requests of each, without those of the container's start:", "", "| phase | requests | of these |", "|---|---|---|"]
    for phase in PHASES:
        # Some need what another makes.
        before = {"rm": ["untar"], "stat": ["find"]}.get(phase, [])
        base = requests(before) if before else nothing
        more = {name: count - base.get(name, 0) for name, count in requests([*before, phase]).items()}
        more = {name: count for name, count in more.items() if count > 0}
        parts = ", ".join(f"{name} {count}" for name, count in sorted(more.items(), key=lambda item: -item[1]))
        lines.append(f"| {phase} | {sum(more.values())} | {parts} |")
    return lines


def measure(pairs):
    times = {name: {phase: [] for phase in PHASES} for name in PEERS}
    for number in range(pairs + 1):
        # The first round does not count; each second one goes backwards.
        for name, run in (list(PEERS.items()) if number % 2 else list(PEERS.items())[::-1]):
            took = seconds(run(name, PHASES), PHASES)
            print(f"round {number} of {pairs}: {name}: " + ", ".join(f"{phase} {took[phase]:.3f}" for phase in PHASES), flush=True)
            if number:
                for phase in PHASES:
                    times[name][phase].append(took[phase])
    return times


def table(times, pairs):
    lines = ["# Files", "", f"{pairs} interleaved rounds; kernel {os.uname().release}, {os.cpu_count()} CPUs; overlays on tmpfs; medians.", "",
             "| phase | what | runvm | runc | QEMU + virtiofsd | runvm ÷ runc | runvm ÷ virtiofsd |", "|---|---|---|---|---|---|---|"]
    for phase in PHASES:
        own, runc, daemon = (statistics.median(times[name][phase]) for name in PEERS)
        lines.append(f"| {phase} | {MEANING[phase]} | {own:.3f} s | {runc:.3f} s | {daemon:.3f} s | {own / runc:.2f} | {own / daemon:.2f} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rootfs", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "bin").mkdir(parents=True)
    shutil.copytree("target/release/guest", WORK / "bin/guest")
    for binary in ("target/release/runvm", shutil.which("runc")):
        shutil.copy(binary, WORK / "bin")
    (WORK / "tree").mkdir()
    shutil.copy("target/bench/files", WORK / "tree/init")
    packed = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=b"init\n", cwd=WORK / "tree", check=True, stdout=subprocess.PIPE)
    (WORK / "initrd").write_bytes(packed.stdout)
    lower(arguments.rootfs, "target/bench/files")
    pairs = max(int(os.environ.get("TEST_BENCH_PAIRS", "10")), 1)
    lines = table(measure(pairs), pairs) + counts()
    (arguments.out / "files.md").write_text("\n".join(lines) + "\n")
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
