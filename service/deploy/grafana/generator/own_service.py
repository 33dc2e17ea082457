"""The service itself: requests (rate, errors, duration) and resources (use, saturation, errors)."""

from board import SERVICE, dashboard, row
from panels import stat, target, timeseries

_RATE = "[$__rate_interval]"
_FAILED = ',code=~"5.."'


def _rate(metric: str, by: str = "", more: str = "") -> str:
    inside = f"rate(gradwatch_{metric}{{{SERVICE}{more}}}{_RATE})"
    return f"sum by ({by}) ({inside})" if by else f"sum({inside})"


def _quantiles(metric: str) -> list[dict[str, object]]:
    return [
        target(f"histogram_quantile({q}, {_rate(f'{metric}_bucket', 'le')})", name)
        for q, name in ((0.5, "p50"), (0.99, "p99"))
    ]


BOARD = dashboard(
    "service",
    "Service",
    "Whether gradwatch itself is well: its requests, its ingest, its store, its page for Prometheus.",
    [
        row(
            "",
            4,
            stat(
                "Up",
                "Instances that answered the last scrape.",
                [target(f"sum(up{{{SERVICE}}})", "up")],
            ),
            stat(
                "Deliveries per second",
                "Deliveries stored.",
                [target(_rate("ingest_reports_total"), "stored")],
                unit="reqps",
            ),
            stat(
                "Rejected",
                "Deliveries refused within the time shown, whatever the reason.",
                [
                    target(
                        f"sum(increase(gradwatch_ingest_rejected_reports_total{{{SERVICE}}}[$__range]))",
                        "rejected",
                    )
                ],
                limits=[(1, "orange")],
            ),
            stat(
                "Series dropped",
                "Series that did not fit on the page for Prometheus, within the time shown. Above 0: raise "
                "--max-series, or split the runs over two services.",
                [
                    target(
                        f"sum(increase(gradwatch_series_dropped_total{{{SERVICE}}}[$__range]))",
                        "dropped",
                    )
                ],
                limits=[(1, "orange")],
            ),
            stat(
                "Store",
                "Bytes on disk, journal included.",
                [target(f"sum(gradwatch_storage_bytes{{{SERVICE}}})", "bytes")],
                unit="bytes",
            ),
        ),
        row(
            "Requests",
            8,
            timeseries(
                "Requests",
                "Answered requests per second, by route and status.",
                [target(_rate("http_requests_total", "route, code"), "{{route}} {{code}}")],
                unit="reqps",
                low=0,
            ),
            timeseries(
                "Server errors",
                "Share of requests answered with 5xx. Above 1 %: read the service's log.",
                [
                    target(
                        f"({_rate('http_requests_total', more=_FAILED)} or vector(0))"
                        f" / {_rate('http_requests_total')}",
                        "errors",
                    )
                ],
                unit="percentunit",
                low=0,
            ),
            timeseries(
                "Duration",
                "Time to answer, over all routes.",
                _quantiles("http_request_duration_seconds"),
                unit="s",
            ),
        ),
        row(
            "Ingest",
            8,
            timeseries(
                "Tensors per second",
                "Tensors times steps stored per second.",
                [
                    target(_rate("ingest_tensors_total"), "tensors"),
                    target(_rate("ingest_bytes_total"), "bytes"),
                ],
                low=0,
            ),
            timeseries(
                "Rejects and repeats",
                "Refused deliveries by reason, and deliveries that came again and were counted once.",
                [
                    target(_rate("ingest_rejected_reports_total", "reason"), "{{reason}}"),
                    target(_rate("ingest_duplicate_reports_total"), "repeated"),
                ],
                unit="reqps",
                low=0,
            ),
            timeseries(
                "Queue",
                "Share of the writer's queue in use. Near 1, clients are told to come back later.",
                [
                    target(
                        f"sum(gradwatch_ingest_queue_reports{{{SERVICE}}})"
                        f" / sum(gradwatch_ingest_queue_capacity_reports{{{SERVICE}}})",
                        "in use",
                    )
                ],
                unit="percentunit",
                low=0,
                high=1,
            ),
            timeseries(
                "Delay",
                "From receiving a delivery to its commit.",
                _quantiles("ingest_delay_seconds"),
                unit="s",
            ),
        ),
        row(
            "Resources",
            8,
            timeseries(
                "CPU",
                "Cores in use.",
                [
                    target(
                        f"sum by (instance) (rate(process_cpu_seconds_total{{{SERVICE}}}{_RATE}))",
                        "{{instance}}",
                    )
                ],
                low=0,
            ),
            timeseries(
                "Memory",
                "Resident memory.",
                [target(f"process_resident_memory_bytes{{{SERVICE}}}", "{{instance}}")],
                unit="bytes",
                low=0,
            ),
            timeseries(
                "Event loop lag",
                "How late the event loop woke up: what every request waits before anything else.",
                [target(f"gradwatch_event_loop_lag_seconds{{{SERVICE}}}", "{{instance}}")],
                unit="s",
                low=0,
            ),
            timeseries(
                "Commits",
                "Duration of one group commit, and commits that failed.",
                [
                    *_quantiles("storage_write_duration_seconds"),
                    target(_rate("storage_errors_total"), "failed per second"),
                ],
                unit="s",
            ),
        ),
        row(
            "Prometheus and analysis",
            8,
            timeseries(
                "Series",
                "Series of runs on the page, and how many it may hold.",
                [
                    target(f"gradwatch_series_exposed{{{SERVICE}}}", "exposed"),
                    target(f"gradwatch_series_limit{{{SERVICE}}}", "limit"),
                ],
                low=0,
            ),
            timeseries(
                "Scrape",
                "How long a scrape took Prometheus, and of that the writing of the page.",
                [
                    target(f"scrape_duration_seconds{{{SERVICE}}}", "scrape"),
                    target(f"gradwatch_exposition_duration_seconds{{{SERVICE}}}", "writing"),
                ],
                unit="s",
                low=0,
            ),
            timeseries(
                "Detection and recommendation",
                "99th percentile of one advance of the detectors, and of one recommendation.",
                [
                    target(
                        f"histogram_quantile(0.99, {_rate(f'{part}_duration_seconds_bucket', 'le')})",
                        part,
                    )
                    for part in ("detection", "recommendation")
                ],
                unit="s",
            ),
            timeseries(
                "Subscribers",
                "Open event streams.",
                [target(f"sum(gradwatch_sse_subscribers{{{SERVICE}}})", "streams")],
                low=0,
            ),
        ),
    ],
)
