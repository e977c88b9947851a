"""Hostile package authors learn no secrets, take no more than their share of resources, and cannot control terminals."""

from __future__ import annotations

import contextlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.client import RegistryClient, Response
from tests.support.command_line import CommandLine
from tests.support.nix import NixSpy, wait_until
from tests.support.server import Server

pytestmark = pytest.mark.security

SECRET = "xyzzy-4711-plugh"  # noqa: S105 -- a made-up secret to search for

# Places where a server has secrets, and variables that a builder or an evaluation could request.
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": SECRET,
    "AZURE_STORAGE_ACCOUNT_KEY": SECRET,
    "GOOGLE_SERVICE_ACCOUNT_KEY": SECRET,
    "GITHUB_TOKEN": SECRET,
    "SSH_AUTH_SOCK": f"/run/{SECRET}",
    "GIT_SSH_COMMAND": f"ssh -i /{SECRET}",
    "NIX_CURL_FLAGS": f"-u user:{SECRET}",
    "NETRC": f"/{SECRET}",
    "https_proxy": f"http://user:{SECRET}@127.0.0.1:9",
    "ftp_proxy": f"user:{SECRET}@127.0.0.1:9",
    "NIX_CONFIG": f"access-tokens = github.com={SECRET}\ncores = 1\nextra-access-tokens = example.org={SECRET}",
    "NIXERY_CHANNEL_TOKEN": SECRET,
    "MALLORY": SECRET,
}

# Prints its environment and its arguments, and fails.
_THIEF = """
derivation {
  name = "thief";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  PATH = "/usr/bin:/bin";
  outputHash = "0000000000000000000000000000000000000000000000000000000000000000";
  outputHashAlgo = "sha256";
  impureEnvVars = [ %s ];
  args = [ "-c" "echo begin; set; tr '\\\\0' '\\\\n' < /proc/$PPID/environ; echo end; exit 1" ];
  inherit salt;
}
"""


def package_set(directory: Path, text: str, salt: str) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "default.nix").write_text(f'{{ system, ... }}: let salt = "{salt}"; in {text}\n')
    return str(directory)


def all_responses(server: Server, name: str) -> str:
    """Return everything that a client can read about a name and its builds."""
    answers = [server.client.manifest(name), server.client.get("/"), server.client.get("/api/v1/builds")]
    for build in json.loads(answers[-1].body)["builds"]:
        answers += [server.client.get(f"{kind}/{build['id']}") for kind in ("/builds", "/api/v1/builds")]
    answers.append(server.client.get("/metrics"))
    return "\n".join([answer.body.decode() for answer in answers] + [server.log])


