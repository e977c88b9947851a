"""``nixery check NAME ...``: print what images would be."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nixery.cli.build import behind_registry
from nixery.cli.check import Finding, print_findings
from nixery.errors import NixeryError, PackagesUnavailable, RequestError
from nixery.plain_text import escaped, escaped_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nixery.app import Components
    from nixery.builds.pins import Pinned
    from nixery.builds.previews import ImagePreview
    from nixery.image.name import ImageRequest
    from nixery.image.platform import Platform

_ORIGINS = {
    "store": "in the Nix store",
    "download": "would be downloaded",
    "build": "would be built",
    "unknown": "cannot be built or downloaded",
}


@dataclass(frozen=True, slots=True)
class _Asked:
    """An image that the user named, for one platform; or the error that its name or tag leads to.

    Attributes:
        image: as the user wrote it, with its tag.
        request: the packages and the platform; ``None`` if the name is not valid.
        pinned: the state of the package source; ``None`` if it could not be found.
        preview: of the image.
        error: instead of these.
    """

    image: str
    request: ImageRequest | None = None
    pinned: Pinned | None = None
    preview: ImagePreview | None = None
    error: NixeryError | None = None


def check_names(names: Sequence[str], *, as_json: bool) -> bool:
    """Print what images would be; return whether all of them can be made.

    Args:
        names: with or without a tag.
        as_json: whether to print JSON.
    """
    import typer

    from nixery.cli.output import activity
    from nixery.cli.session import open_session, run

    with activity("images", quiet=as_json) as shown:

        async def command() -> list[_Asked]:
            async with open_session() as (components, resources):
                shown.begin("pinning the package source")
                asked = [
                    one for name in names for one in await _pinned(components, name, resources.platforms)
                ]
                shown.begin("evaluating")
                asked = await _evaluated(components, asked)
                shown.begin("asking Nix and its binary caches", len(asked))
                found = []
                for one in asked:
                    found.append(await _previewed(components, one))
                    shown.advance(1)
                return found

        asked = run(command, quiet=True)
    findings = [_finding(one) for one in asked]
    if as_json:
        typer.echo(
            json.dumps(
                [_document(one, finding) for one, finding in zip(asked, findings, strict=True)], indent=2
            )
        )
    else:
        print_findings(findings, max(len(escaped(finding.what)) for finding in findings))
    return all(finding.right for finding in findings)


async def _pinned(components: Components, name: str, platforms: Sequence[Platform]) -> list[_Asked]:
    """Parse a name, and pin its tag: an entry for each platform, or one with the error."""
    from nixery.image.name import Tag, parse_reference, requests_for

    wanted = behind_registry(name)
    name, _, tag = name.partition(":")
    tag = tag or "latest"
    image = f"{name}:{tag}"
    try:
        if wanted:
            raise RequestError(f"give the name without the registry: {wanted}")
        requests = requests_for(name, platforms)
        if not isinstance(parse_reference(tag), Tag):
            raise RequestError(
                f"{tag} is a digest: name an image by its tag, which selects a state of the package source"
            )
        pinned = await components.pins.pin(tag)
    except NixeryError as error:
        return [_Asked(image, error=error)]
    return [_Asked(image, request, pinned) for request in requests]


async def _evaluated(components: Components, asked: Sequence[_Asked]) -> list[_Asked]:
    """Evaluate all names of a state at once; an error is that of each of its images."""
    pins = dict.fromkeys(one.pinned.pin for one in asked if one.pinned is not None)
    failed: dict[object, NixeryError] = {}
    for pin in pins:
        requests = [one.request for one in asked if one.pinned and one.pinned.pin == pin and one.request]
        try:
            await components.previews.evaluate(requests, pin)
        except NixeryError as error:
            failed[pin] = error
    return [
        replace(one, error=failed[one.pinned.pin]) if one.pinned and one.pinned.pin in failed else one
        for one in asked
    ]


async def _previewed(components: Components, one: _Asked) -> _Asked:
    if one.error is not None or one.request is None or one.pinned is None:
        return one
    try:
        preview = await components.previews.preview(one.request, one.pinned.pin)
    except NixeryError as error:
        return replace(one, error=error)
    return replace(one, preview=preview, error=preview.error)


def _finding(one: _Asked) -> Finding:
    what = f"{one.image} {one.request.platform}" if one.request else one.image
    lines = _lines(one)
    warning = one.pinned.warning if one.pinned else None
    if isinstance(one.error, PackagesUnavailable) and one.preview is not None:
        missing = f"{_number(len(one.error.packages), 'package')} not available"
        return Finding(what, right=False, found=missing, lines=lines)
    if one.error is not None:
        return Finding(what, right=False, found=str(one.error), lines=lines)
    return Finding(what, right=True, found=_summary(one.preview), advice=warning or "", lines=lines)


def _summary(preview: ImagePreview | None) -> str:
    """Say in one line how much an image is, and what Nix would do for it."""
    from rich.filesize import decimal

    if preview is None or preview.plan is None:
        return "nothing is known about it"
    if preview.size is not None and preview.paths is not None:
        return f"{decimal(preview.size)} in {_number(preview.paths, 'store path')}, all in the Nix store"
    plan = preview.plan
    steps = []
    if built := len(plan.builds) - len(plan.sources):
        steps.append(f"build {_number(built, 'derivation')}")
    if plan.sources:
        steps.append(f"fetch {_number(len(plan.sources), 'source')}")
    if plan.downloads:
        steps.append(f"download {_number(len(plan.downloads), 'store path')}")
        if plan.download_size is not None and plan.unpacked_size is not None:
            steps[-1] += f" of {decimal(plan.download_size)} ({decimal(plan.unpacked_size)} unpacked)"
    said = [f"Nix would {', '.join(steps)}"] if steps else []
    if plan.unknown:
        said.append(f"Nix can neither build nor download {_number(len(plan.unknown), 'store path')}")
    if plan.builds or plan.unknown:
        said.append("size unknown")
    return "; ".join(said)


def _lines(one: _Asked) -> tuple[str, ...]:
    from nixery.source_location import redacted

    lines = []
    if one.pinned is not None:
        pin = one.pinned.pin
        lines.append(f"from {redacted(pin.source)} at {redacted(pin.revision)}")
    if one.preview is not None:
        if one.preview.definition:
            lines.append(f"made from the image definition {one.preview.definition}")
        lines += _aligned(
            [
                (package.attribute, f"{package.name} {package.version}".strip(), _ORIGINS[origin])
                for package, origin in one.preview.packages
            ]
        )
        lines += map(str, one.preview.unavailable)
    return tuple(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    rows = [tuple(map(escaped, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _document(one: _Asked, finding: Finding) -> Any:  # noqa: ANN401 -- JSON is anything
    """Return an image for programs: the same members for all, ``null`` where nothing is known."""
    from nixery.image.meta_packages import SHELL
    from nixery.source_location import redacted

    pin = one.pinned.pin if one.pinned else None
    preview = one.preview
    plan = preview.plan if preview else None
    return escaped_document(
        {
            "image": one.image,
            "platform": str(one.request.platform) if one.request else None,
            "right": finding.right,
            "found": finding.found,
            "advice": finding.advice,
            "error": str(one.error) if one.error else None,
            "source": redacted(pin.source) if pin else None,
            "revision": redacted(pin.revision) if pin else None,
            "created": pin.created if pin else None,
            "definition": preview.definition or None if preview else None,
            "packages": [
                {
                    "requested": "shell" if package.requested_name == SHELL else package.requested_name,
                    "attribute": package.attribute,
                    "name": package.name,
                    "version": package.version,
                    "outputs": {output: str(path) for output, path in package.outputs.items()},
                    "from": str(origin),
                }
                for package, origin in (preview.packages if preview else ())
            ],
            "unavailable": [
                {
                    "name": package.name,
                    "reason": str(package.reason),
                    "explanation": package.explanation,
                    "near_names": list(package.near_names),
                }
                for package in (preview.unavailable if preview else ())
            ],
            "size": preview.size if preview else None,
            "paths": preview.paths if preview else None,
            "builds": [str(path) for path in plan.builds] if plan else None,
            "sources": [str(path) for path in plan.sources] if plan else None,
            "downloads": [str(path) for path in plan.downloads] if plan else None,
            "unknown": [str(path) for path in plan.unknown] if plan else None,
            "download_size": plan.download_size if plan else None,
            "unpacked_size": plan.unpacked_size if plan else None,
        }
    )


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
