"""Put a small shell script in a program's place that sets its environment and runs it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from building.errors import BuildError
from building.outputs import Outputs

WRAPPED = "libexec/wrapped"


def wrap(
    outputs: Outputs,
    name: str,
    variables: Mapping[str, str],
    *,
    extend: bool = False,
    arguments: Sequence[str] = (),
) -> None:
    """Wrap `bin/<name>`; with `extend` the values come after those that the variables have already.

    The program keeps its file name, which it may show or look at.
    """
    program = Path(outputs.own, "bin", name)
    shell = outputs.find_program("dash") or outputs.find_program("bash")
    if shell is None:
        raise BuildError(f"{program}: needs a wrapper, and there is no shell among the dependencies")
    real = Path(outputs.own, WRAPPED, name)
    real.parent.mkdir(parents=True, exist_ok=True)
    program.rename(real)
    lines = [f"#!{shell}"]
    for variable, value in sorted(variables.items()):
        prefix = f"${{{variable}:+${variable}:}}" if extend else ""
        lines.append(f'export {variable}="{prefix}{value}"')
    lines.append(" ".join(["exec", str(real), *arguments, '"$@"']))
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)


def wrap_with_names(outputs: Outputs, name: str, variables: Mapping[str, str]) -> None:
    """Wrap `bin/<name>` and the links to it, for a program that acts by the name that it is called by."""
    directory = Path(outputs.own, "bin")
    names = [
        link.name
        for link in sorted(directory.iterdir())
        if link.is_symlink() and _aim(link) == directory / name
    ]
    wrap(outputs, name, variables)
    real = Path(outputs.own, WRAPPED, name)
    for other in names:
        (directory / other).unlink()
        Path(outputs.own, WRAPPED, other).symlink_to(name)
        text = (directory / name).read_text().replace(f"exec {real} ", f"exec {real.with_name(other)} ")
        (directory / other).write_text(text)
        (directory / other).chmod(0o755)


def _aim(link: Path) -> Path:
    return Path(os.path.normpath(link.parent / link.readlink()))
