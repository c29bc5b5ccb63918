"""Convert settings into the model's configuration without importing torch or numba."""

from dataclasses import fields

import msgspec

from consumers.settings import Settings, WrongSetting
from stream.model.config import ModelConfig, OutcomeConfig, PathConfig


def model_config(settings: Settings) -> ModelConfig:
    """Return the model configuration that the settings describe.

    Raises
    ------
    WrongSetting
        If `model.without` names an unknown path or the settings contradict each other.
    """
    m = msgspec.structs.asdict(settings.model)
    names = [name.strip() for name in m.pop("without").split(",") if name.strip()]
    known = [f.name for f in fields(PathConfig)]
    for name in names:
        if name not in known:
            raise WrongSetting(f"model.without: no path {name!r}", f"paths: {', '.join(known)}")
    low, high = m.pop("rating_min"), m.pop("rating_max")
    del m["replay"], m["cache_dir"]
    outcomes = (
        OutcomeConfig("rating", "identity", low, high),
        OutcomeConfig("click", "logit", 0.0, 1.0),
    )
    try:
        return ModelConfig(**m, paths=PathConfig(**dict.fromkeys(names, False)), outcomes=outcomes)
    except ValueError as error:
        raise WrongSetting(str(error)) from error  # which names what would fit
