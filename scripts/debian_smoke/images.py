"""Build an image as a user of nixery does, unpack it, and run its programs in it with runc."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.debian_smoke.commands import Run

# Seconds.
_BUILD = 3600
_UNPACK = 600
_DELETE = 60

# Bytes of a program's output that are kept; a program may print without an end.
_OUTPUT = 64 * 1024
# Bytes of blobs that are kept for the next images; unpacked, they have two or three times as many.
_MOST_STORAGE = 1024**3

PLAIN_USER = 1000
"""Id of a user and a group without entries in /etc/passwd and /etc/group."""

# runc's message of a container that it cannot start, for which it exits with 1.
_NOT_STARTED = re.compile(r'^time="[^"]*" level=error msg="runc run failed: (.*)"$', re.MULTILINE)
# A shell's status for a program that is not there.
_NOT_FOUND = 127

# Docker's and podman's default for root.
_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE",
        "SYS_CHROOT", "SETFCAP", "AUDIT_WRITE", "MKNOD",
    )
]  # fmt: skip

# runc is in sbin, which is not on every user's PATH.
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


class ImageError(Exception):
    """An image cannot be built or unpacked."""


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image.

    Attributes:
        bundle: of runc, with the root file system and a template of the configuration.
        config: the image's config.
        layers_size: bytes of the compressed layers.
    """

    bundle: Path
    config: Mapping[str, Any]
    layers_size: int

    def run(self, program: str, arguments: Sequence[str], user: int, seconds: float) -> Run:
        """Run a program without a network and with an empty standard input.

        Its environment is the image's. The container ends with the program, or when the time is over.
        """
        name = f"debian-smoke-{uuid.uuid4().hex}"
        (self.bundle / "config.json").write_text(json.dumps(self._specification([program, *arguments], user)))
        runc = ("runc", "--root", str(self.bundle.parent / "runc"))
        process = subprocess.Popen(
            [*runc, "run", "--bundle", str(self.bundle), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
        )
        try:
            output, ended = _read(process, seconds)
        finally:
            if process.poll() is None:
                subprocess.run(
                    [*runc, "delete", "--force", name],
                    capture_output=True,
                    check=False,
                    timeout=_DELETE,
                    env=_ENVIRONMENT,
                )
            process.kill()
            status = process.wait()
        text = output.decode(errors="replace")
        if (refused := _NOT_STARTED.search(text)) is not None:
            return Run(_NOT_FOUND, refused[1].replace('\\"', '"').rpartition("process: ")[2])
        return Run(status if ended else None, text)

    def _specification(self, command: Sequence[str], user: int) -> dict[str, Any]:
        specification: dict[str, Any] = json.loads((self.bundle / "template.json").read_text())
        execution = self.config.get("config", {})
        capabilities = _CAPABILITIES if user == 0 else []
        specification["process"] |= {
            "args": list(command),
            "terminal": False,
            # Engines do not forbid set-uid programs by default.
            "noNewPrivileges": False,
            # runc adds HOME of the user, as engines do.
            "env": execution.get("Env", []),
            "cwd": execution.get("WorkingDir") or "/",
            "user": {"uid": user, "gid": user},
            "capabilities": {
                "bounding": _CAPABILITIES,
                "effective": capabilities,
                "permitted": capabilities,
                "inheritable": [],
                "ambient": [],
            },
        }
        # A machine without CAP_SYS_RESOURCE cannot set the template's limits.
        specification["process"].pop("rlimits", None)
        specification["root"]["readonly"] = False
        return specification


def _read(process: subprocess.Popen[bytes], seconds: float) -> tuple[bytes, bool]:
    """Return the beginning of the output, and whether the process closed it in time."""
    if process.stdout is None:
        raise TypeError("the process has no pipe")
    end = time.monotonic() + seconds
    output = bytearray()
    with process.stdout as stream:
        while (left := end - time.monotonic()) > 0:
            if select.select([stream], [], [], left)[0]:
                chunk = os.read(stream.fileno(), _OUTPUT)
                if not chunk:
                    try:
                        process.wait(max(1.0, end - time.monotonic()))
                    except subprocess.TimeoutExpired:
                        break
                    return bytes(output), True
                output += chunk[: _OUTPUT - len(output)]
    return bytes(output), False


class Workshop:
    """A directory that images are built in, one after the other.

    Unpacked layers of store paths are kept with their blobs: an image gets hard links to the files that it shares with
    images before it. Nothing writes to a store path, and each image's own layer is unpacked for it alone.
    """

    def __init__(
        self, directory: Path, package_set: Path, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._image = directory / "image"
        self._storage = directory / "storage"
        self._layers = directory / "layers"
        self._environment = {
            **environment,
            "NIXERY_PKGS_PATH": str(package_set),
            "NIXERY_STORAGE_BACKEND": "filesystem",
            "STORAGE_PATH": str(self._storage),
            # The blobs are thrown away soon.
            "NIXERY_COMPRESSION_LEVEL": "0",
        }

    def make(self, name: str) -> Image:
        """Build an image and unpack it; the image before it is gone.

        Args:
            name: the image's, in the registry.

        Raises:
            ImageError: the image cannot be built or unpacked.
        """
        self.clear()
        layout, bundle = self._image / "layout", self._image / "bundle"
        build = (sys.executable, "-m", "nixery", "build", "--quiet", "--output", f"oci:{layout}", name)
        self._call(build, _BUILD)
        manifest = _document(layout, json.loads((layout / "index.json").read_bytes())["manifests"][0])
        self._unpack([_blob(layout, layer) for layer in manifest["layers"]], bundle / "rootfs")
        self._call(("runc", "spec", "--bundle", str(bundle)), _UNPACK)
        (bundle / "config.json").rename(bundle / "template.json")
        size = sum(layer["size"] for layer in manifest["layers"])
        image = Image(bundle, _document(layout, manifest["config"]), size)
        shutil.rmtree(layout)
        return image

    def clear(self) -> None:
        """Delete the image, and the layers if they are many."""
        _delete(self._image)
        self._image.mkdir(parents=True)
        if self._storage.exists():
            size = sum(file.stat().st_size for file in self._storage.rglob("*") if file.is_file())
            if size > _MOST_STORAGE:
                _delete(self._storage)
                _delete(self._layers)
        self._storage.mkdir(exist_ok=True)
        self._layers.mkdir(exist_ok=True)

    def _unpack(self, layers: Sequence[Path], root: Path) -> None:
        """Make a root file system of layers; none of nixery's deletes a file of another one."""
        *shared, own = layers
        kept = [self._layers / layer.name for layer in shared]
        for layer, directory in zip(shared, kept, strict=True):
            if not directory.exists():
                new = self._layers / "new"
                _delete(new)
                self._extract(layer, new)
                new.rename(directory)
        root.mkdir(parents=True)
        self._call(("cp", "-al", "--", *(f"{directory}/." for directory in kept), str(root)), _UNPACK)
        self._extract(own, root)

    def _extract(self, layer: Path, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        options = ("--gzip", "--same-owner", "--numeric-owner", "--preserve-permissions")
        self._call(
            ("tar", "--extract", *options, "--file", str(layer), "--directory", str(directory)), _UNPACK
        )

    def _call(self, command: Sequence[str], seconds: float) -> None:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                env=self._environment,
            )
        except subprocess.TimeoutExpired:
            raise ImageError(f"{command[0]} took more than {seconds:.0f} s") from None
        if done.returncode != 0:
            raise ImageError(done.stdout.strip()[-2000:] or f"{command[0]} failed with {done.returncode}")


def image_name(package: str) -> str:
    """Return the name of the image of a package: ``g++`` is ``g__2b__2b``."""
    return package.replace("+", "__2b")


def _blob(layout: Path, descriptor: Mapping[str, Any]) -> Path:
    algorithm, _, encoded = str(descriptor["digest"]).partition(":")
    return layout / "blobs" / algorithm / encoded


def _document(layout: Path, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_blob(layout, descriptor).read_bytes())
    return document


def _delete(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
