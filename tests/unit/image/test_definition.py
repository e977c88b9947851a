import json
from typing import Any

import pytest

from nixery.image.definition import InvalidDefinition, parse_definition
from nixery.oci.documents import ExecutionParameters


def parse(**config: Any) -> ExecutionParameters:  # noqa: ANN401 -- any value of Nix
    execution, _ = parse_definition(json.dumps({"config": config}))
    return execution


def test_a_definition_with_every_field() -> None:
    execution = parse(
        Cmd=["serve"],
        Entrypoint=["/bin/init", "--"],
        Env=["A=1", "B=x=y", "C="],
        User=65534,
        WorkingDir="/srv",
        ExposedPorts=["80", "53/udp", 8080],
        Volumes=["/data"],
        Labels={"team": "platform"},
        StopSignal="SIGINT",
        Healthcheck={"Test": ["CMD", "true"], "Interval": "1m30s", "Timeout": 5, "Retries": 3},
    )
    assert execution.as_json() == {
        "Cmd": ["serve"],
        "Entrypoint": ["/bin/init", "--"],
        "Env": ["A=1", "B=x=y", "C="],
        "User": "65534",
        "WorkingDir": "/srv",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8080/tcp": {}},
        "Volumes": {"/data": {}},
        "Labels": {"team": "platform"},
        "StopSignal": "SIGINT",
        "Healthcheck": {
            "Test": ["CMD", "true"],
            "Interval": 90_000_000_000,
            "Timeout": 5,
            "Retries": 3,
        },
    }


def test_an_empty_definition() -> None:
    assert parse_definition("{}") == (ExecutionParameters(), None)


def test_an_empty_value_differs_from_a_missing_one() -> None:
    assert parse(Cmd=[]).cmd == ()
    assert parse().cmd is None


def test_sets_in_the_place_of_lists() -> None:
    assert parse(Env={"B": "2", "A": 1}).env == ("B=2", "A=1")
    assert parse(ExposedPorts={"80/tcp": {}}).exposed_ports == ("80/tcp",)
    assert parse(Volumes={"/data": {}}).volumes == ("/data",)


@pytest.mark.parametrize(
    ("duration", "nanoseconds"),
    [("2s", 2 * 10**9), ("1.5s", 1_500_000_000), ("100ms", 10**8), ("1h", 3600 * 10**9)],
)
def test_durations_are_nanoseconds(duration: str, nanoseconds: int) -> None:
    health = parse(Healthcheck={"Test": ["NONE"], "Interval": duration}).healthcheck
    assert health is not None
    assert health["Interval"] == nanoseconds


def test_the_number_of_layers_is_limited() -> None:
    assert parse_definition('{"layers": 20}')[1] == 20


@pytest.mark.parametrize(
    ("definition", "complaint"),
    [
        ({"config": {"Cmd": "serve"}}, "config.Cmd should be a list, not 'serve'"),
        ({"config": {"Cmd": ["serve", 1]}}, "config.Cmd[1] should be a string, not 1"),
        ({"config": {"Cmd": [{"nixery:type": "function"}]}}, "config.Cmd[0] is a function"),
        ({"config": {"cmd": ["serve"]}}, "config.cmd is not a field of an image definition"),
        ({"config": {"Env": ["A"]}}, "config.Env[0] should be NAME=value, not 'A'"),
        ({"config": {"Env": {"A": ["b"]}}}, "config.Env A should be a string"),
        ({"config": {"WorkingDir": "srv"}}, "config.WorkingDir should be an absolute path, not 'srv'"),
        (
            {"config": {"ExposedPorts": ["http"]}},
            "config.ExposedPorts[0] should be a port such as 80 or 53/udp",
        ),
        ({"config": {"ExposedPorts": [70000]}}, "config.ExposedPorts[0] should be a port"),
        ({"config": {"Volumes": ["data"]}}, "config.Volumes[0] should be an absolute path"),
        ({"config": {"Labels": {"a": 1}}}, "config.Labels.a should be a string, not 1"),
        ({"config": {"Labels": ["a=b"]}}, "config.Labels should be a set"),
        ({"config": {"StopSignal": "INT"}}, "config.StopSignal should be a signal such as SIGINT"),
        ({"config": {"User": True}}, "config.User should be a string, not True"),
        ({"config": {"User": "9" * 5000}}, "config.User should have at most 255 letters, not 5000"),
        ({"config": {"User": "4294967295"}}, "config.User should have numbers up to 4294967294"),
        ({"config": {"User": "web:4294967295"}}, "config.User should have numbers up to 4294967294"),
        (
            {"config": {"WorkingDir": "/" + "\u00fc" * 2048}},
            "config.WorkingDir should have at most 4095 bytes, not 4097",
        ),
        (
            {"config": {"WorkingDir": "/d" * 129}},
            "config.WorkingDir should have at most 128 directories, not 129",
        ),
        ({"config": {"Volumes": ["/x"] * 257}}, "config.Volumes should have at most 256 entries, not 257"),
        ({"config": {"Volumes": ["/nix\0"]}}, "config.Volumes[0] should have no zero byte"),
        ({"config": {"Healthcheck": {}}}, "config.Healthcheck.Test is missing"),
        (
            {"config": {"Healthcheck": {"Test": [], "Interval": "soon"}}},
            "config.Healthcheck.Interval should be a duration",
        ),
        (
            {"config": {"Healthcheck": {"Test": [], "Interval": "9" * 400 + "h"}}},
            "config.Healthcheck.Interval should be a duration of at most 2562047 hours",
        ),
        (
            {"config": {"Healthcheck": {"Test": [], "Timeout": 2**63}}},
            "config.Healthcheck.Timeout should be less than or equal to 9223372036854775807",
        ),
        ({"config": []}, "config should be a set"),
        ({"config": {"nixery:type": "function"}}, "config is a function"),
        ({"config": {"Labels": {"nixery:type": "function"}}}, "config.Labels is a function"),
        ({"config": {"Env": {"nixery:type": "function"}}}, "config.Env is a function"),
        ({"layers": 1}, "layers should be greater than or equal to 2, not 1"),
        ({"layers": "many"}, "layers should be"),
        ({"entrypoint": []}, "entrypoint is not a field of an image definition"),
    ],
)
def test_an_error_names_the_field(definition: object, complaint: str) -> None:
    with pytest.raises(InvalidDefinition) as raised:
        parse_definition(json.dumps(definition))
    assert complaint in str(raised.value)


def test_all_errors_of_a_definition_are_reported_at_once() -> None:
    with pytest.raises(InvalidDefinition) as raised:
        parse(Cmd="x", WorkingDir="y")
    assert "config.Cmd" in str(raised.value)
    assert "config.WorkingDir" in str(raised.value)
