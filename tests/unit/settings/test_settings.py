import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from nixery.errors import SettingsError
from nixery.quantities import DiskMark
from nixery.settings import Settings, StorageSettings
from scripts.reference.settings import SettingRow, render, settings_rows

CONFIGURATION = "NIXERY_NIXPKGS_CONFIG"


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


def test_settings_have_defaults(environment: dict[str, str]) -> None:
    settings = Settings.from_environment(environment)
    assert (settings.host, settings.port, settings.nix_timeout) == ("127.0.0.1", 8080, 3600)
    assert settings.popularity_url is None
    assert settings.layer_budget == 94
    assert settings.packing_workers >= 1


def test_all_problems_are_reported_at_once_a_line_each(environment: dict[str, str]) -> None:
    del environment["STORAGE_PATH"]
    environment |= {"PORT": "http", "NIXERY_PKGS_PATH": "/nowhere", "NIX_TIMEOUT": "0"}
    found = problems(environment)
    assert [line.split()[0] for line in found] == ["PORT", "NIXERY_PKGS_PATH", "STORAGE_PATH", "NIX_TIMEOUT"]
    assert not any("\n" in line for line in found)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8080x", ""])
def test_a_port_is_a_number_from_1_to_65535(environment: dict[str, str], port: str) -> None:
    (line,) = problems(environment | {"PORT": port})
    assert line.startswith("PORT is wrong")


def test_the_error_for_an_unknown_backend_lists_the_backends(environment: dict[str, str]) -> None:
    (line,) = problems(environment | {"NIXERY_STORAGE_BACKEND": "floppy"})
    assert "filesystem" in line


