"""Every knob of the service, with its default and its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["KIB", "MIB", "Settings"]

KIB = 1024
MIB = 1024 * 1024


class Settings(BaseModel):
    """Settings of one service. A unit that is not obvious is part of the name."""

    # A misspelled name must stop the service: ignoring it would be a silent default.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(
        default=8642, ge=0, le=65535, description="Port to listen on; 0 takes a free one."
    )
    store: str = Field(
        default="sqlite:///gradwatch-data/gradwatch.db",
        description="sqlite:///relative.db or sqlite:////absolute.db.",
    )
    insecure: bool = Field(
        default=False, description="Serve another address than loopback without tokens."
    )
    tokens: Path | None = Field(
        default=None, description="File of hashed tokens; None asks for none."
    )
    tls_cert: Path | None = Field(default=None, description="Certificate chain, PEM.")
    tls_key: Path | None = Field(default=None, description="Private key of the certificate, PEM.")
    root_path: str = Field(
        default="", description="Path prefix that a proxy removes, such as /gradwatch."
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="Host names accepted beside loopback."
    )
    open_metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port that serves /metrics alone, without a token.",
    )

    max_body_bytes: int = Field(default=16 * MIB, ge=KIB, description="Body as it travels.")
    max_decompressed_bytes: int = Field(
        default=64 * MIB, ge=KIB, description="Body after decompression."
    )
    max_steps: int = Field(default=4096, ge=1, description="Steps per delivery.")
    max_tensors: int = Field(default=20_000, ge=1, description="Tensors per manifest.")
    max_tensor_name_bytes: int = Field(default=512, ge=1, description="Bytes of a tensor's name.")
    max_tensor_columns: int = Field(default=32, ge=1, description="Statistics per delivery.")
    max_scalars: int = Field(default=64, ge=1, description="Scalars per delivery.")
    max_runs: int = Field(default=100_000, ge=1, description="Runs on this service.")
    max_attempts: int = Field(default=10_000, ge=1, description="Attempts per run.")
    max_posts_per_second: float = Field(
        default=0,
        ge=0,
        description="Posts per token and second, averaged over 10 s; 0 is no limit.",
    )
    max_queue_bytes: int = Field(
        default=64 * MIB, ge=KIB, description="Bytes waiting for decoding and commit before 429."
    )
    max_event_subscribers: int = Field(default=100, ge=1, description="Open event streams.")

    gap_seconds: float = Field(
        default=30, ge=0, description="How long analysis waits for a sequence."
    )
    snapshot_steps: int = Field(
        default=512, ge=1, description="Steps between snapshots of analysis."
    )
    finish_seconds: float = Field(
        default=20, ge=0, description="How long finish waits for analysis."
    )
    partial_seconds: float = Field(
        default=30, ge=0, description="How long shards wait for each other."
    )
    silent_seconds: float = Field(
        default=300, gt=0, description="Silence after which a run is silent."
    )

    metric_tags: tuple[str, ...] = Field(
        default=(), description="Tags that become labels of run metrics."
    )
    value_ttl_seconds: float = Field(
        default=300, gt=0, description="Silence after which values expire."
    )
    info_ttl_seconds: float = Field(
        default=86_400, gt=0, description="The same for a run's counters."
    )
    max_series: int = Field(default=500_000, ge=1, description="Series of /metrics altogether.")
    max_series_per_run: int = Field(default=1000, ge=1, description="Series of /metrics per run.")
    notify: tuple[str, ...] = Field(
        default=(), description="Addresses that incidents are posted to."
    )
    notify_level: Literal["critical", "warning", "info"] = Field(
        default="critical", description="Least severity of incident that is posted."
    )

    retention_full_seconds: float = Field(
        default=24 * 3600, ge=0, description="Age up to which every step is kept."
    )
    retention_bytes: int = Field(
        default=20 * 10**9,
        ge=MIB,
        description="Size of the store beyond which the oldest detail goes.",
    )
    compact_quiet_seconds: float = Field(
        default=20, ge=0, description="Quiet after which an unfinished chunk is compacted too."
    )
    drain_seconds: float = Field(
        default=10, ge=0, description="Time for open requests when stopping."
    )
