"""Creates the step's named tuples from a configuration and from arrays."""

import numpy as np
from numpy.typing import NDArray

from stream.model.config import ModelConfig
from stream.model.links import LinkTable
from stream.model.step import account
from stream.model.step.names import Layouts, LearningRates, Scratch, TableArrays


def rates(c: ModelConfig) -> LearningRates:
    """Return the rates and shares of the configuration."""
    return LearningRates(
        *map(
            np.float32,
            (
                c.lr_user_bias,
                c.lr_user_factor,
                c.lr_item_bias,
                c.lr_item_factor,
                c.lr_feature_bias,
                c.lr_feature_factor,
                c.lr_exposure,
                c.lr_exposure_bias,
                c.lr_session,
                c.session_share,
                1.0 / c.session_items,
                c.shrink,
                c.average,
                c.alpha,
                c.clip,
                c.robust_share,
                c.control_shrinkage,
                c.half_life_s,
                c.mix,
                c.start_factor,
                c.synthetic,
            ),
        )
    )


def tables_of(
    users: NDArray[np.float32],
    items: NDArray[np.float32],
    features: NDArray[np.float32],
    user_links: LinkTable,
    item_links: LinkTable,
) -> TableArrays:
    """Return the tables on the host with the links of their rows."""
    return TableArrays(
        users,
        items,
        features,
        users.view(np.uint32),
        items.view(np.uint32),
        features.view(np.uint32),
        user_links.rows,
        user_links.values,
        item_links.rows,
        item_links.values,
    )  # fmt: skip


def scratch(at: Layouts, rows: int) -> Scratch:
    """Return scratch memory for one interaction, with `rows` rows of contributions (`told`)."""
    i, of_pairs = at.item, 1 + at.pairs
    composed = i.D + i.E + i.S + i.C

    def floats(*shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    return Scratch(
        floats(composed), floats(of_pairs, composed), np.zeros(of_pairs, np.int64),
        floats(of_pairs), floats(i.D + i.E + i.S), floats(of_pairs), floats(of_pairs),
        floats(of_pairs), floats(of_pairs), floats(2 * of_pairs),
        np.zeros((rows, account.columns(at.pairs))),
    )  # fmt: skip
