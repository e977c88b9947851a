"""Why nixpkgs refuses a package (its ``check-meta.nix``), and what the operator would set to allow it.

Names, licences and vulnerabilities are texts of package authors: they are bounded here, and part of a command
only if no shell gives one of their characters a meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from nixery.errors import Reason
from nixery.nix.configuration import VARIABLE
from nixery.nix.error_message import NixMessage
from nixery.plain_text import plain_text, shortened

# Of each list, and characters of each item, that an explanation shows.
_MOST, _LONGEST = 5, 120

# Characters of a message that are read: an author's text may be as long as a log, and the expressions below
# take quadratic time for some.
_LONGEST_MESSAGE = 2000

_NAME = re.compile(r"[0-9a-zA-Z+._?=-]{1,256}", re.ASCII)

# The message of all versions so far, and of the newest ones, with quotes of both kinds.
_MESSAGES = (
    re.compile(
        r"Package ['\u2018](?P<name>[^'\u2019]+)['\u2019] in \S.*? (?P<why>(?:has|is) .+?), refusing to evaluate"
    ),
    re.compile(
        r"Refusing to evaluate package ['\u2018](?P<name>[^'\u2019]+)['\u2019] in \S.*? because it (?P<why>.+)"
    ),
)
_WHY = (
    (re.compile(r"has an unfree license \([\u2018'](?P<given>[^\u2019')]*)"), Reason.UNFREE),
    (re.compile(r"is marked as broken"), Reason.BROKEN),
    (re.compile(r"is marked as insecure"), Reason.INSECURE),
    (re.compile(r"is not (?:supported|available) on"), Reason.WRONG_PLATFORM),
)
_VERSION = re.compile(r"-[^a-zA-Z].*")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A package that nixpkgs refuses to evaluate.

    Attributes:
        reason: unfree, broken, insecure or not available on this platform.
        name: of the derivation, with its version.
        pname: the same without its version.
        licences: short names, for an unfree package.
        vulnerabilities: texts, for an insecure package.
        platforms: names in Nix, for a package of other platforms.
        configurable: whether the package set takes the operator's configuration.
    """

    reason: Reason
    name: str
    pname: str = ""
    licences: Sequence[str] = ()
    vulnerabilities: Sequence[str] = ()
    platforms: Sequence[str] = ()
    configurable: bool = False

    @classmethod
    def parse(cls, message: NixMessage) -> Self | None:
        """Read nixpkgs' message; ``None`` for any other."""
        text = message.text[:_LONGEST_MESSAGE]
        match = next((found for form in _MESSAGES if (found := form.match(text))), None)
        if match is None:
            return None
        kinds = ((form.match(match["why"]), reason) for form, reason in _WHY)
        why, reason = next(((found, reason) for found, reason in kinds if found), (None, None))
        if why is None or reason is None:
            return None
        licences = (why["given"],) if reason is Reason.UNFREE else ()
        issues = [line.removeprefix("- ") for line in message.details if line.startswith("- ")]
        insecure = tuple(issues) if reason is Reason.INSECURE else ()
        return cls(reason, match["name"], _VERSION.sub("", match["name"]), licences, insecure)

    def found_in(self, requested: Refusal) -> Refusal:
        """Complete the refusal in a message with the meta-data of the requested package, if it is that package."""
        # A refused package may refuse to tell its name; one with a refused dependency tells it.
        if requested.name and self.name != requested.name:
            return replace(self, configurable=requested.configurable)
        return replace(
            self,
            pname=requested.pname or self.pname,
            licences=requested.licences or self.licences,
            vulnerabilities=requested.vulnerabilities or self.vulnerabilities,
            platforms=requested.platforms,
            configurable=requested.configurable,
        )

    def explanation(self, of: str) -> str:
        """Explain it to a client on one line, and say how the operator can allow it.

        Args:
            of: name of the requested derivation; if it is another one, the refused package is a dependency.
        """
        facts = {
            Reason.UNFREE: f"licence {_listed(self.licences)}"
            if self.licences
            else "its licence is not free",
            Reason.BROKEN: "marked as broken" if of != self.name else "",
            Reason.INSECURE: _listed(self.vulnerabilities) or "marked as insecure",
            Reason.WRONG_PLATFORM: f"only for {_listed(self.platforms)}" if self.platforms else "",
        }[self.reason]
        if of != self.name:
            facts = f"it needs {_text(self.name)}" + (f", {facts}" if facts else "")
        return "; ".join(filter(None, (facts, self._advice())))

    def _advice(self) -> str:
        allowed: object = None
        match self.reason:
            case Reason.UNFREE if _NAME.fullmatch(self.pname):
                allowed, what = {"allowUnfreePredicate": [self.pname]}, "it"
            case Reason.UNFREE:
                allowed, what = {"allowUnfree": True}, "unfree packages"
            case Reason.INSECURE if _NAME.fullmatch(self.name):
                allowed, what = {"permittedInsecurePackages": [self.name]}, "it"
            case Reason.BROKEN:
                allowed, what = {"allowBroken": True}, "broken packages"
            case _:
                return ""
        if not self.configurable:
            return "the package set takes no configuration that could allow it"
        return f"the operator of this server can allow {what} with {VARIABLE}='{json.dumps(allowed)}'"


def _listed(texts: Sequence[str]) -> str:
    shown = ", ".join(map(_text, texts[:_MOST]))
    return f"{shown} and {len(texts) - _MOST} more" if len(texts) > _MOST else shown


def _text(text: str) -> str:
    return shortened(plain_text(text.replace("\n", " ")), _LONGEST)
