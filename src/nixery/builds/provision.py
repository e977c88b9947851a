"""Provide the store paths of an image: their closure and their contents, from the Nix store or from binary caches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass

import structlog

from nixery.binary_caches.narinfo import NarInfo
from nixery.builds.events import Observe
from nixery.builds.substitution import Names, Substitution
from nixery.closure import Closure, PathInfo, StorePath
from nixery.errors import (
    BinaryCacheFailed,
    BuildFailed,
    NixeryError,
    PackagesUnavailable,
    Reason,
    UnavailablePackage,
)
from nixery.nix.packages import Contents
from nixery.nix.realisation import Nix
from nixery.packing.contents import JoinedContents, StoreContents
from nixery.packing.local_store import LocalStore

# Packages that are asked whether they need a derivation that failed; each costs a process.
_MOST_SEARCHED = 10

_log = structlog.get_logger("nixery.build")


class WrongDeriver(Exception):
    """The package index names a store path that another derivation has built."""


@dataclass(frozen=True, slots=True)
class Provision:
    """The store paths of an image.

    Attributes:
        closure: of the image.
        contents: of the closure.
        names: of the store paths that come from binary caches; ``None`` if none does.
    """

    closure: Closure
    contents: StoreContents
    names: Names | None = None

    async def have_names(self, paths: Iterable[StorePath]) -> bool:
        """Whether looking at the names of these paths fetches nothing."""
        return self.names is None or await self.names.have(paths)

    async def keep_names(self) -> None:
        """Remember names that came with the contents.

        Raises:
            WrongNames: see ``Names.keep``.
        """
        if self.names is not None:
            await self.names.keep()


@dataclass(frozen=True, slots=True)
class _Output:
    """A store path that an image needs by name.

    Attributes:
        installable: what Nix has to provide, in Nix's syntax.
        path: that has to come of it.
        derivation: that has to have built it; ``None`` for a path of a definition, which only Nix can vouch for.
        is_realised: whether the package index names it without a derivation that exists.
        requested_name: of the package, or of the definition.
        attribute: likewise.
    """

    installable: str
    path: StorePath
    derivation: StorePath | None
    is_realised: bool
    requested_name: str
    attribute: str


class Provider:
    """Provides store paths.

    What is valid in the Nix store comes from there; what binary caches have comes from them, if they are used
    directly; Nix builds the rest, or fetches it.

    Args:
        nix: on this machine; ``None`` if there is none.
        substitution: reads binary caches; ``None`` to leave them to Nix.
    """

    def __init__(self, nix: Nix | None, substitution: Substitution | None = None) -> None:
        self._nix = nix
        self._substitution = substitution

    def collector_paused(self) -> AbstractAsyncContextManager[Callable[[], None]]:
        """See ``Nix.collector_paused``."""
        return nullcontext(lambda: None) if self._nix is None else self._nix.collector_paused()

    @asynccontextmanager
    async def provide(
        self, contents: Contents, observe: Observe, resume_collector: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Provision]:
        """Provide all that an image needs, protected from Nix's garbage collector while the context lasts.

        Args:
            contents: of the image.
            observe: receives the progress of Nix.
            resume_collector: lets Nix's garbage collector continue.

        Raises:
            WrongDeriver: another derivation than that of the package index has built a path.
            PackagesUnavailable: the package set names paths that its derivations do not build; or no binary cache
                has a path, and there is no Nix.
            AnswerTooLarge: the closure exceeds its limit.
            BuildError: Nix, or a binary cache, fails.
        """
        outputs = await asyncio.to_thread(_outputs, contents)
        cached = await self._cached(contents, outputs)
        rest = [output for output in outputs if output.path not in cached]
        installables = _installables(contents, rest)
        async with AsyncExitStack() as stack:
            infos: dict[StorePath, PathInfo] = {}
            local: LocalStore | None = None
            if installables:
                nix = self._nix
                if nix is None:
                    raise self._unavailable(rest)
                try:
                    provided = await stack.enter_async_context(
                        nix.realise(installables, observe, resume_collector)
                    )
                except BuildFailed as error:
                    raise await _explained(nix, error, contents) from error
                _require_provided(rest, provided)
                closure = await nix.closure(sorted({output.path for output in rest}))
                _require_derivers(rest, closure)
                infos = {info.path: info for info in closure}
                local = stack.enter_context(LocalStore())
            resume_collector()
            # A path that is valid in the store is read from there, with the references that it has there.
            remote = {path: narinfo for path, narinfo in cached.items() if path not in infos}
            whole = Closure([*infos.values(), *(narinfo.info for narinfo in remote.values())])
            if self._substitution is None or (local is not None and not remote):
                yield Provision(whole, local or stack.enter_context(LocalStore()))
                return
            files, names = stack.enter_context(self._substitution.contents(whole, remote))
            if local is None:
                yield Provision(whole, files, names)
            else:
                near = {path.base_name.encode() for path in infos}
                yield Provision(whole, JoinedContents(local, near, files), names)

    async def _cached(self, contents: Contents, outputs: Sequence[_Output]) -> Mapping[StorePath, NarInfo]:
        """The closures of those outputs that come from binary caches."""
        if self._substitution is None or await self._is_all_valid(_installables(contents, outputs)):
            return {}
        named = await self._named(outputs)
        candidates = {
            output.path
            for output in outputs
            if output.derivation is not None and named.get(output.installable) in {None, output.path}
        }
        found = await self._substitution.closures(sorted(candidates))
        trusted = set()
        for output in outputs:
            narinfo = found.get(output.path)
            if narinfo is None or output.derivation is None:
                continue
            # A package set can claim any path. Nix's own derivation says what it builds; otherwise, the cache says
            # what has built the path. Nothing signs that, and the set may name the same: so it is not enough for a
            # path that only those with a login get.
            is_said = narinfo.info.deriver == str(output.derivation) and (
                self._nix is None or not self._substitution.needs_login(narinfo)
            )
            if named.get(output.installable) == output.path or is_said:
                trusted.add(output.path)
            elif output.is_realised:
                raise WrongDeriver
        closure = Closure(narinfo.info for narinfo in found.values())
        return {path: found[path] for path in closure.reachable(trusted)}

    async def _is_all_valid(self, installables: Sequence[str]) -> bool:
        return self._nix is not None and await self._nix.has(installables)

    async def _named(self, outputs: Sequence[_Output]) -> Mapping[str, StorePath]:
        """The paths of outputs by installable, as derivations in the Nix store name them."""
        if self._nix is None:
            return {}
        return await self._nix.outputs([output.installable for output in outputs])

    def _unavailable(self, outputs: Sequence[_Output]) -> PackagesUnavailable | BinaryCacheFailed:
        by_name = {output.requested_name: output for output in reversed(outputs)}
        if self._substitution is None:
            raise AssertionError("a server without Nix and without binary caches starts no builds")
        packages = []
        for name, output in sorted(by_name.items()):
            missing = self._substitution.explain(output.path)
            if missing.failed:
                # It may have the path, so the client should come back.
                return BinaryCacheFailed(
                    missing.failed, f"{missing.path}, of {name}: {missing.reason}; this server has no Nix"
                )
            needed = "" if missing.path == output.path else f"needs {missing.path}: "
            packages.append(
                UnavailablePackage(
                    name,
                    Reason.NOT_CACHED,
                    f"{output.path}: {needed}{missing.reason}; this server has no Nix that could build it",
                )
            )
        return PackagesUnavailable(tuple(packages))


async def _explained(nix: Nix, error: BuildFailed, contents: Contents) -> BuildFailed:
    """Return the error with the package of the image that needs the derivation, if that is not the package's own."""
    failed = error.derivation
    if failed is None or failed in {package.derivation.base_name for package in contents.packages}:
        return error
    try:
        for package in contents.packages[:_MOST_SEARCHED]:
            if await nix.needs(package.derivation, failed):
                return BuildFailed(
                    failed,
                    error.log_tail,
                    error.summary,
                    disturbed=error.disturbed,
                    needed_by=package.name or package.requested_name,
                )
    except NixeryError:
        _log.debug("cannot find out what needs a failed derivation", derivation=failed)
    return error


