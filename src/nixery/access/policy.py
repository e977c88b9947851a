"""Rules: which identity may do what with which images.

A rule says *who* (users, groups, claims), *what* (packages, tags, platforms) and what they *may* do with it. For each
package of an image, the first rule decides whose *who* and *what* match; without one, nothing is allowed. An image is
allowed if each of its packages is. So a decision depends on names only, never on what exists: what is not allowed looks
like what is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache

from nixery.access.identity import ANONYMOUS, Identity, Right
from nixery.caching import LRUCache
from nixery.errors import (
    AccessDenied,
    LoginRequired,
    NixeryError,
    NotVisible,
    PackagesUnavailable,
    PlatformFailed,
)
from nixery.image.name import ImageRequest

# Bytes of the decisions that are kept for one identity, and of identities whose rights are kept. Clients make names up.
_DECISIONS, _IDENTITIES = 64 * 1024, 256 * 1024

_ANY = "*"

_VERBS = {
    Right.PULL: "pull",
    Right.BUILD: "have built",
    Right.SEE_BUILDS: "see builds of",
    Right.ADMIN: "administer",
}

# Who a rule is for: a word, or a kind and a pattern.
_WORDS = frozenset({"everyone", "anonymous", "authenticated"})
_TERM = re.compile(r"(?P<kind>user|group|claim):(?P<rest>.+)", re.DOTALL)

# A character that image names cannot have (`image.spelling`).
_ESCAPE = re.compile(r"__([2-6][0-9a-f]|7[0-9a-e])", re.ASCII)


def check_term(term: str) -> str:
    """Check one element of ``who``.

    Raises:
        ValueError: it matches no identity.
    """
    if term in _WORDS:
        return term
    match = _TERM.fullmatch(term)
    if match is None:
        raise ValueError(
            f"{term!r} matches no identity: use everyone, anonymous, authenticated, user:NAME, group:NAME or claim:NAME=VALUE"
        )
    if match["kind"] == "claim" and not all(match["rest"].partition("=")):
        raise ValueError(f"{term!r} should be claim:NAME=VALUE")
    return term


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. In all patterns ``*`` stands for any characters; case does not matter in those of packages.

    Attributes:
        who: checked by ``check_term``; one has to match.
        may: what is allowed; empty to forbid.
        packages: patterns of components of image names, ``shell`` among them, or of the attributes that they select:
            ``g++`` is ``g__2b__2b``.
        tags: patterns.
        platforms: patterns, such as ``linux/arm64``.
    """

    who: tuple[str, ...]
    may: frozenset[Right]
    packages: tuple[str, ...] = (_ANY,)
    tags: tuple[str, ...] = (_ANY,)
    platforms: tuple[str, ...] = (_ANY,)

    def is_for(self, identity: Identity) -> bool:
        """Whether *who* matches."""
        return any(is_member(identity, term) for term in self.who)


