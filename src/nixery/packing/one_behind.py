"""Two steps of one task at the same time, the second always one piece behind the first."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Piece = TypeVar("Piece")


class OneBehind(Generic[Piece]):
    """Does something with one piece after the other, in a thread of its own, while the caller makes the next piece.

    A context; when it ends, nothing goes on any more. The thread is started for the first piece.

    Args:
        work: what to do with a piece.
    """

    def __init__(self, work: Callable[[Piece], None]) -> None:
        self._work = work
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="one-behind")
        self._doing: Future[None] | None = None

    def give(self, piece: Piece) -> None:
        """Have a piece worked on, after waiting for the one before it, whose memory is free then.

        Raises:
            Exception: whatever the work on the piece before has raised.
        """
        self.wait()
        self._doing = self._thread.submit(self._work, piece)

    def wait(self) -> None:
        """Wait until all pieces are done.

        Raises:
            Exception: whatever the work on the last one has raised.
        """
        doing, self._doing = self._doing, None
        if doing is not None:
            doing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()