def test_a_builder_gets_no_secret(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    names = " ".join(f'"{name}"' for name in (*SECRETS, "HOME", "NIXERY_STARTED_BY"))
    place = package_set(tmp_path / "set", f"{{ thief = {_THIEF % names}; }}", salt)
    server = start_server(NIXERY_PKGS_PATH=place, **SECRETS)
    visible = all_responses(server, "thief")
    assert "thief failed" in visible
    # The builder did print its environment, with the allowed variables.
    assert "begin" in visible
    assert "cores = 1" in visible
    assert "STARTED_BY=" in visible
    assert SECRET not in visible


def test_a_builder_gets_the_variables_that_the_operator_names(
    start_server: StartServer, tmp_path: Path, salt: str
) -> None:
    place = package_set(tmp_path / "set", "{ thief = " + _THIEF % '"MALLORY" "GITHUB_TOKEN"' + "; }", salt)
    server = start_server(
        NIXERY_PKGS_PATH=place, MALLORY="on purpose", GITHUB_TOKEN=SECRET, NIXERY_BUILD_ENVIRONMENT="MALLORY"
    )
    visible = all_responses(server, "thief")
    assert "on purpose" in visible
    assert SECRET not in visible


@pytest.mark.parametrize("ifd", ["false", "true"])
def test_an_evaluation_gets_no_secret(start_server: StartServer, tmp_path: Path, ifd: str, salt: str) -> None:
    read = " + ".join(f'(builtins.getEnv "{name}")' for name in (*SECRETS, "PATH"))
    place = package_set(tmp_path / "set", f'{{ reader = throw "read ${{{read}}} end"; }}', salt)
    server = start_server(NIXERY_PKGS_PATH=place, NIXERY_ALLOW_IFD=ifd, **SECRETS)
    visible = all_responses(server, "reader")
    assert "read " in visible
    assert "/bin" in visible
    assert SECRET not in visible


def test_secrets_are_not_passed_as_arguments(tmp_path: Path, salt: str) -> None:
    place = package_set(tmp_path / "set", "{ }", salt)
    options = f"--option access-tokens x={SECRET}"
    nixery = CommandLine({"NIXERY_PKGS_PATH": place, "NIXERY_NIX_OPTIONS": options}, tmp_path)
    result = nixery("build", "hello", status=1)
    assert "NIXERY_NIX_OPTIONS is wrong: it has a secret" in result.stderr
    assert SECRET not in result.stderr


# ---- bounds


def unavailable(client: RegistryClient, name: str) -> Mapping[str, Any]:
    response = client.manifest(name)
    assert response.status == 404, response.body[:2000]
    (package,) = response.error["detail"]["packages"]
    assert package["explanation"] in response.error["message"]
    found: Mapping[str, Any] = package
    return found


# A string of 3 * 2^n bytes.
_LONG = 'let long = n: if n == 0 then "abc" else let half = long (n - 1); in half + half; in '

HELLO = (
    'derivation { name = "hello-1.0"; system = builtins.currentSystem; builder = "/bin/sh"; '
    'args = [ "-c" "echo hello > $out" ]; inherit salt; }'
)


@pytest.mark.parametrize(
    ("value", "explanation"),
    [
        (
            "{ contents = [ ]; config.Labels.x = long 25; }",
            "large: config.Labels.x is a string of 100663296 bytes, and 65536 is the limit",
        ),
        (
            '{ contents = [ ]; config.Labels.${long 12} = "x"; }',
            "large: config.Labels is a set with a name of 12288 bytes, and 256 is the limit",
        ),
        (
            "{ contents = [ ]; config.Cmd = builtins.genList (n: long 14) 6; }",
            "large: config is 294950, and 262144 is the limit",
        ),
        (
            f"{{ contents = builtins.genList (_: {HELLO}) 3000; }}",
            "large.contents: number of contents is 3000, and 2000 is the limit",
        ),
        (f"{HELLO} // {{ version = long 10; }}", "large: version is 3072, and 256 is the limit"),
        (f"{HELLO} // {{ pname = long 24; }}", "large: pname is 50331648, and 256 is the limit"),
        (
            f"{HELLO} // {{ meta.license = builtins.genList (n: toString n) 9000; }}",
            "large: meta.license is 43890, and 16384 is the limit",
        ),
        (
            f"let many = builtins.genList toString 90; in {HELLO} // {{ outputs = many; meta.outputsToInstall = many; }}",
            "large: number of outputs is 90, and 32 is the limit",
        ),
    ],
)
def test_an_oversized_value_is_reported_with_its_size_and_limit(
    start_server: StartServer, tmp_path: Path, salt: str, value: str, explanation: str
) -> None:
    server = start_server(
        NIXERY_PKGS_PATH=package_set(
            tmp_path / "set", f"{_LONG} {{ large = {value}; small = {HELLO}; }}", salt
        )
    )
    package = unavailable(server.client, "large")
    assert package["explanation"] == explanation
    assert server.client.manifest("small").status == 200
    # The value is stored nowhere: neither in memory nor in a record.
    for path in (server.storage / "records").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the progress of a build that has just ended
            assert path.stat().st_size < 100_000
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert peak is not None
    assert int(peak[1]) < 250_000


def test_an_overlong_description_is_left_out(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    place = package_set(
        tmp_path / "set", f"{_LONG} {{ hello = {HELLO} // {{ meta.description = long 22; }}; }}", salt
    )
    client = start_server(NIXERY_PKGS_PATH=place, NIXERY_INDEX="1").client
    assert client.manifest("hello").status == 200
    wait_until(lambda: client.get("/api/v1/index").json()["complete"], "the package set is indexed")
    found = client.get("/api/v1/packages/hello").json()
    assert (found["name"], found["description"], found["available"]) == ("hello", "", True)
    assert len(client.get("/images/hello").body) < 20_000


def test_an_oversized_answer_ends_the_command(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    names = 'builtins.listToAttrs (builtins.genList (n: { name = "a-name-of-some-length-" + toString (n + 1000000); value = 1; }) 900000)'
    place = package_set(tmp_path / "set", f"{{ hello = {HELLO}; }} // {names}", salt)
    server = start_server(NIXERY_PKGS_PATH=place)
    response = server.client.manifest("helo")
    assert response.status == 422
    assert response.error["message"].startswith("what the package set says about ")
    assert "helo" in response.error["message"]
    assert "8.0 MiB is the limit" in response.error["message"]
    assert server.client.manifest("hello").status == 200


def test_one_request_takes_a_bounded_number_of_processes(
    start_server: StartServer, spy: NixSpy, tmp_path: Path, salt: str
) -> None:
    # Nix expressions cannot catch these errors.
    names = [f"p{number}" for number in range(32)]
    attributes = " ".join(f'{name} = 1 + "{name}";' for name in names)
    place = package_set(tmp_path / "set", f"{{ {attributes} hello = {HELLO}; }}", salt)
    client = start_server(NIXERY_PKGS_PATH=place, **spy.environment()).client
    spy.forget()
    response = client.manifest("/".join(names))
    assert response.status == 404
    packages = response.error["detail"]["packages"]
    assert {package["name"] for package in packages} - {"cacert", "iana-etc"} == set(names)
    assert {package["reason"] for package in packages} == {"does not evaluate"}
    assert len(spy.calls_of("nix-instantiate", "--eval")) <= 16
    # A valid package among many invalid ones is still found.
    spy.forget()
    response = client.manifest("hello/p1")
    (package,) = response.error["detail"]["packages"]
    assert (package["name"], "p1" in package["explanation"] or "string" in package["explanation"]) == (
        "p1",
        True,
    )


def test_a_definition_that_is_nested_too_deeply(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    deep = "let deep = n: if n == 0 then 1 else [ (deep (n - 1)) ]; in "
    place = package_set(
        tmp_path / "set", f"{deep} {{ web = {{ contents = [ ]; config.Cmd = deep 400; }}; }}", salt
    )
    server = start_server(NIXERY_PKGS_PATH=place)
    package = unavailable(server.client, "web")
    assert package["reason"] == "not a valid image definition"
    assert "cannot be read" in package["explanation"]


def test_a_definition_with_many_mistakes_names_some(
    start_server: StartServer, tmp_path: Path, salt: str
) -> None:
    ports = 'builtins.genList (n: "port" + toString n) 5000'
    place = package_set(
        tmp_path / "set", f"{{ web = {{ contents = [ ]; config.ExposedPorts = {ports}; }}; }}", salt
    )
    explanation = unavailable(start_server(NIXERY_PKGS_PATH=place).client, "web")["explanation"]
    assert "not 'port9'; and 4990 more" in explanation


def test_a_list_with_many_flaws_names_some(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    lists = """{
      throwing = builtins.genList (n: throw "number ${toString n}") 2000;
      strings = [ hello ] ++ builtins.genList toString 1999;
      web = { contents = builtins.genList (n: throw "number ${toString n}") 2000; config.Cmd = throw "too"; };
    }"""
    place = package_set(tmp_path / "set", f"let hello = {HELLO}; in {lists}", salt)
    client = start_server(NIXERY_PKGS_PATH=place).client
    for name, some in (("throwing", 10), ("strings", 10), ("web", 11)):
        response = client.manifest(name)
        assert response.status == 404, name
        assert len(response.error["detail"]["packages"]) == some, name


def test_lists_within_lists_are_bounded(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    deep = f"let hello = {HELLO}; deep = n: if n == 0 then hello else [ (deep (n - 1)) ]; in "
    place = package_set(tmp_path / "set", f"{deep} {{ some = deep 32; many = deep 3000; }}", salt)
    client = start_server(NIXERY_PKGS_PATH=place).client
    assert client.manifest("some").status == 200
    package = unavailable(client, "many")
    assert package["explanation"] == "many: number of lists within each other is 33, and 32 is the limit"


# Writes Nix's message about a full disk in the format of Nix's log.
_FORGER = """
derivation {
  name = "forger";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" %s ];
  inherit salt;
}
"""


def test_a_builder_cannot_forge_messages_of_nix(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    message = "error: writing to file: No space left on device"
    event = json.dumps({"action": "msg", "level": 0, "msg": message})
    script = json.dumps(f"echo '@nix {event}' >&2; echo the reason >&2; exit 1")
    place = package_set(tmp_path / "set", f"{{ forger = {_FORGER % script}; }}", salt)
    server = start_server(NIXERY_PKGS_PATH=place)
    response = server.client.manifest("forger")
    assert "forger failed" in response.error["message"]
    assert "the reason" in response.error["message"]
    # The package was built once, and is not retried immediately.
    assert server.client.manifest("forger").body == response.body


# An endless line, all of which Nix keeps in memory.
_ENDLESS = """
derivation {
  name = "endless";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  PATH = "/usr/bin:/bin";
  args = [ "-c" "head -c 100000000 /dev/zero | tr '\\0' x; exit 1" ];
  inherit salt;
}
"""


def test_the_output_of_a_builder_is_bounded(start_server: StartServer, tmp_path: Path, salt: str) -> None:
    place = package_set(tmp_path / "set", f"{{ endless = {_ENDLESS}; }}", salt)
    refused = start_server(NIXERY_PKGS_PATH=place).client.manifest("endless")
    assert (refused.status, refused.error["code"]) == (422, "MANIFEST_UNKNOWN")
    assert "killed after writing more than 67108864 bytes of log output" in refused.error["message"]


def test_without_memory_builders_end_before_the_server(
    start_server: StartServer, tmp_path: Path, salt: str
) -> None:
    script = json.dumps("read score < /proc/self/oom_score_adj; echo score $score >&2; exit 1")
    place = package_set(tmp_path / "set", f"{{ hungry = {_FORGER % script}; }}", salt)
    server = start_server(NIXERY_PKGS_PATH=place)
    assert "score 1000" in server.client.manifest("hungry").error["message"]
    assert int(Path(f"/proc/{server.process.pid}/oom_score_adj").read_text()) < 1000


def test_an_image_with_thousands_of_packages_is_described_in_brief(
    start_server: StartServer, tmp_path: Path, salt: str
) -> None:
    # One derivation under many names, with descriptions in which each character needs an escape.
    turned, hidden = "\u202ea" * 150, "\u200b" * 20
    many = f"""prefix: builtins.genList (n: hello // {{
      pname = "${{prefix}}${{toString n}}";
      meta = {{ description = "{turned}"; license = builtins.genList (n: "{hidden}${{toString n}}") 16; }};
    }}) 2000"""
    lists = f'let hello = {HELLO}; many = {many}; in {{ first = many "a"; second = many "b"; }}'
    client = start_server(NIXERY_PKGS_PATH=package_set(tmp_path / "set", lists, salt)).client
    assert client.manifest("first/second").status == 200
    (platform,) = client.get("/api/v1/images/first/second").json()["platforms"]
    packages = platform["packages"]
    assert len(packages) == 2000
    assert sum(len(package["description"]) for package in packages) < 4 * 1024 * 1024
    assert packages[0]["description"]
    assert not packages[-1]["description"]
    assert len(client.get("/images/first/second").body) < 4 * 1024 * 1024


def test_an_image_has_only_paths_that_its_packages_build(
    start_server: StartServer, tmp_path: Path, salt: str
) -> None:
    # Another package with the same name as one that the definition may refer to.
    other = HELLO.replace("echo hello", "echo private")
    parts = f"""let
      hello = {HELLO};
      other = builtins.unsafeDiscardStringContext "${{({other}).outPath}}";
      claimed = {{ type = "derivation"; name = "hello-1.0"; outputName = "out"; outputs = [ "out" ]; }};
    in
    {{
      inherit hello;
      theirs = {other};
      thief = claimed // {{ drvPath = hello.drvPath; outPath = other; }};
      image = {{ contents = [ ]; config.Cmd = [ "${{hello}}/bin/x" other ]; }};
      bad = hello // {{ drvPath = 5; }};
    }}"""
    client = start_server(NIXERY_PKGS_PATH=package_set(tmp_path / "set", parts, salt)).client
    assert client.manifest("theirs").status == 200
    for name in ("thief", "image"):
        package = unavailable(client, name)
        assert "which none of its derivations builds" in package["explanation"], name
    assert unavailable(client, "bad")["reason"] == "not a package"
    assert client.manifest("hello").status == 200


# ---- characters

# A colour, a line break, a bell, C1's control sequence introducer, right to left, no width, a mark, an
# isolate, a tag.
EVIL = "\x1b[31m\nforged\x07\u009b31m\u202egnirts\u200b\u061c\u2066\ufeff\U000e0041"


def evil_nix() -> str:
    """Quote a text as a string of Nix, which has few escapes."""
    return "(builtins.fromJSON " + json.dumps(json.dumps(EVIL, ensure_ascii=True)) + ")"


def unsafe(text: str, *, lines: bool = True) -> set[str]:
    """Return the names of the unsafe characters in a text."""
    allowed = "\t\n" if lines else "\t"
    return {
        hex(ord(character))
        for character in text
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in allowed
    }


def texts(document: Any) -> Iterator[str]:  # noqa: ANN401 -- JSON is anything
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from texts(value)
    elif isinstance(document, list):
        for value in document:
            yield from texts(value)


_EVIL_SET = """let
  evil = %s;
  hello = derivation {
    name = "hello-1.0"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
    args = [ "-c" "mkdir -p $out/bin; printf 'out %%s\\\\n' \\"$evil\\" >&2; echo > \\"$out/bin/a$evil\\"" ];
    inherit evil salt;
  };
in
{
  hello = hello // {
    pname = "hello" + evil; version = "1" + evil;
    meta = { description = "says" + evil; license = "MIT" + evil; };
  };
  thrown = throw evil;
  uncatchable = abort evil;
  notapackage = [ [ evil ] ];
  attribute.${"a" + evil} = 1;
  failing = derivation {
    name = "failing"; system = builtins.currentSystem; builder = "/bin/sh";
    args = [ "-c" "printf '%%s\\\\n' \\"$evil\\" >&2; exit 1" ]; inherit evil salt;
  };
  key = { contents = [ ]; config.${"Cmd" + evil} = [ ]; };
  value = { contents = [ ]; config.User = evil; };
  type = { contents = [ ]; config.Env = [ { "nixery:type" = evil; } ]; };
  clash = [ hello (hello // { outPath = hello.outPath; }) (derivation (hello.drvAttrs // { name = "other"; })) ];
  labelled = {
    contents = [ hello ];
    config = { Labels.${"key" + evil} = evil; Env.EXACT = evil; Cmd = [ "printf" evil ]; };
  };
}"""


@pytest.fixture
def evil_set(tmp_path: Path, salt: str) -> str:
    return package_set(tmp_path / "set", _EVIL_SET % evil_nix(), salt)


BUILT = {"hello", "clash", "labelled"}
NAMES = (
    "hello",
    "thrown",
    "uncatchable",
    "notapackage",
    "attribute.b",
    "failing",
    "key",
    "value",
    "type",
    "clash",
    "labelled",
)


def assert_registry_errors_are_safe(client: RegistryClient) -> None:
    seen: dict[str, Response] = {name: client.manifest(name) for name in NAMES}
    assert {name for name, answer in seen.items() if answer.status == 200} == BUILT
    for name in seen.keys() - BUILT:
        for text in texts(seen[name].json()):
            assert not unsafe(text, lines=False), (name, text)
        # The other messages quote nothing from the set.
        assert (b"forged" in seen[name].body) == (name not in {"notapackage", "attribute.b"}), name


def assert_api_is_safe(client: RegistryClient, builds: Sequence[str]) -> None:
    paths = ["/api/v1/builds", "/api/v1/packages?q=", "/api/v1/packages/hello"]
    paths += [f"/api/v1/images/{name}" for name in ("hello", "labelled")]
    paths += [f"/api/v1/builds/{build}" for build in builds]
    answers = [client.get(path) for path in paths]
    for answer in answers:
        assert not {found for text in texts(answer.json()) for found in unsafe(text)}, answer
    assert sum(answer.body.count(b"forged") for answer in answers) > 5
    for build in builds:
        events = client.get(f"/api/v1/builds/{build}/events").body.decode()
        assert not unsafe(events)
        data = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
        assert not {found for text in texts(data) for found in unsafe(text)}


def assert_pages_are_safe(client: RegistryClient, builds: Sequence[str]) -> None:
    paths = ["/", "/images/hello", "/images/labelled"] + [f"/builds/{build}" for build in builds]
    pages = {path: client.get(path).body.decode() for path in paths}
    assert not {path: found for path, page in pages.items() if (found := unsafe(page))}
    assert sum(page.count("forged") for page in pages.values()) > 5


def assert_log_is_safe(log: str, log_format: str) -> None:
    assert "forged" in log
    assert not unsafe(log)
    for line in log.splitlines():
        assert not line.startswith("forged"), line
        if log_format == "json":
            assert not {found for text in texts(json.loads(line)) for found in unsafe(text, lines=False)}, (
                line
            )


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_output_of_a_server_contains_unsafe_characters(
    start_server: StartServer, evil_set: str, log_format: str
) -> None:
    server = start_server(NIXERY_PKGS_PATH=evil_set, NIXERY_LOG_FORMAT=log_format, NIXERY_LOG_LEVEL="debug")
    assert_registry_errors_are_safe(server.client)
    builds = [build["id"] for build in server.client.get("/api/v1/builds").json()["builds"]]
    assert_api_is_safe(server.client, builds)
    assert_pages_are_safe(server.client, builds)
    assert_log_is_safe(server.log, log_format)


def test_no_image_metadata_contains_unsafe_characters(start_server: StartServer, evil_set: str) -> None:
    client = start_server(NIXERY_PKGS_PATH=evil_set).client
    for name in ("hello", "labelled"):
        image = client.pull(name)
        config: dict[str, Any] = image.config_document["config"]
        said = {**image.manifest_document["annotations"], **config["Labels"]}
        assert "forged" in "".join(said.values())
        assert not {found for text in texts(said) for found in unsafe(text)}
    # The server must not change the config of a container.
    config = client.pull("labelled").config_document["config"]
    assert config["Cmd"] == ["printf", EVIL]
    assert f"EXACT={EVIL}" in config["Env"]


def test_no_command_prints_unsafe_characters(
    evil_set: str, tmp_path: Path, settings: Mapping[str, str]
) -> None:
    nixery = CommandLine({**settings, "NIXERY_PKGS_PATH": evil_set}, tmp_path)
    forged = 0
    for command in (
        *(f"build {name}" for name in NAMES),
        "inspect hello",
        "inspect labelled",
        "inspect hello --diff labelled",
        "inspect labelled --json",
        "build failing --json",
        "check",
        "check --index",
        "check hello labelled",
        "check hello labelled --json",
    ):
        arguments = command.split()
        fails = arguments[0] == "build" and arguments[1] not in BUILT
        result = nixery(*arguments, status=int(fails))
        said = result.stdout + result.stderr
        forged += said.count("forged")
        assert not unsafe(said), (arguments, said)
        assert not [line for line in said.splitlines() if line.startswith("forged")], arguments
    assert forged > 10


@pytest.mark.parametrize("arguments", [("inspect", "hello"), ("build", "failing"), ("inspect", "labelled")])
def test_no_terminal_gets_unsafe_characters(
    evil_set: str, tmp_path: Path, settings: Mapping[str, str], arguments: tuple[str, ...]
) -> None:
    nixery = CommandLine({**settings, "NIXERY_PKGS_PATH": evil_set}, tmp_path)
    sent = nixery.on_terminal(*arguments, status=1 if "failing" in arguments else 0)
    # Progress bars use control sequences for lines and colours.
    assert not {"\x07", "\u009b", "\u202e", "\u200b", "\u061c", "\u2066", "\ufeff"} & set(sent)
    assert not re.search(r"\n\s*forged", sent)
