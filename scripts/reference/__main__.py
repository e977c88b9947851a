"""Write docs/reference/{settings,metrics,routes,commands}.md, and the description of the API that the server shows.

``python -m scripts.reference``, run by ``make docs``.

``--check`` writes nothing; it names the pages that are out of date and exits with 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.reference import commands, metrics, openapi, routes, settings

# Title and readers of the pages whose renderers return only tables.
_HEADS: Mapping[str, str] = {
    "settings": """# Settings

For operators: each setting of `nixery serve` with its default. Settings are environment variables;
the server reads them at the start, and reports all that are missing or wrong, one a line, with exit
status 2. Generated from the code by `make docs`.
""",
    "metrics": """# Metrics

For operators who write queries and alerts: each metric of `/metrics`, with its kind and meaning.
[Logs and traces](logs-and-traces.md#labels-of-metrics) has the values of the labels. Generated from
the code by `make docs`.
""",
}

DIRECTORY = Path(__file__).parents[2] / "docs" / "reference"
RENDERERS: Mapping[str, Callable[[], str]] = {
    "settings": settings.render,
    "metrics": metrics.render,
    "routes": routes.render,
    "commands": commands.render,
}


def main(arguments: list[str]) -> int:
    """Write or check the pages; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.reference")
    parser.add_argument("--check", action="store_true", help="report pages that are out of date")
    options = parser.parse_args(arguments)
    old = {DIRECTORY / f"{name}.md": text for name, text in outdated(DIRECTORY).items()}
    description = openapi.render()
    if _read(openapi.PATH) != description:
        old[openapi.PATH] = description
    for path, text in old.items():
        if options.check:
            print(f"{path}: out of date (run make docs)", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"wrote {path}")
    return 1 if options.check and old else 0


def outdated(directory: Path) -> dict[str, str]:
    """Return the new text of each page that differs from the code, by name."""
    texts = {name: _page(name, render()) for name, render in RENDERERS.items()}
    return {name: text for name, text in texts.items() if _read(directory / f"{name}.md") != text}


def _page(name: str, text: str) -> str:
    head = "" if text.startswith("# ") else f"{_HEADS[name]}\n"
    return f"{head}{text.rstrip()}\n"


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
