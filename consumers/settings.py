"""Settings from the command line, the environment, a TOML file and the defaults, in this order.

Each section is a frozen struct. Each field carries its description, which appears in
deploy/config.example.toml (`example()` generates that file) and in the remedies of errors. In the
environment a setting is `COUNTERFLOW_SECTION__KEY`; names without a double underscore are not
settings. A secret can also be read from a file:
`COUNTERFLOW_KAFKA__SASL_PLAIN_PASSWORD_FILE=/run/secrets/kafka`.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from stream.errors import Inconsistent
from stream.model.config import (
    BLOCK_MAX,
    FORMER,
    HALF_LIFE_MIN_S,
    ROWS_MAX,
    SCALE_MAX,
    THREADS_MAX,
    Device,
    Step,
    scale_fault,
)

PREFIX = "COUNTERFLOW_"
HIDDEN = "********"

MOST = 2**63 - 1  # the largest 64-bit integer
Count = Annotated[int, Meta(ge=1, le=MOST)]
Rows = Annotated[int, Meta(ge=1, le=ROWS_MAX)]  # their numbers are 32-bit integers
Natural = Annotated[int, Meta(ge=0, le=MOST)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]  # up to 30 years; exact when in milliseconds
Elapsed = Annotated[float, Meta(ge=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1)]


def described(text: str, secret: bool = False) -> Meta:
    """Return the metadata of a field: its description, and whether its value must be hidden."""
    return Meta(description=text, extra={"secret": secret})


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings under one section name."""


class KafkaSettings(Section, frozen=True, kw_only=True):
    """The broker that events are read from and dead letters are written to."""

    bootstrap_servers: Annotated[
        Name, described("Brokers to contact first: host:port, separated by commas.")
    ] = "127.0.0.1:9092"
    topic_prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}$")],
        described("Prefix of the topic names: {prefix}.rating.v1 and so on."),
    ] = "counterflow"
    group_id: Annotated[
        Name,
        described(
            "Consumer group whose committed offsets show the lag to other tools; the trainer"
            " never reads them."
        ),
    ] = "counterflow"
    client_id: Annotated[
        Name, described("Name of the clients in the broker's logs and metrics.")
    ] = "counterflow"
    isolation_level: Annotated[
        Literal["read_committed", "read_uncommitted"],
        described("read_committed skips the records of aborted transactions."),
    ] = "read_committed"
    fetch_max_wait_ms: Annotated[
        Natural,
        described("Longest time (ms) the broker holds an empty fetch; adds to the freshness."),
    ] = 10
    fetch_max_bytes: Annotated[
        Count,
        described("Most bytes of one fetch from a broker; at most 1 MiB of them per partition."),
    ] = 64 << 20
    request_timeout_ms: Annotated[
        Count, described("Longest wait (ms) for the broker's answer to a request.")
    ] = 30_000
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        described("Transport security and authentication of the connections."),
    ] = "PLAINTEXT"
    ssl_cafile: Annotated[str, described("PEM file of the certificate authority.")] = ""
    ssl_certfile: Annotated[str, described("PEM file of the client's certificate.")] = ""
    ssl_keyfile: Annotated[str, described("PEM file of the client's private key.")] = ""
    ssl_password: Annotated[str, described("Password of the private key.", secret=True)] = ""
    ssl_check_hostname: Annotated[
        bool, described("Whether the broker's host name must match its certificate.")
    ] = True
    sasl_mechanism: Annotated[
        Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"],
        described("SASL mechanism; empty without SASL."),
    ] = ""
    sasl_plain_username: Annotated[str, described("User name for PLAIN and SCRAM.")] = ""
    sasl_plain_password: Annotated[str, described("Password for PLAIN and SCRAM.", secret=True)] = (
        ""
    )
    options: Annotated[
        dict[str, Any],
        described(
            "Further options of the kafka-python clients (a table here; JSON in the environment)."
        ),
    ] = {}


