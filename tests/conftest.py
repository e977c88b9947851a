"""Options of the test suites, and checks of what is collected."""

from collections import Counter
from pathlib import Path

import pytest

_ON_DEMAND = (Path(__file__).parent / "acceptance", Path(__file__).parent / "browser")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--registry", metavar="HOST:PORT", help="test this registry instead of nixery")
    group.addoption("--image", default="hello:latest", metavar="NAME:TAG", help="an image of that registry")
    group.addoption(
        "--access",
        choices=("none", "everyone", "user"),
        default="none",
        help="test nixery without access rules, with rules that allow everyone everything, or as a user",
    )
    storage = parser.getgroup("storage")
    storage.addoption(
        "--buckets",
        metavar="NAMES",
        default="",
        help="test only these storages, of filesystem, memory, dictionary, s3, gcs, azure and minio",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse duplicate names: xdist would silently run only one of the tests."""
    twice = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"several tests have the name {', '.join(twice)}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore suites that need programs to be installed, unless the command line names them."""
    if collection_path not in _ON_DEMAND:
        return None
    asked_for = any(Path(argument).absolute().is_relative_to(collection_path) for argument in config.args)
    return None if asked_for else True
