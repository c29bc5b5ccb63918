"""The metrics of the trainer and of the service, on a registry that is passed in.

Names and units are public: they change only with an entry in the changelog.
"""

from importlib.metadata import PackageNotFoundError, version
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumers.column_histogram import ColumnHistogram

# 0.5 ms is the shortest step worth telling apart; 60 s is a snapshot of everything
SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
)  # fmt: skip
EVENTS = tuple(float(4**power) for power in range(11))  # 1 … 1,048,576

STORES = ("kafka", "redis", "snapshots")
KINDS = ("user", "item")


def distribution_version() -> str:
    """Return the version of the installed distribution, `unknown` in a bare checkout."""
    try:
        return version("counterflow")
    except PackageNotFoundError:
        return "unknown"


def build_info(registry: CollectorRegistry) -> Gauge:
    """Register `counterflow_build_info`, 1 with the version as its label."""
    info = Gauge("counterflow_build_info", "1, with the version", ["version"], registry=registry)
    info.labels(version=distribution_version()).set(1)
    return info


class Stamp:
    """A gauge that is absent until it is first set: no time is no time of 1970."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(name, documentation, registry=None)
        self._registry = registry
        self._lock = Lock()
        self._told = False

    def set(self, value: float) -> None:
        """The gauge is told, with this value, from now on."""
        self._gauge.set(value)
        with self._lock:
            if not self._told:
                self._registry.register(self._gauge)
                self._told = True


class TrainerMetrics:
    """What the trainer counts; label children are cached by prometheus_client's own dict."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.build_info = build_info(registry)
        self.learning_step_info = Gauge(
            "counterflow_learning_step_info",
            "1, with the driver that learns, where, on how many threads, how many at a time",
            ["driver", "device", "threads", "block"], registry=registry,
        )  # fmt: skip
        self.events = Counter("counterflow_events", "Events accepted", ["type"], registry=registry)
        self.bad_events = Counter(
            "counterflow_bad_events", "Records that went to dead letters", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.duplicate_events = Counter(
            "counterflow_duplicate_events", "Events ignored as repetitions", registry=registry
        )
        self.refused_ids = Counter(
            "counterflow_refused_ids", "Events that name a user or item beyond the tables' room",
            ["kind"], registry=registry,
        )  # fmt: skip
        self.late_outcomes = Counter(
            "counterflow_late_outcomes", "Outcomes after their exposure's window", registry=registry
        )
        self.corrections = Counter(
            "counterflow_corrections", "Learned outcomes corrected later", registry=registry
        )
        self.contradicted_exposures = Counter(
            "counterflow_contradicted_exposures",
            "Exposures with the other arm than the first decision of their user and item",
            registry=registry,
        )  # fmt: skip
        self.evicted_exposures = Counter(
            "counterflow_evicted_exposures", "Windows closed early for lack of room",
            registry=registry,
        )  # fmt: skip
        self.open_exposures = Gauge(
            "counterflow_open_exposures", "Exposures whose window is open", registry=registry
        )
        self.lag_records = Gauge(
            "counterflow_lag_records", "Records whose rows are not readable in Redis as yet",
            ["topic", "partition"], registry=registry,
        )  # fmt: skip
        self.skipped_offsets = Counter(
            "counterflow_skipped_offsets", "Offsets of a snapshot that the log had no longer",
            ["topic", "partition"], registry=registry,
        )  # fmt: skip
        self.batch_events = Histogram(
            "counterflow_batch_events", "Events of one step", buckets=EVENTS, registry=registry
        )
        self.step_duration_seconds = Histogram(
            "counterflow_step_duration_seconds", "One learning step", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.freshness_seconds = ColumnHistogram(
            "counterflow_freshness_seconds",
            "Kafka's timestamp of a record until the rows that contain it are readable in Redis",
            SECONDS,
            registry,
        )
        self.clock_skew = Counter(
            "counterflow_clock_skew",
            "Records whose Kafka time is ahead of the trainer's clock, left out of freshness",
            registry=registry,
        )
        self.ahead_events = Counter(
            "counterflow_ahead_events",
            "Events whose ts_ms is over join.ahead_s after their Kafka time, which counts instead",
            registry=registry,
        )
        self.loss = Gauge(
            "counterflow_loss", "Progressive loss: prediction before learning",
            ["outcome", "kind"], registry=registry,
        )  # fmt: skip
        self.drift_detections = Counter(
            "counterflow_drift_detections", "Drifts detected", ["signal"], registry=registry
        )
        self.snapshot_last_success_timestamp_seconds = Stamp(
            "counterflow_snapshot_last_success_timestamp_seconds", "When the last one was safe",
            registry,
        )  # fmt: skip
        self.last_progress_timestamp_seconds = Gauge(
            "counterflow_last_progress_timestamp_seconds",
            "When the loop last came round with nothing held", registry=registry,
        )  # fmt: skip
        self.dependency_up = Gauge(
            "counterflow_dependency_up", "1 while it answers", ["dependency"], registry=registry
        )
        self.holding = Gauge(
            "counterflow_holding", "1 while the trainer holds its place for it", ["store"],
            registry=registry,
        )  # fmt: skip
        self.snapshot_duration_seconds = Histogram(
            "counterflow_snapshot_duration_seconds", "Writing one snapshot", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.snapshot_bytes = Gauge(
            "counterflow_snapshot_bytes", "Size of the last snapshot", registry=registry
        )
        self.store_errors = Counter(
            "counterflow_store_errors", "Failures of a store, each retried", ["store"],
            registry=registry,
        )  # fmt: skip
        self.dead_letters_failed = Counter(
            "counterflow_dead_letters_failed", "Refusals of dead letters, each retried",
            registry=registry,
        )  # fmt: skip
        self.rows = Gauge("counterflow_rows", "Rows of the model", ["kind"], registry=registry)
        for store in STORES:  # a rate needs its zero
            self.store_errors.labels(store=store)
        for kind in KINDS:
            self.rows.labels(kind=kind)
            self.refused_ids.labels(kind=kind)


class ServiceMetrics:
    """What the service counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.build_info = build_info(registry)
        self.http_request_duration_seconds = Histogram(
            "counterflow_http_request_duration_seconds", "One request",
            ["method", "route", "status"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.store_errors = Counter(
            "counterflow_store_errors", "Failures of a store, each retried", ["store"],
            registry=registry,
        )  # fmt: skip
        self.store_errors.labels(store="redis")
        self.rows = Gauge("counterflow_rows", "Rows in memory", ["kind"], registry=registry)
        self.rows.labels(kind="item")
