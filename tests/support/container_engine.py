"""The commands of docker, podman and buildah, carried out by skopeo, umoci and runc without a daemon.

    python -m tests.support.container_engine docker run --rm 127.0.0.1:8080/hello

The scripts that ``install`` makes run it as a program. It knows only the commands and options that the
recipes of the documentation use. Unlike an engine, it runs all containers of an image in one root file system
and publishes no ports. The first process of a container of another architecture runs under QEMU's user mode
emulation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STATE = "NIXERY_TEST_ENGINE"
_EMULATOR = "/.emulator"

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

_REFERENCE = "org.opencontainers.image.ref.name"

# Seconds.
_PULL = 300
_STOP = 10


def install(directory: Path) -> dict[str, str]:
    """Write the programs and a directory for their state; return the environment that uses them."""
    programs = directory / "bin"
    programs.mkdir(parents=True)
    for name in ("docker", "podman", "buildah"):
        script = programs / name
        root = Path(__file__).parents[2]
        script.write_text(
            f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m tests.support.container_engine {name} "$@"\n'
        )
        script.chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    return {_STATE: str(directory / "engine"), "PATH": path}


def end_all(environment: dict[str, str]) -> None:
    """Delete all containers."""
    state = Path(environment[_STATE])
    for container in (state / "containers").glob("*"):
        _runc(state, "delete", "--force", container.name)


def _runc(state: Path, *arguments: str) -> int:
    return subprocess.run(["runc", "--root", str(state / "runc"), *arguments], check=False).returncode


def run(images: Images, state: Path, arguments: argparse.Namespace) -> int:
    """Run a container."""
    tag = images.image(arguments.image)
    config, bundle = images.config(tag), images.bundle(tag)
    execution = config["config"]
    entrypoint = [arguments.entrypoint] if arguments.entrypoint else execution.get("Entrypoint", [])
    default = [] if arguments.entrypoint else execution.get("Cmd", [])
    command = [*entrypoint, *(arguments.command or default)]
    specification = json.loads((bundle / "umoci.json").read_text())
    process = specification["process"]
    # A machine without CAP_SYS_RESOURCE must not set what umoci asks for.
    process.pop("rlimits", None)
    process |= {"terminal": False, "args": command, "cwd": arguments.workdir or process["cwd"]}
    process["env"] = [*process["env"], *arguments.env]
    # umoci mounts memory at every volume; engines mount a copy of the image's directory.
    volumes = set(execution.get("Volumes", {}))
    mounts = [mount for mount in specification["mounts"] if mount["destination"] not in volumes]
    for volume in arguments.volume:
        source, _, destination = volume.partition(":")
        mounts.append(
            {"destination": destination, "source": source, "type": "bind", "options": ["rbind", "rw"]}
        )
    if binary := emulator(config["architecture"]):
        mounts.append({"destination": _EMULATOR, "source": str(binary), "type": "bind", "options": ["bind"]})
        process["args"] = [_EMULATOR, _program(bundle / "rootfs", process["env"], command[0]), *command[1:]]
    specification["mounts"] = mounts
    _join(state, specification, {"network": arguments.network, "pid": arguments.pid})
    return _start(state, bundle, specification, arguments, execution.get("StopSignal", "SIGTERM"))


def _program(root: Path, environment: Sequence[str], name: str) -> str:
    """Find a program on ``PATH``: an emulator needs its full path."""
    if "/" in name:
        return name
    path = next(entry.partition("=")[2] for entry in environment if entry.startswith("PATH="))
    return next(
        f"{place}/{name}" for place in path.split(":") if (root / place.lstrip("/") / name).is_symlink()
    )


def _join(state: Path, specification: dict[str, Any], wanted: dict[str, str]) -> None:
    for namespace in specification["linux"]["namespaces"]:
        name = wanted.get(namespace["type"], "")
        if name:
            pid = (state / "containers" / name.removeprefix("container:") / "pid").read_text()
            kind = {"network": "net"}.get(namespace["type"], namespace["type"])
            namespace["path"] = f"/proc/{pid}/ns/{kind}"


def _start(
    state: Path, bundle: Path, specification: dict[str, Any], arguments: argparse.Namespace, stop_signal: str
) -> int:
    name = arguments.name or f"{os.getpid()}-{time.monotonic_ns()}"
    directory = state / "containers" / name
    directory.mkdir(parents=True)
    specification["root"]["path"] = str(bundle / "rootfs")
    (directory / "config.json").write_text(json.dumps(specification))
    (directory / "signal").write_text(stop_signal)
    if not arguments.detach:
        status = _runc(state, "run", "--bundle", str(directory), name)
        shutil.rmtree(directory)
        return status
    with (directory / "log").open("wb") as log:
        command = ["runc", "--root", str(state / "runc"), "run", "--detach", "--bundle", str(directory)]
        started = subprocess.run(
            [*command, "--pid-file", str(directory / "pid"), name], check=False, stdout=log, stderr=log
        )
    say(name)
    return started.returncode


def end(state: Path, name: str, *, force: bool) -> int:
    """Stop a container with its signal, or kill it."""
    directory = state / "containers" / name
    if not force:
        _runc(state, "kill", name, (directory / "signal").read_text())
        if not _wait_for_end(int((directory / "pid").read_text())):
            raise SystemExit(f"{name} does not stop on {(directory / 'signal').read_text()}")
    _runc(state, "delete", "--force", name)
    shutil.rmtree(directory)
    say(name)
    return 0


def _wait_for_end(process_id: int) -> bool:
    limit = time.monotonic() + _STOP
    while time.monotonic() < limit:
        status = Path(f"/proc/{process_id}/stat")
        if not status.exists() or ") Z " in status.read_text():
            return True
        time.sleep(0.02)
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    commands = parser.add_subparsers(dest="do", required=True)
    runs = commands.add_parser("run", allow_abbrev=False)
    for flag in ("--rm", "--interactive", "--tty", "--detach"):
        runs.add_argument(flag, f"-{flag[2]}" if flag != "--rm" else "-r", action="store_true")
    for option in ("--name", "--network", "--pid", "--entrypoint", "--publish"):
        runs.add_argument(option, default="")
    runs.add_argument("--workdir", "-w")
    runs.add_argument("--env", "-e", action="append", default=[])
    runs.add_argument("--volume", "-v", action="append", default=[])
    runs.add_argument("image")
    runs.add_argument("command", nargs=argparse.REMAINDER)
    execs = commands.add_parser("exec", allow_abbrev=False)
    execs.add_argument("name")
    execs.add_argument("command", nargs=argparse.REMAINDER)
    commands.add_parser("stop").add_argument("name")
    removes = commands.add_parser("rm")
    removes.add_argument("--force", action="store_true", required=True)
    removes.add_argument("name")
    loads = commands.add_parser("load")
    loads.add_argument("--quiet", action="store_true")
    loads.add_argument("--input", required=True)
    begins = commands.add_parser("from")
    begins.add_argument("--tls-verify")
    begins.add_argument("image")
    copies = commands.add_parser("copy")
    copies.add_argument("--quiet", action="store_true")
    copies.add_argument("--chmod", required=True)
    for argument in ("container", "source", "destination"):
        copies.add_argument(argument)
    configures = commands.add_parser("config")
    configures.add_argument("--cmd", required=True)
    configures.add_argument("container")
    commits = commands.add_parser("commit")
    commits.add_argument("--quiet", action="store_true")
    commits.add_argument("container")
    commits.add_argument("image")
    return parser


def emulator(architecture: str) -> Path | None:
    """Find the static emulator for an architecture; ``None`` for this machine's own."""
    machine = _MACHINES[architecture]
    if machine == os.uname().machine:
        return None
    found = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    assert found is not None, f"qemu for {machine} is not installed"
    return Path(found)