class RedisSettings(Section, frozen=True, kw_only=True):
    """The Redis cache of the served rows."""

    url: Annotated[
        Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")],
        described(
            "redis://, rediss:// or unix:// URL; may contain user and password.", secret=True
        ),
    ] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")],
        described("Prefix of every key."),
    ] = "cf"
    ttl_s: Annotated[
        Annotated[int, Meta(ge=2)],
        described(
            "Time to live (s) of the rows; a running trainer renews them within a quarter of it."
        ),
    ] = 86_400
    read_timeout_s: Annotated[
        Seconds,
        described(
            "Longest wait (s) of an HTTP request for Redis; after it the request is"
            " answered from memory, as for an unknown user."
        ),
    ] = 0.25


class SnapshotSettings(Section, frozen=True, kw_only=True):
    """Snapshots of the trainer's state on disk."""

    dir: Annotated[Name, described("Folder of the snapshots; each trainer needs its own.")] = (
        "snapshots"
    )
    interval_s: Annotated[
        Seconds,
        described(
            "Time (s) between two snapshots; about this much work is repeated after a crash."
        ),
    ] = 5.0
    keep: Annotated[Count, described("How many snapshots are kept.")] = 3


class TrainerSettings(Section, frozen=True, kw_only=True):
    """The trainer process."""

    batch_max: Annotated[
        Rows, described("Most interactions per call of the learner; a larger poll is split.")
    ] = 65_536
    seed: Annotated[
        Natural,
        described(
            "Seed of all random draws; on a CPU, same seed and same polls give the same bits."
        ),
    ] = 0
    metrics_host: Annotated[
        Name, described("Address on which /metrics, /livez and /readyz of the trainer listen.")
    ] = "127.0.0.1"
    metrics_port: Annotated[
        Port, described("Port of /metrics, /livez and /readyz of the trainer; 0: any free port.")
    ] = 9108
    duplicates_window: Annotated[
        Natural,
        described(
            "How many (type, event_id) pairs are remembered to ignore repeated events; 0: none."
        ),
    ] = 1_000_000
    rank: Annotated[
        Natural,
        described("Number of this trainer among `world`; partition p is read by rank p % world."),
    ] = 0
    world: Annotated[
        Count, described("How many trainers share the users' partitions; each one reads all items.")
    ] = 1


class ServiceSettings(Section, frozen=True, kw_only=True):
    """The HTTP service."""

    host: Annotated[
        Name, described("Address to listen on; one that is not loopback also needs allowed_hosts.")
    ] = "127.0.0.1"
    port: Annotated[Port, described("Port to listen on; 0: any free port.")] = 8080
    allowed_hosts: Annotated[
        str,
        described(
            "Host headers accepted besides the service's own address, separated by commas:"
            " name (any port), name:port, or * (all)."
        ),
    ] = ""
    allowed_origins: Annotated[
        str,
        described(
            "Origins of web pages whose requests are accepted, separated by commas"
            " (https://shop.example); *: all."
        ),
    ] = ""
    outcome: Annotated[
        Literal["rating", "click"], described("Outcome used by a request that names none.")
    ] = "rating"
    exclude_seen: Annotated[
        bool, described("Leave items that the user has clicked or rated out of recommendations.")
    ] = True
    seen_max: Annotated[
        Count, described("How many seen items are kept per user (in bytes: 16 times this number).")
    ] = 2_000
    body_max_bytes: Annotated[Count, described("Largest request body (bytes).")] = 4 << 20
    connections_max: Annotated[
        Count,
        described(
            "Most connections served; 32 more get only the health routes. Keep it below the"
            " limit of open files."
        ),
    ] = 512
    head_timeout_s: Annotated[
        Seconds, described("Time (s) within which all headers of a request must arrive.")
    ] = 10.0
    body_timeout_s: Annotated[
        Seconds,
        described(
            "Time (s) within which a body must arrive, and within which a stalled client"
            " must read on."
        ),
    ] = 30.0
    produce_timeout_s: Annotated[
        Seconds, described("Longest wait (s) for the broker to acknowledge posted events.")
    ] = 10.0
    ready_lag_s: Annotated[
        Elapsed,
        described(
            "/readyz fails when Redis has not answered for this long (s); 0: only before a"
            " model is loaded."
        ),
    ] = 0.0


