"""Count the errors of a storage in all components."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from prometheus_client import CollectorRegistry, Counter

from nixery.errors import StorageError
from nixery.storage.driver import Driver, StoredObject, Upload

_OPERATIONS = ("find", "read", "write", "list", "delete")


class StorageErrors:
    """A counter of failed accesses to the storage, by operation."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._errors = Counter(
            "nixery_storage_errors", "Failed accesses to the storage.", ("operation",), registry=registry
        )
        for operation in _OPERATIONS:
            self._errors.labels(operation)

    @contextmanager
    def counted(self, operation: str) -> Iterator[None]:
        """Count a storage error that ends the context."""
        try:
            yield
        except StorageError:
            self.add(operation)
            raise

    def add(self, operation: str) -> None:
        """Count an error."""
        self._errors.labels(operation).inc()


class CountedDriver:
    """A ``Driver`` that counts the errors of another one."""

    def __init__(self, driver: Driver, errors: StorageErrors) -> None:
        self.name = driver.name
        self.is_remote = driver.is_remote
        self._driver = driver
        self._errors = errors

    async def stat(self, name: str) -> StoredObject | None:
        """See ``Driver.stat``."""
        try:  # for each download of a large blob, so without a context manager
            return await self._driver.stat(name)
        except StorageError:
            self._errors.add("find")
            raise

    async def read(self, name: str, largest: int) -> bytes | None:
        """See ``Driver.read``."""
        try:  # as above
            return await self._driver.read(name, largest)
        except StorageError:
            self._errors.add("read")
            raise

    async def stream(self, name: str, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """See ``Driver.stream``. An object that is missing though its size is known counts as an error."""
        try:
            with self._errors.counted("read"):
                async with aclosing(self._driver.stream(name, first, last)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except FileNotFoundError:
            if last is not None:
                self._errors.add("read")
            raise

    async def write(self, name: str, content: bytes, *, renew: bool = False) -> None:
        """See ``Driver.write``."""
        with self._errors.counted("write"):
            await self._driver.write(name, content, renew=renew)

    @contextmanager
    def create(self) -> Iterator[Upload]:
        """See ``Driver.create``."""
        with self._errors.counted("write"), self._driver.create() as upload:
            yield upload

    async def move(self, name: str, target: str) -> None:
        """See ``Driver.move``."""
        with self._errors.counted("delete"):
            await self._driver.move(name, target)

    async def delete(self, name: str) -> None:
        """See ``Driver.delete``."""
        with self._errors.counted("delete"):
            await self._driver.delete(name)

    async def list(self, directory: str, after: str = "") -> AsyncGenerator[StoredObject, None]:
        """See ``Driver.list``."""
        with self._errors.counted("list"):
            async with aclosing(self._driver.list(directory, after)) as entries:
                async for entry in entries:
                    yield entry

    async def url(self, name: str) -> str | None:
        """See ``Driver.url``."""
        with self._errors.counted("read"):
            return await self._driver.url(name)

    async def probe(self) -> None:
        """See ``Driver.probe``."""
        with self._errors.counted("write"):
            await self._driver.probe()
