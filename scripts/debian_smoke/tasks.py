"""Do what well-known packages are for, in their images: ``python -m scripts.debian_smoke.tasks [PACKAGE...]``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from scripts.debian_smoke.images import ImageError, Workshop, image_name

TASKS = Path(__file__).with_name("tasks.toml")
PACKAGE_SET = Path(__file__).parents[2] / "packagesets" / "debian"

# Seconds for a task: a compiler or TeX's first format takes some on a busy machine.
_PATIENCE = 300
# Characters of the output of a failure.
_SHOWN = 600


def main(chosen: list[str]) -> int:
    """Run tasks; return 0 if all of them succeed."""
    tasks: dict[str, dict[str, str]] = tomllib.loads(TASKS.read_text())
    unknown = [name for name in chosen if name not in tasks]
    if unknown:
        print(f"debian-smoke: no task in {TASKS.name}: {', '.join(unknown)}", file=sys.stderr)
        return 2
    workshop = Workshop(Path("var/debian-smoke/tasks").absolute(), PACKAGE_SET)
    failed = 0
    for package in chosen or tasks:
        fault = _fault(package, tasks[package], workshop)
        failed += bool(fault)
        print(f"✗ {package}: {fault}" if fault else f"✓ {package}", flush=True)
    workshop.clear()
    print(f"{len(chosen or tasks) - failed} of {len(chosen or tasks)} packages do what they are for")
    return 1 if failed else 0


def _fault(package: str, task: dict[str, str], workshop: Workshop) -> str:
    try:
        image = workshop.make(task.get("image", f"shell/{image_name(package)}"))
    except ImageError as error:
        return str(error)
    script = f"cd $(mktemp -d) && chmod 755 . && {task['script']}"
    run = image.run("sh", ("-c", script), int(task.get("user", "0")), _PATIENCE)
    if run.status == 0 and re.search(task["prints"], run.output, re.MULTILINE):
        return ""
    return f"exit status {run.status}: {run.output[-_SHOWN:].strip()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
