from pathlib import Path

import pytest

from nixery.errors import SettingsError
from nixery.quantities import DiskMark
from nixery.settings import Settings, storage_settings


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "default.nix").write_text("{ system }: { }")
    return {
        "PORT": "8080",
        "NIXERY_PKGS_PATH": str(tmp_path),
        "NIXERY_STORAGE_BACKEND": "filesystem",
        "STORAGE_PATH": str(tmp_path / "storage"),
        "UNRELATED": "x",
    }


def problems(environment: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(environment)
    return caught.value.problems


def test_defaults(environment: dict[str, str]) -> None:
    settings = Settings.from_environment(environment)
    assert (settings.host, settings.port, settings.nix_timeout) == ("127.0.0.1", 8080, 60)
    assert settings.popularity_url is None
    assert settings.layer_budget == 94
    assert settings.packing_workers >= 1


def test_all_problems_come_at_once_a_line_each(environment: dict[str, str]) -> None:
    del environment["STORAGE_PATH"]
    environment |= {"PORT": "http", "NIXERY_PKGS_PATH": "/nowhere", "NIX_TIMEOUT": "0"}
    found = problems(environment)
    assert [line.split()[0] for line in found] == ["PORT", "NIXERY_PKGS_PATH", "STORAGE_PATH", "NIX_TIMEOUT"]
    assert not any("\n" in line for line in found)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8080x", ""])
def test_ports(environment: dict[str, str], port: str) -> None:
    (line,) = problems(environment | {"PORT": port})
    assert line.startswith("PORT is wrong")


def test_an_unknown_backend_is_told_which_there_are(environment: dict[str, str]) -> None:
    (line,) = problems(environment | {"NIXERY_STORAGE_BACKEND": "floppy"})
    assert "filesystem" in line


def test_a_directory_without_a_package_set(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (line,) = problems(environment | {"NIXERY_PKGS_PATH": str(tmp_path / "other")})
    assert "default.nix" in line


def test_empty_is_not_unset(environment: dict[str, str]) -> None:
    (line,) = problems(environment | {"STORAGE_PATH": " "})
    assert line == "STORAGE_PATH is wrong: it is set, but empty"


@pytest.mark.parametrize(("budget", "accepted"), [("0", False), ("1", True), ("120", True), ("121", False)])
def test_layer_budgets(environment: dict[str, str], budget: str, accepted: bool) -> None:  # noqa: FBT001
    environment |= {"NIXERY_LAYER_BUDGET": budget}
    if accepted:
        assert Settings.from_environment(environment).layer_budget == int(budget)
    else:
        (line,) = problems(environment)
        assert line.startswith("NIXERY_LAYER_BUDGET is wrong")


def test_compression(environment: dict[str, str]) -> None:
    settings = Settings.from_environment(environment)
    assert (settings.compression, settings.compression_level) == ("gzip", None)
    environment |= {"NIXERY_COMPRESSION": "zstd", "NIXERY_COMPRESSION_LEVEL": "19"}
    settings = Settings.from_environment(environment)
    assert (settings.compression, settings.compression_level) == ("zstd", 19)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"NIXERY_COMPRESSION": "xz"}, "NIXERY_COMPRESSION is wrong: input should be 'gzip' or 'zstd'"),
        (
            {"NIXERY_COMPRESSION": "xz", "NIXERY_COMPRESSION_LEVEL": "1"},
            "NIXERY_COMPRESSION is wrong: input should be 'gzip' or 'zstd'",
        ),
        (
            {"NIXERY_COMPRESSION_LEVEL": "6"},
            "NIXERY_COMPRESSION_LEVEL is wrong: the levels of gzip are 0 to 3",
        ),
        (
            {"NIXERY_COMPRESSION": "zstd", "NIXERY_COMPRESSION_LEVEL": "0"},
            "NIXERY_COMPRESSION_LEVEL is wrong: the levels of zstd are 1 to 19",
        ),
    ],
)
def test_compressions_that_there_are_not(
    environment: dict[str, str], given: dict[str, str], expected: str
) -> None:
    assert problems(environment | given) == (expected,)


def on_a_bucket(environment: dict[str, str], **others: str) -> dict[str, str]:
    given = {**environment, "NIXERY_STORAGE_BACKEND": "s3", "S3_BUCKET": "layers", **others}
    del given["STORAGE_PATH"]
    return given


def test_a_bucket_needs_no_directory_and_is_not_read_without_being_asked(environment: dict[str, str]) -> None:
    settings = Settings.from_environment(on_a_bucket(environment, XDG_CACHE_HOME="/cache"))
    assert settings.storage_path == Path("/cache/nixery")
    assert settings.scrub_rate == 0
    assert settings.blob_delivery is None
    asked = on_a_bucket(environment, NIXERY_SCRUB_RATE="2", NIXERY_BLOB_DELIVERY="proxy")
    settings = Settings.from_environment(asked)
    assert (settings.scrub_rate, settings.blob_delivery) == (2, "proxy")


