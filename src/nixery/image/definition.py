"""Images by definition: ``{ contents = [ ... ]; config = { Cmd = [ ... ]; ... }; layers = 40; }`` in a package set.

The fields of ``config`` are those of the image specification (config.md), and ``Healthcheck`` as Docker has
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from nixery.oci.documents import ExecutionParameters

# Docker's overlay2 stops at about 125 layers; the root file system is one.
_FEWEST_LAYERS, _MOST_LAYERS = 2, 125

_NANOSECONDS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
# Clients store nanoseconds in a signed 64-bit number.
_LONGEST_DURATION = 2**63 - 1
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|ms|s|m|h))+", re.ASCII)
_PORT = re.compile(r"(\d{1,5})(/(tcp|udp|sctp))?", re.ASCII)
_USER = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]*(:[a-zA-Z0-9_][a-zA-Z0-9_.-]*)?", re.ASCII)
_SIGNAL = re.compile(r"SIG[A-Z0-9+-]+|\d{1,2}", re.ASCII)


# Errors that are reported for one definition, and characters of a name or a wrong value in a report.
_NAMED, _SHOWN = 10, 100

# packages.nix replaces a value that JSON cannot express with a set of this name, which holds its type.
_TYPE = "nixery:type"

# The longest path that the kernel accepts (PATH_MAX), and longer than any tool's user names.
_LONGEST_PATH, _LONGEST_USER = 4095, 255

# The image contains the directories of a definition and all their parents: a kilobyte of short names would
# become megabytes.
_DEEPEST, _MOST_VOLUMES = 128, 256

# chown(2) interprets the next number, -1 in 32 bits, as "do not change".
_LARGEST_ID = 2**32 - 2


class InvalidDefinition(ValueError):
    """A definition does not match the schema; the message names the field."""


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"should be an absolute path, not {_shown(path)}")
    if len(path.encode()) > _LONGEST_PATH:
        raise ValueError(f"should have at most {_LONGEST_PATH} bytes, not {len(path.encode())}")
    if path.count("/") > _DEEPEST:
        raise ValueError(f"should have at most {_DEEPEST} directories, not {path.count('/')}")
    if "\0" in path:
        raise ValueError(f"should have no zero byte, unlike {_shown(path)}")
    return path


def _few(volumes: list[str]) -> list[str]:
    if len(volumes) > _MOST_VOLUMES:
        raise ValueError(f"should have at most {_MOST_VOLUMES} entries, not {len(volumes)}")
    return volumes


def _port(port: str) -> str:
    match = _PORT.fullmatch(port)
    if match is None or not 0 < int(match[1]) < 65536:  # noqa: PLR2004 -- TCP's largest port
        raise ValueError(f"should be a port such as 80 or 53/udp, not {_shown(port)}")
    return port if match[2] else f"{port}/tcp"


def _user(user: str) -> str:
    if _USER.fullmatch(user) is None:
        raise ValueError(f"should be a user such as 1000, 1000:1000 or web, not {_shown(user)}")
    if len(user) > _LONGEST_USER:
        raise ValueError(f"should have at most {_LONGEST_USER} letters, not {len(user)}")
    if any(part.isdecimal() and int(part) > _LARGEST_ID for part in user.split(":")):
        raise ValueError(f"should have numbers up to {_LARGEST_ID}, not {_shown(user)}")
    return user


def _signal(signal: str) -> str:
    if _SIGNAL.fullmatch(signal) is None:
        raise ValueError(f"should be a signal such as SIGINT, not {_shown(signal)}")
    return signal


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _names(value: object) -> object:
    """A list of names, or, as in the JSON of an image, a set of empty sets."""
    names = list(value) if isinstance(value, dict) and not any(value.values()) else value
    return [_number_as_text(name) for name in names] if isinstance(names, list) else names


def _variables(value: object) -> object:
    """A list of ``NAME=value``, or a set."""
    if not isinstance(value, dict):
        return value
    values = {name: _number_as_text(text) for name, text in value.items()}
    wrong = next((name for name, text in values.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"{wrong[:_SHOWN]} should be a string")
    return [f"{name}={text}" for name, text in values.items()]


def _variable(entry: str) -> str:
    if not entry.partition("=")[0] or "=" not in entry or "\0" in entry:
        raise ValueError(f"should be NAME=value, not {_shown(entry)}")
    return entry


def _nanoseconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    if _DURATION.fullmatch(value) is None:
        raise ValueError(f"should be a duration such as 30s or 1m30s, not {_shown(value)}")
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)", value)
    nanoseconds = sum(float(number) * _NANOSECONDS[unit] for number, unit in parts)
    if nanoseconds > _LONGEST_DURATION:
        raise ValueError(f"should be a duration of at most {_LONGEST_DURATION // _NANOSECONDS['h']} hours")
    return round(nanoseconds)


_Path = Annotated[str, AfterValidator(_absolute)]
_Duration = Annotated[int, BeforeValidator(_nanoseconds), Field(ge=0, le=_LONGEST_DURATION)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Healthcheck(_Strict):
    Test: list[str]
    Interval: _Duration | None = None
    Timeout: _Duration | None = None
    StartPeriod: _Duration | None = None
    StartInterval: _Duration | None = None
    Retries: int | None = Field(default=None, ge=0)


class _Config(_Strict):
    Cmd: list[str] | None = None
    Entrypoint: list[str] | None = None
    Env: Annotated[list[Annotated[str, AfterValidator(_variable)]], BeforeValidator(_variables)] = []
    User: Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_user)] | None = None
    WorkingDir: _Path | None = None
    ExposedPorts: Annotated[list[Annotated[str, AfterValidator(_port)]], BeforeValidator(_names)] = []
    Volumes: Annotated[list[_Path], BeforeValidator(_names), AfterValidator(_few)] = []
    Labels: dict[str, str] = {}
    StopSignal: Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_signal)] | None = None
    Healthcheck: _Healthcheck | None = None


class _Definition(_Strict):
    config: _Config = _Config()
    layers: int | None = Field(default=None, ge=_FEWEST_LAYERS, le=_MOST_LAYERS)


def parse_definition(document: str) -> tuple[ExecutionParameters, int | None]:
    """Parse a definition without its contents, as JSON; return its config and its number of layers.

    Raises:
        InvalidDefinition: names every wrong field, up to a limit.
    """
    try:
        definition = _Definition.model_validate_json(document)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        named = "; ".join(_problem(dict(problem)) for problem in problems[:_NAMED])
        raise InvalidDefinition(named + more) from None
    # Labels and variables may have any name, so the schema accepts the type marker there.
    config = from_json(document).get("config", {})
    for field in ("Labels", "Env"):
        if _TYPE in config.get(field, ()):
            raise InvalidDefinition(f"config.{field} is a {_type(config[field])}")
    return _parameters(definition.config), definition.layers


def _parameters(config: _Config) -> ExecutionParameters:
    health = config.Healthcheck.model_dump(exclude_none=True) if config.Healthcheck else None
    return ExecutionParameters(
        env=tuple(config.Env),
        cmd=None if config.Cmd is None else tuple(config.Cmd),
        entrypoint=tuple(config.Entrypoint or ()),
        user=config.User,
        working_directory=config.WorkingDir,
        exposed_ports=tuple(config.ExposedPorts),
        volumes=tuple(config.Volumes),
        labels=config.Labels,
        stop_signal=config.StopSignal,
        healthcheck=health,
    )


def _problem(problem: Mapping[str, Any]) -> str:
    way, found = problem["loc"], problem["input"]
    if not way:
        # Invalid JSON, nested too deeply for example.
        return f"the definition cannot be read: {problem['msg'][:_SHOWN]}"
    if way[-1] == _TYPE:
        way, found = way[:-1], {_TYPE: found}
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:_SHOWN]}" for part in way)
    if isinstance(found, dict) and _TYPE in found:
        what = f"is a {_type(found)}"
    elif problem["type"] == "extra_forbidden":
        what = "is not a field of an image definition"
    elif problem["type"] == "missing":
        what = "is missing"
    elif problem["type"] == "value_error":
        what = problem["msg"].removeprefix("Value error, ")
    else:
        message = problem["msg"].removeprefix("Input ")
        what = (
            message.replace("a valid dictionary", "a set")
            .replace("a valid array", "a list")
            .replace("valid ", "")
            .replace("an object", "a set")
        )
        if not isinstance(found, (dict, list)):
            what += f", not {_shown(found)}"
    return f"{where.lstrip('.')} {what}"


def _type(found: Mapping[str, Any]) -> str:
    return str(found[_TYPE])[:_SHOWN]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
