"""What is logged and traced, and in which form."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from nixery.settings.values import NotEmpty


def _exporter(value: str) -> str:
    if value.strip() not in {"", "none", "otlp"}:
        raise ValueError(f"traces can be exported with otlp or none, not with {value!r}")
    return value.strip()


def _protocol(value: str) -> str:
    if value.strip() not in {"", "http/protobuf"}:
        raise ValueError(f"traces are sent with http/protobuf, not with {value!r}")
    return value.strip()


class LogSettings(BaseModel):
    """What is logged and traced, and in which form. OpenTelemetry's variables have its own meaning: empty is unset.

    Attributes:
        log_format: JSON for machines, lines for people, or what stderr is.
        log_level: the least that is logged.
    """

    log_format: Annotated[Literal["auto", "json", "console"], NotEmpty, Field(alias="NIXERY_LOG_FORMAT")] = (
        "auto"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], NotEmpty, Field(alias="NIXERY_LOG_LEVEL")
    ] = "info"
    otel_disabled: Annotated[str, Field(alias="OTEL_SDK_DISABLED")] = ""
    otel_exporter: Annotated[str, AfterValidator(_exporter), Field(alias="OTEL_TRACES_EXPORTER")] = ""
    otel_endpoint: Annotated[str, Field(alias="OTEL_EXPORTER_OTLP_ENDPOINT")] = ""
    otel_traces_endpoint: Annotated[str, Field(alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")] = ""
    otel_protocol: Annotated[str, AfterValidator(_protocol), Field(alias="OTEL_EXPORTER_OTLP_PROTOCOL")] = ""
    otel_traces_protocol: Annotated[
        str, AfterValidator(_protocol), Field(alias="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    ] = ""

    @property
    def traces(self) -> bool:
        """Whether OpenTelemetry's variables ask for traces."""
        if self.otel_disabled.strip().lower() == "true" or self.otel_exporter == "none":
            return False
        return bool(self.otel_exporter or self.otel_endpoint or self.otel_traces_endpoint)
