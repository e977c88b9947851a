"""Identities that a proxy names: only from its addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from nixery.access.authentication import Authenticator, Verifiers
from nixery.access.configuration import Proxy
from nixery.access.failed_logins import FailedLogins
from nixery.access.identity import CredentialsRefused, Kind
from nixery.request_context import Client


def authenticator() -> Authenticator:
    proxy = Proxy.model_validate(
        {"addresses": ["192.0.2.0/24"], "user-header": "X-User", "groups-header": "X-Groups"}
    )
    unused = cast(Any, None)
    return Authenticator(Verifiers(unused, unused, FailedLogins(), proxy=proxy))


async def identify(headers: Mapping[str, str], peer: str) -> tuple[Kind, str, set[str]]:
    found = (await authenticator().authenticate(headers, Client("client"), peer)).identity
    return found.kind, found.name, set(found.groups)


@pytest.mark.parametrize("peer", ["192.0.2.7", "::ffff:192.0.2.7"])
async def test_a_proxy_names_a_user_and_groups(peer: str) -> None:
    headers = {"x-user": "alice", "x-groups": "staff, ops"}
    assert await identify(headers, peer) == (Kind.PROXY, "alice", {"staff", "ops"})


@pytest.mark.parametrize("peer", ["192.0.3.7", "::1", "a text", ""])
async def test_header_fields_of_others_are_ignored(peer: str) -> None:
    assert await identify({"x-user": "alice"}, peer) == (Kind.ANONYMOUS, "", set())


async def test_a_request_without_a_user_is_anonymous() -> None:
    assert await identify({"x-groups": "staff"}, "192.0.2.7") == (Kind.ANONYMOUS, "", set())


async def test_a_name_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(CredentialsRefused):
        await identify({"x-user": "a" * 300}, "192.0.2.7")
