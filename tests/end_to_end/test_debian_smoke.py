"""The main programs of the best-known packages start in images; `make debian-smoke` tries more packages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from scripts.debian_smoke.__main__ import PACKAGE_SET
from scripts.debian_smoke.images import Workshop
from scripts.debian_smoke.packages import BEST_KNOWN, Package, read_packages
from scripts.debian_smoke.reasons import read_reasons
from scripts.debian_smoke.trial import try_package
from tests.support.nix import nix_environment
from tests.support.server import clean_environment


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    directory = tmp_path_factory.mktemp("smoke")
    yield Workshop(directory, PACKAGE_SET, clean_environment(nix_environment(directory)))
    # pytest keeps the directories of its last runs; images are large.
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    "package",
    [
        pytest.param(package, id=package.name, marks=pytest.mark.xdist_group(f"debian-smoke-{number % 2}"))
        for number, package in enumerate(read_packages()[:BEST_KNOWN])
    ],
)
def test_the_main_program_of_a_best_known_package_starts(package: Package, workshop: Workshop) -> None:
    result = try_package(package, workshop)
    assert not result.build_fault, result.build_fault
    faults = {user: start for user, start in result.starts.items() if start.fault}
    reason = read_reasons().get(package.name)
    assert set(faults) == (set() if reason is None else reason.users), faults
