"""The table of all metrics, in Markdown: ``python -m scripts.reference.metrics``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client.core import Metric

from nixery.builds.index_records import Progress
from nixery.caching import CacheCounts
from nixery.telemetry.metrics import Metrics

# The caches of a server that ``nixery.app`` adds to its metrics.
_CACHES = ("pin", "image", "evaluation", "blob")

# Labels of samples that are not labels of the metric.
_SAMPLE_LABELS = frozenset({"le", "quantile"})


def render() -> str:
    """Return a table with the name, the type, the labels and the meaning of each metric."""
    metrics = Metrics()
    metrics.watch({cache: CacheCounts() for cache in _CACHES})
    metrics.watch_index(lambda: Progress("", 1, 1, (), 0, is_complete=True))
    metrics.watch_certificate(lambda: 0.0)
    rows = [_row(family) for family in sorted(metrics.families(), key=_order)]
    return "\n".join(["| Metric | Type | Labels | Meaning |", "|---|---|---|---|", *rows, ""])


def _order(family: Metric) -> tuple[bool, str]:
    # Metrics of the process and of Python come last.
    return not family.name.startswith("nixery_"), family.name


def _row(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    kind = family.type
    if kind == "info":
        name, kind = f"{family.name}_info", "gauge"
    labels = "; ".join(_label(name, values) for name, values in _labels(family).items())
    return f"| `{name}` | {kind} | {labels} | {_sentence(family.documentation)} |"


def _labels(family: Metric) -> Mapping[str, Sequence[str]]:
    """Labels by name, with the values that exist from the start."""
    declared: Sequence[str] = getattr(family, "_labelnames", ())
    found: dict[str, dict[str, None]] = {name: {} for name in declared}
    for sample in family.samples:
        for name, value in sample.labels.items():
            if name not in _SAMPLE_LABELS:
                found.setdefault(name, {})[value] = None
    return {name: tuple(values) for name, values in found.items()}


def _label(name: str, values: Sequence[str]) -> str:
    # The version of the program, or of Python, is not a value to document.
    if len(values) < 2:  # noqa: PLR2004 -- a choice has two
        return f"`{name}`"
    return f"`{name}`: {', '.join(f'`{value}`' for value in values)}"


def _sentence(text: str) -> str:
    return text.replace("|", r"\|").rstrip(".") + "."


if __name__ == "__main__":
    print(render(), end="")