def is_member(identity: Identity, term: str) -> bool:
    """Whether an element of ``who`` matches an identity."""
    if term in _WORDS:
        return term == "everyone" or (term == "anonymous") == identity.is_anonymous
    if identity.is_anonymous:
        return False
    kind, _, rest = term.partition(":")
    if kind == "user":
        return matches(rest, identity.name)
    if kind == "group":
        return any(matches(rest, group) for group in identity.groups)
    name, _, value = rest.partition("=")
    return name in identity.claims and matches(value, identity.claims[name])


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern, in which ``*`` stands for any characters, matches a text as a whole."""
    return pattern == _ANY or _compiled(pattern).fullmatch(text) is not None


@lru_cache(4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = re.sub(r"\*+", _ANY, pattern).split(_ANY)
    return re.compile(".*".join(map(re.escape, parts)), re.DOTALL)


class Access:
    """What one identity may do.

    Args:
        identity: whose rights these are.
        rules: those of the policy; ``None`` if there is none: all is allowed.
        shows_denials: whether the identity may learn that something is not allowed, rather than missing.
        policy: that these rights are from; ``None`` for one that never changes.
    """

    __slots__ = ("_decisions", "_policy", "_rules", "identity", "shows_denials")

    def __init__(
        self,
        identity: Identity,
        rules: Sequence[Rule] | None,
        *,
        shows_denials: bool = False,
        policy: Policy | None = None,
    ) -> None:
        self._policy = policy
        self.identity = identity
        self.shows_denials = shows_denials
        self._rules = None if rules is None else tuple(rule for rule in rules if rule.is_for(identity))
        self._decisions: LRUCache[tuple[object, ...], bool] = LRUCache(_DECISIONS)

    @property
    def is_restricted(self) -> bool:
        """Whether there are rules."""
        return self._rules is not None

    @property
    def is_in_force(self) -> bool:
        """Whether the rules still apply. A long answer has to end when they do not."""
        return self._policy is None or self._policy.is_in_force

    def allows(self, right: Right, requests: Sequence[ImageRequest], tag: str) -> bool:
        """Whether the identity has a right over all images that a name and a tag stand for."""
        return self._rules is None or all(self._allows(right, request, tag) for request in requests)

    def require(self, right: Right, requests: Sequence[ImageRequest], name: str, tag: str) -> None:
        """Check that the identity has a right over an image.

        Args:
            right: in question.
            requests: what the name stands for.
            name: for the message.
            tag: of the image.

        Raises:
            LoginRequired: the right is missing, and the client sent no credentials.
            AccessDenied: it is missing, and the identity may know that.
            NotVisible: it is missing.
        """
        if not self.allows(right, requests, tag):
            raise self.denial(f"{_VERBS[right]} {name}", f"image {name}")

    def require_anywhere(self, right: Right, requests: Sequence[ImageRequest], name: str) -> None:
        """Check that the identity has a right over an image at some tag; see ``require``.

        Raises:
            LoginRequired, AccessDenied, NotVisible: as ``require``.
        """
        if not self.allows_name(right, requests[0]):
            raise self.denial(f"{_VERBS[right]} {name}", f"image {name}")

    def denial(self, deed: str, thing: str) -> NixeryError:
        """Return the error for something that is not allowed; it does not depend on whether the thing exists.

        Args:
            deed: what is not allowed, such as ``pull shell/git``.
            thing: that was asked for, such as ``image shell/git``.
        """
        if self.identity.is_anonymous:
            return LoginRequired(f"log in to {deed}")
        if self.shows_denials:
            return AccessDenied(str(self.identity), deed)
        return NotVisible(str(self.identity), thing)

    def without_hidden(self, error: NixeryError) -> NixeryError:
        """Return an error without the near names that the identity may not pull."""
        if self._rules is None:
            return error
        if isinstance(error, PlatformFailed):
            return PlatformFailed(error.platform, self.without_hidden(error.error))
        if not isinstance(error, PackagesUnavailable):
            return error
        packages = (
            replace(
                package,
                near_names=tuple(
                    name for name in package.near_names if self.allows_package(Right.PULL, name)
                ),
            )
            for package in error.packages
        )
        return PackagesUnavailable(tuple(packages))

    def allows_package(self, right: Right, component: str) -> bool:
        """Whether the identity has a right over a package at some tag, for some platform.

        Args:
            right: in question.
            component: as in the name of an image.
        """
        if self._rules is None:
            return True
        key = (right, component)
        found = self._decisions.get(key)
        if found is None:
            # The first rule may be for other tags or platforms: those that nothing matches are left to later rules.
            found = self._within_limits(right, component) and _decide(
                [rule for rule in self._rules if right in rule.may or _is_for_all(rule)],
                right,
                component,
                lambda _: True,
            )
            self._decisions.put(key, found, len(component) + 64)
        return found

    def allows_name(self, right: Right, request: ImageRequest) -> bool:
        """Whether the identity has a right over each package of an image, at some tag."""
        return self._rules is None or all(self.allows_package(right, one) for one in names_of(request))

    def others_may_have_more(self, right: Right, request: ImageRequest) -> bool:
        """Whether a rule gives others a right over an image that this identity does not have at each tag.

        A decision about names, as all others are; ``False`` if that is not known. Some other rule may deny others what
        this one gives them.
        """
        if self._rules is None or self._policy is None:
            return False
        names = names_of(request)
        if all(self._allows_at_each_tag(right, name) for name in names):
            return False
        return any(
            right in rule.may and not rule.is_for(self.identity) and _matches_any(rule.packages, name)
            for rule in self._policy.rules
            for name in names
        )

    def _allows_at_each_tag(self, right: Right, name: str) -> bool:
        """Whether the identity has a right over a package at each tag and for each platform; ``False`` in doubt."""
        for rule in self._rules or ():
            if _matches_any(rule.packages, name):
                if right not in rule.may:
                    return False
                if _is_for_all(rule):
                    return self.allows_package(right, name)
        return False

    def allows_anything(self, right: Right) -> bool:
        """Whether the identity has a right over anything at all."""
        return self._rules is None or (
            (self.identity.limits is None or right in self.identity.limits.rights)
            and any(right in rule.may for rule in self._rules)
        )

    def _allows(self, right: Right, request: ImageRequest, tag: str) -> bool:
        platform = str(request.platform)
        key = (right, request.requested, request.shell, platform, tag)
        found = self._decisions.get(key)
        if found is None:
            found = all(self._allows_at(right, name, tag, platform) for name in names_of(request))
            self._decisions.put(key, found, sum(map(len, request.requested)) + len(tag) + 128)
        return found

    def _allows_at(self, right: Right, name: str, tag: str, platform: str) -> bool:
        def applies(rule: Rule) -> bool:
            return any(matches(one, tag) for one in rule.tags) and any(
                matches(one, platform) for one in rule.platforms
            )

        return self._within_limits(right, name) and _decide(self._rules or (), right, name, applies)

    def _within_limits(self, right: Right, name: str) -> bool:
        limits = self.identity.limits
        return limits is None or (right in limits.rights and _matches_any(limits.packages, name))


# Of a server without rules.
UNRESTRICTED = Access(ANONYMOUS, None)

# Of the request that the running code answers. Shared work, such as a build, must not ask for it: it belongs to several.
_current: ContextVar[Access] = ContextVar("nixery_access", default=UNRESTRICTED)


def current_access() -> Access:
    """Return what the sender of the current request may do."""
    return _current.get()


def enter_access(access: Access) -> None:
    """Answer for this identity from now on, in this task and in those that it starts."""
    _current.set(access)


class Policy:
    """All rules.

    Args:
        rules: in their order.
        shows_denials: whether those who identified themselves learn that something is not allowed.

    Attributes:
        is_in_force: whether no later policy has replaced this one.
    """

    def __init__(self, rules: Sequence[Rule], *, shows_denials: bool = False) -> None:
        self.rules = tuple(rules)
        self.shows_denials = shows_denials
        self.is_in_force = True
        self._access: LRUCache[Identity, Access] = LRUCache(_IDENTITIES)

    def access(self, identity: Identity) -> Access:
        """Return what an identity may do. Kept by identity: with its decisions."""
        # Two identities that differ in their claims alone are equal as keys, but not in what they may do.
        found = self._access.get(identity)
        if found is None or (found.identity is not identity and found.identity != identity):
            found = Access(identity, self.rules, shows_denials=self.shows_denials, policy=self)
            self._access.put(identity, found, 1)
        return found


def names_of(request: ImageRequest) -> tuple[str, ...]:
    """Return the names that rules are about: the packages that the client asked for, and ``shell``."""
    return (*request.requested, *(("shell",) if request.shell else ()))


def _is_for_all(rule: Rule) -> bool:
    return rule.tags == (_ANY,) and rule.platforms == (_ANY,)


def _decide(rules: Sequence[Rule], right: Right, name: str, applies: Callable[[Rule], bool]) -> bool:
    first = next((rule for rule in rules if applies(rule) and _matches_any(rule.packages, name)), None)
    if first is None or right not in first.may:
        return False
    # `pkgs.curl` is `curl` by another path: what a rule forbids by name, it forbids under each path that ends so.
    for other in _other_names(name):
        named = next((rule for rule in rules if applies(rule) and _names(rule.packages, other)), None)
        if named is not None and right not in named.may:
            return False
    return True


def _other_names(name: str) -> Iterator[str]:
    """Yield the ends of an attribute path, and the names that ``image.spelling`` lets a component stand for."""
    while True:
        if name[:1].isdigit():
            yield f"_{name}"
        elif name[:2] in {"x_", "x-"}:
            yield name[1:]
        _, dot, name = name.partition(".")
        if not dot:
            return
        yield name


def _unescaped(component: str) -> tuple[str, ...]:
    if "__" not in component:
        return ()
    return (_ESCAPE.sub(lambda match: chr(int(match[1], 16)), component),)


def _matches_any(patterns: Sequence[str], name: str) -> bool:
    names = [one.lower() for one in (name, *_unescaped(name))]
    return any(matches(pattern.lower(), one) for pattern in patterns for one in names)


def _names(patterns: Sequence[str], name: str) -> bool:
    return _matches_any([pattern for pattern in patterns if pattern != _ANY], name)
