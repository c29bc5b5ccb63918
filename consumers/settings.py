"""Settings: command line > environment > TOML > defaults; an unknown name is an error.

Each section is a frozen struct, each field carries its description, from which `config show` and
deploy/config.example.toml are made. In the environment a setting is `COUNTERFLOW_SECTION__KEY`;
names without a double underscore are not settings. A secret can also be read from a file:
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

MOST = 2**63 - 1  # what a 64-bit integer holds
Count = Annotated[int, Meta(ge=1, le=MOST)]
Rows = Annotated[int, Meta(ge=1, le=ROWS_MAX)]  # their numbers are 32-bit integers
Natural = Annotated[int, Meta(ge=0, le=MOST)]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0, le=1e9)]  # up to 30 years; in milliseconds it stays exact
Elapsed = Annotated[float, Meta(ge=0, le=1e9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1)]


def described(text: str, secret: bool = False) -> Meta:
    """Return the description of a field, and whether its value is ever printed."""
    return Meta(description=text, extra={"secret": secret})


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings under one name."""


class Kafka(Section, frozen=True, kw_only=True):
    """The broker that events come from and dead letters go to."""

    bootstrap_servers: Annotated[
        Name, described("Brokers to ask first, host:port, separated by commas.")
    ] = "127.0.0.1:9092"
    topic_prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}$")],
        described("Topics are {prefix}.rating.v1 and so on."),
    ] = "counterflow"
    group_id: Annotated[
        Name, described("Group whose commits show the lag to other tools; never read back.")
    ] = "counterflow"
    client_id: Annotated[Name, described("Name of the clients in the broker's logs.")] = (
        "counterflow"
    )
    isolation_level: Annotated[
        Literal["read_committed", "read_uncommitted"],
        described("read_committed leaves out the records of aborted transactions."),
    ] = "read_committed"
    fetch_max_wait_ms: Annotated[
        Natural, described("Longest wait of the broker for data; part of the freshness.")
    ] = 10
    fetch_max_bytes: Annotated[Count, described("Most bytes of one fetch, all partitions.")] = (
        64 << 20
    )
    request_timeout_ms: Annotated[Count, described("Longest wait for an answer.")] = 30_000
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        described("How connections are protected."),
    ] = "PLAINTEXT"
    ssl_cafile: Annotated[str, described("Certificate authority, a PEM file.")] = ""
    ssl_certfile: Annotated[str, described("Certificate of this client, a PEM file.")] = ""
    ssl_keyfile: Annotated[str, described("Private key of this client, a PEM file.")] = ""
    ssl_password: Annotated[str, described("Password of the private key.", secret=True)] = ""
    ssl_check_hostname: Annotated[bool, described("Compare the broker's name.")] = True
    sasl_mechanism: Annotated[
        Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"],
        described("How this client proves who it is; empty without SASL."),
    ] = ""
    sasl_plain_username: Annotated[str, described("User of PLAIN and SCRAM.")] = ""
    sasl_plain_password: Annotated[str, described("Password of PLAIN and SCRAM.", secret=True)] = ""
    options: Annotated[
        dict[str, Any],
        described("Any further settings of the kafka-python clients (a table; JSON elsewhere)."),
    ] = {}


class Redis(Section, frozen=True, kw_only=True):
    """The cache of vectors."""

    url: Annotated[
        Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")],
        described("redis://, rediss:// or unix://; may carry user and password.", secret=True),
    ] = "redis://127.0.0.1:6379/0"
    prefix: Annotated[
        Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")],
        described("First part of every key."),
    ] = "cf"
    ttl_s: Annotated[
        Annotated[int, Meta(ge=2)],
        described("Rows vanish when no trainer rewrites them for so long."),
    ] = 86_400
    read_timeout_s: Annotated[
        Seconds,
        described(
            "Longest wait of a request for Redis; then lists come from memory, as for an unknown"
            " user."
        ),
    ] = 0.25


class Snapshots(Section, frozen=True, kw_only=True):
    """The trainer's state on disk."""

    dir: Annotated[Name, described("Folder of the snapshots; one trainer a folder.")] = "snapshots"
    interval_s: Annotated[
        Seconds, described("Time between two snapshots; a crash repeats at most this much.")
    ] = 5.0
    keep: Annotated[Count, described("How many snapshots stay.")] = 3


