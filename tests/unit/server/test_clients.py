"""Whom a request is from, and which of its header fields are believed."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from nixery.request_context import INTERNAL, Client
from nixery.server.clients import Clients, is_forwarded

PROXIES = [ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")]


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("192.0.2.7:1234", "192.0.2.7"),
        ("[2001:db8:1:2:3:4:5:6]:1234", "2001:db8:1:2::/64"),
        ("[::ffff:192.0.2.7]:1234", "192.0.2.7"),
        ("[fe80::1%2]:1234", "fe80::/64"),
    ],
)
def test_a_client_is_an_address_or_a_site(peer: str, name: str) -> None:
    assert Clients().client(peer, {}) == Client(name)


def test_what_has_no_address_is_of_this_machine() -> None:
    assert Clients().client("", {}) == INTERNAL


@pytest.mark.parametrize(
    ("forwarded", "name"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db9::1]:4711", "2001:db9::/64"),
        ("[2001:db9::1]", "2001:db9::/64"),
        ("2001:db9::1", "2001:db9::/64"),
        # What a client wrote is on the left of what the proxies did.
        ("127.0.0.1, 203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9, 10.1.1.1 , 10.1.1.2", "203.0.113.9"),
        ("1.1.1.1, nonsense, 10.1.1.1", "10.1.1.1"),
        ("unknown", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("," * 10_000, "10.0.0.1"),
        ("10.0.0.2, 10.0.0.3", "10.0.0.2"),
    ],
)
def test_behind_proxies_it_is_the_last_address_that_is_none_of_theirs(forwarded: str, name: str) -> None:
    headers = {"x-forwarded-for": forwarded}
    clients = Clients(PROXIES)
    assert clients.client("10.0.0.1:1234", clients.believed(headers, "10.0.0.1:1234")) == Client(name)


def test_nobody_else_is_believed() -> None:
    headers = {
        "host": "a",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "https",
        "x-request-id": "forged",
        "forwarded": "for=127.0.0.1",
        "traceparent": "00-1-2-01",
        "baggage": "a=b",
    }
    for clients, peer in ((Clients(), "10.0.0.1:1"), (Clients(PROXIES), "192.0.2.7:1")):
        believed = clients.believed(headers, peer)
        assert believed == {"host": "a"}
        assert clients.client(peer, believed).name == peer[:-2]
    assert Clients(PROXIES).believed(headers, "10.0.0.1:1") == headers
    assert is_forwarded(headers)
    assert not is_forwarded({"host": "a", "x-request-id": "mine"})
