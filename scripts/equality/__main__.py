"""Prove that images from a binary cache are those of the Nix store: ``python -m scripts.equality``, run by ``make equality``.

It takes the first of Debian's best-known packages whose outputs are valid in the store of this machine, and serves the
store as a signed binary cache. Then it compares two ways to the same store paths, the store and the cache:

- for each store path of all closures, the bytes of its archive; and each name in it with its type, its target and
  whether it is executable, which root file systems are planned from;
- for whole images, the digests of their manifests. The server that reads the cache has an empty Nix store in its own
  mount namespace. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nixery.binary_caches.client import BinaryCaches
from nixery.binary_caches.configuration import CacheConfiguration
from nixery.builds.substitution import Substitution
from nixery.closure import Closure, PathInfo, StorePath
from nixery.nix.store_database import StoreDatabase
from nixery.packing.archive import Archive
from nixery.packing.contents import StoreContents
from nixery.packing.local_store import LocalStore
from nixery.storage.opening import open_storage
from nixery.storage.options import StorageOptions
from scripts.debian_smoke.packages import read_packages
from scripts.equality.cache import ANY_SIZE, STATE

_SET = Path("packagesets/debian")
_DIRECTORY = Path("var/equality")
_RESULT = _DIRECTORY / "result.json"
_PACKAGES, _IMAGES = 200, 40

# Names of several packages, beside those of one: their layers are grouped otherwise.
_TOGETHER = ("shell", "shell/git", "shell/python3/curl", "shell/nodejs/git/jq")

# Store paths that are fetched in advance, as those of a layer are.
_EXPECTED = 64

_EVALUATE = """
names: let set = import {set} {{ }}; in builtins.listToAttrs (builtins.concatMap (name:
  let path = builtins.tryEval set.${{name}}.outPath; in
  if set ? ${{name}} && path.success then [ {{ inherit name; value = path.value; }} ] else [ ]) names)
"""


@dataclass
class _Counts:
    """What was compared, and what differs."""

    paths: int = 0
    bytes: int = 0
    names: int = 0
    differences: list[str] | None = None


def main() -> int:
    """Compare, print and save the results; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.equality", description="Needs root.")
    parser.add_argument("--set", type=Path, default=_SET, help="package set whose packages are in the store")
    parser.add_argument("--packages", type=int, default=_PACKAGES, help="whose store paths are compared")
    parser.add_argument("--images", type=int, default=_IMAGES, help="of one package each")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    if os.geteuid() != 0:
        console.print("the comparison mounts an empty Nix store: run it as root", style="red")
        return 1
    _DIRECTORY.mkdir(parents=True, exist_ok=True)
    database = StoreDatabase(STATE)
    package_set = arguments.set.absolute()
    valid = {
        name: path
        for name, path in _outputs(package_set).items()
        if database.closure([path], ANY_SIZE) is not None and os.path.lexists(str(path))
    }
    packages = dict(list(valid.items())[: arguments.packages])
    closure = database.closure(sorted(packages.values()), ANY_SIZE)
    if not packages or closure is None:
        console.print(
            "no package is valid in the store of this machine: run make debian-smoke first", style="red"
        )
        return 1
    began = time.monotonic()
    with _serving() as (url, key):
        os.environ["NIX_CONFIG"] = f"substituters = {url}\ntrusted-public-keys = {key}"
        counts = asyncio.run(_compare_paths(closure, sorted(set(packages.values())), console))
        images = [*_TOGETHER, *list(packages)[: arguments.images]]
        with console.status(f"{len(images)} images from the store"):
            near, _ = _images(package_set, images, "nix")
        with console.status(f"{len(images)} images from the cache"):
            far, realised = _images(package_set, images, "direct")
    differences = counts.differences or []
    differences += [
        f"the image {name}: {near[name]}, {far[name]}" for name in images if near[name] != far[name]
    ]
    differences += [f"{info.path} was realised" for info in closure if info.path.base_name in realised]
    result = {
        "packages": len(packages),
        "store paths": counts.paths,
        "bytes of their archives": counts.bytes,
        "names in them": counts.names,
        "images": len(images),
        "different": len(differences),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    _RESULT.write_text(json.dumps({**result, "digests": near}, indent=2))
    table = Table("compared", "number")
    table.columns[1].justify = "right"
    for name, number in result.items():
        table.add_row(name, f"{number:,}")
    console.print(table)
    for difference in differences:
        console.print(f"different: {difference}", style="red")
    return bool(differences)


def _outputs(package_set: Path) -> dict[str, StorePath]:
    """The main outputs of the listed packages, in the order of the list."""
    names = [package.name for package in read_packages()]
    expression = _EVALUATE.format(set=package_set)
    text = " ".join(json.dumps(name) for name in names)
    command = ("nix-instantiate", "--eval", "--strict", "--json", "-E", f"({expression}) [ {text} ]")
    completed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, str] = json.loads(completed.stdout)
    return {name: StorePath.parse(found[name]) for name in names if name in found}