def _outputs(contents: Contents) -> list[_Output]:
    found = [
        _Output(
            str(path) if package.is_realised else f"{package.derivation}!{output}",
            path,
            package.derivation,
            package.is_realised,
            package.requested_name,
            package.attribute,
        )
        for package in contents.packages
        for output, path in package.outputs.items()
    ]
    if (definition := contents.definition) is not None:
        found += [
            _Output("", path, None, False, definition.requested_name, definition.attribute)
            for path in definition.store_paths
        ]
    return found


def _installables(contents: Contents, outputs: Iterable[_Output]) -> list[str]:
    """What Nix has to provide for some outputs, sorted."""
    wanted = {output.installable for output in outputs if output.installable}
    # Only Nix can vouch for what a definition refers to.
    return sorted(wanted.union(contents.definition.installables if contents.definition else ()))


def _require_provided(outputs: Iterable[_Output], provided: Collection[StorePath]) -> None:
    """Reject store paths that Nix has not just provided for this package set: others may be private."""
    for output in outputs:
        if output.path not in provided:
            explanation = f"{output.attribute} names {output.path}, which none of its derivations builds"
            raise PackagesUnavailable(
                (UnavailablePackage(output.requested_name, Reason.NOT_A_PACKAGE, explanation),)
            )


def _require_derivers(outputs: Iterable[_Output], closure: Closure) -> None:
    """Reject outputs of the package index that Nix did not build from the derivation that the index names.

    A package set can claim any path. Nix's own database says where a path comes from.
    """
    for output in outputs:
        if output.is_realised and closure[output.path].deriver != str(output.derivation):
            raise WrongDeriver
