"""The smallest remote ``Driver``: a dictionary of bytes. The storage relies on nothing but the interface."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager

from nixery.errors import StorageError
from nixery.storage.driver import StoredObject

_PIECE = 1 << 20

# Objects by their names, with their times, for each place. All drivers of a place share them, as servers
# share a bucket.
_PLACES: dict[str, dict[str, tuple[bytes, float]]] = {}


class DictionaryDriver:
    """The ``Driver`` of a dictionary in this process."""

    is_remote = True

    def __init__(self, place: str) -> None:
        self.name = f"dictionary://{place}"
        self._objects = _PLACES.setdefault(place, {})

    async def stat(self, name: str) -> StoredObject | None:
        return self.entry(name)

    def entry(self, name: str) -> StoredObject | None:
        found = self._objects.get(name)
        return None if found is None else StoredObject(name, len(found[0]), found[1])

    async def read(self, name: str, largest: int) -> bytes | None:
        found = self._objects.get(name)
        return None if found is None or len(found[0]) > largest else found[0]

    async def stream(self, name: str, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        found = self._objects.get(name)
        if found is None:
            raise FileNotFoundError(name)
        content = found[0][first : None if last is None else last + 1]
        for start in range(0, len(content), _PIECE):
            yield content[start : start + _PIECE]
        if last is not None and len(content) != last - first + 1:
            raise StorageError(f"cannot read {name} from {self.name}: bytes are missing at its end")

    async def write(self, name: str, content: bytes, *, renew: bool = False) -> None:  # noqa: ARG002 -- both write
        self.put(name, content)

    def put(self, name: str, content: bytes) -> None:
        self._objects[name] = (content, time.time())

    @contextmanager
    def create(self) -> Iterator[_Upload]:
        yield _Upload(self)

    async def move(self, name: str, target: str) -> None:
        found = self._objects.pop(name, None)
        if found is not None:
            self.put(target, found[0])

    async def delete(self, name: str) -> None:
        self._objects.pop(name, None)

    async def list(self, directory: str, after: str = "") -> AsyncGenerator[StoredObject, None]:
        for name in sorted(self._objects):
            entry = self.entry(name) if name.startswith(f"{directory}/") and name > after else None
            if entry is not None:
                yield entry

    async def url(self, name: str) -> str | None:  # noqa: ARG002 -- clients cannot reach it
        return None

    async def probe(self) -> None:
        """A dictionary takes everything."""


class _Upload:
    def __init__(self, driver: DictionaryDriver) -> None:
        self._driver = driver
        self._written = bytearray()

    def write(self, data: bytes, /) -> None:
        self._written += data

    def commit(self, name: str, beside: Mapping[str, bytes]) -> StoredObject:
        for other, content in beside.items():
            self._driver.put(other, content)
        found = self._driver.entry(name)
        if found is None or found.size != len(self._written):
            self._driver.put(name, bytes(self._written))
        found = self._driver.entry(name)
        assert found is not None
        return found
