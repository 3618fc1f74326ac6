#!/usr/bin/env python3
"""What real programs cost in a machine and without one, in instructions, and what they ask of the host's files.

    work.py --runtime DIR --rootfs DIR --out DIR    in the lab with LAB_ICOUNT=1; writes work.md

DIR of --runtime holds runvm and its guest; --rootfs is an image with git, gcc, perl and sqlite (tests/images/make tools). Each program
runs in a fresh container on an overlay of one lower directory, all on tmpfs, prepared by the same programs on the host. runvm and runc
take turns; what each needs for `true` on the same image is taken off. Instructions are the host's processor's, the guest's included.
"""

import argparse
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

from counts import SETTLE, busy

WORK = pathlib.Path("/run/runvm-work")
ROUNDS = 2
ATTEMPTS = 4  # the emulator makes a guest hang or resets it now and then (docs/lab.md, "Limits and troubles")
TIMEOUT = 5  # seconds of the emulated clock, five thousand million instructions

TREE = "w/s"  # twenty directories of fifty files in the image
# Name: what prepares the root, and what is measured.
PROGRAMS = {
    "true": ("true", "true"),
    "git status, 1,000 files": ("cd /w/s && git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm x && sleep 1 && git status -s",
                                "cd /w/s && git status -s"),
    "tar x, 1,000 files": ("cd /w && tar cf a.tar s", "mkdir /w/t && cd /w/t && tar xf ../a.tar"),
    "cp -r, 1,000 files": ("true", "cp -r /w/s /w/t"),
    "grep -r, 1,000 files": ("true", "grep -r nothing-like-it /w/s; [ $? = 1 ]"),
    "rm -r, 1,000 files": ("true", "rm -r /w/s"),
    "gcc, one file": ("printf '#include <stdio.h>\\n#include <stdlib.h>\\nint main(void) { puts(\"x\"); return 0; }\\n' >/w/x.c", "cd /w && gcc -O1 x.c -o x"),
    "perl, ten modules": ("true", "perl -MPOSIX -MData::Dumper -MFile::Find -MGetopt::Long -MIO::Socket -MStorable -MTime::HiRes -MEncode -MText::Wrap -MList::Util -e 1"),
    "sqlite, 100 transactions": ("sqlite3 /w/d 'create table t(a)'",
                                 "for n in $(seq 100); do echo 'insert into t values(1);'; done | sqlite3 /w/d"),
}


class Again(Exception):
    """A guest that the emulator broke."""


def mount(directory):
    options = f"lowerdir={WORK / 'lower'},upperdir={directory / 'upper'},workdir={directory / 'work'}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", directory / "rootfs"], check=True)


def overlay(name):
    """The bundle's directory, with a fresh overlay of the image."""
    directory = WORK / name
    for part in ("upper", "work", "rootfs"):
        (directory / part).mkdir(parents=True)
    mount(directory)
    return directory


def configure(directory, script):
    subprocess.run([WORK / "bin/runvm", "spec", "--bundle", directory], check=True)
    config = json.loads((directory / "config.json").read_text())
    config["process"].update(args=["sh", "-c", script], terminal=False)
    config["root"]["readonly"] = False
    config["annotations"] = {"io.runvm.timeline": "true"}
    (directory / "config.json").write_text(json.dumps(config))


def performed(name, runtime, program):
    """Instructions of one run of a program by a runtime, and its FUSE requests by kind."""
    prepare, script = PROGRAMS[program]
    directory = overlay(name)
    try:
        subprocess.run(["chroot", directory / "rootfs", "sh", "-ec", prepare], check=True, stdout=subprocess.DEVNULL)
        # As in a container that starts later: nothing of the overlay is known any more.
        subprocess.run(["umount", directory / "rootfs"], check=True)
        mount(directory)
        configure(directory, script)
        log = directory / "log"
        command = [runtime, "--log", log, "--root", WORK / "state", "run", "--bundle", directory, name]
        time.sleep(SETTLE)
        before = busy()
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            subprocess.run([runtime, "--root", WORK / "state", "delete", "--force", name], check=False)
            raise Again(f"{program} has not ended") from None
        time.sleep(SETTLE)
        cost = busy() - before
        said = log.read_text(errors="replace") if log.exists() else ""
        if done.returncode and "the guest stopped (reset)" in said:
            raise Again(f"{program}: the guest was reset")
        if done.returncode:
            sys.exit(f"{program} by {runtime}: exit code {done.returncode}: {done.stdout.decode(errors='replace')[-1000:]}{said[-1000:]}")
        found = re.search(r"FUSE requests: ([^;]*);", said)
        requests = {kind: int(count) for kind, count in re.findall(r"([A-Z_0-9]+) (\d+)", found.group(1))} if found else {}
        return cost, requests
    finally:
        subprocess.run(["umount", directory / "rootfs"], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def attempted(*arguments):
    for _ in range(ATTEMPTS):
        try:
            return performed(*arguments)
        except Again as error:
            print(f"{error}: again", flush=True)
    sys.exit(f"{arguments}: the guest broke {ATTEMPTS} times")


def measured(program):
    """Medians of both runtimes' instructions, and the requests of the last run."""
    costs = {"runvm": [], "runc": []}
    kinds = {}
    for number in range(ROUNDS):
        for name, runtime in (("runvm", WORK / "bin/runvm"), ("runc", "runc")):
            cost, requests = attempted(f"{name}{number}", runtime, program)
            costs[name].append(cost)
            kinds = requests or kinds
    print(f"{program}: {costs} {kinds}", flush=True)
    return {name: statistics.median(values) for name, values in costs.items()}, kinds


def less(requests, base):
    left = {kind: count - base.get(kind, 0) for kind, count in requests.items()}
    return {kind: count for kind, count in left.items() if count > 0}


def table(found):
    base, known = found["true"]
    lines = ["# Real programs", "", "Millions of instructions, those of `true` taken off.", "",
             "| program | runvm | runc | runvm ÷ runc | FUSE requests |", "|---|---|---|---|---|"]
    for program, (costs, requests) in found.items():
        if program == "true":
            lines.append(f"| `true`, its start and end | {base['runvm'] / 1e6:,.1f} | {base['runc'] / 1e6:,.1f} | | {sum(known.values())} |")
            continue
        vm, host = (costs[name] - base[name] for name in ("runvm", "runc"))
        kinds = sorted(less(requests, known).items(), key=lambda kind: -kind[1])
        asked = ", ".join(f"{kind} {count:,}" for kind, count in kinds[:7])
        lines.append(f"| {program} | {vm / 1e6:,.1f} | {host / 1e6:,.1f} | {vm / host:.1f} | {asked} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--runtime", "--rootfs", "--out"):
        parser.add_argument(option, required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "bin").mkdir(parents=True)
    shutil.copytree(arguments.runtime / "guest", WORK / "bin/guest")
    shutil.copy(arguments.runtime / "runvm", WORK / "bin/runvm")
    (WORK / "lower").mkdir()
    subprocess.run(["tar", "-C", WORK / "lower", "-xf", f"{arguments.rootfs}.tar"], check=True)
    for number in range(1000):
        name = WORK / "lower" / TREE / f"{number // 50}/{number % 50}"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(b"x" * 2000)
    measured("true")  # what is read and cached for the first time is not of interest
    found = {program: measured(program) for program in PROGRAMS}
    (arguments.out / "work.md").write_text("\n".join(table(found)) + "\n")


if __name__ == "__main__":
    main()
