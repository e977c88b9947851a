"""Lock all of Debian: write down which version, file and hash each package has, for Nix to evaluate.

    python3 packagesets/debian/lock.py [--system x86_64-linux] [--system aarch64-linux] [--update]

Run it at set-up and again when the mirror has dropped a locked version. Standard library only, so any Debian can run it; it
does nothing when apt's indexes are the ones that the lock was made from.
"""

# ruff: noqa: INP001 - a program that is run by its path, not a module of a package

import argparse
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from locking.aliases import resolve_aliases
from locking.apt import ARCHITECTURES, TRIPLETS, apt_for
from locking.errors import LockError
from locking.index import parse_index
from locking.programs import read_programs
from locking.records import add_programs, make_records
from locking.release import os_release
from locking.resolving import by_name
from locking.writing import fingerprint_of, is_current, write_lock

HERE = Path(__file__).resolve().parent


def own_system() -> str:
    """Nix's name of the system that this runs on."""
    return f"{platform.machine()}-linux"


def lock_system(system: str, lock: Path, *, update: bool) -> str:
    """Bring the lock of `system` up to date; returns a sentence that says what was done."""
    started = time.monotonic()
    architecture = ARCHITECTURES[system]
    apt = apt_for(architecture, lock / "apt")
    if update or not apt.has_lists():
        apt.update()
    fingerprint = fingerprint_of(apt.fingerprint(), *_generator_sources())
    if not update and is_current(lock, system, fingerprint):
        return f"{system}: the lock is up to date"
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_programs, apt, lock / "contents")
        packages = by_name(parse_index(apt.stanzas(), architecture))
        if not packages:
            raise LockError(
                f"apt knows no package for {architecture}: run apt-get update and look at its errors"
            )
        records = make_records(packages, TRIPLETS[architecture])
        programs = reading.result()
    add_programs(records, programs.names)
    # Programs that were missing are no reason to make the lock again, unless --update finds them.
    fingerprint = f"{fingerprint}-{fingerprint_of(programs.indexes)}"
    if not is_current(lock, system, fingerprint):
        write_lock(lock, system, fingerprint, records, resolve_aliases(packages), os_release(apt.release()))
    return (
        f"{system}: locked {len(records.packages)} packages in {len(records.groups)} derivations"
        f" ({records.unmet} unmet dependencies), {time.monotonic() - started:.1f} s"
        + (f"; some programs are unknown: {programs.failure}" if programs.failure else "")
    )


def _generator_sources() -> list[str]:
    return [path.read_text() for path in (HERE / "lock.py", *sorted((HERE / "locking").glob("*.py")))]


def main(arguments: list[str]) -> int:
    """Lock the systems that are asked for, the machine's own by default."""
    parser = argparse.ArgumentParser(description="Lock all of Debian's packages for the Nix package set.")
    parser.add_argument(
        "--system",
        action="append",
        choices=sorted(ARCHITECTURES),
        help="default: this machine's; may be repeated",
    )
    parser.add_argument("--update", action="store_true", help="fetch apt's indexes again first")
    options = parser.parse_args(arguments)
    try:
        for system in options.system or [own_system()]:
            sys.stderr.write(lock_system(system, HERE / "lock", update=options.update) + "\n")
    except (LockError, OSError) as error:
        sys.stderr.write(f"lock.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
