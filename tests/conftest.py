"""What pytest has to know before it collects anything."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption(
        "--registry", metavar="HOST:PORT", help="test this registry instead of a server of our own"
    )
    group.addoption("--image", default="hello:latest", metavar="NAME:TAG", help="an image that it has")