def say(line: str) -> None:
    """Print a line of output, which tests read."""
    sys.stdout.write(f"{line}\n")


class Images:
    """Images in one OCI layout."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._layout = state / "layout"
        state.mkdir(parents=True, exist_ok=True)

    def image(self, name: str) -> str:
        """Find an image that was loaded, or pull it; return its tag in the layout."""
        local = _tag(name if ":" in name else f"{name}:latest")
        if local in self._digests():
            return local
        source = name if name.startswith("oci-archive:") else f"docker://{name}"
        tag = _tag(source)
        self.copy(source, tag)
        return tag

    def copy(self, source: str, tag: str) -> None:
        """Copy an image into the layout, replacing one with the same tag."""
        shutil.rmtree(self._state / "bundles" / tag, ignore_errors=True)
        _call(
            *("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--override-os=linux"),
            *(source, f"oci:{self._layout}:{tag}"),
        )

    def umoci(self, command: str, tag: str, *arguments: str) -> None:
        """Change an image in the layout."""
        _call("umoci", command, "--image", f"{self._layout}:{tag}", *arguments)

    def config(self, tag: str) -> dict[str, Any]:
        """The config of an image."""
        manifest = json.loads(self._blob(self._digests()[tag]))
        config: dict[str, Any] = json.loads(self._blob(manifest["config"]["digest"]))
        return config

    def _digests(self) -> dict[str, str]:
        index = self._layout / "index.json"
        entries = json.loads(index.read_text())["manifests"] if index.exists() else []
        # An image whose tag was given to another one has none.
        names = ((entry.get("annotations", {}).get(_REFERENCE), entry["digest"]) for entry in entries)
        return {name: digest for name, digest in names if name}

    def _blob(self, digest: str) -> bytes:
        return (self._layout / "blobs" / digest.replace(":", "/")).read_bytes()

    def bundle(self, tag: str) -> Path:
        """Unpack an image, once."""
        bundle = self._state / "bundles" / tag
        if not bundle.exists():
            bundle.parent.mkdir(exist_ok=True)
            _call("umoci", "unpack", "--image", f"{self._layout}:{tag}", str(bundle))
            (bundle / "config.json").rename(bundle / "umoci.json")
        return bundle


def load(images: Images, archive: str, *, by_docker: bool) -> int:
    """Load an archive and print its name. Docker reads only its own format, Podman prefers OCI's."""
    file = "manifest.json" if by_docker else "index.json"
    document = json.loads(_call("tar", "-xOf", archive, file))
    if by_docker:
        name = document[0]["RepoTags"][0]
    else:
        name = document["manifests"][0]["annotations"]["io.containerd.image.name"]
    images.copy(f"{'docker' if by_docker else 'oci'}-archive:{archive}", _tag(name))
    say(f"Loaded image: {name}")
    return 0