def test_a_directory_without_a_package_set_is_rejected(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (line,) = problems(environment | {"NIXERY_PKGS_PATH": str(tmp_path / "other")})
    assert "default.nix" in line


def test_an_empty_variable_is_rejected(environment: dict[str, str]) -> None:
    (line,) = problems(environment | {"STORAGE_PATH": " "})
    assert line == "STORAGE_PATH is wrong: it is empty; set a value, or unset the variable"


def test_a_package_configuration_may_be_empty(environment: dict[str, str]) -> None:
    assert Settings.from_environment(environment).package_configuration is None
    assert Settings.from_environment(environment | {CONFIGURATION: ""}).package_configuration is None


def test_a_package_configuration_that_cannot_be_read_is_one_line(environment: dict[str, str]) -> None:
    (line,) = problems(environment | {CONFIGURATION: "/nowhere/config.nix"})
    assert line == f"{CONFIGURATION} is wrong: cannot read /nowhere/config.nix: No such file or directory"


def test_a_flake_takes_no_package_configuration(environment: dict[str, str]) -> None:
    del environment["NIXERY_PKGS_PATH"]
    environment["NIXERY_FLAKE"] = "github:example/packages"
    Settings.from_environment(environment | {CONFIGURATION: ""})
    (line,) = problems(environment | {CONFIGURATION: "{ allowUnfree = true; }"})
    assert "take no configuration" in line


@pytest.mark.parametrize("budget", ["1", "120"])
def test_a_layer_budget_is_from_1_to_120(environment: dict[str, str], budget: str) -> None:
    assert Settings.from_environment(environment | {"NIXERY_LAYER_BUDGET": budget}).layer_budget == int(
        budget
    )


@pytest.mark.parametrize("budget", ["0", "121"])
def test_other_layer_budgets_are_rejected(environment: dict[str, str], budget: str) -> None:
    (line,) = problems(environment | {"NIXERY_LAYER_BUDGET": budget})
    assert line.startswith("NIXERY_LAYER_BUDGET is wrong")


def test_zstd_can_be_chosen_with_a_level(environment: dict[str, str]) -> None:
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
def test_an_unknown_compression_or_level_is_rejected(
    environment: dict[str, str], given: dict[str, str], expected: str
) -> None:
    assert problems(environment | given) == (expected,)


def on_a_bucket(environment: dict[str, str], **others: str) -> dict[str, str]:
    given = {**environment, "NIXERY_STORAGE_BACKEND": "s3", "S3_BUCKET": "layers", **others}
    del given["STORAGE_PATH"]
    return given


def test_a_bucket_needs_no_directory_and_is_not_scrubbed_by_default(environment: dict[str, str]) -> None:
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
    assert settings.storage_high == DiskMark.parse("500GiB")


def test_a_storage_has_a_high_watermark_unless_it_is_a_bucket(environment: dict[str, str]) -> None:
    high = Settings.from_environment(environment).storage_high
    assert (high, high and high.percent) == (DiskMark.parse("90%"), 90)
    assert Settings.from_environment(on_a_bucket(environment)).storage_high is None
    memory = {**environment, "NIXERY_STORAGE_BACKEND": "memory"}
    assert Settings.from_environment(memory).storage_high == DiskMark.parse("1GiB")
    for asked in ("none", " None "):
        assert Settings.from_environment({**environment, "NIXERY_STORAGE_HIGH": asked}).storage_high is None
    low = Settings.from_environment({**environment, "NIXERY_STORAGE_LOW": "70%"}).storage_low
    assert low == DiskMark.parse("70%")


def test_the_size_of_the_cache_may_have_a_unit(environment: dict[str, str]) -> None:
    for written, size in (("0", 0), ("1000", 1000), ("50GiB", 50 * 1024**3), ("2 GB", 2_000_000_000)):
        given = on_a_bucket(environment, NIXERY_CACHE_SIZE=written)
        assert Settings.from_environment(given).cache_size == size
    (problem,) = problems(on_a_bucket(environment, NIXERY_CACHE_SIZE="much"))
    assert problem == "NIXERY_CACHE_SIZE is wrong: 'much' is not a size; write for example 500MB or 50GiB"


def test_a_bucket_needs_a_name(environment: dict[str, str]) -> None:
    given = on_a_bucket(environment)
    del given["S3_BUCKET"]
    expected = "S3_BUCKET is not set: name of the bucket (NIXERY_STORAGE_BACKEND=s3)"
    assert problems(given) == (expected,)
    with pytest.raises(SettingsError, match="S3_BUCKET is not set"):
        StorageSettings.from_environment(given)


def test_trusted_proxies_are_addresses_and_networks(environment: dict[str, str]) -> None:
    given = environment | {"NIXERY_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8,2001:db8::/32"}
    networks = Settings.from_environment(given).trusted_proxies
    assert [str(network) for network in networks] == ["127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32"]
    for wrong in ("", "proxy.example", "10.0.0.1/8", "0.0.0.0/0", "::/0"):
        (line,) = problems(environment | {"NIXERY_TRUSTED_PROXIES": wrong})
        assert line.startswith("NIXERY_TRUSTED_PROXIES is wrong")


def test_a_public_url_has_a_scheme_and_a_host_only(environment: dict[str, str]) -> None:
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


def test_a_client_has_half_of_the_queue_by_default(environment: dict[str, str]) -> None:
    for queue, share in (("100", 50), ("1", 1), ("0", 0), ("3", 2)):
        assert (
            Settings.from_environment(environment | {"NIXERY_MAX_QUEUED": queue}).queued_per_client == share
        )
    given = environment | {"NIXERY_MAX_QUEUED_PER_CLIENT": "7"}
    assert Settings.from_environment(given).queued_per_client == 7


def test_the_admin_port_differs_from_the_public_port(environment: dict[str, str]) -> None:
    (line,) = problems(environment | {"NIXERY_ADMIN_PORT": "8080"})
    assert line.startswith("NIXERY_ADMIN_PORT is wrong: it is the same as PORT")


def test_a_missing_port_is_named_with_its_meaning(environment: dict[str, str]) -> None:
    del environment["PORT"]
    assert problems(environment) == ("PORT is not set: TCP port to listen on, for example 8080",)


def test_the_account_of_an_azure_container_is_required(environment: dict[str, str]) -> None:
    given = environment | {"NIXERY_STORAGE_BACKEND": "azure", "AZURE_CONTAINER_NAME": "layers"}
    (line,) = problems(given)
    assert line == "AZURE_STORAGE_ACCOUNT_NAME is not set: account of AZURE_CONTAINER_NAME"
    assert Settings.from_environment(given | {"AZURE_STORAGE_ACCOUNT_NAME": "x"}).azure_container == "layers"


def test_a_wrong_high_watermark_is_one_problem_even_if_a_low_one_is_set(environment: dict[str, str]) -> None:
    given = environment | {"NIXERY_STORAGE_HIGH": "much", "NIXERY_STORAGE_LOW": "70%"}
    (line,) = problems(given)
    assert line.startswith("NIXERY_STORAGE_HIGH is wrong")
    (line,) = problems(environment | {"NIXERY_STORAGE_LOW": "95%"})
    assert line.startswith("NIXERY_STORAGE_LOW is wrong: it has to be below NIXERY_STORAGE_HIGH")


def test_opentelemetry_variables_may_be_empty(environment: dict[str, str]) -> None:
    names = ("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "S3_PREFIX")
    assert not Settings.from_environment(environment | dict.fromkeys(names, "")).traces
    assert Settings.from_environment(environment | {"OTEL_TRACES_EXPORTER": "otlp"}).traces


def test_lists_may_be_empty(environment: dict[str, str]) -> None:
    names = ("NIXERY_PLATFORMS", "NIXERY_CHANNEL_TAGS", "NIXERY_BUILD_ENVIRONMENT", "NIXERY_NIX_OPTIONS")
    settings = Settings.from_environment(environment | dict.fromkeys(names, ""))
    assert (settings.platforms, settings.channel_tags) == ((), ())
    assert (settings.build_variables, settings.nix_arguments) == ((), ())


def test_only_the_given_mapping_is_read(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIX_TIMEOUT", "17")
    monkeypatch.setenv("STORAGE_PATH", "/elsewhere")
    assert Settings.from_environment(environment).nix_timeout == 3600
    del environment["STORAGE_PATH"]
    assert [line.split()[0] for line in problems(environment)] == ["STORAGE_PATH"]


def test_an_unrelated_variable_may_hold_anything(environment: dict[str, str]) -> None:
    given = environment | {"UNRELATED": "\udcff", "_cli_parse_args": "1", "environment": "x", "port": "1"}
    settings = Settings.from_environment(given)
    assert settings.port == 8080
    assert settings.environment == given


def test_settings_are_frozen_and_show_no_environment(environment: dict[str, str]) -> None:
    settings = Settings.from_environment(environment | {"TOKEN": "s3cr3t"})
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1
    assert "s3cr3t" not in repr(settings)


@pytest.mark.parametrize("row", list(settings_rows()), ids=lambda row: row.variable)
def test_every_setting_is_documented(row: SettingRow) -> None:
    assert re.fullmatch(r"[A-Z`].*\.", row.meaning), row
    assert row.default, row
    assert "|" not in row.meaning + row.default, row


def test_every_number_that_is_not_a_count_has_a_unit() -> None:
    timed = {
        "NIX_TIMEOUT",
        "NIXERY_PIN_TTL",
        "NIXERY_FAILURE_TTL",
        "NIXERY_BUILD_TIMEOUT",
        "NIXERY_SEND_TIMEOUT",
    }
    timed |= {"NIXERY_STORAGE_GRACE", "NIXERY_CACHE_SIZE", "NIXERY_MAX_CLOSURE", "NIXERY_SCRUB_RATE"}
    timed |= {"NIXERY_EVALUATION_MEMORY", "NIXERY_EVALUATION_TIMEOUT", "NIXERY_DRAIN_TIMEOUT"}
    assert {row.variable for row in settings_rows() if row.unit} == timed


def test_every_choice_of_a_setting_is_documented() -> None:
    for field in Settings.model_fields.values():
        choices = [
            choice
            for kind in (field.annotation, *get_args(field.annotation))
            if get_origin(kind) is Literal
            for choice in get_args(kind)
        ]
        for choice in choices:
            assert f"`{choice}`" in (field.description or ""), (field.alias, choice)


def test_the_reference_has_every_variable_once_under_six_headings() -> None:
    text = render()
    variables = [field.alias for field in Settings.model_fields.values() if field.alias]
    assert re.findall(r"^\| `(\w+)`", text, re.MULTILINE) == variables
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == 6


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 60),
        # Before NIXERY_EVALUATION_TIMEOUT there was one limit.
        ({"NIX_TIMEOUT": "17"}, 17),
        ({"NIX_TIMEOUT": "17", "NIXERY_EVALUATION_TIMEOUT": "40"}, 40),
        ({"NIXERY_EVALUATION_TIMEOUT": "40"}, 40),
    ],
)
def test_evaluations_have_a_limit_of_their_own(
    environment: dict[str, str], variables: dict[str, str], seconds: int
) -> None:
    assert Settings.from_environment(environment | variables).evaluation_timeout == seconds


def test_unknown_variables_are_named_with_a_similar_setting(environment: dict[str, str]) -> None:
    environment |= {
        "NIXERY_PUBLIC_ULR": "https://registry.example.org",
        "NIXERY_ADMN_PORT": "8081",
        "NIXERY_QQQ": "1",
        # The server marks itself and its processes.
        "NIXERY_STARTED_BY": "1",
        # Kubernetes sets these for a service called "nixery", or "nixery-web".
        "NIXERY_SERVICE_HOST": "10.0.0.1",
        "NIXERY_SERVICE_PORT_HTTP": "80",
        "NIXERY_PORT": "tcp://10.0.0.1:80",
        "NIXERY_PORT_80_TCP_ADDR": "10.0.0.1",
        "NIXERY_WEB_SERVICE_PORT": "80",
    }
    assert Settings.from_environment(environment).unknown_variables == {
        "NIXERY_ADMN_PORT": "NIXERY_ADMIN_PORT",
        "NIXERY_PUBLIC_ULR": "NIXERY_PUBLIC_URL",
        "NIXERY_QQQ": "",
    }
