"""The operator's configuration of the package set (``NIXERY_NIXPKGS_CONFIG``): nixpkgs' ``config`` and ``overlays``.

The configuration is one Nix expression, which becomes an argument of every evaluation. It is never combined
with text of a client.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from nixery.errors import NixUnusable, SettingsError
from nixery.nix.environments import RESTRICTED, without_secrets
from nixery.nix.error_message import NixMessage

VARIABLE = "NIXERY_NIXPKGS_CONFIG"

# Bytes. Linux accepts 128 KiB for one argument (MAX_ARG_STRLEN).
_LARGEST = 64 * 1024

# Of a JSON document, which becomes a Nix expression of the same depth.
_DEEPEST = 32

# Seconds; the configuration is only read.
_TIMEOUT = 10

_OVERLAYS = "overlays"
_PREDICATE = "Predicate"

# The values are evaluated in full, so that an undefined name in them is an error of this setting and not of each
# package; functions and overlays are evaluated when nixpkgs calls them.
_CHECK = """
{ packageConfiguration }:
let
  inherit (builtins) all attrNames deepSeq isAttrs isFunction isList length removeAttrs typeOf;
  overlays = packageConfiguration.overlays or [ ];
  config = removeAttrs packageConfiguration [ "overlays" ];
in
if !isAttrs packageConfiguration then
  { is = "no set"; type = typeOf packageConfiguration; }
else if !isList overlays || !(all isFunction overlays) then
  { is = "no overlays"; }
else
  deepSeq config { is = "set"; keys = attrNames config; overlays = length overlays; }
"""


class _NoSet(BaseModel):
    is_: Literal["no set"] = Field(alias="is")
    type: str


class _NoOverlays(BaseModel):
    is_: Literal["no overlays"] = Field(alias="is")


class _Set(BaseModel):
    is_: Literal["set"] = Field(alias="is")
    keys: list[str]
    overlays: int


_CHECKED: TypeAdapter[_NoSet | _NoOverlays | _Set] = TypeAdapter(
    Annotated[_NoSet | _NoOverlays | _Set, Field(discriminator="is_")]
)


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of a configuration, for the operator.

    Attributes:
        keys: of nixpkgs' ``config``.
        overlays: their number.
    """

    keys: Sequence[str]
    overlays: int

    def __str__(self) -> str:
        counted = [f"{self.overlays} overlay{'' if self.overlays == 1 else 's'}"] if self.overlays else []
        return ", ".join([*self.keys, *counted]) or "nothing"


