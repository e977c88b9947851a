"""What ``nixery build`` does."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from nixery.builds.image import ImageIndex
from nixery.cli.output import BarReporter, Reporter
from nixery.cli.outputs import FileOutput, Output, check_outputs
from nixery.cli.session import open_session, run
from nixery.image.name import requests_for
from nixery.image.platform import Platform
from nixery.nix.environments import credential_environment
from nixery.nix.packages import NixExpression
from nixery.oci.documents import Descriptor
from nixery.push.client import Target
from nixery.push.push import PushOptions, push
from nixery.storage.blobs import BlobStore
from nixery.storage.layout import write_layout


def build(
    name: str,
    expression: NixExpression | None,
    tag: str,
    outputs: Sequence[Output],
    platforms: tuple[Platform, ...],
    reporter: Reporter,
    *,
    quiet: bool,
    tls_verify: bool,
    umask: int,
) -> None:
    """Build, put the image where it is wanted, and report the result.

    Raises:
        typer.Exit: it was not done; why, is told on stderr.
    """
    wanted = expression.attribute if expression else name

    async def command() -> dict[str, Any]:
        check_outputs(outputs)
        async with open_session(expression, reporter) as (components, resources):
            found = await components.images.get(requests_for(wanted, platforms or resources.platforms), tag)
            root = found.image.index if isinstance(found.image, ImageIndex) else found.image.manifest
            await _put(
                components.blobs,
                root.descriptor,
                wanted,
                tag,
                outputs,
                reporter,
                tls_verify=tls_verify,
                umask=umask,
            )
        places = [str(o.place if isinstance(o, FileOutput) else o) for o in outputs]
        return {
            "digest": str(root.descriptor.digest),
            "name": wanted,
            "tag": tag,
            "revision": found.pinned.pin.revision,
            "outputs": places,
        }

    # Lines of the log would run through the bars.
    silent = quiet or isinstance(reporter, BarReporter)
    with closing(reporter):
        reporter.finished(run(command, quiet=silent, failed=reporter.failed))


async def _put(
    blobs: BlobStore,
    root: Descriptor,
    name: str,
    tag: str,
    outputs: Sequence[Output],
    reporter: Reporter,
    *,
    tls_verify: bool,
    umask: int,
) -> None:
    pushed: dict[str, str] = {}
    for output in outputs:
        if isinstance(output, Target):
            source = pushed.get(output.host, "")
            mount = source if source != output.name else ""
            options = PushOptions(tls_verify=tls_verify, mount_from=mount)
            logins = credential_environment(os.environ)
            await push(blobs, root.digest, output, logins, reporter.pushing, options)
            pushed.setdefault(output.host, output.name)
        else:
            await write_layout(blobs, root, name, tag, output.place, archive=output.archive, umask=umask)


def parse_expression(text: str, file: Path | None) -> NixExpression | None:
    """Make what the package set is extended with, if anything, out of options."""
    if file is not None:
        # JSON's strings are Nix's, but for the one thing that begins an interpolation there.
        path = json.dumps(str(file.absolute())).replace("${", r"\${")
        stem = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")
        return NixExpression(stem or "image", f"import (/. + {path})")
    return NixExpression("expression", f"{{ pkgs }}: ({text}\n)") if text else None
