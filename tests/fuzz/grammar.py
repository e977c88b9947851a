"""The specification's grammar of names without regular expressions, as the reference to compare them with."""

from __future__ import annotations

from itertools import groupby

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_TAG = LETTERS | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_HEX = frozenset("0123456789abcdef")


def is_name(text: str) -> bool:
    """Tell whether it is the name of a repository within the limit for host and name together."""
    return len(text) <= 255 and all(map(_is_component, text.split("/")))


def _is_component(text: str) -> bool:
    runs = [(is_word, "".join(run)) for is_word, run in groupby(text, LETTERS.__contains__)]
    return (
        bool(runs)
        and runs[0][0]
        and runs[-1][0]
        and all(is_word or run in (".", "_", "__") or set(run) == {"-"} for is_word, run in runs)
    )


def is_tag(text: str) -> bool:
    """Tell whether it is a tag."""
    return 0 < len(text) <= 128 and text[0] in _TAG and set(text) <= _TAG | set(".-")


def is_digest(text: str) -> bool:
    """Tell whether it is a digest of a supported algorithm."""
    algorithm, _, encoded = text.partition(":")
    return algorithm == "sha256" and len(encoded) == 64 and set(encoded) <= _HEX


def is_route(path: str) -> bool:
    """Tell whether a path may exist. One superfluous slash is tolerated, and any number after ``/v2`` and ``_catalog``."""
    if path.rstrip("/") in ("/v2", "/v2/_catalog"):
        return True
    match path.removesuffix("/").split("/"):
        case ["", "v2", *name, "tags", "list"]:
            return is_name("/".join(name))
        case ["", "v2", *name, "manifests", reference]:
            return is_name("/".join(name)) and (is_tag(reference) or is_digest(reference))
        case ["", "v2", *name, "blobs" | "referrers", digest]:
            return is_name("/".join(name)) and is_digest(digest)
        case _:
            return False


def packages_of(name: str) -> set[str]:
    """Return the packages that a name stands for, without those of meta-packages."""
    components = name.split("/")
    while components and components[0] in ("shell", "arm64", "amd64"):
        components = components[1:]
    return set(components)
