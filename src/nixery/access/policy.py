"""Rules: which identity may do what with which images.

A rule says *who* (users, groups, claims), *what* (packages, tags, platforms) and what they *may* do with it. For each
package of an image, the first rule decides whose *who* and *what* match; without one, nothing is allowed. An image is
allowed if each of its packages is. So a decision depends on names only, never on what exists: what is not allowed looks
like what is not there.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

from nixery.access.identity import ANONYMOUS, Identity, Right
from nixery.caching import LRUCache
from nixery.errors import (
    AccessDenied,
    LoginRequired,
    NixeryError,
    NotVisible,
    PackagesUnavailable,
    PlatformFailed,
    QuotaExceeded,
)
from nixery.image.name import ImageRequest
from nixery.request_context import Refusal, current_request

# Bytes of the decisions that are kept for one identity, and of identities whose rights are kept. Clients make names up.
_DECISIONS, _IDENTITIES = 64 * 1024, 256 * 1024

_ANY = "*"

_VERBS = {
    Right.PULL: "pull",
    Right.BUILD: "have built",
    Right.SEE_BUILDS: "see builds of",
    Right.ADMIN: "administer",
}

# Parts of an attribute path, beyond which nothing is allowed: a rule is compared with each path within it.
_MOST_PARTS = 15

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
    return re.compile(_expression(pattern), re.DOTALL)


@lru_cache(4096)
def _of_packages(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return expressions for the patterns of packages, and for those among them that name packages."""

    def one_of(some: Sequence[str]) -> re.Pattern[str]:
        # Of none: an expression that matches nothing.
        return re.compile("|".join(_expression(pattern.lower()) for pattern in some) or "(?!)", re.DOTALL)

    return one_of(patterns), one_of([pattern for pattern in patterns if pattern != _ANY])


def _expression(pattern: str) -> str:
    first, *rest = re.sub(r"\*+", _ANY, pattern).split(_ANY)
    if not rest:
        return re.escape(first)
    *middle, last = map(re.escape, rest)
    # Each text is taken where it occurs first, for good: with backtracking, a client could choose a name that takes
    # minutes for a pattern with five `*`.
    return "".join((re.escape(first), *(f"(?>.*?{text})" for text in middle), ".*", last))


class Access:
    """What one identity may do.

    Args:
        identity: whose rights these are.
        rules: those of the policy; ``None`` if there is none: all is allowed.
        shows_denials: whether the identity may learn that something is not allowed, rather than missing.
        policy: that these rights are from; ``None`` for one that never changes.
    """

    __slots__ = ("_decisions", "_lock", "_policy", "_rules", "identity", "shows_denials")

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
        # Searches and pages are made in threads, for the same identity as requests on the event loop.
        self._lock = threading.Lock()
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
            raise self.denial(f"{_VERBS[right]} {name}", f"image {name}", right, name)

    def require_anywhere(self, right: Right, requests: Sequence[ImageRequest], name: str) -> None:
        """Check that the identity has a right over an image at some tag; see ``require``.

        Raises:
            LoginRequired, AccessDenied, NotVisible: as ``require``.
        """
        if not self.allows_name(right, requests[0]):
            raise self.denial(f"{_VERBS[right]} {name}", f"image {name}", right, name)

    def denial(self, deed: str, thing: str, right: Right | None, name: str) -> NixeryError:
        """Return the error for something that is not allowed; it does not depend on whether the thing exists.

        Args:
            deed: what is not allowed, such as ``pull shell/git``.
            thing: that was asked for, such as ``image shell/git``.
            right: as in ``note_refusal``.
            name: as in ``note_refusal``.
        """
        if self.identity.is_anonymous:
            return LoginRequired(f"log in to {deed}")
        who = str(self.identity)
        error = AccessDenied(who, deed) if self.shows_denials else NotVisible(who, thing)
        note_refusal(right, name, str(error))
        return error

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

    def allows_package(self, right: Right, component: str, tag: str | None = None) -> bool:
        """Whether the identity has a right over a package for some platform.

        Args:
            right: in question.
            component: as in the name of an image.
            tag: of the package set; ``None`` for some tag.
        """
        if self._rules is None:
            return True
        key = (right, component, tag)
        found = self._decision(key)
        if found is None:
            # The first rule may be for other tags or platforms: those that nothing matches are left to later rules.
            found = self._within_limits(right, component) and _decide(
                [rule for rule in self._rules if right in rule.may or _is_for_all(rule, tag)],
                right,
                component,
                lambda rule: _is_for_tag(rule, tag),
            )
            self._keep(key, len(component) + len(tag or "") + 64, found)
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
            right in rule.may and not rule.is_for(self.identity) and _is_for(rule, _spellings(name))
            for rule in self._policy.rules
            for name in names
        )

    def _allows_at_each_tag(self, right: Right, name: str) -> bool:
        """Whether the identity has a right over a package at each tag and for each platform; ``False`` in doubt."""
        for rule in self._rules or ():
            if _is_for(rule, _spellings(name)):
                if right not in rule.may:
                    return False
                if _is_for_all(rule, None):
                    return self.allows_package(right, name)
        return False

    def allows_anything(self, right: Right, tag: str | None = None) -> bool:
        """Whether the identity has a right over anything at all, at a tag; ``None`` for some tag."""
        if self._rules is None:
            return True
        if self.identity.limits is not None and right not in self.identity.limits.rights:
            return False
        for rule in self._rules:
            if right in rule.may and _is_for_tag(rule, tag):
                return True
            # Later rules decide about nothing.
            if _is_for_all(rule, tag) and any(set(pattern) == {_ANY} for pattern in rule.packages):
                return False
        return False

    def _allows(self, right: Right, request: ImageRequest, tag: str) -> bool:
        platform = str(request.platform)
        key = (right, request.requested, request.shell, platform, tag)
        found = self._decision(key)
        if found is None:
            found = all(self._allows_at(right, name, tag, platform) for name in names_of(request))
            self._keep(key, sum(map(len, request.requested)) + len(tag) + 128, found)
        return found

    def _decision(self, key: tuple[object, ...]) -> bool | None:
        with self._lock:
            return self._decisions.get(key)

    def _keep(self, key: tuple[object, ...], size: int, found: bool) -> None:  # noqa: FBT001
        with self._lock:
            self._decisions.put(key, found, size)

    def _allows_at(self, right: Right, name: str, tag: str, platform: str) -> bool:
        def applies(rule: Rule) -> bool:
            return _is_for_tag(rule, tag) and any(matches(one, platform) for one in rule.platforms)

        return self._within_limits(right, name) and _decide(self._rules or (), right, name, applies)

    def _within_limits(self, right: Right, name: str) -> bool:
        limits = self.identity.limits
        if limits is None:
            return True
        pattern, _ = _of_packages(limits.packages)
        return right in limits.rights and any(map(pattern.fullmatch, _spellings(name)))


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


