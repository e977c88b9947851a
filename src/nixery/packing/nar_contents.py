"""Store paths that are not on this machine: their files come from NARs, their names from listings."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from threading import Lock

from nixery.closure import PathInfo, StorePath
from nixery.packing.archive import Archive
from nixery.packing.contents import Name
from nixery.packing.listing import Directory, Listing, Node
from nixery.packing.nar import Piece, add_nar, list_nar, read_nar

# Opens the NAR of a store path, decompressed and in pieces of bounded size.
OpenNar = Callable[[StorePath], AbstractContextManager[Iterator[Piece]]]

# Directories that are kept for look-ups, each of which takes some kilobytes at most.
_MOST_DIRECTORIES = 256


class NarContents:
    """The contents of store paths from NARs. See ``StoreContents`` for its methods; all but ``look`` may fetch a NAR.

    A store path is fetched for ``add``. A listing that is missing is made by fetching the store path, unless it is
    being fetched at the time: then the caller waits for that one.

    Args:
        closure: the store paths, with the sizes and hashes of their NARs.
        listings: those that are known. ``add`` and look-ups add the others as soon as their NAR is verified.
        open_nar: gives the NAR of a store path. Its context is left before the next one of the thread is entered, with
            the error if the NAR is refused.
        fetch_ahead: told which store paths will be opened next.
    """

    def __init__(
        self,
        closure: Iterable[PathInfo],
        listings: MutableMapping[StorePath, Listing],
        open_nar: OpenNar,
        fetch_ahead: Callable[[Iterable[StorePath]], None] = lambda _: None,
    ) -> None:
        self._infos = {info.path.base_name.encode(): info for info in closure}
        self._listings = listings
        self._open_nar = open_nar
        self._fetch_ahead = fetch_ahead
        self._locks = {info.path: Lock() for info in self._infos.values()}
        self._directories: dict[bytes, Directory] = {}

    def expect(self, paths: Iterable[PathInfo]) -> None:
        """Fetch the NARs of store paths in advance."""
        self._fetch_ahead(info.path for info in paths)

    def add(self, archive: Archive, info: PathInfo) -> None:
        """Append a store path, from its NAR.

        Raises:
            NarRefused: the NAR is not valid, or not the registered one.
            UnsafeContents: a name is not allowed in an image, or there are too many.
        """
        with self._locks[info.path], self._open_nar(info.path) as pieces:
            self._listings[info.path] = add_nar(archive, info, pieces)

    def look(self, name: bytes) -> tuple[int, bytes]:
        """Return the mode of a file, and the target of a symlink.

        Raises:
            OSError: it does not exist.
            NarRefused: see ``add``.
        """
        node = self._find(name)
        return node.mode, node.target

    def names(self, name: bytes) -> Iterator[Name]:
        """List a directory.

        Raises:
            OSError: it is not a directory.
            NarRefused: see ``add``.
        """
        return self._directory(name).names()

    def read(self, name: bytes, limit: int) -> bytes:
        """Return at most ``limit`` bytes from the beginning of a regular file.

        Raises:
            OSError: it is not a regular file.
            NarRefused: see ``add``.
        """
        node = self._find(name)
        if not stat.S_ISREG(node.mode):
            raise OSError(errno.EINVAL, "not a regular file")
        base_name, _, inside = name.partition(b"/")
        listing = self._listing(base_name)
        wanted = min(limit, node.size)
        if not wanted:
            return b""
        content = listing.kept.get(inside)
        if content is None or len(content) < wanted:
            info = self._infos[base_name]
            with self._open_nar(info.path) as pieces:
                content = read_nar(info, pieces, inside, wanted)
            # Another read would fetch the whole store path again.
            listing.kept.add(inside, content)
        return content[:wanted]

    def _find(self, name: bytes) -> Node:
        above, _, last = name.rpartition(b"/")
        node = self._directory(above).find(last) if above else self._listing(name).root
        if node is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return node

    def _directory(self, name: bytes) -> Directory:
        # Root file systems look up many names of one directory.
        directory = self._directories.get(name)
        if directory is None:
            base_name, _, inside = name.partition(b"/")
            directory = self._listing(base_name).directory(inside)
            if len(self._directories) >= _MOST_DIRECTORIES:
                self._directories.clear()
            self._directories[name] = directory
        return directory

    def _listing(self, base_name: bytes) -> Listing:
        info = self._infos.get(base_name)
        if info is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        listing = self._listings.get(info.path)
        if listing is None:
            with self._locks[info.path]:
                # It may have been fetched meanwhile.
                listing = self._listings.get(info.path)
                if listing is None:
                    with self._open_nar(info.path) as pieces:
                        listing = list_nar(info, pieces)
                    self._listings[info.path] = listing
        return listing
