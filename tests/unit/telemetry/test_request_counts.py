from prometheus_client import CollectorRegistry

from nixery.telemetry.metrics import RequestCounts


def counted() -> tuple[RequestCounts, CollectorRegistry]:
    counts, registry = RequestCounts(), CollectorRegistry()
    registry.register(counts)
    return counts, registry


def test_requests_durations_and_bytes() -> None:
    counts, registry = counted()
    counts.add("GET", "blob", 200, 0.0005, 100)
    counts.add("GET", "blob", 200, 0.001, 11)
    counts.add("GET", "blob", 206, 4.0, 0)
    counts.add("HEAD", "blob", 200, 9999.0, 0)
    labels = {"method": "GET", "route": "blob", "status": "200"}
    assert registry.get_sample_value("nixery_http_requests_total", labels) == 2
    assert registry.get_sample_value("nixery_served_bytes_total", {"route": "blob"}) == 111

    def bucket(bound: str) -> float | None:
        name = "nixery_http_request_duration_seconds_bucket"
        return registry.get_sample_value(name, {"route": "blob", "le": bound})

    # A bound belongs to what is below it, and each bucket holds all the smaller ones.
    assert [bucket(bound) for bound in ("0.001", "1.0", "5.0", "1800.0", "+Inf")] == [2, 2, 3, 3, 4]
    total = registry.get_sample_value("nixery_http_request_duration_seconds_sum", {"route": "blob"})
    assert total == 0.0005 + 0.001 + 4 + 9999


def test_clients_cannot_make_series() -> None:
    counts, registry = counted()
    for number in range(100):
        counts.add(f"METHOD{number}", "other", 405, 0, 0)
    labels = {"method": "other", "route": "other", "status": "405"}
    assert registry.get_sample_value("nixery_http_requests_total", labels) == 100
