"""Classes of routes, for metrics and traces: few of them, whatever clients ask for."""

from __future__ import annotations

_RESOURCES = frozenset({"blobs", "referrers"})

# By the first part of a path.
_FIRST = {
    "": "page",
    "api": "api",
    "builds": "page",
    "healthz": "health",
    "images": "page",
    "metrics": "metrics",
    "readyz": "health",
    "static": "page",
}
_ENDS = {"/v2": "version", "/v2/_catalog": "catalog"}
OTHER = "other"


def route_class(path: str) -> str:
    """Return the class of a path, valid or not.

    As the router does, it looks at the end: names have slashes.
    """
    if path != "/v2" and not path.startswith("/v2/"):
        return _FIRST.get(path[1:].partition("/")[0], OTHER)
    name, _, rest = path.removesuffix("/").rpartition("/")
    name, _, kind = name.rpartition("/")
    if rest and len(name) > len("/v2/"):
        if kind == "manifests":
            return "manifest_by_digest" if ":" in rest else "manifest_by_tag"
        if kind in _RESOURCES:
            return kind[:-1]
        if kind == "tags" and rest == "list":
            return "tags"
    return _ENDS.get(path.rstrip("/"), OTHER)
