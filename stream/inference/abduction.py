"""What would have happened to an observed outcome: abduction, action, prediction.

(Pearl, Causality, 2009, theorem 7.1.7.) Abduction takes from the observation the part that the
model leaves to chance, action sets the world, and prediction adds that part again.
"""

import numpy as np

from stream.inference.model import Floats, PublishedOutcome


def residual(observed: Floats, factual: Floats) -> Floats:
    """Return the observed minus the expected outcome, on the outcome's scale (n,)."""
    return observed - factual


def individual(
    outcome: PublishedOutcome,
    observed: Floats,  # (n,)
    factual: Floats,  # (n,) expected in the world as it was
    counterfactual: Floats,  # (n,) expected in the other world
) -> Floats:
    """Return the expected outcome (n,) of the same user, item and chance in the other world.

    Identity link: the residual is kept, y' = clip(counterfactual + observed - factual).

    Logit link: a click is 1[u < p] for a uniform u that both worlds share, so a higher probability
    never removes a click: P(y' = 1 | y = 1) = min(1, p'/p) and P(y' = 1 | y = 0) = max(0, p' - p) /
    (1 - p). These follow from the probabilities of necessity and sufficiency under monotonicity
    (Tian and Pearl, UAI 2000, "Probabilities of causation: bounds and identification", equations 22
    and 23).
    """
    if outcome.link != "logit":
        kept = counterfactual + residual(observed, factual)
        return np.clip(kept, outcome.low, outcome.high)
    clicked = np.minimum(1.0, counterfactual / np.maximum(factual, 1e-12))
    not_clicked = np.maximum(0.0, counterfactual - factual) / np.maximum(1.0 - factual, 1e-12)
    return np.where(observed > 0.5, clicked, np.minimum(not_clicked, 1.0))
