"""skopeo as a client, with umoci to unpack images and runc to run them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from tests.acceptance.clients.client import FAILURE, MISSING, PULL, Outcome, Shell
from tests.acceptance.clients.registries import MIRRORED, plain_http, write_registries
from tests.support.pulled_image import PulledImage


@dataclass(frozen=True)
class Skopeo:
    """Copies into OCI layouts, one for each reference."""

    shell: Shell
    registries: Path
    name: ClassVar[str] = "skopeo"
    mirrored: ClassVar[str | None] = MIRRORED
    missing: ClassVar[str] = MISSING
    failure: ClassVar[str] = FAILURE
    knows_zstd: ClassVar[bool] = True

    def versions(self) -> Mapping[str, str]:
        """See ``Client.versions``."""
        return {
            "skopeo": self.shell.ask("skopeo", "--version").split()[2],
            "umoci": self.shell.ask("umoci", "--version").split()[2],
            "runc": self.shell.ask("runc", "--version").split()[2],
        }

    def pull(self, reference: str) -> Outcome:
        copy = ("copy", *plain_http(reference, "--src-tls-verify"), "--override-os=linux")
        source, destination = f"docker://{reference}", f"oci:{self._layout(reference)}:image"
        return self.shell.call(
            ("skopeo", "--registries-conf", str(self.registries), *copy, source, destination), PULL
        )

    def digest(self, reference: str) -> str:
        return PulledImage.from_oci_layout(self._layout(reference)).digest

    def layers(self, reference: str) -> int:
        return len(PulledImage.from_oci_layout(self._layout(reference)).layers)

    def run(self, reference: str, *command: str) -> str:
        layout = self._layout(reference)
        bundle = layout.with_suffix(".bundle")
        if not bundle.exists():
            self.shell.ask("umoci", "unpack", "--image", self._unpackable(layout), str(bundle))
        specification: dict[str, Any] = json.loads((bundle / "config.json").read_text())
        specification["process"] |= {"args": list(command), "terminal": False}
        # A machine without CAP_SYS_RESOURCE cannot set the limits that umoci asks for.
        specification["process"].pop("rlimits", None)
        (bundle / "config.json").write_text(json.dumps(specification))
        state = self.shell.directory / "runc"
        return self.shell.ask("runc", "--root", str(state), "run", "--bundle", str(bundle), layout.name)

    def _unpackable(self, layout: Path) -> str:
        """umoci does not know zstd; skopeo, which does, decompresses for it."""
        if not any(layer.is_zstd for layer in PulledImage.from_oci_layout(layout).layers):
            return f"{layout}:image"
        plain = f"dir:{layout.with_suffix('.plain')}"
        self.shell.ask("skopeo", "copy", "--dest-decompress", f"oci:{layout}:image", plain)
        self.shell.ask("skopeo", "copy", plain, f"oci:{layout}:plain")
        return f"{layout}:plain"

    def _layout(self, reference: str) -> Path:
        return self.shell.directory / sha256(reference.encode()).hexdigest()[:16]


@contextmanager
def running_skopeo(directory: Path, mirror: int) -> Iterator[Skopeo]:
    """Copy into a directory; there is no daemon."""
    yield Skopeo(Shell(directory), write_registries(directory, mirror))