class ExplorationSettings(Section, frozen=True, kw_only=True):
    """Random exploration and withholding in recommendations, and their log."""

    epsilon: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        described(
            "Share of recommendations that are a uniformly random permutation of the candidates."
        ),
    ] = 0.0
    withhold: Annotated[
        Annotated[float, Meta(ge=0, le=0.5)],
        described(
            "Probability that a placed item is withheld as a control, drawn once per user,"
            " item and window."
        ),
    ] = 0.0
    seed: Annotated[
        Natural,
        described(
            "Seed of the draws and key of withholding, to be kept secret; 0: random, the"
            " key shared through Redis.",
            secret=True,
        ),
    ] = 0
    log_impressions: Annotated[
        bool, described("Write recommendations to the impression topic.")
    ] = False
    queue_max: Annotated[
        Count, described("Most unacknowledged impressions; further ones are dropped and counted.")
    ] = 10_000


class ModelSettings(Section, frozen=True, kw_only=True):
    """The model and its learning step."""

    factors: Annotated[
        Annotated[int, Meta(ge=1, le=1024)], described("Length of the factor vectors.")
    ] = 32
    device: Annotated[
        Device,
        described(
            "Where the learning step runs; auto: a usable GPU that can hold full tables,"
            " else the CPU."
        ),
    ] = "auto"
    step: Annotated[
        Step,
        described(
            "sequential: one interaction at a time on the CPU; blocks: on a GPU or CPU threads;"
            " auto: blocks on a GPU, else sequential."
        ),
    ] = "auto"
    block: Annotated[
        Annotated[int, Meta(ge=1, le=BLOCK_MAX)],
        described("Interactions per block; smaller blocks are closer to the sequential driver."),
    ] = 256
    threads: Annotated[
        Annotated[int, Meta(ge=0, le=THREADS_MAX)],
        described(
            "CPU threads of the block driver; 0: one per core, at most 4. Results do not"
            " depend on it."
        ),
    ] = 0
    rating_min: Annotated[
        Annotated[float, Meta(ge=-SCALE_MAX, le=SCALE_MAX)],
        described("Lowest rating; a lower one is a dead letter."),
    ] = 1.0
    rating_max: Annotated[
        Annotated[float, Meta(ge=-SCALE_MAX, le=SCALE_MAX)],
        described("Highest rating; a higher one is a dead letter."),
    ] = 5.0
    exposure_factors: Annotated[
        Annotated[int, Meta(ge=1, le=256)],
        described("Length of the long-term exposure factors (who is shown or chooses what)."),
    ] = 16
    session_factors: Annotated[
        Annotated[int, Meta(ge=0, le=256)],
        described("Length of the session factors (what follows the items just chosen); 0: none."),
    ] = 16
    without: Annotated[
        str,
        described(
            "Model paths to disable, separated by commas: exposure, weights, robust,"
            " popularity, position, confounder, control."
        ),
    ] = ""
    pairs: Annotated[
        Annotated[int, Meta(ge=0, le=16)],
        described("Uniformly drawn items that each interaction is contrasted with."),
    ] = 2
    alpha: Annotated[
        Share,
        described(
            "Weights are propensity ** (alpha - 1): 0 corrects selection in full, 1 not at all."
        ),
    ] = 0.5
    clip: Annotated[Share, described("Propensities below this value are raised to it.")] = 0.02
    robust_share: Annotated[Share, described("Share of the doubly robust term in the loss.")] = 0.3
    mix: Annotated[
        Share,
        described(
            "Share of the weighted error in the gradient of the factor vectors; the rest is"
            " the factual head's."
        ),
    ] = 0.25
    average: Annotated[
        Share,
        described(
            "Decay of the Polyak average of served item and attribute terms; 0: no averaging."
        ),
    ] = 0.0
    half_life_s: Annotated[
        Annotated[float, Meta(ge=HALF_LIFE_MIN_S, le=1e9)],
        described("Half-life (s) of an item's popularity count."),
    ] = 604_800.0
    synthetic: Annotated[
        Share,
        described(
            "Weight of counterfactual outcomes made from observed ones; 0: none. Above 0,"
            " results depend on how polls are cut."
        ),
    ] = 0.0
    replay: Annotated[
        Annotated[int, Meta(ge=0, le=64)],
        described(
            "How often an event is learned again while the queue is empty. Above 0, results"
            " depend on idle time."
        ),
    ] = 0
    max_users: Annotated[Rows, described("Most users; memory is taken as rows are used.")] = (
        2_000_000
    )
    max_items: Annotated[Rows, described("Most items; memory is taken as rows are used.")] = 500_000
    max_features: Annotated[Rows, described("Most attribute values.")] = 65_536
    cache_dir: Annotated[
        str,
        described(
            "Folder of the compiled kernels; empty: beside the code, or no cache where that"
            " is read-only."
        ),
    ] = ""


