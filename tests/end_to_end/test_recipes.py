"""Run docs/how-to/image-recipes.md: put its files into a package set, run its commands in bash, and compare their output.

``nixery``, ``skopeo`` and the other programs are real. docker, podman and buildah are not installed with the
tests' programs; stand-ins run skopeo, umoci and runc (``tests/support/container_engine.py``).
"""

from __future__ import annotations

import doctest
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import container_engine
from tests.support.nix import nix_environment
from tests.support.recipes import PAGE, Section, Step, read_page
from tests.support.server import clean_environment, running_server

ROOT = Path(__file__).parents[2]
FILES, RECIPES = read_page(PAGE.read_text())

# The addresses of nixery and the registry on the page.
_INSTALLED, _REGISTRY = "/opt/nixery", "127.0.0.1:8080"

# Seconds for a recipe, whose packages may have to be fetched first.
_LIMIT = 400

pytestmark = pytest.mark.xdist_group("debian")


@dataclass(frozen=True)
class Machine:
    """The machine of a reader of the page.

    Attributes:
        directory: with the page's files.
        registry: host and port.
    """

    directory: Path
    registry: str
    environment: Mapping[str, str]

    def run(self, steps: list[Step]) -> list[tuple[int, str]]:
        """Run commands in one bash; return status and output of each."""
        mark = "-- end of command"
        script = ["exec 2>&1 </dev/null", "shopt -s expand_aliases", "status=0"]
        for step in steps:
            command = step.command.replace(_REGISTRY, self.registry)
            script += ["(exit $status)", command, "status=$?", f'echo "{mark} $status"']
        path = self.directory / "script.bash"
        path.write_text("\n".join(script))
        finished = subprocess.run(
            ["bash", str(path)],
            env=self.environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
        *outcomes, rest = re.split(rf"{mark} (\d+)\n", finished.stdout.replace(self.registry, _REGISTRY))
        assert (len(outcomes), rest) == (2 * len(steps), ""), finished.stdout
        return [(int(status), output) for output, status in zip(outcomes[::2], outcomes[1::2], strict=True)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    directory = tmp_path_factory.mktemp("recipes")
    for name, content in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(content.replace(_INSTALLED, str(ROOT)))
    server_directory = tmp_path_factory.mktemp("recipes-server")
    settings = {
        "NIXERY_PKGS_PATH": str(directory / "packages"),
        "NIX_TIMEOUT": "300",
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(server_directory / "storage"),
        **nix_environment(server_directory),
    }
    engine = container_engine.install(server_directory)
    with running_server(server_directory, settings) as server:
        environment = clean_environment({**settings, **engine})
        try:
            yield Machine(directory, f"127.0.0.1:{server.port}", environment)
        finally:
            container_engine.end_all(engine)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
def test_recipe(machine: Machine, recipe: Section) -> None:
    outcomes = machine.run(recipe.steps)
    following = [*recipe.steps[1:], None]
    for step, after, (status, output) in zip(recipe.steps, following, outcomes, strict=True):
        asks_for_status = after is not None and after.command == "echo $?"
        assert status == 0 or asks_for_status, f"$ {step.command}\n{output}(status {status})"
        if step.output:
            assert_prints(step, output)


def assert_prints(step: Step, output: str) -> None:
    """Compare output with that on the page, in which ``...`` stands for anything."""
    # Progress is a bar on a reader's terminal, which vanishes; here it is lines with a time.
    output = re.sub(r"^\d{4}-\d\d-\d\d .*\n", "", output, flags=re.MULTILINE)
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not checker.check_output(step.output, output, options):
        raise AssertionError(f"$ {step.command}\n--- expected\n{step.output}--- printed\n{output}")


def test_every_recipe_can_fail() -> None:
    """Each has commands and the output of at least one; no block is untested."""
    assert len(RECIPES) >= 10
    for recipe in RECIPES:
        assert any(step.output.strip(". \n") for step in recipe.steps), f"{recipe.title}: nothing to compare"
        assert not recipe.other, f"{recipe.title}: a block without a file's name: {recipe.other}"


def test_output_is_compared() -> None:
    with pytest.raises(AssertionError, match="expected"):
        assert_prints(Step("echo", "one ... three\n"), "one two\n")


def test_a_page_is_parsed() -> None:
    page = """\
## Before

`set/default.nix`:

```nix
# no heading
{ }
```

## Recipes

### One

`a.txt`:

```
## no heading either
```

```console
$ echo 'one
  two'
one
  two
$ true \\
    and
$ echo $?
0
```

```yaml
forgotten: file
```

### Two

    $ nothing

## After

### No recipe
"""
    files, recipes = read_page(page)
    assert files == {"set/default.nix": "# no heading\n{ }\n", "a.txt": "## no heading either\n"}
    one, two = recipes
    assert one.steps == [
        Step("echo 'one\n  two'", "one\n  two\n"),
        Step("true \\\n    and", ""),
        Step("echo $?", "0\n"),
    ]
    assert one.other == ["yaml"]
    assert (two.title, two.steps) == ("Two", [])


def test_a_failing_command_is_reported(machine: Machine) -> None:
    steps = [Step("false", ""), Step("echo $?", "1\n"), Step("printf unfinished", "")]
    assert machine.run(steps) == [(1, ""), (0, "1\n"), (0, "unfinished")]
