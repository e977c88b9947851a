"""How many store paths lie below each path of a closure."""

from __future__ import annotations

from nixery.closure.graph import Closure
from nixery.closure.store_path import StorePath


def count_inputs(closure: Closure) -> dict[StorePath, int]:
    """Count the paths that each path needs, itself included: it changes when any of them does.

    The number is the path's own, whatever image it is in. Sets of paths are integers with a bit for each: what takes
    time is proportional to references times paths, but 64 paths at a time.

    Returns:
        The counts, in an order in which every path comes after those it refers to.
    """
    below: dict[StorePath, int] = {}
    for info in closure:
        # Without recursion: chains of references may be longer than Python's stack.
        stack = [info.path]
        while stack:
            path = stack[-1]
            missing = [reference for reference in closure[path].references if reference not in below]
            if missing:
                stack += missing
                continue
            stack.pop()
            if path not in below:
                inputs = 1 << len(below)
                for reference in closure[path].references:
                    inputs |= below[reference]
                below[path] = inputs
    return {path: inputs.bit_count() for path, inputs in below.items()}
