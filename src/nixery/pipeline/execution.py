"""How a container of an image starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nixery.image.request import ImageRequest
from nixery.nix.builder import Contents, Package
from nixery.oci.image import ExecutionParameters
from nixery.packing.system_files import CA_BUNDLE, LOCALE_ARCHIVE, ZONEINFO
from nixery.packing.tree import Link, Tree

# Stable names instead of store paths, so that they can be replaced by a mounted file. In the config rather than in
# a shell's start-up file, so that `exec` has them as well.
_CERTIFICATES = f"/{CA_BUNDLE.decode()}"
_ENV = (
    "PATH=/bin:/usr/bin:/sbin:/usr/sbin",
    f"SSL_CERT_FILE={_CERTIFICATES}",
    f"NIX_SSL_CERT_FILE={_CERTIFICATES}",
    f"GIT_SSL_CAINFO={_CERTIFICATES}",
    "LANG=C.UTF-8",
)

# Only where the image has them: a C library that is told of a place looks nowhere else.
_ENV_FOR_FILES = (("TZDIR", ZONEINFO), ("LOCALE_ARCHIVE", LOCALE_ARCHIVE))


def execution_parameters(request: ImageRequest, contents: Contents, tree: Tree) -> ExecutionParameters:
    """Derive how containers of an image start.

    What a definition says comes first. Without one there is never an ``Entrypoint``, so that ``docker run IMAGE COMMAND``
    works.

    Args:
        request: an image with a shell starts it.
        contents: of the image; if the client asked for one package only, its main program is started.
        tree: the image's root, which has to have the program.
    """
    env = (
        *_ENV,
        *(f"{variable}=/{name.decode()}" for variable, name in _ENV_FOR_FILES if tree.get(name) is not None),
    )
    if contents.definition is None:
        return ExecutionParameters(env=env, cmd=_command(request, contents.packages, tree))
    defined = contents.definition.execution
    command = defined.cmd
    if command is None and not defined.entrypoint:
        command = _command(request, contents.packages, tree)
    return replace(defined, env=_merged(env, defined.env), cmd=command)


def _command(request: ImageRequest, packages: Sequence[Package], tree: Tree) -> tuple[str, ...]:
    if request.shell:
        return ("bash",)
    if len(request.requested) == 1:
        # A list of packages has no main program, unless it is a list of one.
        found = [package for package in packages if package.requested_name == request.requested[0]]
        package = found[0] if len(found) == 1 else None
        candidates = (package.main_program, package.name, package.requested_name) if package else ()
        for program in candidates:
            if program and isinstance(tree.get(b"bin/" + program.encode()), Link):
                return (program,)
    return ()


def _merged(ours: Sequence[str], defined: Sequence[str]) -> tuple[str, ...]:
    """Our variables, but for those that a definition sets itself, and then the definition's."""
    names = {entry.partition("=")[0] for entry in defined}
    return (*(entry for entry in ours if entry.partition("=")[0] not in names), *defined)
