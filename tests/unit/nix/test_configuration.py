from __future__ import annotations

import json
from pathlib import Path

import pytest

from nixery.nix.configuration import PackageConfiguration


def expression(value: str) -> str:
    found = PackageConfiguration.parse(value)
    assert found is not None
    return found.expression


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_value_is_no_configuration(value: str) -> None:
    assert PackageConfiguration.parse(value) is None


def test_nix_is_passed_on_unchanged() -> None:
    text = '{ allowUnfreePredicate = p: p.pname == "${"a"}"; overlays = [ ]; }'
    assert expression(f" {text}\n") == text


def test_lists_of_names_become_predicates() -> None:
    text = expression('{"allowUnfreePredicate": ["unrar", "b"], "permittedInsecurePackages": ["c-1"]}')
    assert text == (
        '{ "allowUnfreePredicate" = package: builtins.elem (package.pname or (builtins.parseDrvName '
        '(package.name or "")).name) [ "unrar" "b" ]; "permittedInsecurePackages" = [ "c-1" ]; }'
    )


def test_no_json_text_becomes_code() -> None:
    text = '"; x = throw "${builtins.getEnv "HOME"} $${y} \\'
    written = expression(json.dumps({text: [text, -1, 1.5, None, True, {"a": {}}]}))
    quoted = '"\\"; x = throw \\"\\${builtins.getEnv \\"HOME\\"} $\\${y} \\\\"'
    assert written == f'{{ {quoted} = [ {quoted} (-1) (1.5) null true {{ "a" = {{ }}; }} ]; }}'


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('{"overlays": []}', "JSON cannot express overlays"),
        ('{"allowUnfreePredicate": true}', "allowUnfreePredicate is a list of package names"),
        ('{"allowUnfreePredicate": [1]}', "allowUnfreePredicate is a list of package names"),
        ('{"a": ' + "[" * 40 + "]" * 40 + "}", "nested deeper than 32 levels"),
        pytest.param("{ a = '" + "x" * 70_000, "it has more than 65,536 bytes", id="large"),
        pytest.param(
            json.dumps({"a": "${" * 25_000}), "Nix expression, has more than 65,536 bytes", id="large JSON"
        ),
        ("{ a = \0; }", "null byte"),
        ('{ url = "https://user:secret@example.org/"; }', "it has a secret"),
        ("/nowhere/config.nix", "cannot read /nowhere/config.nix: No such file or directory"),
    ],
)
def test_a_configuration_that_is_not_accepted(value: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        PackageConfiguration.parse(value)
    assert "secret@" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.nix").write_text("{ allowBroken = true; }\n")
    (tmp_path / "config.json").write_text('{"allowBroken": true}\n')
    assert expression(str(tmp_path / "config.nix")) == "{ allowBroken = true; }"
    assert expression(str(tmp_path / "config.json")) == '{ "allowBroken" = true; }'


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not a JSON object"),
        (b"\xff", "not UTF-8"),
        pytest.param(b"{}" + b" " * 70_000, "65,536 bytes", id="large"),
    ],
)
def test_a_json_file_holds_an_object(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        PackageConfiguration.parse(str(tmp_path / "config.json"))


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "config.nix").mkdir()
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        PackageConfiguration.parse(str(tmp_path / "config.nix"))


def test_the_identity_discloses_nothing() -> None:
    one, two = PackageConfiguration("{ a = 1; }"), PackageConfiguration("{ a = 2; }")
    assert one.identity != two.identity
    assert len(one.identity) == 64
