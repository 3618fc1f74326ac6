#!/usr/bin/env python3
"""Start-to-end time of `runvm run true` against its peers, interleaved within one run."""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess

from peers import TIMEOUT, WORK, Peer, plot, prepare, rounds, table


def pack_initrd(init, out):
    """An initial RAM disk that holds nothing but this /init."""
    tree = WORK / "tree"
    tree.mkdir()
    shutil.copy(init, tree / "init")
    packed = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=b"init\n", cwd=tree, check=True,
                            stdout=subprocess.PIPE).stdout
    out.write_bytes(packed)


def start_peers(bundle, memory):
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
                        # By its keyboard controller: a triple fault ends Firecracker with an exit code of 1.
                        "boot_args": "reboot=k panic=-1 quiet 8250.nr_uarts=0"},
        "drives": [], "machine-config": {"vcpu_count": 1, "mem_size_mib": memory},
    }
    path = WORK / "firecracker.json"
    path.write_text(json.dumps(config))
    return Peer("Firecracker, same kernel, init that exits", [binary, "--no-api", "--config-file", path])


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


def steps_table(steps):
    return ["", "Where runvm's time goes (medians, by the annotation `io.runvm.timeline`):", "",
            "| until | ms |", "|---|---|", *(f"| {name} | {value:.1f} |" for name, value in steps)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rootfs", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--memory", type=int, default=2048, help="MiB of the peers' machines")
    arguments = parser.parse_args()
    bundle = prepare(arguments.rootfs, ["true"])
    shutil.copy("target/bench/init", WORK / "bin")
    pack_initrd(WORK / "bin/init", WORK / "initrd")
    all_peers = start_peers(bundle, arguments.memory)
    pairs = rounds(all_peers)
    lines = table("Start to end of `true`", all_peers, pairs) + steps_table(timeline(bundle, 5))
    (arguments.out / "start.md").write_text("\n".join(lines) + "\n")
    (arguments.out / "start.svg").write_text(plot(all_peers))
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