@contextmanager
def _serving() -> Iterator[tuple[str, str]]:
    command = (sys.executable, "-m", "scripts.equality.cache")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 -- for mypy
        try:
            port, key = process.stdout.readline().split()
            yield f"http://127.0.0.1:{port}", key
        finally:
            process.terminate()


async def _compare_paths(closure: Closure, roots: Sequence[StorePath], console: Console) -> _Counts:
    caches = BinaryCaches(CacheConfiguration.read(os.environ))
    counts = _Counts(differences=[])
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="round-", dir=_DIRECTORY))
        storage = open_storage(StorageOptions("memory", Path(name)), Path(name), os.environ)
        substitution = Substitution(caches, storage.records)
        narinfos = await substitution.closures(roots)
        missing = [str(info.path) for info in closure if info.path not in narinfos]
        if missing:
            raise AssertionError(f"the cache does not have {', '.join(missing)}")
        far, _ = stack.enter_context(substitution.contents(closure, narinfos))
        near = stack.enter_context(LocalStore())
        with console.status("") as status:
            infos = list(closure)
            for start in range(0, len(infos), _EXPECTED):
                status.update(
                    f"{counts.paths:,} of {len(closure):,} store paths, {counts.bytes / 1e9:.1f} GB"
                )
                await asyncio.to_thread(_compare, infos[start : start + _EXPECTED], near, far, counts)
        await substitution.close()
    return counts


def _compare(infos: Sequence[PathInfo], near: StoreContents, far: StoreContents, counts: _Counts) -> None:
    differences = counts.differences
    assert differences is not None  # noqa: S101 -- for mypy
    far.expect(infos)
    for info in infos:
        (size, digest), other = _archive(info, near), _archive(info, far)
        if (size, digest) != other:
            differences.append(
                f"the archive of {info.path}: {size:,} bytes, {digest}; {other[0]:,}, {other[1]}"
            )
        counts.paths += 1
        counts.bytes += size
        waiting = [info.path.base_name.encode()]
        while waiting:
            name = waiting.pop()
            counts.names += 1
            (mode, target), found = _looked(near, name), _looked(far, name)
            if (mode, target) != found:
                differences.append(f"{name!r}: {mode}, {target!r}; {found[0]}, {found[1]!r}")
            if stat.S_ISDIR(mode):
                children, others = (sorted(contents.names(name)) for contents in (near, far))
                if children != others:
                    differences.append(f"the names in {name!r}")
                waiting += [b"%b/%b" % (name, child.name) for child in children]


def _archive(info: PathInfo, contents: StoreContents) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0

    def take(chunk: memoryview) -> None:
        nonlocal size
        size += len(chunk)
        digest.update(chunk)

    archive = Archive(take)
    contents.add(archive, info)
    take(archive.end())
    return size, digest.hexdigest()


def _looked(contents: StoreContents, name: bytes) -> tuple[int, bytes]:
    mode, target = contents.look(name)
    # The rest of the mode differs between a store and an archive, and no one uses it.
    return stat.S_IFMT(mode) | (mode & stat.S_IXUSR if stat.S_ISREG(mode) else 0), target


def _images(package_set: Path, names: Sequence[str], mode: str) -> tuple[dict[str, str], set[str]]:
    """Digests of images by name, and the names in the store that was empty."""
    with tempfile.TemporaryDirectory(prefix="round-", dir=_DIRECTORY) as temporary:
        directory = Path(temporary).absolute()
        store = directory / "nix"
        (store / "store").mkdir(parents=True)
        environment = {
            **os.environ,
            "NIXERY_HOST": "127.0.0.1",
            "PORT": "1",  # unused
            "NIXERY_PKGS_PATH": str(package_set),
            "NIXERY_STORAGE_BACKEND": "filesystem",
            "STORAGE_PATH": str(directory / "storage"),
            "NIXERY_COMPRESSION": "zstd",
            "NIXERY_SUBSTITUTE": mode,
            "NIXERY_INDEX": "0",
            "NIX_TIMEOUT": "600",
        }
        mount = 'mount --bind "$1" /nix && shift && exec "$@"'
        namespace = ("unshare", "--mount", "sh", "-c", mount, "sh", str(store)) if mode == "direct" else ()
        command = (*namespace, sys.executable, "-m", "scripts.equality.worker", *names)
        completed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        digests: dict[str, str] = json.loads(completed.stdout)
        return digests, {path.name for path in (store / "store").iterdir()}


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        for left in _DIRECTORY.glob("round-*"):
            shutil.rmtree(left, ignore_errors=True)
