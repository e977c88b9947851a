"""Issuers that give tokens to every account of a public service."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixery.access.configuration import read_access_file
from nixery.errors import SettingsError


def access_file(directory: Path, issuer: str, *more: str) -> Path:
    file = directory / "access.toml"
    lines = ("rule = []", "[[oidc]]", 'name = "ci"', f'issuer = "{issuer}"', 'audience = "nixery"', *more)
    file.write_text("\n".join(lines))
    return file


@pytest.mark.parametrize(
    "issuer",
    ["https://token.actions.githubusercontent.com", "https://gitlab.com/", "https://accounts.google.com"],
)
def test_a_public_issuer_needs_required_claims(tmp_path: Path, issuer: str) -> None:
    with pytest.raises(SettingsError, match=r"oidc 1: every account of https://.* set required-claims"):
        read_access_file(access_file(tmp_path, issuer))
    read_access_file(access_file(tmp_path, issuer, 'required-claims = { repository_owner = "acme" }'))


@pytest.mark.parametrize(
    "issuer", ["https://gitlab.example.org", "https://token.actions.githubusercontent.com/acme"]
)
def test_an_issuer_of_one_organization_needs_none(tmp_path: Path, issuer: str) -> None:
    read_access_file(access_file(tmp_path, issuer))
