"""Settings from the command line, the environment, a TOML file and the defaults, in this order.

Each section is a frozen struct. Each field carries a description; `config show` and
deploy/config.example.toml are generated from them. An unknown setting is an error.

In the environment a setting is named `COUNTERFLOW_SECTION__KEY`; names without a double underscore
are ignored. A secret can also be read from a file:
`COUNTERFLOW_KAFKA__SASL_PLAIN_PASSWORD_FILE=/run/secrets/kafka`.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from stream.errors import Inconsistent
from stream.model.config import BLOCK_MAX, FORMER, THREADS_MAX, Device, Step

PREFIX = "COUNTERFLOW_"
HIDDEN = "********"

MOST = 2**63 - 1  # the largest 64-bit integer
Count = Annotated[int, Meta(ge=1, le=MOST)]
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


class Kafka(Section, frozen=True, kw_only=True):
    """The Kafka cluster that holds the event topics and the dead-letter topic."""

    bootstrap_servers: Annotated[
        Name, described("Bootstrap servers, host:port, separated by commas.")
    ] = "127.0.0.1:9092"
    topic_prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}$")],
        described("Prefix of the topic names: {prefix}.rating.v1 and so on."),
    ] = "counterflow"
    group_id: Annotated[
        Name, described("Consumer group of the offsets that lag tools read; never read back.")
    ] = "counterflow"
    client_id: Annotated[Name, described("Name of this client in the broker's logs.")] = (
        "counterflow"
    )
    isolation_level: Annotated[
        Literal["read_committed", "read_uncommitted"],
        described("read_committed skips the records of aborted transactions."),
    ] = "read_committed"
    fetch_max_wait_ms: Annotated[
        Natural, described("Longest time the broker waits for data; it adds to freshness.")
    ] = 10
    fetch_max_bytes: Annotated[Count, described("Largest fetch over all partitions, in bytes.")] = (
        64 << 20
    )
    request_timeout_ms: Annotated[Count, described("Timeout of a request to the broker.")] = 30_000
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        described("Protocol of the connections."),
    ] = "PLAINTEXT"
    ssl_cafile: Annotated[str, described("Certificate authority, a PEM file.")] = ""
    ssl_certfile: Annotated[str, described("Certificate of this client, a PEM file.")] = ""
    ssl_keyfile: Annotated[str, described("Private key of this client, a PEM file.")] = ""
    ssl_password: Annotated[str, described("Password of the private key.", secret=True)] = ""
    ssl_check_hostname: Annotated[bool, described("Verify the broker's host name.")] = True
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
        described("Further options of the kafka-python clients (a table; JSON outside TOML)."),
    ] = {}


class Redis(Section, frozen=True, kw_only=True):
    """The Redis cache of the served rows."""

    url: Annotated[
        Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")],
        described("redis://, rediss:// or unix://; may contain user and password.", secret=True),
    ] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")],
        described("Prefix of every key."),
    ] = "cf"
    ttl_s: Annotated[
        Annotated[int, Meta(ge=2)],
        described("Time after which a row expires unless a trainer has rewritten it."),
    ] = 86_400
    read_timeout_s: Annotated[
        Seconds,
        described(
            "Longest time a request waits for Redis; after it the request is answered from memory"
            " as for an unknown user."
        ),
    ] = 0.25


class Snapshots(Section, frozen=True, kw_only=True):
    """Snapshots of the trainer's state on disk."""

    dir: Annotated[Name, described("Folder of the snapshots; one folder per trainer.")] = (
        "snapshots"
    )
    interval_s: Annotated[
        Seconds, described("Time between two snapshots; a crash repeats at most this much work.")
    ] = 5.0
    keep: Annotated[Count, described("Number of snapshots to keep.")] = 3


class Trainer(Section, frozen=True, kw_only=True):
    """The process that learns."""

    batch_max: Annotated[
        Count, described("Most events of one step; a step takes what is queued, up to this many.")
    ] = 65_536
    seed: Annotated[
        Natural, described("Random seed; on a CPU the same seed and polls give the same bits.")
    ] = 0
    metrics_host: Annotated[
        Name, described("Address of the trainer's /metrics, /livez and /readyz.")
    ] = "127.0.0.1"
    metrics_port: Annotated[
        Port, described("Port of /metrics, /livez and /readyz; 0 takes a free one.")
    ] = 9108
    duplicates_window: Annotated[
        Natural,
        described("Number of (type, event_id) pairs remembered to ignore duplicates; 0: none."),
    ] = 1_000_000
    rank: Annotated[
        Natural, described("Number of this trainer, from 0; partition p goes to rank p % world.")
    ] = 0
    world: Annotated[
        Count, described("Number of trainers that share the user partitions; each reads all items.")
    ] = 1