class JoinSettings(Section, frozen=True, kw_only=True):
    """The join of exposures and outcomes in event time."""

    window_s: Annotated[
        Seconds, described("How long (s, event time) an exposure waits for its outcomes.")
    ] = 3_600.0
    idle_s: Annotated[
        Seconds,
        described(
            "A partition this far (s) behind the latest Kafka time no longer holds the"
            " watermark back."
        ),
    ] = 60.0
    ahead_s: Annotated[
        Elapsed,
        described(
            "How far (s) an event's own time may be ahead of its Kafka time before it is cut back."
        ),
    ] = 1.0
    open_max: Annotated[
        Count, described("Most open exposures; beyond it the oldest closes early.")
    ] = 1_000_000
    closed_max: Annotated[Count, described("Closed exposures remembered for late outcomes.")] = (
        1_000_000
    )
    pending_max: Annotated[
        Count, described("Outcomes remembered until their impression arrives.")
    ] = 100_000


class Settings(Section, frozen=True, kw_only=True):
    """All settings, by section."""

    kafka: Annotated[KafkaSettings, described("The Kafka cluster.")] = KafkaSettings()
    redis: Annotated[RedisSettings, described("The vector cache.")] = RedisSettings()
    snapshots: Annotated[SnapshotSettings, described("The trainer's state on disk.")] = (
        SnapshotSettings()
    )
    trainer: Annotated[TrainerSettings, described("The process that learns.")] = TrainerSettings()
    service: Annotated[ServiceSettings, described("The HTTP service.")] = ServiceSettings()
    exploration: Annotated[ExplorationSettings, described("Randomisation and logging.")] = (
        ExplorationSettings()
    )
    model: Annotated[ModelSettings, described("The model and its learning step.")] = ModelSettings()
    join: Annotated[JoinSettings, described("Join of exposures and outcomes.")] = JoinSettings()


SECTIONS: dict[str, type[Section]] = {
    "kafka": KafkaSettings,
    "redis": RedisSettings,
    "snapshots": SnapshotSettings,
    "trainer": TrainerSettings,
    "service": ServiceSettings,
    "exploration": ExplorationSettings,
    "model": ModelSettings,
    "join": JoinSettings,
}


class WrongSetting(Inconsistent):
    """A setting is unknown or has an invalid value; the remedy describes a valid one."""


