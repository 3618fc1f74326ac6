#!/usr/bin/env python3
"""What an engine's whole default config.json costs a start, against that of `runvm spec`, interleaved within one run.

The engine is podman: its default seccomp profile, capabilities, masked and read-only paths, limits, volumes.
"""

import argparse
import json
import pathlib
import shutil
import subprocess

from peers import WORK, Peer, plot, prepare, rounds, table


def podman(*arguments):
    folders = [part for flag in ("root", "runroot", "tmpdir") for part in (f"--{flag}", WORK / "podman" / flag)]
    command = ["podman", *folders, "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime", shutil.which("crun")]
    return subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE).stdout.decode().strip()


def full_bundle(rootfs):
    """A bundle with podman's config.json for `true`; the container it is of stays created meanwhile."""
    name = podman("create", "--network", "none", "--rootfs", rootfs, "true")
    podman("init", name)
    config = json.loads(pathlib.Path(podman("inspect", "--format", "{{.OCIConfigPath}}", name)).read_text())
    config["root"]["path"] = str(rootfs)
    # Its own, or both would be in one.
    config["linux"].pop("cgroupsPath", None)
    config.pop("hooks", None)
    bundle = WORK / "full"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rootfs", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    small = prepare(arguments.rootfs, ["true"])
    full = full_bundle(small / "rootfs")
    all_peers = [
        Peer(f"{name} run true, {what} config.json",
             [WORK / "bin" / name, "--root", WORK / name, "run", "--bundle", bundle, "bench"])
        for name in ("runvm", "crun") for what, bundle in (("podman's", full), ("smallest", small))
    ]
    pairs = rounds(all_peers)
    lines = table("A whole config.json", all_peers, pairs)
    (arguments.out / "spec.md").write_text("\n".join(lines) + "\n")
    (arguments.out / "spec.svg").write_text(plot(all_peers))
    podman("rm", "--all", "--force", "--time", "0")
    shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