class Service(Section, frozen=True, kw_only=True):
    """The HTTP service."""

    host: Annotated[
        Name, described("Address to listen on; beyond loopback, allowed_hosts must be set too.")
    ] = "127.0.0.1"
    port: Annotated[Port, described("Port to listen on; 0 takes a free one.")] = 8080
    allowed_hosts: Annotated[
        str,
        described(
            "Host names accepted beside the service's own address: name (any port) or name:port,"
            " separated by commas; *: any."
        ),
    ] = ""
    allowed_origins: Annotated[
        str,
        described(
            "Origins of web pages that may call the service, separated by commas"
            " (https://shop.example); *: any."
        ),
    ] = ""
    outcome: Annotated[
        Literal["rating", "click"], described("Outcome of requests that name none.")
    ] = "rating"
    exclude_seen: Annotated[
        bool, described("Leave items that the user has clicked or rated out of recommendations.")
    ] = True
    seen_max: Annotated[Count, described("Number of seen items remembered for each user.")] = 2_000
    body_max_bytes: Annotated[Count, described("Largest request body.")] = 4 << 20
    connections_max: Annotated[
        Count,
        described(
            "Most connections served at once; /livez, /readyz and /metrics are answered on a few"
            " more. Stay below the limit of open files."
        ),
    ] = 512
    head_timeout_s: Annotated[
        Seconds, described("Time in which all headers of a request must have arrived.")
    ] = 10.0
    body_timeout_s: Annotated[
        Seconds, described("Time for a request's body to arrive, and for a client to read on.")
    ] = 30.0
    produce_timeout_s: Annotated[
        Seconds, described("Longest wait for the broker to acknowledge posted events.")
    ] = 10.0
    ready_lag_s: Annotated[
        Annotated[float, Meta(ge=0)],
        described(
            "/readyz fails once Redis has been silent for this long; 0: it does not fail while"
            " lists can be served from memory."
        ),
    ] = 0.0


class Exploration(Section, frozen=True, kw_only=True):
    """Randomisation of recommendations, and the logging of impressions."""

    epsilon: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        described("Share of recommendations that are a uniform permutation of the candidates."),
    ] = 0.0
    withhold: Annotated[
        Annotated[float, Meta(ge=0, le=0.5)],
        described(
            "Probability that a placed item is withheld as a control; one draw per user, item and"
            " join window."
        ),
    ] = 0.0
    seed: Annotated[
        Natural,
        described(
            "Seed of the permutations and secret key of withholding; 0: random, the key shared in"
            " Redis.",
            secret=True,
        ),
    ] = 0
    log_impressions: Annotated[bool, described("Log recommendations to the impression topic.")] = (
        False
    )
    queue_max: Annotated[
        Count, described("Most unacknowledged impressions; further ones are dropped and counted.")
    ] = 10_000


