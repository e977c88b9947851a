import pytest

from nixery.server.http import Request, matches


@pytest.mark.parametrize("header", ['"a"', 'W/"a"', '"b", "a"', "*"])
def test_the_client_has_it(header: str) -> None:
    assert matches(Request("GET", "/", {"if-none-match": header}), '"a"')


@pytest.mark.parametrize(
    "headers", [{}, {"if-none-match": '"b"'}, {"if-none-match": "a"}, {"if-none-match": ""}]
)
def test_the_client_has_something_else(headers: dict[str, str]) -> None:
    assert not matches(Request("GET", "/", headers), '"a"')
