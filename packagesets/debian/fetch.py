"""Builder of a .deb's fixed-output derivation: fetch one file of the archive through the machine's own apt.

Which mirror has it is the machine's apt sources' business, so each archive in them is tried in turn. `apt-helper` does the
transfer with apt's own methods and proxies; unlike `apt-get download` it needs no second to load the package cache.
"""

# ruff: noqa: INP001 - a program that is run by its path, not a module of a package

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_CONFIGURATION = Path("/etc/apt")


def _archives() -> Iterator[str]:
    """The addresses of the archives of binary packages in apt's sources, in both formats of source files."""
    files = [_CONFIGURATION / "sources.list", *sorted((_CONFIGURATION / "sources.list.d").glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(errors="replace")
        if file.suffix == ".list":
            yield from re.findall(r"(?m)^\s*deb\s+(?:\[[^\]]*\]\s*)?(\S+)", text)
        elif file.suffix == ".sources":
            for stanza in re.split(r"\n\s*\n", text):
                yield from _stanza_archives(stanza)


def _stanza_archives(stanza: str) -> list[str]:
    lines = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
    found: list[tuple[str, str]] = re.findall(r"(?m)^([A-Za-z-]+):(.*(?:\n[ \t].*)*)", lines)
    fields = {name.lower(): value for name, value in found}
    disabled = fields.get("enabled", "yes").strip().lower() in {"no", "false", "0"}
    if disabled or "deb" not in fields.get("types", "").split():
        return []
    return fields.get("uris", "").split()


def _fetch(archive: str, file: str, sha256: str, out: str) -> str | None:
    """Fetch `file` of `archive` to `out`; returns None or the reason for the failure."""
    command = ["/usr/lib/apt/apt-helper", "-o", f"APT::Sandbox::User={_user()}", "-o", "Acquire::Retries=2"]
    command += ["download-file", f"{archive.rstrip('/')}/{file}", out, f"SHA256:{sha256}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0 and Path(out).exists():
        return None
    Path(out).unlink(missing_ok=True)
    return (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no reason given"])[0]


def _user() -> str:
    """The user for whom apt gives up root's rights; in a build directory only the building user can write."""
    return "root" if os.geteuid() == 0 else ""


def main(environment: dict[str, str]) -> int:
    """Try every archive; the hash is checked by apt and again by Nix."""
    file, out = environment["file"], environment["out"]
    reasons = []
    for archive in dict.fromkeys(_archives()):
        reason = _fetch(archive, file, environment["outputHash"], out)
        if reason is None:
            return 0
        reasons.append(reason)
    sys.stderr.write("".join(f"{reason}\n" for reason in reasons))
    sys.stderr.write(
        f"{file}: no archive in /etc/apt has this locked file. If the archives can be reached, the lock is too old:"
        " run apt-get update, then python3 packagesets/debian/lock.py\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
