#!/usr/bin/env python3
"""Fifty containers on one of Docker's networks: each serves a page, finds the next one by its name, and one finds them all.

Tells how long the start of all took, four at a time, how long the questions took, and what memory of the host each container holds
while it waits. Fails when one of them is not found, or something of the network is left afterwards.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

from peers import WORK

COUNT = int(os.environ.get("TEST_BENCH_CONTAINERS", "50"))
IMAGE = "runvm-bench"
# Patience with one command: an emulated host runs fifty kernels on one processor.
LONG = 300


def docker(*args, check=True):
    done = subprocess.run(["docker", "--host", f"unix://{WORK}/sock", "--config", WORK / "client", *args], capture_output=True,
                          text=True, timeout=LONG)
    if check and done.returncode:
        sys.exit(f"docker {' '.join(args)}: {done.stderr}")
    return done


def daemon():
    """A dockerd of its own, with files on tmpfs."""
    log = (WORK / "log").open("w")
    started = subprocess.Popen(["dockerd", "--data-root", WORK / "data", "--exec-root", WORK / "exec", "--pidfile", WORK / "pid",
                                "--host", f"unix://{WORK}/sock", "--add-runtime", f"vm={WORK}/bin/runvm", "--storage-driver", "overlay2",
                                "--default-address-pool", "base=10.201.0.0/16,size=24"], stdout=log, stderr=log)
    for _ in range(LONG):
        if docker("version", check=False).returncode == 0:
            return started
        time.sleep(1)
    sys.exit(f"dockerd does not answer: {(WORK / 'log').read_text()[-2000:]}")


def links():
    return set(re.findall(r"^\d+: ([^:@]+)", subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout, re.M))


def at_once(work, most=4):
    """Does it for each number; returns the seconds that all took, and the results."""
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(most) as pool:
        results = list(pool.map(work, range(COUNT)))
    return time.monotonic() - begin, results


def start(number):
    script = f"mkdir -p /www; echo {number} >/www/index.html; exec httpd -f -p 80 -h /www"
    docker("run", "--detach", "--runtime", "vm", "--network", "many", "--name", f"c{number}", IMAGE, "sh", "-c", script)


def ask_next(number):
    other = (number + 1) % COUNT
    answer = docker("exec", f"c{number}", "timeout", "60", "wget", "-q", "-O", "-", f"http://c{other}/", check=False)
    if answer.stdout.strip() != str(other):
        print(f"c{number} asked c{other}: {answer.stdout}{answer.stderr}", file=sys.stderr)
    return answer.stdout.strip() == str(other)


def ask_all():
    script = f"i=0; while [ $i -lt {COUNT} ]; do timeout 60 wget -q -O - http://c$i/ || exit 1; i=$((i + 1)); done"
    begin = time.monotonic()
    answer = docker("exec", "c0", "sh", "-c", script, check=False)
    return time.monotonic() - begin, answer.stdout.split() == [str(number) for number in range(COUNT)]


def memory():
    """KiB of the host that each monitor holds, guest included, in mean."""
    held = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if b"monitor" in (process / "cmdline").read_bytes() and int(re.search(r"Pss:\s+(\d+)", (process / "smaps_rollup").read_text())[1]) > 4096:
                held.append(int(re.search(r"Pss:\s+(\d+)", (process / "smaps_rollup").read_text())[1]))
        except (OSError, TypeError):
            continue
    return sum(held) / max(len(held), 1), len(held)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rootfs", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "bin").mkdir(parents=True)
    shutil.copytree("target/release/guest", WORK / "bin/guest")
    shutil.copy("target/release/runvm", WORK / "bin")
    running = daemon()
    docker("import", f"{arguments.rootfs}.tar", IMAGE)
    before = links()
    docker("network", "create", "many")
    started, _ = at_once(start)
    kib, monitors = memory()
    asked, answers = at_once(ask_next)
    alone, found = ask_all()
    removed, _ = at_once(lambda number: docker("rm", "--force", f"c{number}"))
    docker("network", "rm", "many")
    left = links() - before
    running.terminate()
    running.wait()
    lines = ["# Many containers on one network", "",
             f"{COUNT} containers, dockerd, one user-defined network; kernel {os.uname().release}, {os.cpu_count()} CPUs.", "",
             "| what | |", "|---|---|",
             f"| all started, four at a time | {started:.0f} s |",
             f"| each asks the next one by name | {sum(answers)} of {COUNT} answered, {asked:.0f} s |",
             f"| one asks all, one after the other | {'all' if found else 'not all'} answered, {alone / COUNT * 1000:.0f} ms each |",
             f"| memory of the host (Pss) of one container | {kib / 1024:.1f} MiB, mean of {monitors} |",
             f"| all removed, four at a time | {removed:.0f} s |",
             f"| links left | {' '.join(left) or 'none'} |"]
    (arguments.out / "many.md").write_text("\n".join(lines) + "\n")
    if not all(answers) or not found or left:
        sys.exit("\n".join(lines))
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