@dataclass(frozen=True, slots=True)
class PackageConfiguration:
    """A configuration of the package set.

    Attributes:
        expression: Nix; an attribute set with nixpkgs' keys, and ``overlays``.
    """

    expression: str

    @classmethod
    def parse(cls, value: str) -> Self | None:
        """Read a configuration: Nix, JSON, or the path of a ``.nix`` or ``.json`` file; ``None`` if it is empty.

        Raises:
            ValueError: the file cannot be read, the text is too large or holds a login, or the JSON is not a
                valid configuration.
        """
        text = value.strip()
        if text.endswith((".nix", ".json")) and not text.startswith("{"):
            text = _content(Path(text)).strip()
        elif not text:
            return None
        _require_size(text.encode(), "it")
        if "\0" in text:
            raise ValueError("it has a null byte")
        without_secrets((text,))
        document = _json(text)
        if value.strip().endswith(".json") and document is None:
            raise ValueError("the file is not a JSON object")
        if document is None:
            return cls(text)
        expression = _configuration(document)
        _require_size(expression.encode(), "it, as a Nix expression,")
        return cls(expression)

    @property
    def identity(self) -> str:
        """Identify the configuration without disclosing it: the SHA-256 of the expression."""
        return hashlib.sha256(self.expression.encode()).hexdigest()

    def check(self, environment: Mapping[str, str]) -> Summary:
        """Evaluate the configuration by itself.

        Blocks for some hundredths of a second.

        Args:
            environment: of Nix.

        Raises:
            SettingsError: it does not evaluate, or is not an attribute set.
            NixUnusable: Nix cannot be run.
        """
        command = (
            *("nix-instantiate", "--eval", "--strict", "--json"),
            # It may not read other files: their content would not be a part of its identity.
            *(*RESTRICTED, "--option", "allowed-uris", ""),
            *("--arg", "packageConfiguration", self.expression, "--expr", _CHECK),
        )
        try:
            ended = subprocess.run(
                command,
                # A restricted evaluation may read its search path.
                env={name: value for name, value in environment.items() if name != "NIX_PATH"},
                capture_output=True,
                timeout=_TIMEOUT,
                check=False,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise NixUnusable(f"cannot run nix-instantiate: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            raise _wrong(f"its evaluation takes longer than {_TIMEOUT} seconds") from None
        if ended.returncode != 0:
            message = NixMessage.parse(ended.stderr.splitlines())
            said = message.text or f"Nix ended with status {ended.returncode}"
            at = message.positions[0] if message.positions else None
            place = f" (line {at.line}, column {at.column})" if at else ""
            raise _wrong(f"it does not evaluate by itself, without other files: {said}{place}")
        try:
            found = _CHECKED.validate_json(ended.stdout)
        except ValidationError as error:
            raise NixUnusable(f"cannot parse Nix's answer to a check of {VARIABLE}") from error
        match found:
            case _NoSet(type=kind):
                kind = "function" if kind == "lambda" else kind
                raise _wrong(
                    f"it is a {kind}; expected an attribute set, for example {{ allowUnfree = true; }}"
                )
            case _NoOverlays():
                raise _wrong("overlays is not a list of functions; write overlays = [ (final: prev: { … }) ]")
            case _Set(keys=keys, overlays=overlays):
                return Summary(keys, overlays)


def _wrong(reason: str) -> SettingsError:
    return SettingsError((f"{VARIABLE} is wrong: {reason}",))


def _require_size(content: bytes, what: str) -> None:
    if len(content) > _LARGEST:
        raise ValueError(f"{what} has more than {_LARGEST:,} bytes, the limit")


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        _require_size(content, str(path))
        return content.decode()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8") from error


def _json(text: str) -> Mapping[str, Any] | None:
    """Return the object of a JSON text; ``None`` if it is not one, which Nix may understand."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _configuration(document: Mapping[str, Any]) -> str:
    """Write a JSON configuration as a Nix expression; lists of names become predicates.

    Raises:
        ValueError: it has overlays, or a predicate that is not a list of names.
    """
    if _OVERLAYS in document:
        raise ValueError("JSON cannot express overlays, which are functions; write the configuration in Nix")
    members = []
    for key, value in document.items():
        if key.endswith(_PREDICATE):
            if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
                raise ValueError(f"in JSON, {key} is a list of package names")
            # Older states of nixpkgs pass no `pname`.
            name = 'package.pname or (builtins.parseDrvName (package.name or "")).name'
            written = f"package: builtins.elem ({name}) {_nix(value)}"
        else:
            written = _nix(value)
        members.append(f"{_string(key)} = {written};")
    return " ".join(["{", *members, "}"])


def _nix(value: object, depth: int = 0) -> str:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    match value:
        case None | bool() | int():
            return (
                json.dumps(value) if value is None or isinstance(value, bool) or value >= 0 else f"({value})"
            )
        case float():
            return f"({value!r})"
        case str():
            return _string(value)
        case list():
            return " ".join(["[", *(_nix(item, depth + 1) for item in value), "]"])
        case dict():
            members = (f"{_string(key)} = {_nix(item, depth + 1)};" for key, item in value.items())
            return " ".join(["{", *members, "}"])
        case _:
            raise AssertionError("JSON has no other values")


def _string(text: str) -> str:
    # Other characters stand for themselves in Nix, line breaks included.
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${") + '"'
