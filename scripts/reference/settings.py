"""Render the reference of settings from their model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from nixery.settings import Doc, Settings


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting, as its reference describes it.

    Attributes:
        group: heading of its subject.
        variable: name of the environment variable.
        default: Markdown.
        unit: of a number; empty for a count or a text.
        limits: least and greatest number; empty without any.
        meaning: sentences in Markdown.
    """

    group: str
    variable: str
    default: str
    unit: str
    limits: str
    meaning: str


def settings_rows() -> Iterator[SettingRow]:
    """Describe all settings, in the order in which a server reports problems with them."""
    for group in reversed(Settings.__bases__):
        for name, field in Settings.model_fields.items():
            if name in group.__annotations__ and field.alias:
                docs = [item for item in field.metadata if isinstance(item, Doc)]
                yield SettingRow(
                    group=str(vars(group)["model_config"]["title"]),
                    variable=field.alias,
                    default=next((doc.default for doc in docs if doc.default), None) or _default(field),
                    unit=next((doc.unit for doc in docs if doc.unit), ""),
                    limits=_limits(field),
                    meaning=" ".join((field.description or "").split()),
                )


def render() -> str:
    """Return the reference in Markdown: for each group of settings a heading and a table."""
    parts: list[str] = []
    group = ""
    for row in settings_rows():
        if row.group != group:
            group = row.group
            parts += ["", f"## {group}", "", "| setting | default | meaning |", "|---|---|---|"]
        unit = f" Unit: {row.unit}." if row.unit else ""
        limits = f" Range: {row.limits}." if row.limits else ""
        parts.append(f"| `{row.variable}` | {row.default} | {row.meaning}{unit}{limits} |")
    return "\n".join(parts[1:]) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    match field.default:
        case None | () | "":
            return "none"
        case bool() as value:
            return f"`{str(value).lower()}`"
        case tuple() as values:
            return f"`{','.join(map(str, values))}`"
        case value:
            return f"`{value}`"


def _limits(field: FieldInfo) -> str:
    least = next((item.ge for item in field.metadata if isinstance(item, Ge)), None)
    most = next((item.le for item in field.metadata if isinstance(item, Le)), None)
    if least is None:
        return ""
    return f"{least} to {most}" if most is not None else f"at least {least}"