class Trainer(Section, frozen=True, kw_only=True):
    """The learning process."""

    batch_max: Annotated[
        Rows, described("Most events of one step; steps are as large as the queue below it.")
    ] = 65_536
    seed: Annotated[Natural, described("Same seed and same polls, same bits on a CPU.")] = 0
    metrics_host: Annotated[Name, described("Address of the trainer's /metrics.")] = "127.0.0.1"
    metrics_port: Annotated[
        Port, described("Port of its /metrics, /livez, /readyz; 0: a free one.")
    ] = 9108
    duplicates_window: Annotated[
        Natural,
        described("How many (type, event_id) are remembered; a repetition is ignored. 0: none."),
    ] = 1_000_000
    rank: Annotated[
        Natural, described("Which of `world` trainers this is; partition p goes to rank p % world.")
    ] = 0
    world: Annotated[
        Count, described("How many trainers share the users' partitions; each reads all items.")
    ] = 1


class Service(Section, frozen=True, kw_only=True):
    """The HTTP process."""

    host: Annotated[
        Name, described("Address to listen on; one that is not loopback wants allowed_hosts too.")
    ] = "127.0.0.1"
    port: Annotated[Port, described("Port to listen on; 0 takes a free one.")] = 8080
    allowed_hosts: Annotated[
        str,
        described(
            "Names, by commas, with a port or for any, by which it may be asked beside its own"
            " address; *: by any."
        ),
    ] = ""
    allowed_origins: Annotated[
        str,
        described(
            "Origins of web pages, by commas, that may ask it (https://shop.example); *: any."
        ),
    ] = ""
    outcome: Annotated[
        Literal["rating", "click"], described("Outcome of a request that names none.")
    ] = "rating"
    exclude_seen: Annotated[
        bool, described("Items that the user has clicked or rated leave the recommendations.")
    ] = True
    seen_max: Annotated[Count, described("How many seen items of a user are remembered.")] = 2_000
    body_max_bytes: Annotated[Count, described("Largest body of a request.")] = 4 << 20
    connections_max: Annotated[
        Count,
        described(
            "Most connections that are served; the health is told on a few beyond them. Leave room"
            " below the limit of open files."
        ),
    ] = 512
    head_timeout_s: Annotated[
        Seconds, described("Time for the headers of a request, however slowly they come.")
    ] = 10.0
    body_timeout_s: Annotated[
        Seconds, described("Time for the body of a request, and for reading on in its answer.")
    ] = 30.0
    produce_timeout_s: Annotated[
        Seconds, described("Longest wait for the broker's acknowledgement of posted events.")
    ] = 10.0
    ready_lag_s: Annotated[
        Elapsed,
        described(
            "Without word from Redis for so long, /readyz says no; 0: not while lists can be"
            " served from memory."
        ),
    ] = 0.0


class Exploration(Section, frozen=True, kw_only=True):
    """What chance decides in recommendations, and whether they are logged as impressions."""

    epsilon: Annotated[
        Annotated[float, Meta(ge=0, le=1)],
        described("Share of recommendations that are a uniform permutation of the candidates."),
    ] = 0.0
    withhold: Annotated[
        Annotated[float, Meta(ge=0, le=0.5)],
        described(
            "Chance of each placed item to be withheld as a control, for a user and a window."
        ),
    ] = 0.0
    seed: Annotated[
        Natural,
        described(
            "Seed of these draws and key of withholding, kept secret; 0: the system's, in Redis.",
            secret=True,
        ),
    ] = 0
    log_impressions: Annotated[
        bool, described("Recommendations go to the impression topic by themselves.")
    ] = False
    queue_max: Annotated[
        Count, described("Most impressions not yet acknowledged; further ones are dropped.")
    ] = 10_000