def load(
    cli: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    toml_path: str | os.PathLike[str] | None = None,
) -> Settings:
    """Return the settings of all sources.

    Parameters
    ----------
    cli : mapping, optional
        `section.key` to text, from `--set`; wins over the other sources.
    environ : mapping, optional
        Environment variables; they win over the TOML file.
    toml_path : path, optional
        A TOML file of settings.

    Raises
    ------
    WrongSetting
        If a name is unknown (the nearest known name is the remedy) or a value is invalid.
    """
    chosen = _chosen(cli, environ, toml_path)
    sections: dict[str, Any] = {name: kind(**chosen[name]) for name, kind in SECTIONS.items()}
    settings = Settings(**sections)
    low, high = settings.model.rating_min, settings.model.rating_max
    if fault := scale_fault(low, high):
        raise WrongSetting(
            f"model.rating_min {low} and model.rating_max {high}: {fault}",
            f"set both ends of the rating scale, within {SCALE_MAX:g}, and send ratings on it",
        )
    if settings.trainer.rank >= settings.trainer.world:
        raise WrongSetting(
            f"trainer.rank {settings.trainer.rank} is not below"
            f" trainer.world {settings.trainer.world}",
            "ranks count from 0",
        )
    return settings


def named(
    cli: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    toml_path: str | os.PathLike[str] | None = None,
) -> set[str]:
    """Return `section.key` of each setting that a source sets; all others are defaults."""
    chosen = _chosen(cli, environ, toml_path)
    return {f"{section}.{key}" for section, values in chosen.items() for key in values}


def _chosen(
    cli: Mapping[str, str] | None,
    environ: Mapping[str, str] | None,
    toml_path: str | os.PathLike[str] | None,
) -> dict[str, dict[str, Any]]:
    """Return the values that the sources set, by section and key; the strongest source wins."""
    chosen: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    if toml_path is not None:
        for source, section, key, value in read_toml(Path(toml_path)):
            assign(chosen, source, section, key, value, strict=True)
    for name, text in sorted((environ or {}).items()):
        if name.startswith(PREFIX) and "__" in name[len(PREFIX) :]:
            section, _, key = name[len(PREFIX) :].lower().partition("__")
            assign(chosen, name, section, key, text, strict=False)
    for name, text in (cli or {}).items():
        section, _, key = name.partition(".")
        assign(chosen, name, section, key, text, strict=False)
    return chosen


def read_toml(path: Path) -> Iterator[tuple[str, str, str, Any]]:
    """Yield (source, section, key, value) for each setting in the file."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongSetting(f"{path}: {error.strerror}", "name a readable file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongSetting(f"{path}: {error}", "write the file in TOML 1.0") from error
    for section, table in tables.items():
        if section not in SECTIONS:
            raise unknown(f"{path}: [{section}]", section, SECTIONS)
        if not isinstance(table, dict):
            raise WrongSetting(f"{path}: {section} is not a table", f"write [{section}]")
        for key, value in table.items():
            yield f"{path}: {section}.{key}", section, key, value


def assign(
    chosen: dict[str, dict[str, Any]],
    source: str,
    section: str,
    key: str,
    value: Any,
    *,
    strict: bool,
) -> None:
    """Validate one value and store it in `chosen[section][key]`.

    Parameters
    ----------
    source : str
        Where the value comes from, for error messages.
    strict : bool
        Whether the value's type must match; else text is converted.
    """
    if section not in SECTIONS:
        raise unknown(source, f"{section}.{key}", every_name())
    hints = get_type_hints(SECTIONS[section], include_extras=True)
    if key not in hints and key.endswith("_file") and is_secret(hints.get(key[:-5])):
        key, value = key[:-5], read_secret(source, value)
    if key not in hints:
        raise unknown(source, f"{section}.{key}", every_name())
    try:
        if hints[key].__origin__ == dict[str, Any] and isinstance(value, str):
            value = json.loads(value)
        if hints[key].__origin__ is str and isinstance(value, list):
            value = ",".join(map(str, value))  # names by commas, written as a TOML list
        chosen[section][key] = msgspec.convert(value, hints[key], strict=strict)
    except (msgspec.ValidationError, json.JSONDecodeError) as error:
        said = "" if is_secret(hints[key]) else f"={value!r}"
        former = FORMER.get(str(value)) if (section, key) == ("model", "step") else None
        raise WrongSetting(f"{source}{said}: {error}", former or fitting(section, key)) from error


def read_secret(source: str, path: Any) -> str:
    """Return the content of a secret's file without trailing line breaks."""
    try:
        return Path(str(path)).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongSetting(f"{source}: cannot read {path}", "name a readable file") from error


