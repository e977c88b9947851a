"""The lock's records: which builders may use Essential packages."""

from locking.index import Package, parse_index
from locking.records import Record, make_records


def package(name: str, depends: str = "") -> Package:
    stanza = (
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nFilename: pool/{name}.deb\nSHA256: 00\n"
        f"Depends: {depends}"
    )
    (found,) = parse_index([stanza], "amd64")
    return found


def closure(groups: dict[str, Record], essential: list[str], name: str) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        group = waiting.pop()
        if group not in found:
            found.add(group)
            record = groups[group]
            waiting += [*record["dependencies"], *record.get("essential", essential)]
    return found


def test_every_package_outside_their_closure_may_use_the_essential_ones_without_a_cycle() -> None:
    packages = [
        package("libc6"), package("dash", "libc6"), package("bash", "libc6"), package("libacl1", "libc6"),
        package("coreutils", "libacl1, libc6"), package("grep", "libc6"), package("hello", "libc6"),
    ]  # fmt: skip
    records = make_records({each.name: each for each in packages}, "x86-64-linux-gnu")
    assert records.essential == ["dash", "bash", "coreutils", "grep"]
    assert "essential" not in records.groups["hello"]
    assert records.groups["libc6"]["essential"] == []
    assert records.groups["coreutils"]["essential"] == ["dash", "bash"]
    assert records.groups["grep"]["essential"] == ["dash", "bash", "coreutils"]
    for name, record in records.groups.items():
        for dependency in [*record["dependencies"], *record.get("essential", records.essential)]:
            assert name not in closure(records.groups, records.essential, dependency)


def test_bash_has_debians_sh_beside_it() -> None:
    packages = [package("libc6"), package("debianutils", "libc6"), package("dash", "libc6, debianutils")]
    packages.append(package("bash", "libc6, debianutils"))
    records = make_records({each.name: each for each in packages}, "x86-64-linux-gnu")
    assert records.groups["bash"]["dependencies"] == ["dash", "libc6"]


def test_certificates_are_apart_from_the_script_that_updates_them() -> None:
    packages = [package("libc6"), package("dash", "libc6"), package("openssl", "libc6")]
    packages.append(package("ca-certificates", "openssl"))
    records = make_records({each.name: each for each in packages}, "x86-64-linux-gnu")
    package_group, certificates = records.groups["ca-certificates"], records.groups["cacert"]
    assert certificates["members"] == package_group["members"]
    assert (certificates["dependencies"], certificates["essential"]) == ([], [])
    assert package_group["dependencies"] == ["cacert", "openssl"]
    assert package_group.get("essential", records.essential) == ["dash"]
    assert records.packages["cacert"]["group"] == "cacert"
    assert records.packages["cacert"]["version"] == records.packages["ca-certificates"]["version"]
