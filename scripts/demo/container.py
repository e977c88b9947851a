"""Runs commands in an unpacked image: with runc, or in a chroot where runc does not work."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.demo.narrator import DemoError, Narrator

# Seconds.
_TIMEOUT = 30.0


class Container:
    """An OCI bundle as ``umoci unpack`` makes it.

    Args:
        narrator: prints the commands.
        bundle: the bundle's directory.
        state: an empty directory for runc's state, apart from other containers of the machine.
    """

    def __init__(self, narrator: Narrator, bundle: Path, state: Path) -> None:
        self._narrator = narrator
        self._bundle = bundle
        self._state = state
        self._runc_works = self._try_runc()

    def run(self, *command: str) -> str:
        """Run a command in the image and return its output.

        Raises:
            DemoError: it failed.
        """
        output = self._runc(command) if self._runc_works else self._chroot(command)
        self._narrator.note(output.rstrip())
        return output

    def _try_runc(self) -> bool:
        # `true` is in every image with a shell.
        try:
            self._runc(("true",), tell=False)
        except DemoError as error:
            reason = (error.output.strip().splitlines() or [str(error)])[-1]
            self._narrator.note(f"runc cannot run containers here, falling back to chroot: {reason}")
            return False
        return True

    def _runc(self, command: Sequence[str], *, tell: bool = True) -> str:
        file = self._bundle / "config.json"
        config: dict[str, Any] = json.loads(file.read_bytes())
        config["process"].update(args=list(command), terminal=False)
        # Raising limits takes a capability that is missing inside a container.
        config["process"].pop("rlimits", None)
        file.write_text(json.dumps(config))
        name = f"nixery-demo-{uuid.uuid4().hex}"
        runc = ("runc", "--root", str(self._state))
        if tell:
            self._narrator.note(f"$ runc run … {' '.join(command)}")
        try:
            return self._narrator.run(
                *runc, "run", "--bundle", str(self._bundle), name, timeout=_TIMEOUT, tell=False
            )
        finally:
            # `run` deletes a container that has ended, but not one that was interrupted.
            if (self._state / name).exists():
                self._narrator.run(*runc, "delete", "--force", name, timeout=_TIMEOUT, tell=False)

    def _chroot(self, command: Sequence[str]) -> str:
        process = json.loads((self._bundle / "config.json").read_bytes())["process"]
        # With the image's environment, whose PATH finds the command.
        return self._narrator.run(
            shutil.which("chroot") or "chroot",
            str(self._bundle / "rootfs"),
            *command,
            timeout=_TIMEOUT,
            environment=dict(variable.split("=", 1) for variable in process["env"]),
        )
