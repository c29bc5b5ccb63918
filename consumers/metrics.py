"""The Prometheus metrics of the trainer and the service.

Names and units are public: they change only with an entry in the changelog.
"""

from importlib.metadata import PackageNotFoundError, version
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from consumers.column_histogram import ColumnHistogram

# 0.5 ms is the shortest step worth distinguishing; writing a full snapshot may take 60 s
SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
)  # fmt: skip
EVENTS = tuple(float(4**power) for power in range(11))  # 1 … 1,048,576

STORES = ("kafka", "redis", "snapshots")
KINDS = ("user", "item")


def distribution_version() -> str:
    """Return the version of the installed distribution, `unknown` in an uninstalled checkout."""
    try:
        return version("counterflow")
    except PackageNotFoundError:
        return "unknown"


def build_info(registry: CollectorRegistry) -> Gauge:
    """Register `counterflow_build_info`, which is 1 and has the version as its label."""
    info = Gauge(
        "counterflow_build_info", "Always 1; the label is the version", ["version"],
        registry=registry,
    )  # fmt: skip
    info.labels(version=distribution_version()).set(1)
    return info


class Stamp:
    """A gauge that is exported only once it has been set, so that it never reads 1970."""

    def __init__(self, name: str, documentation: str, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(name, documentation, registry=None)
        self._registry = registry
        self._lock = Lock()
        self._told = False

    def set(self, value: float) -> None:
        """Set the gauge; the first call registers it."""
        self._gauge.set(value)
        with self._lock:
            if not self._told:
                self._registry.register(self._gauge)
                self._told = True


class TrainerMetrics:
    """The trainer's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.build_info = build_info(registry)
        self.learning_step_info = Gauge(
            "counterflow_learning_step_info",
            "1, labelled with the driver that learns, its device, its threads and its block size",
            ["driver", "device", "threads", "block"], registry=registry,
        )  # fmt: skip
        self.events = Counter("counterflow_events", "Accepted events", ["type"], registry=registry)
        self.bad_events = Counter(
            "counterflow_bad_events", "Records sent to the dead-letter topic", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.duplicate_events = Counter(
            "counterflow_duplicate_events", "Events ignored as duplicates", registry=registry
        )
        self.refused_ids = Counter(
            "counterflow_refused_ids", "Events of new ids that did not fit into a full table",
            ["kind"], registry=registry,
        )  # fmt: skip
        self.late_outcomes = Counter(
            "counterflow_late_outcomes",
            "Outcomes that came after their exposure's window",
            registry=registry,
        )
        self.corrections = Counter(
            "counterflow_corrections",
            "Clicks that came after their exposure was learned as no click",
            registry=registry,
        )
        self.contradicted_exposures = Counter(
            "counterflow_contradicted_exposures",
            "Repeated exposures whose arm differs from the first decision on user and item",
            registry=registry,
        )  # fmt: skip
        self.evicted_exposures = Counter(
            "counterflow_evicted_exposures", "Exposures closed early as join.open_max was reached",
            registry=registry,
        )  # fmt: skip
        self.open_exposures = Gauge(
            "counterflow_open_exposures", "Exposures whose window is open", registry=registry
        )
        self.lag_records = Gauge(
            "counterflow_lag_records", "Records whose rows are not readable in Redis yet",
            ["topic", "partition"], registry=registry,
        )  # fmt: skip
        self.skipped_offsets = Counter(
            "counterflow_skipped_offsets", "Offsets skipped because retention had removed them",
            ["topic", "partition"], registry=registry,
        )  # fmt: skip
        self.batch_events = Histogram(
            "counterflow_batch_events",
            "Clicks and ratings learned in one step",
            buckets=EVENTS,
            registry=registry,
        )
        self.step_duration_seconds = Histogram(
            "counterflow_step_duration_seconds", "Duration of one learning step", buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.freshness_seconds = ColumnHistogram(
            "counterflow_freshness_seconds",
            "Time from a record's Kafka timestamp until its rows are readable in Redis",
            SECONDS,
            registry,
        )
        self.clock_skew = Counter(
            "counterflow_clock_skew",
            "Records with a Kafka timestamp ahead of the trainer's clock, left out of freshness",
            registry=registry,
        )
        self.ahead_events = Counter(
            "counterflow_ahead_events",
            "Events dated back because ts_ms is over join.ahead_s after the Kafka timestamp",
            registry=registry,
        )
        self.loss = Gauge(
            "counterflow_loss", "Progressive loss: of predictions made before learning",
            ["outcome", "kind"], registry=registry,
        )  # fmt: skip
        self.drift_detections = Counter(
            "counterflow_drift_detections", "Detected drifts", ["signal"], registry=registry
        )
        self.snapshot_last_success_timestamp_seconds = Stamp(
            "counterflow_snapshot_last_success_timestamp_seconds", "Unix time of the last snapshot",
            registry,
        )  # fmt: skip
        self.last_progress_timestamp_seconds = Gauge(
            "counterflow_last_progress_timestamp_seconds",
            "Unix time of the loop's last turn while no store was unavailable", registry=registry,
        )  # fmt: skip
        self.dependency_up = Gauge(
            "counterflow_dependency_up",
            "1 while the dependency answers",
            ["dependency"],
            registry=registry,
        )
        self.holding = Gauge(
            "counterflow_holding", "1 while the trainer waits for the store", ["store"],
            registry=registry,
        )  # fmt: skip
        self.snapshot_duration_seconds = Histogram(
            "counterflow_snapshot_duration_seconds", "Time to write a snapshot", buckets=SECONDS,
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
            "counterflow_dead_letters_failed", "Failed deliveries of dead letters, each retried",
            registry=registry,
        )  # fmt: skip
        self.rows = Gauge("counterflow_rows", "Rows of the model", ["kind"], registry=registry)
        for store in STORES:  # create the series at 0, so that the first increment shows in rate()
            self.store_errors.labels(store=store)
        for kind in KINDS:
            self.rows.labels(kind=kind)
            self.refused_ids.labels(kind=kind)


class ServiceMetrics:
    """The service's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.build_info = build_info(registry)
        self.http_request_duration_seconds = Histogram(
            "counterflow_http_request_duration_seconds", "Duration of one request",
            ["method", "route", "status"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.store_errors = Counter(
            "counterflow_store_errors",
            "Failures of a store; after one retry the service answers from memory",
            ["store"], registry=registry,
        )  # fmt: skip
        self.store_errors.labels(store="redis")
        self.rows = Gauge("counterflow_rows", "Rows in memory", ["kind"], registry=registry)
        self.rows.labels(kind="item")
