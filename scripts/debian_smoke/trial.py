"""Try a package: build its image, and start its main program as root and as a plain user."""

from __future__ import annotations

import time
from collections.abc import Sequence

from scripts.debian_smoke.commands import Command, Run, commands_for, fault, is_decisive
from scripts.debian_smoke.images import PLAIN_USER, Image, ImageError, Workshop, image_name
from scripts.debian_smoke.packages import Package
from scripts.debian_smoke.results import Result, Start

# Of this order, so that the plain user does not find what root wrote.
_USERS = {"plain": PLAIN_USER, "root": 0}

# Seconds for one command; large interpreters take a few on a busy machine.
_PATIENCE = 120
# Characters of output in a result.
_OUTPUT = 2000


def try_package(package: Package, workshop: Workshop, version: str = "", derivation: str = "") -> Result:
    """Try a package; a failure is a result."""
    begin = time.monotonic()
    try:
        image = workshop.make(image_name(package.name))
    except ImageError as error:
        return Result(package.name, package.program, version, derivation, build_fault=str(error))
    built = time.monotonic()
    starts = {
        user: _start(image, package.program, commands_for(package.name), number)
        for user, number in _USERS.items()
    }
    return Result(
        package.name,
        package.program,
        version,
        derivation,
        starts=starts,
        layers_size=image.layers_size,
        seconds=(round(built - begin, 1), round(time.monotonic() - built, 1)),
    )


def _start(image: Image, program: str, commands: Sequence[Command], user: int) -> Start:
    tried: list[tuple[Command, Run, str]] = []
    for command in commands:
        run = image.run(program, command.arguments, user, _PATIENCE)
        why = fault(command, run)
        if why is None:
            return Start(_line(program, command), "", run.output[:_OUTPUT])
        tried.append((command, run, why))
        if is_decisive(run):
            break
    command, run, why = tried[-1]
    return Start(_line(program, command), why, run.output[:_OUTPUT])


def _line(program: str, command: Command) -> str:
    return " ".join((program, *command.arguments))
