"""What pytest has to know before it collects anything."""

from collections import Counter
from pathlib import Path

import pytest

_ON_DEMAND = (Path(__file__).parent / "acceptance", Path(__file__).parent / "browser")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption(
        "--registry", metavar="HOST:PORT", help="test this registry instead of a server of our own"
    )
    group.addoption("--image", default="hello:latest", metavar="NAME:TAG", help="an image that it has")
    storage = parser.getgroup("storage")
    storage.addoption(
        "--buckets",
        metavar="NAMES",
        default="",
        help="test these of s3, gcs, azure and minio, and nothing on this machine",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests of one name: xdist would run one of them, and say nothing about the others."""
    twice = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"several tests are called {', '.join(twice)}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what needs programs that not every machine has, unless it is asked for by name."""
    if collection_path not in _ON_DEMAND:
        return None
    asked_for = any(Path(argument).absolute().is_relative_to(collection_path) for argument in config.args)
    return None if asked_for else True
