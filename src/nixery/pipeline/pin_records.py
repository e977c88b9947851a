"""Pins in the store, where all servers find them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated

import structlog
from pydantic import BaseModel, Field, ValidationError

from nixery.errors import StorageError, TagUnknown
from nixery.oci.canonical_json import canonical_json
from nixery.sources.location import COMMIT, redacted
from nixery.sources.source import EARLIEST, LATEST, PackageSource, Pin, Reference
from nixery.storage.store import RecordStore

PINS = "pins"

# Commands and header fields contain it. Others may have written the record, so it must not be an option or
# have line breaks.
_Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\-\x00-\x20\x7f][^\x00-\x1f\x7f]*$")]

_log = structlog.get_logger("nixery.pins")


@dataclass(frozen=True, slots=True)
class Pinned:
    """The answer to what a tag stands for.

    Attributes:
        pin: the state of the source.
        warning: why it may not be the latest one, in words for the client; ``None`` if it is what it should be.
    """

    pin: Pin
    warning: str | None = None


class Term(BaseModel):
    """A pin and the time, in seconds since the epoch, until which it holds."""

    identity: _Text
    revision: _Text
    url: _Text | None = None
    created: Annotated[int, Field(ge=EARLIEST, le=LATEST)] | None = None
    until: float

    @classmethod
    def of(cls, pin: Pin, until: float) -> Term:
        """Make the term of a pin."""
        return cls(
            identity=pin.identity, revision=pin.revision, url=pin.url, created=pin.created, until=until
        )

    def pin(self, source: str) -> Pin:
        """Return the pin, which is of the source with this description."""
        return Pin(source, self.identity, self.revision, self.url, self.created)


def reference_of_commit(source: PackageSource, term: Term) -> Reference | None:
    """Return the reference for a pinned commit of a branch or a tag; ``None`` if clients cannot ask for it.

    The pin is recorded under that reference as well: clients may ask for its digits later, even when no
    branch leads to it any more. That is one record for each state of the source that the server saw; clients
    cannot add more.
    """
    if COMMIT.fullmatch(term.revision) is None:
        return None
    try:
        commit = source.reference(term.revision)
    except TagUnknown:
        return None  # commits are no tags here
    return commit if commit.rule else None


class PinRecord(BaseModel):
    """What a reference stands for now, and what it will stand for then."""

    current: Term
    next: Term | None = None

    def at(self, now: float) -> PinRecord:
        """Return the record as it stands at a time: what comes next may have come."""
        if self.next is not None and self.current.until <= now:
            return PinRecord(current=self.next)
        return self


@dataclass(slots=True)
class Held:
    """A pin in memory; ``due`` when it is time to look its successor up, if somebody uses it."""

    pinned: Pinned
    until: float
    used: bool = False
    due: bool = False


class PinRecords:
    """The records of one source.

    Args:
        records: shared by all servers.
        source: decides whether a pin can be one of its states; anyone with access to a shared storage may
            have written it.
    """

    def __init__(self, records: RecordStore, source: PackageSource) -> None:
        self._records = records
        self._source = source

    async def read(self, reference: Reference) -> PinRecord | None:
        """Return the record of a reference, if there is one that can be understood.

        Raises:
            StorageError: the store cannot be asked.
        """
        content = await self._records.get(PINS, self._key(reference))
        try:
            record = PinRecord.model_validate_json(content) if content is not None else None
        except ValidationError:
            return None  # torn: written anew
        terms = (record.current, record.next) if record else ()
        for term in filter(None, terms):
            if not self._source.may_mean(reference, term.pin(self._source.description)):
                _log.warning("pin in the storage is not of this source", reference=redacted(reference.name))
                return None  # likewise
        return record

    async def write(self, reference: Reference, record: PinRecord) -> None:
        """Write the record of a reference.

        What is stored can be served although nothing more can be stored: then other servers find the pin for themselves.
        """
        try:
            await self._records.put(PINS, self._key(reference), record.model_dump_json().encode())
        except StorageError as error:
            _log.warning("pin not written down", reference=redacted(reference.name), reason=str(error))

    def _key(self, reference: Reference) -> str:
        # A commit that another rule accepted, or an older version without rules, counts as unknown.
        rule = [reference.rule] if reference.rule else []
        return hashlib.sha256(canonical_json([self._source.description, reference.name, *rule])).hexdigest()
