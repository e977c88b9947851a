"""From a server to a running container, step by step: ``python -m scripts.demo``, run by ``make demo``.

Serves on a free port with an empty storage, pulls an image with skopeo by tag and by digest, unpacks it with
umoci and runs it with runc. All files are in a temporary directory below ``var`` and are deleted in the end.
"""

from __future__ import annotations

import json
import platform
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Table

from scripts.demo.container import Container
from scripts.demo.narrator import DemoError, Narrator
from scripts.peers.nixery import nixery
from scripts.peers.process import PeerError, tail

# On arm64, the meta-package selects programs of the machine's own architecture.
IMAGE = "arm64/shell/hello" if platform.machine() == "aarch64" else "shell/hello"

# Seconds. The first pull builds the image; Nix fetches packages that are not in its store yet.
_PULL_SECONDS = 160.0
_UNPACK_SECONDS = 60.0


class PulledImage:
    """The only image of an OCI layout, as skopeo writes it.

    Attributes:
        digest: of its manifest.
    """

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        index = json.loads((layout / "index.json").read_bytes())
        self.digest: str = index["manifests"][0]["digest"]

    def _document(self, digest: str) -> dict[str, Any]:
        algorithm, _, digits = digest.partition(":")
        document: dict[str, Any] = json.loads((self._layout / "blobs" / algorithm / digits).read_bytes())
        return document

    def layers(self) -> Table:
        """Return a table of the layers: compressed size, and packages by the history in the config."""
        manifest = self._document(self.digest)
        history = self._document(manifest["config"]["digest"])["history"]
        sizes = [layer["size"] for layer in manifest["layers"]]
        table = Table(title=f"{len(sizes)} layers, {_mebibytes(sum(sizes))}, {self.digest[:19]}…")
        table.add_column("layer", justify="right")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("packages", overflow="fold")
        for number, (size, entry) in enumerate(zip(sizes, history, strict=True), start=1):
            table.add_row(str(number), _mebibytes(size), entry.get("comment", ""))
        return table


def demo(narrator: Narrator, directory: Path) -> None:
    """Run all steps.

    Raises:
        DemoError: a step failed.
        PeerError: the server does not start, or does not stop as it should.
    """
    with ExitStack() as stack:
        with narrator.step("the server starts"):
            server = stack.enter_context(nixery(directory / "server", "packagesets/debian"))
        narrator.note(f"it listens on {server.address} (process {server.process_id})")
        try:
            image = _pull(narrator, server.address, directory)
            narrator.table(image.layers())
            _run(narrator, directory)
        except DemoError as error:
            error.output += f"\nthe end of the server's log:\n{tail(server.log)}"
            raise
        with narrator.step(f"the server stops on SIGTERM to process {server.process_id}"):
            server.stop()


def _pull(narrator: Narrator, registry: str, directory: Path) -> PulledImage:
    by_tag, by_digest = directory / "by-tag", directory / "by-digest"
    with narrator.step(f"skopeo pulls {IMAGE} by tag, Nix builds it"):
        _copy(narrator, f"{registry}/{IMAGE}:latest", by_tag)
    image = PulledImage(by_tag)
    with narrator.step(f"skopeo pulls {IMAGE} by digest"):
        _copy(narrator, f"{registry}/{IMAGE}@{image.digest}", by_digest)
    if PulledImage(by_digest).digest != image.digest:
        raise DemoError(
            f"the image pulled by digest is {PulledImage(by_digest).digest}, by tag it was {image.digest}"
        )
    return image


def _copy(narrator: Narrator, reference: str, layout: Path) -> None:
    narrator.run(
        *("skopeo", "copy", "--src-tls-verify=false", f"docker://{reference}", f"oci:{layout}:latest"),
        timeout=_PULL_SECONDS,
    )


def _run(narrator: Narrator, directory: Path) -> None:
    bundle = directory / "bundle"
    with narrator.step("umoci unpacks it"):
        narrator.run(
            *("umoci", "unpack", "--image", f"{directory / 'by-tag'}:latest", str(bundle)),
            timeout=_UNPACK_SECONDS,
        )
    with narrator.step("runc is tried"):
        container = Container(narrator, bundle, directory / "runc")
    with narrator.step("hello runs in it"):
        _expect(container.run("hello"), "Hello, world!")
    with narrator.step("bash finds ls and nano in it"):
        _expect(container.run("bash", "-c", "command -v ls nano"), "/usr/bin/ls", "/usr/bin/nano")


def _expect(output: str, *lines: str) -> None:
    missing = [line for line in lines if line not in output.splitlines()]
    if missing:
        raise DemoError(f"missing from the output: {', '.join(missing)}", output)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


def main() -> int:
    """Run the demo; returns the exit status."""
    # Like Ctrl-C, SIGTERM must not leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    narrator = Narrator()
    Path("var").mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="demo-", dir="var")).resolve()
    try:
        demo(narrator, directory)
    except (DemoError, PeerError) as error:
        narrator.fail(error)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    narrator.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
