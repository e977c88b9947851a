"""The images of ``container_engine``: pulled and loaded by skopeo, changed and unpacked by umoci."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

_REFERENCE = "org.opencontainers.image.ref.name"

# Seconds.
_PULL = 300


def emulator(architecture: str) -> Path | None:
    """The static emulator for an architecture; ``None`` for this machine's own."""
    machine = _MACHINES[architecture]
    if machine == os.uname().machine:
        return None
    found = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    assert found is not None, f"qemu for {machine} is not installed"
    return Path(found)


def say(line: str) -> None:
    """Print a line: the output of these programs is what a test looks at."""
    sys.stdout.write(f"{line}\n")


class Images:
    """Images in one layout, which keeps the blobs that they have in common once."""

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
        """Copy an image into the layout, in place of another one with its tag."""
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
        # An image whose tag another one has got stays there without.
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
    """Load an archive, and tell its name: Docker knows its own kind of archive alone, Podman prefers OCI's."""
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
