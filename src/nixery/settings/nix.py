"""How Nix is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from nixery.settings.environments import (
    build_environment,
    fetch_environment,
    git_environment,
    variable_names,
    withheld_variables,
    without_secrets,
)
from nixery.settings.values import DAY, NotEmpty, arguments

# Nix does not take arbitrarily large numbers.
_WEEK = 7 * DAY


class NixSettings(BaseModel):
    """Settings for running Nix.

    Attributes:
        nix_timeout: seconds a builder may run.
        nix_arguments: added to all commands of Nix.
        nix_sandbox: whether builders run in Nix's sandbox; ``auto`` for Nix's own configuration.
        allow_ifd: whether an evaluation may build derivations, and then read them (import from derivation).
        evaluation_memory: limit of an evaluation in MiB; 0 for no limit.
        build_variables: names of variables that builders get in addition to those without secrets.
    """

    nix_timeout: Annotated[int, NotEmpty, Field(alias="NIX_TIMEOUT", ge=1, le=_WEEK)] = 60
    nix_arguments: Annotated[
        tuple[str, ...],
        NotEmpty,
        BeforeValidator(arguments),
        AfterValidator(without_secrets),
        Field(alias="NIXERY_NIX_OPTIONS"),
    ] = ()
    nix_sandbox: Annotated[Literal["auto", "on", "off"], NotEmpty, Field(alias="NIXERY_NIX_SANDBOX")] = "auto"
    allow_ifd: Annotated[bool, NotEmpty, Field(alias="NIXERY_ALLOW_IFD")] = False
    evaluation_memory: Annotated[int, NotEmpty, Field(alias="NIXERY_EVALUATION_MEMORY", ge=0, le=1 << 22)] = (
        4096
    )

    build_variables: Annotated[
        tuple[str, ...], NotEmpty, BeforeValidator(variable_names), Field(alias="NIXERY_BUILD_ENVIRONMENT")
    ] = ()

    # Not a setting, and kept out of sight: it may hold secrets.
    environment: Annotated[Mapping[str, str], Field(alias="", repr=False)] = {}

    @property
    def build_environment(self) -> Mapping[str, str]:
        """The environment of commands that build, or query Nix's store: only secrets that a setting names."""
        return build_environment(self.environment, self.build_variables)

    @property
    def withheld_variables(self) -> tuple[str, ...]:
        """Names of variables that builders usually get, but do not because they hold a secret."""
        return withheld_variables(self.environment, self.build_variables)

    @property
    def evaluation_environment(self) -> Mapping[str, str]:
        """The environment of evaluations that read variables or build: secrets only as builders get them."""
        return build_environment(self.environment, self.build_variables if self.allow_ifd else ())

    @property
    def fetch_environment(self) -> Mapping[str, str]:
        """The environment of Nix commands that fetch, and run no code of a package author: with logins."""
        return fetch_environment(self.environment)

    @property
    def git_environment(self) -> Mapping[str, str]:
        """The environment in which git contacts a package source: with logins."""
        return git_environment(self.environment)
