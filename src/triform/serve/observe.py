"""What is seen of a server from outside: one JSON line a request, and figures for Prometheus."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger("triform.serve")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass
class Record:
    """What is known of a request; `written` is what goes into the log. Times are of `time.perf_counter`."""

    began: float = field(default_factory=time.perf_counter)
    model: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    first_token: float | None = None
    finish: str | None = None
    written: dict[str, Any] = field(default_factory=dict)

    def token(self) -> None:
        """A token was made."""
        self.new_tokens += 1
        if self.first_token is None:
            self.first_token = time.perf_counter() - self.began


class JsonLines(logging.Formatter):
    """A log line as JSON; what a record's `fields` hold goes beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr() -> None:
    """Write log lines, the HTTP library's warnings among them, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("triform.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(level)


class Metrics:
    """Counters and histograms of one server, and gauges read from its models when they are asked for.

    gauges: gives each model's figures by name, such as {"smollm": {"running": 3}}.
    """

    def __init__(self, gauges: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("triform_requests", "Requests answered.", ["route", "status"], **made)
        self.running = Gauge("triform_requests_running", "Requests under way.", **made)
        self.prompt = Counter("triform_prompt_tokens", "Tokens read.", ["model"], **made)
        self.generated = Counter("triform_generated_tokens", "Tokens made.", ["model"], **made)
        made["buckets"] = _SECONDS
        self.first = Histogram("triform_time_to_first_token_seconds", "From a request to its first token.", ["model"], **made)
        self.each = Histogram("triform_time_per_token_seconds", "Between a request's tokens, on average.", ["model"], **made)
        self.seconds = Histogram("triform_request_seconds", "From a request to its answer's end.", ["route"], **made)
        self.registry.register(_Gauges(gauges))

    def tell(self, route: str, status: int, record: Record) -> None:
        """Count a request that is over."""
        taken = time.perf_counter() - record.began
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(taken)
        if record.model is not None:
            self.prompt.labels(record.model).inc(record.prompt_tokens)
            self.generated.labels(record.model).inc(record.new_tokens)
            if record.first_token is not None:
                self.first.labels(record.model).observe(record.first_token)
                if record.new_tokens > 1:
                    self.each.labels(record.model).observe((taken - record.first_token) / (record.new_tokens - 1))

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, read: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        self.read = read

    def collect(self) -> Iterator[Metric]:
        found = self.read()
        for name in sorted({name for figures in found.values() for name in figures}):
            family = GaugeMetricFamily(f"triform_{name}", f"{name.replace('_', ' ').capitalize()} of a model.", labels=["model"])
            for model, figures in found.items():
                if name in figures:
                    family.add_metric([model], figures[name])
            yield family
