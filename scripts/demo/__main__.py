"""From a server to a running container, step by step: ``python -m scripts.demo``, run by ``make demo``.

Serves on a free port with an empty storage, pulls an image with skopeo by tag and by digest, unpacks it with umoci and
runs it with runc. Everything it writes is in a temporary directory below ``var``, and is gone afterwards.
"""

from __future__ import annotations

import platform
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from scripts.demo.container import Container
from scripts.demo.image import PulledImage
from scripts.demo.narrator import DemoError, Narrator
from scripts.demo.server import serving

# A meta-package in front, so that the image's programs are this machine's own.
IMAGE = "arm64/shell/hello" if platform.machine() == "aarch64" else "shell/hello"

# The first pull builds the image; Nix fetches and makes its packages if they are not in its store yet.
_PULL_SECONDS = 160.0
_UNPACK_SECONDS = 60.0


def demo(narrator: Narrator, directory: Path) -> None:
    """Everything, in order.

    Raises:
        DemoError: at the first thing that is not as it should be.
    """
    with serving(narrator, directory) as registry:
        image = _pull(narrator, registry, directory)
        narrator.table(image.layers())
        _run(narrator, directory)


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
    with narrator.step("runc is tried out"):
        container = Container(narrator, bundle, directory / "runc")
    with narrator.step("hello runs in it"):
        _expect(container.run("hello"), "Hello, world!")
    with narrator.step("bash finds ls and nano in it"):
        _expect(container.run("bash", "-c", "command -v ls nano"), "/bin/ls", "/bin/nano")


def _expect(output: str, *lines: str) -> None:
    missing = [line for line in lines if line not in output.splitlines()]
    if missing:
        raise DemoError(f"expected in the output, but not there: {', '.join(missing)}", output)


def main() -> int:
    """Run the demo; returns the exit status."""
    # Like Ctrl-C, a request to end must not leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    narrator = Narrator()
    Path("var").mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="demo-", dir="var")).resolve()
    try:
        demo(narrator, directory)
    except DemoError as error:
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
