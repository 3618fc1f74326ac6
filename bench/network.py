#!/usr/bin/env python3
"""TCP between the host and a container on a bridge: runvm, runc, and a microvm of QEMU's with a tap, in turns within one run.

The server (bench/network.c) runs in each of the three, all of them at the same time and idle but for the one that is
asked; the client runs on the host. Then how much one network card adds to the start of a container.
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

import peers
from peers import WORK, Peer

PORT = "5000"
ADDRESSES = {"runvm": "10.7.0.2", "runc": "10.7.0.3", "QEMU microvm + tap": "10.7.0.4"}
# What is asked, how often or how many MiB, what is told of it, and how it is said.
PHASES = {
    "rr": (2000, lambda seconds, n: seconds / n * 1e6, "µs for one byte there and back"),
    "connect": (300, lambda seconds, n: seconds / n * 1e6, "µs for a connection with that"),
    "send": (256, lambda seconds, n: n / seconds, "MiB/s to the container"),
    "receive": (256, lambda seconds, n: n / seconds, "MiB/s from the container"),
}


def sh(script):
    subprocess.run(["sh", "-ec", script], check=True)


def bridge():
    sh("ip link add bench0 type bridge; ip addr add 10.7.0.1/24 dev bench0; ip link set bench0 up")


def namespace(name, address):
    """A network namespace on the bridge; without an address an empty one."""
    sh(f"ip netns add {name}; ip -n {name} link set lo up")
    if address:
        sh(f"ip link add b-{name} type veth peer name eth0 netns {name}; ip link set b-{name} master bench0 up; "
           f"ip -n {name} addr add {address}/24 dev eth0; ip -n {name} link set eth0 up")


def bundle(name, rootfs, network, args):
    """A bundle of the rootfs with this process, in this network namespace."""
    directory = WORK / name
    directory.mkdir()
    subprocess.run([WORK / "bin/runvm", "spec", "--bundle", directory], check=True)
    config = json.loads((directory / "config.json").read_text())
    config["process"].update(args=args, terminal=False)
    config["root"]["path"] = str(rootfs)
    for entry in config["linux"]["namespaces"]:
        if entry["type"] == "network":
            entry["path"] = f"/run/netns/{network}"
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def command(runtime, *verb):
    return [WORK / "bin" / runtime, "--root", WORK / f"{runtime}.state", *verb]


def run(runtime, directory, name):
    return command(runtime, "run", "--bundle", directory, name)


def servers(rootfs):
    """Starts the three; returns their processes."""
    started = []
    for runtime in ("runvm", "runc"):
        namespace(runtime, ADDRESSES[runtime])
        directory = bundle(f"{runtime}.serve", rootfs, runtime, ["/network", "serve", PORT])
        started.append(subprocess.Popen(run(runtime, directory, f"serve-{runtime}"), stdin=subprocess.DEVNULL))
    sh("ip tuntap add bench-tap mode tap vnet_hdr; ip link set bench-tap master bench0 up")
    started.append(subprocess.Popen([
        "qemu-system-x86_64", "-global", "virtio-mmio.force-legacy=false",
        "-M", "microvm,accel=kvm,acpi=off,rtc=off,pit=off,pic=off", "-cpu", "host", "-m", "512", "-smp", str(os.cpu_count()),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "none",
        "-netdev", "tap,id=n,ifname=bench-tap,script=no,downscript=no", "-device", "virtio-net-device,netdev=n,mac=02:00:00:07:00:04",
        "-kernel", WORK / "bin/guest/vmlinux", "-initrd", WORK / "initrd", "-append", "reboot=t panic=-1 quiet",
    ], stdin=subprocess.DEVNULL))
    for address in ADDRESSES.values():
        deadline = time.monotonic() + 60
        while subprocess.run([WORK / "network", "rr", address, PORT, "1"], capture_output=True).returncode:
            if time.monotonic() > deadline:
                sys.exit(f"nobody serves at {address}")
            time.sleep(0.2)
    return started


def ask(phase, address, count):
    asked = subprocess.run([WORK / "network", phase, address, PORT, str(count)], check=True, stdout=subprocess.PIPE, timeout=300)
    return float(asked.stdout)


def measure(pairs):
    found = {name: {phase: [] for phase in PHASES} for name in ADDRESSES}
    for number in range(pairs + 1):
        # The first round does not count; each second one goes backwards.
        order = list(ADDRESSES.items())[:: 1 if number % 2 else -1]
        for phase, (count, value, _) in PHASES.items():
            for name, address in order:
                result = value(ask(phase, address, count), count)
                if number:
                    found[name][phase].append(result)
        print(f"round {number} of {pairs}", flush=True)
    return found


def exits(phase, address, count):
    """VM exits of one run."""
    peer = Peer(phase, [WORK / "network", phase, address, PORT, str(count)])
    return peers.exits(peer)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rootfs", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    (WORK / "bin").mkdir(parents=True)
    shutil.copytree("target/release/guest", WORK / "bin/guest")
    for binary in ("target/release/runvm", shutil.which("runc"), shutil.which("crun")):
        shutil.copy(binary, WORK / "bin")
    shutil.copy("target/bench/network", WORK / "network")
    rootfs = WORK / "rootfs"
    shutil.copytree(arguments.rootfs, rootfs, symlinks=True)
    shutil.copy("target/bench/network", rootfs / "network")
    (WORK / "tree").mkdir()
    shutil.copy("target/bench/network", WORK / "tree/init")
    packed = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=b"init\n", cwd=WORK / "tree", check=True, stdout=subprocess.PIPE)
    (WORK / "initrd").write_bytes(packed.stdout)
    bridge()
    pairs = max(int(os.environ.get("TEST_BENCH_PAIRS", "10")), 1)
    started = servers(rootfs)
    found = measure(pairs)
    lines = ["# Network", "", f"{pairs} interleaved rounds; kernel {os.uname().release}, {os.cpu_count()} CPUs; medians; VM exits of one run each.", "",
             "| what | runvm | runc | QEMU microvm + tap | runvm ÷ runc | runvm ÷ QEMU | exits of runvm | of QEMU |", "|---|---|---|---|---|---|---|---|"]
    for phase, (count, _, meaning) in PHASES.items():
        own, runc, qemu = (statistics.median(found[name][phase]) for name in ADDRESSES)
        per = [exits(phase, ADDRESSES[name], count) / count for name in ("runvm", "QEMU microvm + tap")]
        lines.append(f"| {phase}: {meaning} | {own:.0f} | {runc:.0f} | {qemu:.0f} | {own / runc:.2f} | {own / qemu:.2f} | {per[0]:.1f} | {per[1]:.1f} |")
    # The first process of a container does not hear SIGTERM.
    for runtime in ("runvm", "runc"):
        subprocess.run(command(runtime, "delete", "--force", f"serve-{runtime}"), check=True)
    for process in started:
        process.terminate()
        process.wait()
    for name, address in (("card", "10.7.0.5"), ("none", None)):
        namespace(name, address)
    timed = [Peer(f"{runtime}, {what}", run(runtime, bundle(f"{runtime}.{name}", rootfs, name, ["true"]), "start"))
             for runtime in ("runvm", "crun") for name, what in (("none", "no link"), ("card", "one link"))]
    rounds = peers.rounds(timed)
    lines += ["", *peers.table("Start with a network card", timed, rounds)[2:]]
    (arguments.out / "network.md").write_text("\n".join(lines) + "\n")
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
