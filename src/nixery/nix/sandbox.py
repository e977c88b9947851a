"""Confinement of builders: description and acceptance. ``nixery.nix.builder_probe`` measures it."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog

from nixery.errors import NixUnusable, SettingsError

_log = structlog.get_logger("nixery.nix")

Sandbox = Literal["on", "optional", "off", "elsewhere", "unknown"]
User = Literal["root", "server", "own", "unknown"]


@dataclass(frozen=True, slots=True)
class Confinement:
    """How builders are confined.

    Attributes:
        sandbox: ``on`` for all of them; ``optional`` where a package may opt out; ``off``; ``elsewhere`` if they run on
            another machine; ``unknown``.
        user: that builders run as, seen from outside of a sandbox: ``root``, unless it is only root of a user
            namespace; ``server``, this process's own; ``own``, neither of the two; ``unknown``. With an
            optional sandbox, the user of a builder that opted out.
        owns_store: whether this user owns the store paths that the builder is given, and so can change them.
        reads_storage: whether the builder could read a file of the server that no other user may read.
        reason: why the confinement is unknown.
    """

    sandbox: Sandbox
    user: User
    owns_store: bool = False
    reads_storage: bool = False
    reason: str = ""

    @property
    def is_safe(self) -> bool:
        """Whether a hostile builder cannot take over the server or its machine."""
        if self.sandbox == "elsewhere":
            return True
        return self.sandbox == "on" and self.user in {"server", "own"} and not self.reads_storage

    @property
    def is_complete(self) -> bool:
        """Whether a builder cannot reach other builds, either."""
        return self.is_safe and not self.owns_store

    @property
    def sentence(self) -> str:
        """Describe it in one sentence, without a period."""
        if self.sandbox == "unknown":
            return f"it is unknown what a builder could reach: {self.reason}"
        if self.sandbox == "elsewhere":
            return "builders run on another machine and reach nothing of this one but its network"
        if self.sandbox == "optional":
            return f"a package may turn Nix's sandbox off for its builders (sandbox = relaxed), which then run {_AS[self.user]}: {self._reach}"
        where = "in Nix's sandbox" if self.sandbox == "on" else "without a sandbox"
        return f"builders run {where}, {_AS[self.user]}: {self._reach}"

    @property
    def _reach(self) -> str:
        if self.sandbox != "on":
            return _REACH_WITHOUT[self.user]
        reach = ["a builder sees its inputs and, while it downloads, the network"]
        if self.owns_store:
            reach.append("it can change store paths that other images have in common with it")
        if self.user == "root":
            reach.append("it can change every file of this machine that sandbox-paths names")
        if self.reads_storage:
            reach.append("it can read the server's storage, which sandbox-paths names")
        return "; ".join(reach)


_AS: Mapping[User, str] = {
    "root": "as root",
    "server": "as the server's own user",
    "own": "as users of their own",
    "unknown": "as an unknown user",
}
_REACH_WITHOUT: Mapping[User, str] = {
    "root": "a builder can read and change everything on this machine, the server's storage and credentials included",
    "server": "a builder can read and change what the server can, its storage and credentials included",
    "own": "a builder can read the files that every user may read, and reach every service of this machine and its network",
    "unknown": "a builder can reach what this user can",
}


def require_sandbox(confinement: Confinement) -> None:
    """Enforce ``NIXERY_NIX_SANDBOX=on``.

    Raises:
        SettingsError: some builders run outside of the sandbox.
    """
    if confinement.sandbox in {"on", "elsewhere"}:
        return
    reason = confinement.reason or confinement.sentence
    raise SettingsError((f"NIXERY_NIX_SANDBOX is on, but the sandbox does not work here: {reason}",))


def require_confinement(confinement: Confinement, host: str) -> None:
    """Refuse to serve other machines if a builder could take over the server.

    If the probe failed, the server may start, since it can serve stored images; ``BuilderGate`` holds builds back.

    Args:
        confinement: of this server's builders.
        host: as the operator wrote it.

    Raises:
        SettingsError: a builder could take over the server.
    """
    if confinement.sandbox == "unknown" or confinement.is_safe:
        return
    problem = (
        f"NIXERY_HOST={host} opens the server to other machines, but {confinement.sentence}"
        " (turn on Nix's sandbox and give Nix build users, or use a Nix daemon that has both:"
        " docs/explanation/deployments.md; or accept it with NIXERY_NIX_SANDBOX=off)"
    )
    raise SettingsError((problem,))


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a listen address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


class BuilderGate:
    """Holds builds back until the probe has shown how builders are confined.

    A result of the start holds for the life of the process. If the probe failed at the start, because Nix was unusable, each build
    repeats it until one succeeds.

    Args:
        confinement: result of the probe at the start; ``None`` for a gate that is always open.
        probe: repeats it; blocks.
    """

    def __init__(self, confinement: Confinement | None, probe: Callable[[], Confinement]) -> None:
        self._open = confinement is None or confinement.is_safe
        self._probe = probe
        self._lock = asyncio.Lock()

    async def enter(self) -> None:
        """Let a build begin.

        Raises:
            NixUnusable: builders are not confined, or the probe failed.
        """
        async with self._lock:
            if self._open:
                return
            confinement = await asyncio.to_thread(self._probe)
            log_confinement(confinement)
            if not confinement.is_safe:
                raise NixUnusable("builders are not known to be confined; the server's log has the details")
            self._open = True


def log_confinement(confinement: Confinement) -> None:
    """Log what a builder could reach, at warning level: it is never nothing, and quiet logs need it, too."""
    _log.warning("builders", sandbox=confinement.sandbox, user=confinement.user, reach=confinement.sentence)
