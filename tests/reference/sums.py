"""What one interaction adds to the running sums behind the global terms."""

from collections.abc import Sequence

from stream.interaction_type import InteractionType
from stream.model import scalars as sc
from stream.model.layout import HEADS
from tests.reference.rows import Composed
from tests.reference.scores import Scores, sigmoid
from tests.reference.state import Event, State

FLAT = 0.01  # the least slope of a click's curve that popularity is told by


def add_exposure(state: State, e: Event, user: Composed, items: Sequence[Composed]) -> None:
    """Add to the calibration of what lasts, and of that with the session; not each time later."""
    h, steps = e.head, int(state.count[sc.STEPS])
    state.head[[h, HEADS + h], sc.EXPOSED_NEW] += 1.0
    if steps >= sc.BLOCK and steps % sc.CALIBRATES:
        return
    for p, item in enumerate(items):
        eta = item.bias[3 * state.Y + h] + float(user.exposure @ item.exposure)
        moment = user.session + state.config.session_share * state.user["recent"][e.user]
        whole = eta + float(moment @ item.session)
        for row, score in ((state.head[h], eta), (state.head[HEADS + h], whole)):
            chance = sigmoid(row[sc.SCALE] * score + row[sc.SHIFT])
            off, bend = chance - (p == 0), chance * (1.0 - chance)
            row[sc.S_A] += off * score
            row[sc.S_B] += off
            row[sc.N_AA] += bend * score * score
            row[sc.N_AB] += bend * score
            row[sc.N_BB] += bend


def add_outcome(state: State, e: Event, s: Scores) -> None:
    """Add to the weights' mean, the bases, mean popularity, examination and the trait's gate."""
    row, y = state.outcome[e.outcome], e.label
    late = e.role == InteractionType.CORRECTION  # the exposure was counted with its 0
    if s.raw is not None:
        row[sc.W_PENDING] += s.raw
        row[sc.W_FRESH] += 1.0
    for arm, weight in ((0, s.weight), (2, 1.0)):
        row[sc.TOTAL_NEW + arm] += weight * y / s.theta
        row[sc.WEIGHT_NEW + arm] += 0.0 if late else weight
    row[sc.Q_PENDING] += s.q
    row[sc.Q_FRESH] += 1.0
    bend, trait = 1.0, row[sc.SLOPE + 1] * s.z
    kept, shadow = s.plain, s.plain + trait
    if state.logit[e.outcome]:
        mu = sigmoid(s.shown)
        bend = mu * (1.0 - mu)
        kept, shadow = s.theta * sigmoid(kept), s.theta * sigmoid(shadow)
        if e.place > 0 and state.paths.position:
            unseen = (1.0 - s.theta) / (1.0 - s.theta * mu)
            state.place[e.place, sc.T_SCORE] += (s.theta * mu - y) * unseen
            state.place[e.place, sc.T_SEEN] += s.theta * mu * unseen * (1.0 - s.theta)
    row[sc.SCORE + 1] += (shadow - y) * s.z
    row[sc.SEEN + 1] += bend * s.z**2
    gain = (kept - y) ** 2 - (shadow - y) ** 2
    row[sc.GAIN_NEW] += gain
    row[sc.GAIN_SQUARE_NEW] += gain**2
    row[sc.GAIN_COUNT_NEW] += 1.0


def add_usual(state: State, e: Event, q: float, apart: float) -> None:
    """Add to popularity within items, then move what is usual for the item.

    The outcome from the item's mean against popularity from the item's mean, so that quality is in
    neither; of clicks those at the first place alone, where examination is certain.
    """
    o, row, click = e.outcome, state.outcome[e.outcome], state.logit[e.outcome]
    if e.place > 0 and click:
        return
    judged = state.item["outcomes"][e.item]
    usual, rest = state.item["popularity_mean"][e.item], state.item["label_mean"][e.item]
    gap = e.label - rest[o]
    if judged[o] > 0:
        bend = max(rest[o] * (1.0 - rest[o]), FLAT) if click else 1.0
        row[sc.SCORE] += bend * gap * apart
        row[sc.SEEN] += (bend * apart) ** 2
        row[sc.NOISE_NEW] += gap**2
        row[sc.OF_NEW] += 1.0
    judged[o] += 1
    rate = max(1.0 / judged[o], 0.001)
    usual[o] += rate * (q - usual[o])
    rest[o] += rate * gap


def add_control(state: State, e: Event, s: Scores) -> None:
    """Add to the base of the withheld arm, and to what it carries of the confounder path."""
    o, row, carry = e.outcome, state.outcome[e.outcome], state.withheld[e.outcome]
    state.count[sc.CONTROLS] += 1
    row[sc.TOTAL_NEW + 1] += e.label
    row[sc.WEIGHT_NEW + 1] += 1.0
    carried = s.withheld + (row[sc.SLOPE + 1] + carry[sc.CARRIED]) * s.z + carry[sc.LEVEL]
    mu = sigmoid(carried) if state.logit[o] else carried
    bend = mu * (1.0 - mu) if state.logit[o] else 1.0
    carry[sc.C_A] += (mu - e.label) * s.z
    carry[sc.C_B] += mu - e.label
    carry[sc.C_NAA] += bend * s.z**2
    carry[sc.C_NAB] += bend * s.z
    carry[sc.C_NBB] += bend
