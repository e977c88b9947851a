"""The images of the storage for clients: bounded lists of names, where names are public."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nixery.access.identity import Right
from nixery.access.policy import current_access
from nixery.builds.slots import Slots
from nixery.errors import TooBusy
from nixery.image.name import parse_image_name
from nixery.server.visible_entries import visible_entries
from nixery.storage.catalogue import Catalogue

# Names of a page.
_PAGE = 50

# Names that are searched for one with a package further behind in it.
_SEARCHED = 1000

# Characters of a text that names are compared with; no name is longer.
_LONGEST = 255

# The characters of names.
_IN_NAMES = re.compile(r"[a-z0-9._/-]*", re.ASCII)

# Concurrent listings, and waiting ones: each reads up to a thousand keys of the storage for each name.
_AT_ONCE, _QUEUE = 2, 64


@dataclass(frozen=True, slots=True)
class FoundImages:
    """A page of names.

    Attributes:
        names: in ASCII order; on the first page, those with a package that begins with the text come after those that
            begin with it themselves.
        after: the name after which the next page begins; ``None`` for the last page.
    """

    names: Sequence[str]
    after: str | None


class PublishedImages:
    """Lists the names of images that were built, by any server of the storage.

    Args:
        catalogue: of built images.
        public: whether every client may see names.
    """

    def __init__(self, catalogue: Catalogue, *, public: bool) -> None:
        self._catalogue = catalogue
        self._slots = Slots(_AT_ONCE, _QUEUE, busy=TooBusy.CATALOGUE)
        self.public = public

    async def page(self, beginning: str, after: str) -> FoundImages:
        """Return names that begin with a text; on the first page also others with a package that does, if there is room.

        Args:
            beginning: of the names; empty for all.
            after: a name; only larger ones are returned.

        Raises:
            TooBusy: too many listings are waiting.
            StorageError: the storage cannot be listed.
        """
        if not self.public or _IN_NAMES.fullmatch(beginning) is None:
            return FoundImages((), None)
        beginning, after = beginning[:_LONGEST], after[:_LONGEST]
        # The largest text below all names with this beginning. A name of just these characters is one of them, and a
        # listing returns larger names only.
        before = f"{beginning[:-1]}{chr(ord(beginning[-1]) - 1)}\x7f" if beginning else ""
        access = current_access()

        async def read(after: str, limit: int) -> Sequence[str]:
            names = await self._catalogue.names(after, limit)
            return [name for name in names if name.startswith(beginning)]

        def is_visible(name: str) -> bool:
            return access.allows_name(Right.PULL, parse_image_name(name))

        async with self._slots.slot():
            found = await visible_entries(read, is_visible, max(after, before), _PAGE + 1)
            if len(found) > _PAGE:
                return FoundImages(found[:_PAGE], found[_PAGE - 1])
            others: list[str] = []
            if beginning and not after:
                searched = await visible_entries(self._catalogue.names, is_visible, "", _SEARCHED)
                others = [name for name in searched if f"/{beginning}" in name and name not in found]
        return FoundImages([*found, *others][:_PAGE], None)