def build(images: Images, arguments: argparse.Namespace) -> int:
    """Run one command of buildah."""
    match arguments.do:
        case "from":
            tag = images.image(arguments.image)
            images.umoci("tag", tag, f"{tag}-working-container")
            say(f"{tag}-working-container")
        case "copy":
            source = Path(arguments.source)
            source.chmod(int(arguments.chmod, 8))
            images.umoci("insert", arguments.container, str(source), arguments.destination)
        case "config":
            images.umoci("config", arguments.container, "--config.cmd", arguments.cmd)
        case "commit":
            images.umoci("tag", arguments.container, _tag(f"{arguments.image}:latest"))
    return 0


def _tag(name: str) -> str:
    return hashlib.sha256(name.removeprefix("localhost/").encode()).hexdigest()[:16]


def _call(*command: str) -> str:
    finished = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PULL
    )
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)}: {finished.stderr}{finished.stdout}")
    return finished.stdout


def main() -> int:
    """Run one command."""
    arguments = _parser().parse_args(sys.argv[2:])
    state = Path(os.environ[_STATE])
    images = Images(state)
    match arguments.do:
        case "run":
            return run(images, state, arguments)
        case "exec":
            return _runc(state, "exec", arguments.name, *arguments.command)
        case "stop" | "rm":
            return end(state, arguments.name, force=arguments.do == "rm")
        case "load":
            return load(images, arguments.input, by_docker=sys.argv[1] == "docker")
    return build(images, arguments)


if __name__ == "__main__":
    sys.exit(main())
