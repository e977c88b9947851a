"""How a container of an image starts."""

from __future__ import annotations

from collections.abc import Sequence

from nixery.image.request import ImageRequest
from nixery.nix.builder import Package
from nixery.oci.image import ExecutionParameters
from nixery.packing.system_files import CA_BUNDLE
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


def execution_parameters(
    request: ImageRequest, packages: Sequence[Package], tree: Tree
) -> ExecutionParameters:
    """Derive ``Env`` and ``Cmd``; there is never an ``Entrypoint``, so that ``docker run IMAGE COMMAND`` works.

    Args:
        request: an image with a shell starts it.
        packages: of the image; if the client asked for one only, its main program is started.
        tree: the image's root, which has to have the program.
    """
    if request.shell:
        return ExecutionParameters(_ENV, ("bash",))
    if len(request.requested) == 1:
        package = next((p for p in packages if p.requested_name == request.requested[0]), None)
        candidates = (package.main_program, package.name, package.requested_name) if package else ()
        for program in candidates:
            if program and isinstance(tree.get(b"bin/" + program.encode()), Link):
                return ExecutionParameters(_ENV, (program,))
    return ExecutionParameters(_ENV, ())
