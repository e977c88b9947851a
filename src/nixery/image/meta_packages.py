"""Meta-packages: names that stand for several packages, in every package set that does not use the name itself.

A package set can replace each of them, or add others, in ``metaPackages`` of its attribute ``nixery``;
``nix/expressions/packages.nix`` looks them up. An attribute of the package set wins over a meta-package of the same
name. ``shell`` is one only at the beginning of an image name (see ``name.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

# What a request calls the packages of ``shell``, and what the package set says of itself. No client can write a name
# that begins with a dot.
SHELL, FACTS = ".shell", ".facts"


@dataclass(frozen=True, slots=True)
class MetaPackage:
    """A meta-package of every package set.

    Attributes:
        packages: attribute paths, required: without one of them, the name is not available.
        optional: attribute paths that are left out if the package set cannot provide them.
        command: what a container of the image runs by default.
        description: one line, for people.
    """

    packages: tuple[str, ...]
    optional: tuple[str, ...]
    command: tuple[str, ...]
    description: str

    def as_json(self) -> Mapping[str, object]:
        """Return the form that an entry of a package set has."""
        return {
            "packages": list(self.packages),
            "optional": list(self.optional),
            "command": list(self.command),
            "description": self.description,
        }


_SHELL_PACKAGES = ("bashInteractive", "coreutils", "moreutils", "nano")

META_PACKAGES: Mapping[str, MetaPackage] = MappingProxyType(
    {
        "ci": MetaPackage(
            # The scripts of the runners call these. Where grep or tar is missing, some of them continue as if a test
            # had succeeded.
            packages=(
                *("bashInteractive", "coreutils", "findutils", "gawk", "gnugrep", "gnused", "gnutar", "gzip"),
                *("git", "curl"),
            ),
            # Caches of GitHub are compressed with zstd. Node, which GitHub and editors bring along, needs libstdc++:
            # the first name is that of nixpkgs, the second one that of Debian.
            optional=(
                *("zstd", "xz", "bzip2", "unzip", "diffutils", "which", "hostname", "procps", "openssh"),
                *("stdenv.cc.cc.lib", "libstdc++6"),
            ),
            command=("bash",),
            description="programs that the runners of GitLab and GitHub and the servers of editors call",
        ),
        "debug": MetaPackage(
            packages=(
                *("bashInteractive", "coreutils", "findutils", "gnugrep", "gnused", "gnutar", "gzip"),
                *("less", "procps", "curl"),
            ),
            optional=(
                *("gawk", "strace", "lsof", "psmisc", "file", "which", "nano", "moreutils"),
                *("iproute2", "iputils", "dnsutils", "netcat", "tcpdump"),
            ),
            command=("bash",),
            description="a shell, and programs to look at processes, files and networks",
        ),
        "shell": MetaPackage(
            packages=_SHELL_PACKAGES,
            optional=(),
            command=("bash",),
            description="a shell, the basic commands, and an editor",
        ),
    }
)