class Model(Section, frozen=True, kw_only=True):
    """The model and its learning step."""

    factors: Annotated[
        Annotated[int, Meta(ge=1, le=1024)], described("Length of the outcome vectors.")
    ] = 32
    device: Annotated[
        Device,
        described("Device of the step; auto: a usable GPU with room for full tables, else cpu."),
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
        described("Interactions per block; smaller blocks are closer to the sequential step."),
    ] = 256
    threads: Annotated[
        Annotated[int, Meta(ge=0, le=THREADS_MAX)],
        described("CPU threads for blocks; 0: one per core, at most 4. Results are identical."),
    ] = 0
    rating_min: Annotated[float, described("Lowest valid rating; lower ones are bad events.")] = 1.0
    rating_max: Annotated[float, described("Highest valid rating; higher ones are bad events.")] = (
        5.0
    )
    exposure_factors: Annotated[
        Annotated[int, Meta(ge=1, le=256)],
        described("Length of the exposure vectors: long-term factors of who is shown what."),
    ] = 16
    session_factors: Annotated[
        Annotated[int, Meta(ge=0, le=256)],
        described("Length of the session vectors: factors of recently chosen items; 0: none."),
    ] = 16
    without: Annotated[
        str,
        described(
            "Model paths to close, separated by commas: exposure, weights, robust, popularity,"
            " position, confounder, control."
        ),
    ] = ""
    pairs: Annotated[
        Annotated[int, Meta(ge=0, le=16)],
        described("Uniformly drawn items with which each event is contrasted."),
    ] = 2
    alpha: Annotated[
        Share,
        described(
            "Weights are propensity ** (alpha - 1): 0 corrects selection in full, 1 not at all."
        ),
    ] = 0.5
    clip: Annotated[Share, described("Smaller propensities are replaced by this value.")] = 0.02
    robust_share: Annotated[Share, described("Share of the doubly robust term in the loss.")] = 0.3
    mix: Annotated[
        Share, described("Share of the weighted error in the vectors' gradient; rest: factual.")
    ] = 0.25
    average: Annotated[
        Share,
        described("Decay of the Polyak average of served item and attribute terms; 0: no average."),
    ] = 0.0
    half_life_s: Annotated[Seconds, described("Half-life of an item's popularity.")] = 604_800.0
    synthetic: Annotated[
        Share,
        described(
            "Weight of counterfactual outcomes generated from observed ones; 0: none. Above 0,"
            " results depend on the polls."
        ),
    ] = 0.0
    replay: Annotated[
        Annotated[int, Meta(ge=0, le=64)],
        described(
            "How often an event is learned again while the queue is empty. Above 0, results depend"
            " on idle time."
        ),
    ] = 0
    max_users: Annotated[Count, described("Most users; memory grows with those that occur.")] = (
        2_000_000
    )
    max_items: Annotated[Count, described("Most items; memory grows with those that occur.")] = (
        500_000
    )
    max_features: Annotated[Count, described("Most attribute values.")] = 65_536
    cache_dir: Annotated[
        str, described("Folder of compiled code; empty: beside the code if writable, else none.")
    ] = ""


class Join(Section, frozen=True, kw_only=True):
    """How exposures are joined with outcomes."""

    window_s: Annotated[Seconds, described("Time for which an exposure waits for outcomes.")] = (
        3_600.0
    )
    idle_s: Annotated[
        Seconds, described("A partition silent for this long no longer holds back the watermark.")
    ] = 60.0
    ahead_s: Annotated[
        Elapsed, described("How far an event's time may be ahead of the record's Kafka time.")
    ] = 1.0
    open_max: Annotated[
        Count, described("Most open exposures; beyond it the oldest is closed early.")
    ] = 1_000_000
    closed_max: Annotated[
        Count, described("Closed exposures remembered, to recognise late outcomes.")
    ] = 1_000_000
    pending_max: Annotated[
        Count, described("Outcomes kept waiting for an impression that has not arrived yet.")
    ] = 100_000


class Settings(Section, frozen=True, kw_only=True):
    """All settings, by section."""

    kafka: Annotated[Kafka, described("The Kafka cluster.")] = Kafka()
    redis: Annotated[Redis, described("The vector cache.")] = Redis()
    snapshots: Annotated[Snapshots, described("The trainer's state on disk.")] = Snapshots()
    trainer: Annotated[Trainer, described("The process that learns.")] = Trainer()
    service: Annotated[Service, described("The HTTP service.")] = Service()
    exploration: Annotated[Exploration, described("Randomisation and logging.")] = Exploration()
    model: Annotated[Model, described("The model and its learning step.")] = Model()
    join: Annotated[Join, described("Join of exposures and outcomes.")] = Join()


SECTIONS: dict[str, type[Section]] = {
    "kafka": Kafka,
    "redis": Redis,
    "snapshots": Snapshots,
    "trainer": Trainer,
    "service": Service,
    "exploration": Exploration,
    "model": Model,
    "join": Join,
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
    if settings.model.rating_min >= settings.model.rating_max:
        raise WrongSetting(
            f"model.rating_min {settings.model.rating_min} is not below"
            f" model.rating_max {settings.model.rating_max}",
            "set both ends of the rating scale",
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
            place(chosen, source, section, key, value, strict=True)
    for name, text in sorted((environ or {}).items()):
        if name.startswith(PREFIX) and "__" in name[len(PREFIX) :]:
            section, _, key = name[len(PREFIX) :].lower().partition("__")
            place(chosen, name, section, key, text, strict=False)
    for name, text in (cli or {}).items():
        section, _, key = name.partition(".")
        place(chosen, name, section, key, text, strict=False)
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


def place(
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
        raise WrongSetting(f"{source}{said}: {error}", former or describe(section, key)) from error


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