class Model(Section, frozen=True, kw_only=True):
    """What is learned, and how."""

    factors: Annotated[Annotated[int, Meta(ge=1, le=1024)], described("Length of the vectors.")] = (
        32
    )
    device: Annotated[
        Device,
        described("Where the step runs; auto: a GPU that is usable and holds full tables, or cpu."),
    ] = "auto"
    step: Annotated[
        Step,
        described(
            "sequential: one interaction after the other, on the CPU; blocks: on a GPU or threads;"
            " auto: blocks on a GPU, else sequential."
        ),
    ] = "auto"
    block: Annotated[
        Annotated[int, Meta(ge=1, le=BLOCK_MAX)],
        described("Interactions that one block learns; a smaller one is closer to sequential."),
    ] = 256
    threads: Annotated[
        Annotated[int, Meta(ge=0, le=THREADS_MAX)],
        described("Threads of blocks on the CPU; 0: one a core, at most 4. The bits are the same."),
    ] = 0
    rating_min: Annotated[
        Annotated[float, Meta(ge=-SCALE_MAX, le=SCALE_MAX)],
        described("Lowest rating; a lower one is a bad event."),
    ] = 1.0
    rating_max: Annotated[
        Annotated[float, Meta(ge=-SCALE_MAX, le=SCALE_MAX)],
        described("Highest rating; a higher one is a bad event."),
    ] = 5.0
    exposure_factors: Annotated[
        Annotated[int, Meta(ge=1, le=256)],
        described("Length of the exposure vectors: what lasts in who is shown what."),
    ] = 16
    session_factors: Annotated[
        Annotated[int, Meta(ge=0, le=256)],
        described("Length of the session vectors: what goes with the items just chosen; 0: none."),
    ] = 16
    without: Annotated[
        str,
        described(
            "Paths to close, by commas: exposure, weights, robust, popularity, position,"
            " confounder, control."
        ),
    ] = ""
    pairs: Annotated[
        Annotated[int, Meta(ge=0, le=16)], described("Uniform pairs an event is contrasted with.")
    ] = 2
    alpha: Annotated[
        Share, described("Weights are propensity ** (alpha - 1): 0 corrects in full, 1 not at all.")
    ] = 0.5
    clip: Annotated[Share, described("A propensity below it counts as it.")] = 0.02
    robust_share: Annotated[Share, described("Of the doubly robust term in the loss.")] = 0.3
    mix: Annotated[Share, described("Share of the corrected error in what shapes the vectors.")] = (
        0.25
    )
    average: Annotated[
        Share, described("Polyak average of the served item terms; 0: served as learned.")
    ] = 0.0
    half_life_s: Annotated[
        Annotated[float, Meta(ge=HALF_LIFE_MIN_S, le=1e9)],
        described("In which an item's popularity falls to half."),
    ] = 604_800.0
    synthetic: Annotated[
        Share,
        described(
            "Weight of unobserved outcomes, made of observed ones; 0: none. Costs the same bits."
        ),
    ] = 0.0
    replay: Annotated[
        Annotated[int, Meta(ge=0, le=64)],
        described("Times an event is learned again while the queue is empty; costs the same bits."),
    ] = 0
    max_users: Annotated[Rows, described("Rows of users; memory is taken as they come.")] = (
        2_000_000
    )
    max_items: Annotated[Rows, described("Rows of items; memory is taken as they come.")] = 500_000
    max_features: Annotated[Rows, described("Rows of attribute values.")] = 65_536
    cache_dir: Annotated[
        str, described("Folder of the compiled code; empty: beside the code, else uncached.")
    ] = ""


class Join(Section, frozen=True, kw_only=True):
    """How exposures and outcomes find each other."""

    window_s: Annotated[Seconds, described("How long an exposure stays open.")] = 3_600.0
    idle_s: Annotated[
        Seconds, described("A partition without records for so long leaves the watermark.")
    ] = 60.0
    ahead_s: Annotated[
        Elapsed, described("How far a record may be ahead of its Kafka time; beyond, it is wrong.")
    ] = 1.0
    open_max: Annotated[Count, described("Most open exposures; the oldest then closes early.")] = (
        1_000_000
    )
    closed_max: Annotated[
        Count, described("Closed exposures remembered, for outcomes that come late.")
    ] = 1_000_000
    pending_max: Annotated[
        Count, described("Outcomes that wait for an impression which comes after them.")
    ] = 100_000


