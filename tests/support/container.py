"""Real clients: skopeo pulls, umoci unpacks, runc runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.pulled_image import PulledImage
from tests.validator.image_validator import validate

# Seconds; a cold image of the Debian set is downloaded and built first.
_PULL = 300
_RUN = 60

# runc is in sbin, which is not on everybody's PATH.
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Container:
    """An unpacked image.

    Attributes:
        image: as it was pulled; validated.
        bundle: umoci's bundle: ``config.json`` and ``rootfs``.
    """

    image: PulledImage
    bundle: Path

    @property
    def root(self) -> Path:
        return self.bundle / "rootfs"

    def run(self, *command: str) -> str:
        """Run a command with runc, in the environment the image's config gives; return what it prints."""
        specification = json.loads((self.bundle / "config.json").read_text())
        specification["process"] |= {"args": list(command), "terminal": False}
        # A machine without CAP_SYS_RESOURCE must not set what umoci asks for.
        specification["process"].pop("rlimits", None)
        (self.bundle / "config.json").write_text(json.dumps(specification))
        name = f"nixery-test-{uuid.uuid4().hex}"
        state = self.bundle.parent / "runc"
        return call(["runc", "--root", str(state), "run", "--bundle", str(self.bundle), name], _RUN)


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
    call(["umoci", "unpack", "--image", f"{layout}:image", str(bundle)], _RUN)
    shutil.rmtree(layout)
    return Container(image, bundle)


def call(command: Sequence[str], seconds: float) -> str:
    """Run a program; its output is in the failure, if it fails."""
    finished = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
        env={**os.environ, "PATH": _PATH},
    )
    assert finished.returncode == 0, (
        f"{' '.join(command)} failed with {finished.returncode}:\n{finished.stdout}"
    )
    return finished.stdout