def note_refusal(right: Right | None, name: str, reason: str) -> None:
    """Note that the current request asks for something that is not allowed, for the audit log.

    Only an answer that is an error makes it a refusal: a list leaves out what is not allowed. A request without
    credentials that is asked to log in is none, either.

    Args:
        right: that is missing; ``None`` if any would do.
        name: of an image, a package or a build, or the path of a page.
        reason: for people.
    """
    request = current_request()
    if request is not None:
        request.refused = Refusal(None if right is None else right.value, name, reason)


def note_quota(name: str, error: NixeryError) -> None:
    """Note likewise that a quota allows no build of an image, if that is the error."""
    cause = error.error if isinstance(error, PlatformFailed) else error
    if isinstance(cause, QuotaExceeded):
        note_refusal(Right.BUILD, name, str(cause))


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
    """Return the names that rules are about, at least one: packages that the client asked for, and ``shell``.

    Of an image without either, whose name is that of a platform, it is ``amd64`` or ``arm64``.
    """
    names = (*request.requested, *(("shell",) if request.shell else ()))
    return names or (request.platform.architecture.name,)


def _is_for_tag(rule: Rule, tag: str | None) -> bool:
    return tag is None or any(matches(pattern, tag) for pattern in rule.tags)


def _is_for_all(rule: Rule, tag: str | None) -> bool:
    """Whether a rule is for all platforms, at a tag; ``None`` for all tags."""
    of_tag = rule.tags == (_ANY,) if tag is None else _is_for_tag(rule, tag)
    return of_tag and rule.platforms == (_ANY,)


def _decide(rules: Sequence[Rule], right: Right, name: str, applies: Callable[[Rule], bool]) -> bool:
    rules = [rule for rule in rules if applies(rule)]
    spelled = _spellings(name)
    first = next((i for i, rule in enumerate(rules) if _is_for(rule, spelled)), None)
    if first is None or right not in rules[first].may:
        return False
    paths = _paths_within(name)
    if paths is None:
        return False
    # `pkgs.curl` is `curl` by another path, and `curl.dev` is an output of it: what a rule forbids by name, it forbids
    # there as well. But a rule that allows `curl.dev` before it holds.
    for other, is_beginning in paths:
        spelled = _spellings(other)
        compared = rules[:first] if is_beginning else rules
        named = next((rule for rule in compared if _is_for(rule, spelled, named=True)), None)
        if named is not None and right not in named.may:
            return False
    return True


def _paths_within(name: str) -> list[tuple[str, bool]] | None:
    """Return the attribute paths within one, each with whether it is only a beginning; ``None`` if there are too many.

    Of each path there are the names that ``image.spelling`` lets a component stand for as well.
    """
    parts = name.split(".")
    if len(parts) > _MOST_PARTS:
        return None
    found: list[tuple[str, bool]] = []
    for start, end in combinations(range(len(parts) + 1), 2):
        path = ".".join(parts[start:end])
        is_beginning = start == 0 and end < len(parts)
        if path != name:
            found.append((path, is_beginning))
        if path[:1].isdigit():
            found.append((f"_{path}", is_beginning))
        elif path[:2] in {"x_", "x-"}:
            found.append((path[1:], is_beginning))
    return found


def _spellings(name: str) -> tuple[str, ...]:
    """Return a name, and the attribute that it stands for if it is an escaped spelling; in lower case."""
    if "__" not in name:
        return (name.lower(),)
    return name.lower(), _ESCAPE.sub(lambda match: chr(int(match[1], 16)), name).lower()


def _is_for(rule: Rule, spelled: Sequence[str], *, named: bool = False) -> bool:
    """Whether a rule is for a package; with ``named``, by a pattern that names packages."""
    pattern = _of_packages(rule.packages)[named]
    return any(pattern.fullmatch(one) is not None for one in spelled)
