"""The root of the tree, and what is no fault of a request or a build."""

from __future__ import annotations


class NixeryError(Exception):
    """The root: everything nixery raises on purpose.

    ``str(error)`` is one or a few sentences for the person who made the request: what is
    wrong and what to do.

    Attributes:
        build: the id of the build that it ended, if it was one.
    """

    build: str | None = None


class StorageError(NixeryError):
    """The store for blobs and records does not do what is asked of it."""


class BlobVerificationFailed(StorageError):
    """The bytes written do not have the digest or size they were meant to have; nothing was stored."""


class ShuttingDown(NixeryError):
    """The server is stopping; the same request to its successor will be served."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try again")


class SettingsError(NixeryError):
    """One or more settings are missing or wrong.

    Attributes:
        problems: one line each.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