def unknown(source: str, name: str, names: Mapping[str, Any] | list[str]) -> WrongSetting:
    """Return the error for an unknown setting, with the nearest known name as the remedy."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.0)
    return WrongSetting(f"{source}: no such setting", f"the nearest is {near[0]}" if near else "")


def every_name() -> list[str]:
    """Return `section.key` of every setting."""
    return [
        f"{section}.{field.name}"
        for section, kind in SECTIONS.items()
        for field in msgspec.structs.fields(kind)
    ]


def is_secret(hint: Any) -> bool:
    """Return whether a field's value must never be printed."""
    return any(
        isinstance(meta, Meta) and (meta.extra or {}).get("secret")
        for meta in getattr(hint, "__metadata__", ())
    )


def describe(section: str, key: str) -> str:
    """Return `section.key: description` of one setting."""
    hint = get_type_hints(SECTIONS[section], include_extras=True)[key]
    texts = [meta.description for meta in hint.__metadata__ if isinstance(meta, Meta)]
    return f"{section}.{key}: {next(text for text in texts if text)}"


def fitting(section: str, key: str) -> str:
    """Return the description of one setting, and its values where there are only a few."""
    kind = get_type_hints(SECTIONS[section], include_extras=True)[key].__origin__
    values = [value or '""' for value in get_args(kind)] if get_origin(kind) is Literal else []
    said = describe(section, key)
    return f"{said} One of: {', '.join(values)}." if values else said


def show(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings as plain values with secrets and the passwords in URLs hidden."""
    shown: dict[str, dict[str, Any]] = {}
    for section, kind in SECTIONS.items():
        values = msgspec.to_builtins(getattr(settings, section))
        hints = get_type_hints(kind, include_extras=True)
        for key, value in values.items():
            if isinstance(value, str) and "://" in value:
                values[key] = hide_password(value)
            elif is_secret(hints[key]) and value:
                values[key] = HIDDEN
        if "options" in values:
            values["options"] = {
                key: HIDDEN if re.search("pass|secret|token|key", key, re.I) else value
                for key, value in values["options"].items()
            }
        shown[section] = values
    return shown


def hide_password(url: str) -> str:
    """Return the URL with its password hidden, in the authority or in the query."""
    url = re.sub(r"(?<=://)([^:/?#]*):.*@", rf"\1:{HIDDEN}@", url)
    return re.sub(r"(?i)([?&]password=)[^&#]*", rf"\1{HIDDEN}", url)


def to_toml(settings: Settings) -> str:
    """Return the settings as commented TOML that `load` can read; secrets are hidden."""
    lines = [
        "# Every setting with its value.",
        f"# The environment variable {PREFIX}SECTION__KEY overrides the value in this file.",
    ]
    for section, values in show(settings).items():
        lines += ["", f"# {(SECTIONS[section].__doc__ or '').strip()}", f"[{section}]"]
        for key, value in values.items():
            text = describe(section, key).partition(": ")[2]
            lines += [f"# {text}", f"{key} = {toml_value(value)}"]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Return one value in TOML syntax.

    JSON and TOML write strings, numbers, booleans and arrays alike; only tables differ.
    """
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(key)} = {toml_value(each)}" for key, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value, ensure_ascii=False)


def example() -> str:
    """Return the text of deploy/config.example.toml: all defaults with their descriptions."""
    return to_toml(Settings())
