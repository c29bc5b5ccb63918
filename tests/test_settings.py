"""Laws of the settings: which source wins, what is an error, what is never printed."""

import json
import tomllib
from pathlib import Path

import pytest

from consumers.settings import (
    HIDDEN,
    SECTIONS,
    Settings,
    WrongSetting,
    example,
    load,
    show,
    to_toml,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def toml(tmp_path):
    """Write text to a file and return its path."""

    def write(text):
        path = tmp_path / "counterflow.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_work_without_any_source():
    assert load() == Settings()


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(toml):
    path = toml("[trainer]\nbatch_max = 1\nseed = 1\nmetrics_port = 1\n")
    environ = {"COUNTERFLOW_TRAINER__BATCH_MAX": "2", "COUNTERFLOW_TRAINER__SEED": "2"}
    trainer = load({"trainer.batch_max": "3"}, environ, path).trainer
    assert (trainer.batch_max, trainer.seed, trainer.metrics_port) == (3, 2, 1)
    assert trainer.duplicates_window == 1_000_000


def test_names_without_a_double_underscore_are_no_settings():
    assert load({}, {"COUNTERFLOW_TEST_KAFKA": "x", "PATH": "/", "OTHER__X": "1"}) == Settings()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("COUNTERFLOW_TRAINER__BATCHMAX", "trainer.batch_max"),
        ("COUNTERFLOW_TRAINR__SEED", "trainer.seed"),
        ("COUNTERFLOW_KAFKA__BOOTSTRAP_SERVER", "kafka.bootstrap_servers"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(name, nearest):
    with pytest.raises(WrongSetting) as caught:
        load({}, {name: "1"})
    assert name in caught.value.message
    assert nearest in caught.value.remedy


def test_unknown_names_in_the_file_and_on_the_command_line_are_errors(toml):
    for text in ("[trainer]\nsped = 1\n", "[trainr]\nseed = 1\n", "seed = 1\n", "trainer = 1\n"):
        with pytest.raises(WrongSetting):
            load({}, {}, toml(text))
    with pytest.raises(WrongSetting, match="sped"):
        load({"trainer.sped": "1"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRAINER__BATCH_MAX", "many"),
        ("TRAINER__BATCH_MAX", "0"),
        ("MODEL__DEVICE", "tpu"),
        ("SERVICE__PORT", "70000"),
        ("SNAPSHOTS__INTERVAL_S", "-1"),
        ("KAFKA__OPTIONS", "{"),
        ("KAFKA__TOPIC_PREFIX", "a b"),
        ("MODEL__RATING_MIN", "5"),
        ("MODEL__RATING_MIN", "4.999999"),
        ("MODEL__RATING_MIN", "-inf"),
        ("MODEL__RATING_MIN", "nan"),
        ("MODEL__RATING_MAX", "nan"),
        ("MODEL__RATING_MAX", "inf"),
        ("MODEL__RATING_MAX", "1.1e9"),
        ("MODEL__HALF_LIFE_S", "0.9"),
        ("MODEL__HALF_LIFE_S", "nan"),
        ("MODEL__MAX_USERS", str(2**31)),
        ("MODEL__MAX_ITEMS", str(2**31)),
        ("MODEL__MAX_FEATURES", str(2**31)),
        ("TRAINER__BATCH_MAX", str(2**31)),
        ("SERVICE__READY_LAG_S", "inf"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_it_and_the_remedy(name, value):
    with pytest.raises(WrongSetting) as caught:
        load({}, {f"COUNTERFLOW_{name}": value})
    assert name.lower().replace("__", ".") in caught.value.message.lower().replace("__", ".")
    assert caught.value.remedy


@pytest.mark.parametrize(("low", "high"), [(0, 1e9), (-1e9, 1e9), (-0.5, 0.5), (999_000, 1e6)])
def test_scales_that_32_bits_can_tell_apart_are_settings(low, high):
    model = load({"model.rating_min": str(low), "model.rating_max": str(high)}).model
    assert (model.rating_min, model.rating_max) == (low, high)


def test_the_file_has_types_and_the_environment_has_text(toml):
    assert load({}, {"COUNTERFLOW_SERVICE__EXCLUDE_SEEN": "false"}).service.exclude_seen is False
    with pytest.raises(WrongSetting):
        load({}, {}, toml('[trainer]\nseed = "1"\n'))
    options = load({}, {"COUNTERFLOW_KAFKA__OPTIONS": '{"api_version": [2, 1]}'}).kafka.options
    assert options == {"api_version": [2, 1]}


def test_secrets_come_from_files_and_are_never_shown(tmp_path):
    secret = tmp_path / "password"
    secret.write_text("hush\n", encoding="utf-8")
    settings = load(
        {},
        {
            "COUNTERFLOW_KAFKA__SASL_PLAIN_PASSWORD_FILE": str(secret),
            "COUNTERFLOW_KAFKA__SSL_PASSWORD": "hush",
            "COUNTERFLOW_KAFKA__OPTIONS": '{"sasl_oauth_token": "hush"}',
            "COUNTERFLOW_REDIS__URL": "redis://me:hush@cache:6379/0?password=hush",
        },
    )
    assert settings.kafka.sasl_plain_password == "hush"
    shown = json.dumps(show(settings))
    assert "hush" not in shown
    assert f"redis://me:{HIDDEN}@cache:6379/0" in shown


def test_a_wrong_secret_is_not_printed():
    with pytest.raises(WrongSetting) as caught:
        load({}, {"COUNTERFLOW_REDIS__URL": "http://me:hush@cache"})
    assert "hush" not in f"{caught.value} {caught.value.remedy}"


def test_what_is_written_as_toml_is_read_back(toml):
    settings = load({"kafka.options": '{"a.b": [1, "x"]}', "snapshots.dir": 'C:\\ü"'})
    assert load({}, {}, toml(to_toml(settings))) == settings


def test_every_setting_stands_described_in_the_example():
    tables = tomllib.loads(example())
    assert {name: set(table) for name, table in tables.items()} == {
        name: set(kind.__struct_fields__) for name, kind in SECTIONS.items()
    }
    committed = ROOT / "deploy" / "config.example.toml"
    assert committed.read_text(encoding="utf-8") == example()
