"""What is told about things, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nixery.builds.descriptions import ImageDescription
from nixery.builds.history import BuildReport, Line
from nixery.image.platform import Platform
from nixery.server.clients import image_path
from nixery.server.http import BytesResponse, json_content

# What it tells may be another thing a moment later.
HEADERS: Mapping[str, str] = {
    "Content-Type": "application/json",
    "Cache-Control": "no-store",
}


def json_response(
    document: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> BytesResponse:
    """Answer with a document."""
    return BytesResponse(status, json_content(document), {**HEADERS, **(headers or {})})


def build_document(report: BuildReport, *, log: bool) -> dict[str, Any]:
    """Tell about a build, with its log or without."""
    document = report.model_dump(mode="json", exclude=None if log else {"log"})
    return {**document, "url": f"/api/v1/builds/{report.id}", "page": f"/builds/{report.id}"}


def change_document(report: BuildReport, lines: Sequence[Line]) -> dict[str, Any]:
    """Tell what has changed."""
    return {"build": build_document(report, log=False), "lines": [line.model_dump() for line in lines]}


def description_document(image: ImageDescription, platforms: Sequence[Platform]) -> dict[str, Any]:
    """Tell about an image for one platform."""
    return {
        "platform": image.platform,
        "digest": image.digest,
        "size": image.size,
        "packages": [
            {
                "name": package.name,
                "version": package.version,
                "licences": list(package.licences),
                "description": package.description,
            }
            for package in image.packages
        ],
        "layers": [
            {"digest": layer.digest, "size": layer.size, "packages": list(layer.packages)}
            for layer in image.layers
        ],
        "config": image.config,
        "annotations": image.annotations,
        "shared": [
            {
                "image": image_path(shared.build.name, shared.build.platform, platforms),
                "digest": shared.build.manifest,
                "layers": shared.layers,
                "size": shared.size,
            }
            for shared in image.shared
        ],
    }
