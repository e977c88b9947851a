"""What the environment says. Nothing else in nixery reads it.

The variables are Nixery's, with the same meaning; those that begin with ``NIXERY_`` and are not in its
documentation are ours. Each module has those of one subject.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ConfigDict, ValidationError

from nixery.errors import SettingsError
from nixery.settings.layers import LayerSettings
from nixery.settings.logs import LogSettings
from nixery.settings.nix import NixSettings
from nixery.settings.server import ServerSettings
from nixery.settings.sources import SourceSettings, source_problems
from nixery.settings.storage import StorageSettings

__all__ = ["Settings", "storage_settings"]

_WHAT_IT_IS = {
    "PORT": "the TCP port to listen on, for example 8080",
    "NIXERY_STORAGE_BACKEND": "where layers are kept; supported: filesystem",
    "STORAGE_PATH": "the directory where layers are kept",
}


# Pydantic puts the fields of the last base first, and errors are told in that order.
class Settings(LogSettings, LayerSettings, NixSettings, StorageSettings, SourceSettings, ServerSettings):
    """All settings, checked; made from a mapping such as the process environment."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Check an environment.

        Raises:
            SettingsError: with a line for every setting that is missing or wrong.
        """
        problems = source_problems(set(environment))
        try:
            settings = cls.model_validate(environment)
        except ValidationError as error:
            problems += [_problem(str(e["loc"][0]), e["type"], e["msg"]) for e in error.errors()]
        else:
            if not problems:
                return settings.model_copy(update={"environment": dict(environment)})
        raise SettingsError(tuple(problems))


def storage_settings(environment: Mapping[str, str]) -> StorageSettings:
    """Check what of an environment is about the store alone.

    Raises:
        SettingsError: with a line for every setting of the store that is missing or wrong.
    """
    try:
        return StorageSettings.model_validate(environment)
    except ValidationError as error:
        problems = [_problem(str(e["loc"][0]), e["type"], e["msg"]) for e in error.errors()]
        raise SettingsError(tuple(problems)) from None


def _problem(variable: str, kind: str, message: str) -> str:
    if kind == "missing":
        return f"{variable} is not set: {_WHAT_IT_IS[variable]}"
    reason = message.removeprefix("Value error, ")
    return f"{variable} is wrong: {reason[:1].lower() + reason[1:]}"
