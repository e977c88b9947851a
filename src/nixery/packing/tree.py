"""A file system tree in memory."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Link:
    """A symlink."""

    target: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A file we write ourselves."""

    content: bytes


@dataclass(slots=True)
class Tree:
    """A directory, by the names of what it holds; its owner is the ids of a user and a group."""

    children: dict[bytes, Tree | Link | Content] = field(default_factory=dict)
    mode: int = 0o755
    owner: tuple[int, int] = (0, 0)

    def get(self, name: bytes) -> Tree | Link | Content | None:
        """Find what stands at a path; ``None`` if nothing does or a symlink stands in between."""
        node: Tree | Link | Content | None = self
        for component in name.split(b"/"):
            if not isinstance(node, Tree):
                return None
            node = node.children.get(component)
        return node

    def add(self, name: bytes, node: Tree | Link | Content) -> None:
        """Put something at a path, unless something stands there or in the way already."""
        *above, last = name.split(b"/")
        directory = self
        for component in above:
            child = directory.children.setdefault(component, Tree())
            if not isinstance(child, Tree):
                return
            directory = child
        directory.children.setdefault(last, node)

    def remove(self, name: bytes) -> None:
        """Remove what stands at a path; nothing happens if nothing does."""
        above, _, last = name.rpartition(b"/")
        directory = self.get(above) if above else self
        if isinstance(directory, Tree):
            directory.children.pop(last, None)
