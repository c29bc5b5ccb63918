"""The loss of one interaction as docs/model.md writes it, and its gradients by autograd.

What is differentiated are the composed rows: of the user one, of the items the interaction's own
and the uniform ones. Weights, imputed outcomes, propensities and the paths are constants.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from stream.interaction_type import SYNTHETIC, InteractionType
from stream.model.scalars import BASE
from tests.reference.rows import Composed, Floats
from tests.reference.scores import Scores
from tests.reference.state import Event, State

ROUNDING = 1e-13  # a gradient below it is none


class Leaves(NamedTuple):
    """What a composed row holds; of items, one row each."""

    vector: Tensor
    exposure: Tensor
    session: Tensor
    bias: Tensor


class Gradient(NamedTuple):
    """The same of its gradient."""

    vector: Floats
    exposure: Floats
    session: Floats
    bias: Floats


def gradients(
    state: State, e: Event, s: Scores, user: Composed, items: Sequence[Composed]
) -> tuple[Gradient, Gradient]:
    """Return the gradients by the user's composed row, and by the items' (1 + P, ...)."""
    u = Leaves(*(_leaf(getattr(user, name)) for name in Leaves._fields))
    t = Leaves(*(_leaf(np.stack([getattr(i, n) for i in items])) for n in Leaves._fields))
    total = torch.zeros((), dtype=torch.double)
    if e.treated:
        taught = imagined if e.role == SYNTHETIC else outcome
        total = total + taught(state, e, s, u, t)
    if e.role == InteractionType.CONTROL and state.paths.control:
        total = total + withheld(state, e, s, u, t)
    if state.exposing(e):
        total = total + exposure(state, e, u, t)
    if state.in_session(e):
        total = total + session(state, e, u, t)
    if not total.requires_grad:
        return _gradient(u, [None] * 4), _gradient(t, [None] * 4)
    told = torch.autograd.grad(total, [*u, *t], allow_unused=True)
    return _gradient(u, told[:4]), _gradient(t, told[4:])


def outcome(state: State, e: Event, s: Scores, u: Leaves, t: Leaves) -> Tensor:
    """w L(y, mu) + d [mean over uniform items of L(f, mu) - w L(f, mu)], and the factual head."""
    o, Y, c, click = e.outcome, state.Y, state.config, state.logit[e.outcome]
    match = t.vector @ u.vector  # the item's own, and the uniform ones'
    paths = torch.zeros(len(match), dtype=torch.double)
    paths[0] = s.popularity + s.trait
    shown = s.base[0] + u.bias[o] + t.bias[:, o] + through(match, c.mix) + paths
    fact = s.base[2] + u.bias[2 * Y + o] + t.bias[:, 2 * Y + o] + through(match, 1 - c.mix) + paths
    y = torch.tensor(e.label, dtype=torch.double)
    total = s.weight * loss(y, shown[0], click, s.theta) + loss(y, fact[0], click, s.theta)
    if state.paths.robust:
        imputed = (torch.sigmoid(fact) if click else fact).detach()
        total = total - c.robust_share * s.weight * loss(imputed[0], shown[0], click)
        if len(match) > 1:
            total = total + c.robust_share * loss(imputed[1:], shown[1:], click).mean()
    return total


def imagined(state: State, e: Event, s: Scores, u: Leaves, t: Leaves) -> Tensor:
    """Of an outcome nobody observed, whose gradient by the score is c (clip(mu) - y') as written.

    The label is what is left to chance: y' = clip(clip(mu) + label), of each model its own.
    """
    o, Y, c, click = e.outcome, state.Y, state.config, state.logit[e.outcome]
    match = t.vector[0] @ u.vector
    total = torch.zeros((), dtype=torch.double)
    for at, score, share in ((o, s.shown, c.mix), (2 * Y + o, s.observed, 1 - c.mix)):
        near = state.clip(o, 1.0 / (1.0 + float(np.exp(-score))) if click else score)
        off = c.synthetic * (near - state.clip(o, near + e.label))
        total = total + off * (u.bias[at] + t.bias[0, at] + through(match, share))
    return total


def withheld(state: State, e: Event, s: Scores, u: Leaves, t: Leaves) -> Tensor:
    """The control outcome's: it teaches biases, and the item's control row (`control`)."""
    at = state.Y + e.outcome
    score = s.withheld + moved(u.bias[at]) + moved(t.bias[0, at])
    return loss(torch.tensor(e.label, dtype=torch.double), score, state.logit[e.outcome])


def control(
    state: State,
    e: Event,
    user: Composed,
    item: Composed,
    vector: Floats,
    bias: float,
    shrinkage: float,
) -> tuple[Floats, Floats]:
    """Return the gradients by an item's own control row and control bias.

    `shrinkage` pulls both towards the treated row, `item.vector` and `item.bias` less what its
    attributes add to the control's.
    """
    o, c = e.outcome, state.Y + e.outcome
    row, own = _leaf(vector), _leaf(np.array([bias]))
    linked, treated = torch.tensor(item.linked_vector), torch.tensor(item.vector)
    base = state.outcome[o, BASE + 1]
    score = base + user.bias[c] + own[0] + item.linked_bias[c]
    score = score + torch.tensor(user.vector) @ (row + linked)
    total = loss(torch.tensor(e.label, dtype=torch.double), score, state.logit[o])
    aim = item.bias[o] - item.linked_bias[c]
    pull = (own[0] - aim) ** 2 + ((row - (treated - linked)) ** 2).sum()
    by_row, by_bias = torch.autograd.grad(total + shrinkage / 2 * pull, [row, own])
    return by_row.numpy(), by_bias.numpy()


def exposure(state: State, e: Event, u: Leaves, t: Leaves) -> Tensor:
    """Noise-contrastive: what was exposed against the uniform items."""
    return contrast(t.bias[:, 3 * state.Y + e.head] + t.exposure @ u.exposure)


def session(state: State, e: Event, u: Leaves, t: Leaves) -> Tensor:
    """What goes with the moment, on top of what lasts, which is a constant here."""
    lasting = (t.bias[:, 3 * state.Y + e.head] + t.exposure @ u.exposure).detach()
    recent = torch.tensor(state.user["recent"][e.user])
    return contrast(lasting + t.session @ (u.session + state.config.session_share * recent))


def contrast(eta: Tensor) -> Tensor:
    """The log loss of the first being exposed and of the others not."""
    return softplus(-eta[0]) + softplus(eta[1:]).sum()


def loss(y: Tensor, score: Tensor, click: bool, theta: float = 1.0) -> Tensor:
    """Half the squared error, or the log loss of y at a place that is looked at theta times."""
    if not click:
        return (score - y) ** 2 / 2
    seen = logsigmoid(score)  # without log theta, a constant
    unseen = logsigmoid(-score) if theta == 1.0 else torch.log1p(-theta * torch.sigmoid(score))
    return -(y * seen + (1 - y) * unseen)


def through(score: Tensor, share: float) -> Tensor:
    """The score itself, of whose gradient a share goes through."""
    return share * score + (1 - share) * score.detach()


def moved(leaf: Tensor) -> Tensor:
    """Zero, whose gradient is the leaf's: for what a score holds already."""
    return leaf - leaf.detach()


def _leaf(values: Floats) -> Tensor:
    return torch.tensor(values, dtype=torch.double, requires_grad=True)


def _gradient(leaves: Leaves, told: Sequence[Tensor | None]) -> Gradient:
    """Return the gradients; where two heads agree, what is left of their difference is zero."""
    parts = (np.zeros(leaf.shape) if g is None else g.numpy() for leaf, g in zip(leaves, told))
    return Gradient(*(np.where(np.abs(part) < ROUNDING, 0.0, part) for part in parts))
