#!/usr/bin/env python3
"""Time of `runvm exec true` in a running container against `crun exec`, interleaved within one run.

Also what a row of many such processes costs: the memory that the container and its monitor have taken afterwards.
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess

from peers import TIMEOUT, WORK, Peer, plot, prepare, rounds, table

ROW = 1000


class Runtime:
    """A container of one runtime that runs while this is open."""

    def __init__(self, name, bundle):
        self.name, self.bundle = name, bundle
        self.command = [WORK / "bin" / name, "--root", WORK / name]

    def call(self, *arguments):
        return subprocess.run([*self.command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              check=True, timeout=TIMEOUT)

    def __enter__(self):
        self.call("run", "--detach", "--bundle", self.bundle, "bench")
        return self

    def __exit__(self, *_):
        self.call("delete", "--force", "bench")

    def peer(self):
        return Peer(f"{self.name} exec true", [*self.command, "exec", "bench", "true"])

    def monitor_kib(self):
        """Resident memory of the process that the runtime reports, in KiB: guest memory is part of it."""
        state = subprocess.run([*self.command, "state", "bench"], check=True, stdout=subprocess.PIPE).stdout
        status = pathlib.Path(f"/proc/{json.loads(state)['pid']}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))

    def guest_kib(self):
        """Memory in use in the guest, in KiB, as a process there sees it."""
        text = subprocess.run([*self.command, "exec", "bench", "cat", "/proc/meminfo"], check=True,
                              stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout.decode()
        number = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+) kB", text)}
        return sum(number[name] for name in ("AnonPages", "Shmem", "Slab", "KernelStack", "PageTables", "Percpu"))


def row(runtime):
    """Lines about a row of processes."""
    for _ in range(ROW // 10):  # until every list of free pages is as long as it gets
        runtime.call("exec", "bench", "true")
    before = runtime.monitor_kib(), runtime.guest_kib()
    for _ in range(ROW):
        runtime.call("exec", "bench", "true")
    after = runtime.monitor_kib(), runtime.guest_kib()
    return ["", f"{ROW} processes in a row: the monitor (with the guest's memory) holds {before[0]} KiB and then {after[0]} KiB, "
            f"in the guest {before[1]} KiB are in use and then {after[1]} KiB."]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rootfs", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    bundle = prepare(arguments.rootfs, ["sleep", "100000"])
    with Runtime("runvm", bundle) as runvm, Runtime("crun", bundle) as crun:
        all_peers = [runvm.peer(), crun.peer()]
        pairs = rounds(all_peers)
        lines = table("A process more in a running container", all_peers, pairs) + row(runvm)
    (arguments.out / "exec.md").write_text("\n".join(lines) + "\n")
    (arguments.out / "exec.svg").write_text(plot(all_peers))
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