class Settings(Section, frozen=True, kw_only=True):
    """All sections."""

    kafka: Annotated[Kafka, described("The broker.")] = Kafka()
    redis: Annotated[Redis, described("The cache of vectors.")] = Redis()
    snapshots: Annotated[Snapshots, described("The trainer's state on disk.")] = Snapshots()
    trainer: Annotated[Trainer, described("The learning process.")] = Trainer()
    service: Annotated[Service, described("The HTTP process.")] = Service()
    exploration: Annotated[Exploration, described("Chance and logging.")] = Exploration()
    model: Annotated[Model, described("What is learned, and how.")] = Model()
    join: Annotated[Join, described("Exposures and outcomes.")] = Join()


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
    """A setting is unknown or its value does not fit; the remedy names what would."""


def load(
    cli: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    toml_path: str | os.PathLike[str] | None = None,
) -> Settings:
    """Return the settings of all sources, the command line before the environment before TOML.

    `cli` maps `section.key` to text. Raises WrongSetting, naming the source and the nearest name.
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
    """Return `section.key` of each setting that a source gives; all others are defaults."""
    chosen = _chosen(cli, environ, toml_path)
    return {f"{section}.{key}" for section, values in chosen.items() for key in values}


def _chosen(
    cli: Mapping[str, str] | None,
    environ: Mapping[str, str] | None,
    toml_path: str | os.PathLike[str] | None,
) -> dict[str, dict[str, Any]]:
    """Return what the sources give, by section and key, the stronger source winning."""
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
    """Yield (source, section, key, value) of each setting in the file."""
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
    """Check one value and put it where its section keeps it."""
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
            value = ",".join(map(str, value))  # a list of TOML for names by commas
        chosen[section][key] = msgspec.convert(value, hints[key], strict=strict)
    except (msgspec.ValidationError, json.JSONDecodeError) as error:
        said = "" if is_secret(hints[key]) else f"={value!r}"
        former = FORMER.get(str(value)) if (section, key) == ("model", "step") else None
        raise WrongSetting(f"{source}{said}: {error}", former or describe(section, key)) from error


def read_secret(source: str, path: Any) -> str:
    """Return the text of a secret's file, without the line's end."""
    try:
        return Path(str(path)).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongSetting(f"{source}: cannot read {path}", "name a readable file") from error


def unknown(source: str, name: str, names: Mapping[str, Any] | list[str]) -> WrongSetting:
    """Return the error for a name that no setting has, with the nearest one that exists."""
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
    """Return whether a field's value is never printed."""
    return any(
        isinstance(meta, Meta) and (meta.extra or {}).get("secret")
        for meta in getattr(hint, "__metadata__", ())
    )


def describe(section: str, key: str) -> str:
    """Return the description of one setting."""
    hint = get_type_hints(SECTIONS[section], include_extras=True)[key]
    texts = [meta.description for meta in hint.__metadata__ if isinstance(meta, Meta)]
    return f"{section}.{key}: {next(text for text in texts if text)}"


def show(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings as plain values, secrets hidden; a URL keeps all but its password."""
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
    """Return the URL with its password, in the authority or the query, hidden."""
    url = re.sub(r"(?<=://)([^:/?#]*):.*@", rf"\1:{HIDDEN}@", url)
    return re.sub(r"(?i)([?&]password=)[^&#]*", rf"\1{HIDDEN}", url)


def to_toml(settings: Settings) -> str:
    """Return the settings as commented TOML that `load` reads back; secrets hidden."""
    lines = [
        "# Every setting with its value.",
        f"# Each can also be given as {PREFIX}SECTION__KEY, which wins over this file.",
    ]
    for section, values in show(settings).items():
        lines += ["", f"# {(SECTIONS[section].__doc__ or '').strip()}", f"[{section}]"]
        for key, value in values.items():
            text = describe(section, key).partition(": ")[2]
            lines += [f"# {text}", f"{key} = {toml_value(value)}"]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Return one value in TOML; JSON's text and numbers are TOML's, but for tables and null."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(key)} = {toml_value(each)}" for key, each in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value, ensure_ascii=False)


def example() -> str:
    """Return deploy/config.example.toml: the defaults, described."""
    return to_toml(Settings())