def test_a_bucket_has_no_file_system_to_take_a_percentage_of(environment: dict[str, str]) -> None:
    (problem,) = problems(on_a_bucket(environment, NIXERY_STORAGE_HIGH="90%"))
    assert problem == (
        "NIXERY_STORAGE_HIGH is wrong: s3 has no file system to take a percentage of; write a size, for example 500GiB"
    )
    settings = Settings.from_environment(on_a_bucket(environment, NIXERY_STORAGE_HIGH="500GiB"))
    assert settings.storage_high is not None
    assert settings.storage_high.size == 500 * 1024**3


def test_a_storage_is_bounded_unless_it_is_a_bucket(environment: dict[str, str]) -> None:
    high = Settings.from_environment(environment).storage_high
    assert (high, high and high.percent) == (DiskMark.parse("90%"), 90)
    assert Settings.from_environment(on_a_bucket(environment)).storage_high is None
    memory = {**environment, "NIXERY_STORAGE_BACKEND": "memory"}
    assert Settings.from_environment(memory).storage_high == DiskMark.parse("1GiB")
    for asked in ("none", " None "):
        assert Settings.from_environment({**environment, "NIXERY_STORAGE_HIGH": asked}).storage_high is None
    low = Settings.from_environment({**environment, "NIXERY_STORAGE_LOW": "70%"}).storage_low
    assert low == DiskMark.parse("70%")


def test_how_much_is_copied_of_a_bucket_is_written_as_other_sizes_are(environment: dict[str, str]) -> None:
    for written, size in (("0", 0), ("1000", 1000), ("50GiB", 50 * 1024**3), ("2 GB", 2_000_000_000)):
        given = on_a_bucket(environment, NIXERY_CACHE_SIZE=written)
        assert Settings.from_environment(given).cache_size == size
    (problem,) = problems(on_a_bucket(environment, NIXERY_CACHE_SIZE="much"))
    assert problem == "NIXERY_CACHE_SIZE is wrong: 'much' is no size; write for example 500MB or 50GiB"


def test_what_is_missing_of_a_bucket_is_told(environment: dict[str, str]) -> None:
    given = on_a_bucket(environment)
    del given["S3_BUCKET"]
    expected = "S3_BUCKET is not set: the bucket where layers are kept (NIXERY_STORAGE_BACKEND=s3)"
    assert problems(given) == (expected,)
    with pytest.raises(SettingsError, match="S3_BUCKET is not set"):
        storage_settings(given)


def test_proxies_are_addresses_and_networks(environment: dict[str, str]) -> None:
    given = environment | {"NIXERY_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8,2001:db8::/32"}
    networks = Settings.from_environment(given).trusted_proxies
    assert [str(network) for network in networks] == ["127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32"]
    for wrong in ("", "proxy.example", "10.0.0.1/8", "0.0.0.0/0", "::/0"):
        (line,) = problems(environment | {"NIXERY_TRUSTED_PROXIES": wrong})
        assert line.startswith("NIXERY_TRUSTED_PROXIES is wrong")


def test_a_public_url_is_that_of_a_registry(environment: dict[str, str]) -> None:
    for url, expected in (
        ("https://registry.example.org/", "https://registry.example.org"),
        ("http://Registry.Example:8080", "http://registry.example:8080"),
        ("http://[::1]:80", "http://[::1]:80"),
    ):
        assert Settings.from_environment(environment | {"NIXERY_PUBLIC_URL": url}).public_url == expected
    for wrong in (
        "registry.example.org",
        "ftp://a",
        "https://a/b",
        "https://u:p@a",
        "https://a?b",
        "https://",
        "https://a b",
        "https://[::1",
    ):
        (line,) = problems(environment | {"NIXERY_PUBLIC_URL": wrong})
        assert line.startswith("NIXERY_PUBLIC_URL is wrong")


def test_a_client_has_half_of_the_queue_unless_told_otherwise(environment: dict[str, str]) -> None:
    for queue, share in (("100", 50), ("1", 1), ("0", 0), ("3", 2)):
        assert (
            Settings.from_environment(environment | {"NIXERY_MAX_QUEUED": queue}).queued_per_client == share
        )
    given = environment | {"NIXERY_MAX_QUEUED_PER_CLIENT": "7"}
    assert Settings.from_environment(given).queued_per_client == 7


def test_health_and_metrics_have_another_port(environment: dict[str, str]) -> None:
    (line,) = problems(environment | {"NIXERY_ADMIN_PORT": "8080"})
    assert line.startswith("NIXERY_ADMIN_PORT is wrong: it is the same as PORT")
