"""The pages, and the API below them."""

from __future__ import annotations

from nixery.pipeline.build_history import BuildHistory
from nixery.pipeline.image_description import ImageDescriptions
from nixery.pipeline.package_index import PackageIndex
from nixery.pipeline.warming import Warming
from nixery.preparation import Prepared
from nixery.server.api.builds import Builds
from nixery.server.api.images import ImageDocuments
from nixery.server.api.packages import Packages
from nixery.server.api.router import Api
from nixery.server.pages.router import Pages
from nixery.server.published_builds import FollowerBounds, PublishedBuilds
from nixery.server.rsgi import Handler
from nixery.settings import Settings


def pages(
    settings: Settings,
    prepared: Prepared,
    index: PackageIndex,
    descriptions: ImageDescriptions,
    history: BuildHistory,
    warming: Warming,
) -> dict[str, Handler]:
    """Make what answers people, and programs that are no clients of a registry, by how paths begin."""
    platforms, public = prepared.platforms, settings.public_builds
    bounds = FollowerBounds(settings.max_followers, settings.max_followers_per_client)
    published = PublishedBuilds(history, bounds, public=public)
    api = Api(
        Packages(index),
        Builds(published, warming, platforms),
        ImageDocuments(descriptions, platforms, compare=public),
    )
    return {"/api/": api.answer, "/": Pages(index, published, descriptions, platforms).answer}
