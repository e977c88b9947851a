"""Containers by real clients: skopeo pulls an image, umoci unpacks it, runc runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from tests.support.pulled_image import PulledImage
from tests.validator.image_validator import validate

# Seconds; a new image of the Debian set is downloaded and built first.
_PULL = 300
_RUN = 60

# runc is in sbin, which is not on every user's PATH.
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


class Options(TypedDict, total=False):
    """How a run differs from the image's config.

    Attributes:
        user: id of the user, and of the group unless there is another one.
        group: id of the group.
        env: additional variables.
        files: files of this machine to mount, by their paths in the container.
        network_of_the_host: share it, to reach servers of the test.
    """

    user: int
    group: int
    env: Mapping[str, str]
    files: Mapping[str, Path]
    network_of_the_host: bool


@dataclass(frozen=True)
class Container:
    """An unpacked image.

    Attributes:
        image: as pulled, validated.
        bundle: umoci's bundle, with its ``rootfs`` and the config as ``umoci.json``.
    """

    image: PulledImage
    bundle: Path

    @property
    def root(self) -> Path:
        return self.bundle / "rootfs"

    def find(self, name: str, left: int = 40) -> Path:
        """Resolve a path in the container from outside: absolute symlinks start at its root."""
        assert left, f"too many symlinks at {name}"
        path = self.root
        components = Path(name).parts[1:]
        for position, component in enumerate(components):
            path = path / component
            if path.is_symlink():
                target = "/" / path.parent.relative_to(self.root) / path.readlink()
                return self.find(os.path.normpath(target.joinpath(*components[position + 1 :])), left - 1)
        return path

    def run(self, *command: str, **options: Unpack[Options]) -> str:
        """Run a command with runc, in the environment the image's config gives; return what it prints."""
        return call(self._runc(command, options), _RUN)

    def status(self, *command: str, **options: Unpack[Options]) -> tuple[int, str]:
        """Run a command that may fail; return its exit status and what it prints."""
        finished = _finish(self._runc(command, options), _RUN)
        return finished.returncode, finished.stdout

    @contextmanager
    def started(self, *command: str) -> Iterator[Callable[..., str]]:
        """Start a command, and yield a function that runs others in the same container (`docker exec`)."""
        name = self._prepare(command, {})
        # Not into a pipe, which would stay open until the command ends.
        with (self.bundle.parent / "started.log").open("wb") as output:
            subprocess.run(
                [*self._call, "run", "--detach", "--bundle", str(self.bundle), name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=_RUN,
                check=True,
                env=_ENVIRONMENT,
            )
        try:
            yield lambda *other: call([*self._call, "exec", name, *other], _RUN)
        finally:
            call([*self._call, "delete", "--force", name], _RUN)

    @property
    def _call(self) -> Sequence[str]:
        return ("runc", "--root", str(self.bundle.parent / "runc"))

    def _runc(self, command: Sequence[str], options: Options) -> Sequence[str]:
        return [*self._call, "run", "--bundle", str(self.bundle), self._prepare(command, options)]

    def _prepare(self, command: Sequence[str], options: Options) -> str:
        """Write the configuration for runc; return a name for the container."""
        specification = json.loads((self.bundle / "umoci.json").read_text())
        process = specification["process"]
        process |= {"args": list(command), "terminal": False}
        # A machine without CAP_SYS_RESOURCE cannot set the limits that umoci asks for.
        process.pop("rlimits", None)
        if "user" in options:
            process["user"] = {"uid": options["user"], "gid": options.get("group", options["user"])}
        variables = dict(entry.split("=", 1) for entry in process["env"]) | dict(options.get("env", {}))
        process["env"] = [f"{name}={value}" for name, value in variables.items()]
        specification["mounts"] += [
            {"destination": place, "source": str(file), "type": "bind", "options": ["bind", "ro"]}
            for place, file in options.get("files", {}).items()
        ]
        if options.get("network_of_the_host"):
            namespaces = specification["linux"]["namespaces"]
            specification["linux"]["namespaces"] = [one for one in namespaces if one["type"] != "network"]
        (self.bundle / "config.json").write_text(json.dumps(specification))
        return f"nixery-test-{uuid.uuid4().hex}"


def pull(port: int, name: str, reference: str, directory: Path) -> Container:
    """Pull with skopeo, check every digest of the result, unpack with umoci."""
    separator = "@" if reference.startswith("sha256:") else ":"
    source = f"docker://127.0.0.1:{port}/{name}{separator}{reference}"
    layout, bundle = directory / "layout", directory / "bundle"
    call(
        ["skopeo", "copy", "--src-tls-verify=false", "--override-os=linux", source, f"oci:{layout}:image"],
        _PULL,
    )
    image = PulledImage.from_oci_layout(layout)
    validate(image)
    call(["umoci", "unpack", "--image", _unpackable(image, layout), str(bundle)], _RUN)
    (bundle / "config.json").rename(bundle / "umoci.json")
    shutil.rmtree(layout)
    return Container(image, bundle)


def _unpackable(image: PulledImage, layout: Path) -> str:
    """umoci does not support zstd: skopeo decompresses for it."""
    if not any(layer.is_zstd for layer in image.layers):
        return f"{layout}:image"
    plain = f"dir:{layout.with_name('plain')}"
    call(["skopeo", "copy", "--dest-decompress", f"oci:{layout}:image", plain], _RUN)
    call(["skopeo", "copy", plain, f"oci:{layout}:plain"], _RUN)
    return f"{layout}:plain"


def call(command: Sequence[str], seconds: float) -> str:
    """Run a program that must succeed; return its output."""
    finished = _finish(command, seconds)
    assert finished.returncode == 0, (
        f"{' '.join(command)} failed with {finished.returncode}:\n{finished.stdout}"
    )
    return finished.stdout


def _finish(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
        env=_ENVIRONMENT,
    )
