"""The law of `loop`, in torch operations over waves of distinct users, on any device.

Wave k holds each user's k-th interaction of a block, and the waves run in order: users are exact at
any batch size. A block ends where the global terms change, so both see the same ones. Items and
attribute values that repeat inside a wave see the wave's first state, their gradients are summed,
and their accumulators grow as the loop's would. Without repeats a wave is the loop's law to
rounding.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream.model import scalars as sc
from stream.model.config import ModelConfig
from stream.model.features import FAR
from stream.model.layout import HEADS
from stream.model.scalars import Scalars
from stream.model.step.names import TERMS
from stream.model.step.outcome import SAMPLE
from stream.model.tables import Table
from stream.roles import SYNTHETIC, Role


def order(user: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the interactions in wave order (n,) and the waves' borders (waves + 1,)."""
    if not len(user):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    by_user = np.argsort(user, kind="stable")
    new = np.r_[True, np.diff(user[by_user]) != 0]
    starts = np.flatnonzero(new)
    rank = np.empty(len(user), np.int64)
    rank[by_user] = np.arange(len(user)) - starts[np.cumsum(new) - 1]
    return np.argsort(rank, kind="stable"), np.r_[0, np.cumsum(np.bincount(rank))]


def blocks(role: NDArray[np.int8], steps: int) -> list[int]:
    """Return where the batch is cut so that the global terms change at its cuts (k + 1,)."""
    learns = (role != Role.PREDICT) & (role != Role.CLOSED)
    count = steps + np.cumsum(learns)
    small = (count & (count - 1)) == 0
    at = learns & np.where(count >= sc.BLOCK, count % sc.BLOCK == 0, small)
    return sorted({0, *(np.flatnonzero(at) + 1).tolist(), len(role)})


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the score for n rows: composed parts, and the attribute links behind them."""

    rows: Tensor  # (n,)
    vector: Tensor  # (n, D)
    expo: Tensor  # (n, E)
    session: Tensor  # (n, S)
    bias: Tensor  # (n, C)
    owner: Tensor  # (m,) which row a link belongs to
    linked: Tensor  # (m,) rows of the feature table
    x: Tensor  # (m,) weight times value


def compose(
    table: Table, features: Table, links: tuple[Tensor, Tensor], rows: Tensor, means: bool = False
) -> Side:
    """Return the rows as they enter the score: their own parts plus their attributes'."""
    at, af = table.layout, features.layout
    mine, values = links[0][rows].long(), links[1][rows]  # (n, L)
    there = mine > 0
    weight = there.sum(1).clamp(min=1).float().rsqrt()
    owner, slot = there.nonzero(as_tuple=True)
    linked = mine[owner, slot] - 1
    center = features.packed[linked, af.center]
    x = weight[owner] * (values[owner, slot] - center) * features.packed[linked, af.inverse]
    x = torch.minimum(torch.maximum(x, -FAR * weight[owner]), FAR * weight[owner])

    def part(name: str, size: int, mean: str = "") -> Tensor:
        own, theirs = getattr(at, mean or name), getattr(af, mean or name)
        more = features.packed[linked, theirs : theirs + size] * x[:, None]
        return table.packed[rows, own : own + size].index_add(0, owner, more)

    averaged = means and at.mean >= 0
    bias = part("bias", at.C)
    if averaged:
        bias = torch.cat([part("mean_bias", at.Y, "mean_bias"), bias[:, at.Y :]], 1)
    vector = part("vector", at.D, "mean" if averaged else "")
    expo, session = part("expo", at.E), part("session", at.S)
    return Side(rows, vector, expo, session, bias, owner, linked, x)


class Steps:
    """The gradients of one wave on one table, summed per distinct row, and their Adagrad step."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._vectors: dict[tuple[int, int, int], list[tuple[Tensor, Tensor]]] = {}
        self._biases: list[tuple[Tensor, Tensor, Tensor]] = []

    def vector(self, first: int, size: int, total: int, rows: Tensor, grad: Tensor) -> None:
        """Add gradients (n, size) of the part that begins at `first`."""
        self._vectors.setdefault((first, size, total), []).append((rows, grad))

    def bias(self, column: Tensor, rows: Tensor, g: Tensor) -> None:
        """Add gradients (n,) of the biases `column` (n,)."""
        self._biases.append((column, rows, g))

    def take(self, rates: dict[int, float], lr_bias: Tensor, shrink: dict[int, float],
             shrink_bias: Tensor) -> None:  # fmt: skip
        """Every touched row has taken one step.

        The accumulator grows by the sum of squares, as one event after the other would make it. The
        step divides by what the square of the sum would give: the same for a row that comes once,
        and never above the rate for a row that comes a thousand times with one opinion. `rates` and
        `shrink` go by the part's first column, `lr_bias` and `shrink_bias` by bias.
        """
        packed, at = self.table.packed, self.table.layout
        for (first, size, total), parts in self._vectors.items():
            rows = torch.cat([r for r, _ in parts])
            grad = torch.cat([g for _, g in parts])
            if not len(rows):
                continue
            distinct, place = torch.unique(rows, return_inverse=True)
            summed = grad.new_zeros(len(distinct), size).index_add(0, place, grad)
            squares = grad.new_zeros(len(distinct)).index_add(0, place, (grad * grad).mean(1))
            start = packed[distinct, total]
            rate = rates[first] * (start + (summed * summed).mean(1)).rsqrt()
            held = packed[distinct, first : first + size]
            packed[distinct, first : first + size] = (
                held * (1 - rate * shrink[first])[:, None] - rate[:, None] * summed
            )
            packed[distinct, total] = start + squares
        if self._biases:
            column = torch.cat([c for c, _, _ in self._biases])
            rows = torch.cat([r for _, r, _ in self._biases])
            g = torch.cat([g for _, _, g in self._biases])
            cells, place = torch.unique(rows * at.C + column, return_inverse=True)
            row, column = cells // at.C, cells % at.C
            summed = g.new_zeros(len(cells)).index_add(0, place, g)
            squares = g.new_zeros(len(cells)).index_add(0, place, g * g)
            start = packed[row, at.bias_sum + column]
            rate = lr_bias[column] * (start + summed * summed).rsqrt()
            value = packed[row, at.bias + column]
            packed[row, at.bias + column] = value - rate * (summed + shrink_bias[column] * value)
            packed[row, at.bias_sum + column] = start + squares


def average(table: Table, rows: Tensor, keep: float) -> None:
    """Move the served means of distinct rows towards the rows; the first ones are plain means."""
    at, packed = table.layout, table.packed
    rows = torch.unique(rows)
    rate = (1.0 / (table.bits[rows, at.events] + 1).float()).clamp(min=1 - keep)[:, None]
    for mean, first, size in ((at.mean, at.vector, at.D), (at.mean_bias, at.bias, at.Y)):
        held = packed[rows, mean : mean + size]
        packed[rows, mean : mean + size] = held + rate * (packed[rows, first : first + size] - held)


class Waves:
    """One step's view of the learner, on the tables' device."""

    def __init__(
        self,
        config: ModelConfig,
        tables: tuple[Table, Table, Table],
        links: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
        scalars: Scalars,
        live: bool,
    ) -> None:
        self.config = config
        self.user, self.item, self.feature = tables
        self.links = links
        self.scalars = scalars
        self.live = live
        device = self.device = self.user.device
        outcomes, c, at = config.outcomes, config, self.item.layout
        self.logit = torch.tensor([o.link == "logit" for o in outcomes], device=device)
        self.low = torch.tensor([o.low for o in outcomes], device=device)
        self.high = torch.tensor([o.high for o in outcomes], device=device)
        expo = torch.arange(at.C, device=device) >= 3 * at.Y
        control = (torch.arange(at.C, device=device) // at.Y == 1) & ~expo

        def rate(bias: float, exposure: float = c.lr_exposure) -> Tensor:
            return torch.where(expo, exposure, bias).float()

        self.lr_user = rate(c.lr_user_bias)
        self.lr_item = rate(c.lr_item_bias, c.lr_exposure_bias)
        self.lr_feature = rate(c.lr_feature_bias)
        self.shrink = torch.where(expo | control, 0.0, c.shrink).float()
        self.free = torch.zeros(at.C, device=device)

    def learn(
        self, columns: dict[str, NDArray[Any]], pair: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], ...]:
        """Learn the interactions block by block; return what was expected of each before.

        That is the outcome if shown (n,), if withheld (n,), the terms (n, 6) of the sampled, and
        what a list by outcome would have said (n,).
        """
        n = len(pair)
        terms = torch.zeros((n, len(TERMS)), device=self.device)
        prediction = torch.full((n,), torch.nan, device=self.device)
        control = torch.full((n,), torch.nan, device=self.device)
        served = torch.full((n,), torch.nan, device=self.device)
        role = columns["role"]
        steps = int(self.scalars.count[sc.STEPS])
        learns = (role != Role.PREDICT) & (role != Role.CLOSED)
        step = steps + np.cumsum(learns) - 1  # how many were learned before
        sampled = learns & (step % SAMPLE == 0) & self.live
        calibrates = (step < sc.BLOCK) | (step % sc.CALIBRATES == 0)
        columns = columns | {"sampled": sampled, "calibrates": calibrates}
        cuts = blocks(role, steps) if self.live else [0, n]
        for start, stop in pairwise(cuts):
            s = self.scalars
            self.so = torch.from_numpy(s.outcome).to(self.device)
            self.sh = torch.from_numpy(s.head).to(self.device)
            self.theta = torch.from_numpy(s.place[:, sc.THETA]).float().to(self.device)
            self.sw = torch.from_numpy(s.withheld).to(self.device)
            self.known0 = bool(s.count[sc.SETTLED] > 0)
            held = (s.outcome, s.head, s.place, s.withheld)
            self.sums = [torch.from_numpy(np.zeros_like(x)).to(self.device) for x in held]
            self.controls = 0
            fresh = self._fresh(columns, start, stop)
            sequence, borders = order(columns["user"][start:stop])
            at = torch.from_numpy(start + sequence).to(self.device)
            near = {
                k: torch.from_numpy(v[start + sequence]).to(self.device) for k, v in columns.items()
            }
            others = torch.from_numpy(pair[start + sequence]).to(self.device).long()
            for a, b in pairwise(borders.tolist()):
                told = self._wave({k: v[a:b] for k, v in near.items()}, others[a:b])
                places = at[a:b]
                prediction[places], control[places], terms[places], served[places] = told
            if self.live:
                self._count(role[start:stop], fresh)
        return tuple(x.cpu().numpy() for x in (prediction, control, terms, served))

    def _fresh(self, columns: dict[str, NDArray[Any]], start: int, stop: int) -> tuple[int, int]:
        """Return how many users and items have their first counted event in the block."""
        told = []
        for name, table in (("user", self.user), ("item", self.item)):
            rows = np.unique(columns[name][start:stop][columns["counts"][start:stop]])
            at = torch.from_numpy(rows).long().to(self.device)
            told.append(int((table.bits[at, table.layout.events] == 0).sum()))
        return told[0], told[1]

    def _count(self, role: NDArray[np.int8], fresh: tuple[int, int]) -> None:
        """Fold the block's sums into the global terms, and move them where it is time."""
        s = self.scalars
        every = (s.outcome, s.head, s.place, s.withheld)
        for held, sums in zip(every, self.sums, strict=True):
            held += sums.cpu().numpy()
        s.count[sc.CONTROLS] += self.controls
        s.count[sc.USERS] += fresh[0]
        s.count[sc.ITEMS] += fresh[1]
        learned = int(((role != Role.PREDICT) & (role != Role.CLOSED)).sum())
        s.count[sc.STEPS] += learned
        if learned and sc.border(int(s.count[sc.STEPS])):
            sc.refresh(*every, s.count, float(self.config.memory))

    def _add(self, which: int, row: Tensor, column: int, value: Tensor) -> None:
        self.sums[which][:, column].index_add_(0, row, value.double())

    def _wave(self, c: dict[str, Tensor], pair: Tensor) -> tuple[Tensor, ...]:
        config, on = self.config, self.config.paths
        at, au = self.item.layout, self.user.layout
        Y, P = at.Y, pair.shape[1]
        user, item, o = c["user"].long(), c["item"].long(), c["outcome"].long()
        role, label, counts = c["role"], c["label"], c["counts"]
        logit = self.logit[o]
        n = len(user)

        def col(k: int) -> Tensor:
            return self.so[o, k].float()

        closes = (role == Role.CLOSED) | ((role == Role.EXPOSED) & logit & (label == 0) & ~counts)
        if self.live:
            self.user.bits[user, au.exposures] += closes.int()
            self._bump(self.item, item, at.exposures, closes.int())
        u = compose(self.user, self.feature, self.links[0], user)
        i = compose(self.item, self.feature, self.links[1], item)
        heat = self._heat(item, c["ts_s"])
        q = torch.log1p(heat).float()
        known = self.item.bits[item, at.outcomes + o] > 0
        apart = torch.where(known, q - self.item.packed[item, at.usual + o], 0.0)
        z = (u.expo * i.expo).sum(1)
        slope = col(sc.SLOPE) if on.popularity else torch.zeros(n, device=self.device)
        gate = (self.so[o, sc.GATE] > 0) & on.confounder
        alpha_z = col(sc.SLOPE + 1)
        match = (u.vector * i.vector).sum(1)
        base, base0, base_f = (col(sc.BASE + k) for k in range(3))

        def bias(side: Side, block: int, of: Tensor = o) -> Tensor:
            return side.bias.gather(1, (block * Y + of)[:, None])[:, 0]

        bias_u, bias_i = bias(u, 0), bias(i, 0)
        plain = base + bias_u + bias_i + match + slope * apart
        confounded = torch.where(gate, alpha_z * z, 0.0)
        lin = plain + confounded
        place = (c["position"].long().clamp(1, len(self.theta))) - 1
        theta = torch.where(logit & on.position, self.theta[place], 1.0)

        def link(x: Tensor) -> Tensor:
            return torch.where(logit, torch.sigmoid(x), x.clamp(self.low[o], self.high[o]))

        # what is withheld
        has0 = self.item.packed[item, at.control_sum] > 0
        apart0 = (
            self.item.packed[item, at.control : at.control + at.D]
            - self.item.packed[item, at.vector : at.vector + at.D]
        )
        own0 = match + (u.vector * apart0).sum(1)
        lin0 = torch.where(has0, base0 + bias(u, 1) + bias(i, 1) + own0, lin - base + base0)
        both = (role == Role.PREDICT) | (role == Role.CONTROL)
        nothing = torch.full((n,), torch.nan, device=self.device)
        prediction = torch.where(both, torch.where(logit, theta * link(lin), link(lin)), nothing)
        control = torch.where(both & self.known0, link(lin0), nothing)

        learns = (role != Role.PREDICT) & (role != Role.CLOSED)
        if self.live:
            self.user.bits[user, au.events] += (counts & learns).int()
            self._warm(item, c["ts_s"], counts & learns)

        # who is shown what
        h = torch.where((role == Role.FACTUAL) | (role == Role.CONSUMED), 0, 1)
        ce = 3 * Y + h
        shown = learns & (role != Role.CORRECTION) & on.exposure
        shown = shown & (pair[:, 0] >= 0) if P else torch.zeros_like(shown)
        held = (pair >= 0) & learns[:, None]  # (n, P)
        owner, which = held.nonzero(as_tuple=True)
        far = compose(self.item, self.feature, self.links[1], pair[owner, which])
        eta = i.bias.gather(1, ce[:, None])[:, 0] + z
        eta_far = far.bias.gather(1, ce[owner][:, None])[:, 0] + (u.expo[owner] * far.expo).sum(1)
        contrast = torch.where(shown, torch.sigmoid(eta) - 1, 0.0)
        contrast_far = torch.where(shown[owner], torch.sigmoid(eta_far), 0.0)
        within = self.live and P > 0  # a replay has not the moment
        if within:
            recent = self.user.packed[user, au.recent : au.recent + au.S]
            moment = u.session + config.session_share * recent
            whole = eta + (moment * i.session).sum(1)
            whole_far = eta_far + (moment[owner] * far.session).sum(1)
            contrast_x = torch.where(shown, torch.sigmoid(whole) - 1, 0.0)
            contrast_x_far = torch.where(shown[owner], torch.sigmoid(whole_far), 0.0)
            told = shown & c["calibrates"]
            for k, near, far_ in ((0, eta, eta_far), (HEADS, whole, whole_far)):
                self._calibrate(k + h, near, told, 1.0)
                self._calibrate(k + h[owner], far_, told[owner], 0.0)
                self._add(1, k + h, sc.EXPOSED_NEW, shown)

        # what comes of it
        made = role == SYNTHETIC
        treated = (role == Role.FACTUAL) | (role == Role.EXPOSED) | (role == Role.CORRECTION) | made
        fact = base_f + bias(u, 2) + bias(i, 2) + match + slope * apart + confounded
        w = torch.ones(n, device=self.device)
        if on.weights:
            size = (self.sh[h, sc.SCALE] * eta.double() + self.sh[h, sc.SHIFT]).clamp(max=40.0)
            rate = self.sh[h, sc.SHARE] * P * torch.exp(size)
            learned = -torch.expm1(-rate).float()
            if not (on.exposure and P):
                learned = torch.ones_like(learned)
            pi = torch.where(c["propensity"].isnan(), learned, c["propensity"])
            raw = pi.clamp(config.clip, 1.0).double() ** (config.alpha - 1)
            if self.live:
                self._add(0, o, sc.W_PENDING, raw * treated)
                self._add(0, o, sc.W_FRESH, treated)
            w = (raw * (self.so[o, sc.W_COUNT] + 1) / (self.so[o, sc.W_SUM] + raw)).float()
            w = torch.where(made, 1.0, w)
        mu, filled = (torch.where(logit, torch.sigmoid(x), x) for x in (lin, fact))
        chance_f, chance = theta * filled, theta * mu
        tiny = 1e-6
        rest_f, rest = (1 - chance_f).clamp(min=tiny), (1 - chance).clamp(min=tiny)
        miss = torch.where(logit, (chance_f - label) * (1 - filled) / rest_f, fact - label)
        off = torch.where(logit, (chance - label) * (1 - mu) / rest, mu - label)
        if config.synthetic > 0:
            low, high = self.low[o], self.high[o]
            near, near_f = mu.clamp(low, high), filled.clamp(low, high)
            again, again_f = ((x + label).clamp(low, high) for x in (near, near_f))
            off = torch.where(made, config.synthetic * (near - again), off)
            miss = torch.where(made, config.synthetic * (near_f - again_f), miss)
        curve = torch.where(logit, mu * (1 - mu), 1.0)
        told = torch.where(logit, chance_f, fact.clamp(self.low[o], self.high[o]))
        prediction = torch.where(treated, told, prediction)
        fair = lin - slope * (q - col(sc.Q_MEAN))
        if config.average > 0:
            mean = compose(self.item, self.feature, self.links[1], item, means=True)
            fair = fair + bias(mean, 0) - bias_i + (u.vector * (mean.vector - i.vector)).sum(1)
        served = torch.where(treated, link(fair), nothing)
        error = w * off
        error_far = torch.zeros_like(eta_far)
        if on.robust:
            error = torch.where(made, error, error - config.robust_share * w * (mu - filled))
            reach = (u.vector[owner] * far.vector).sum(1)
            of = o[owner]
            mu_far = base[owner] + bias(u, 0)[owner] + bias(far, 0, of) + reach
            guess = base_f[owner] + bias(u, 2)[owner] + bias(far, 2, of) + reach
            mu_far, guess = (
                torch.where(logit[owner], torch.sigmoid(x), x) for x in (mu_far, guess)
            )
            share = config.robust_share / held.sum(1).clamp(min=1)[owner]
            error_far = torch.where(treated[owner], share * (mu_far - guess), 0.0)
        error, miss = (torch.where(treated, x, 0.0) for x in (error, miss))
        if self.live:
            self._account(o, place, treated, label, role, w, off, curve, q, z, chance, theta,
                          plain, alpha_z, logit, rest)  # fmt: skip
            first = treated & ((place == 0) | ~logit)
            self._within(item[first], o[first], label[first], q[first], apart[first], logit[first])
        if on.control:
            self._withheld(c, u, i, o, match, lin0, has0, base0, logit, z, alpha_z)

        # one step of every row
        m = config.mix
        push, push_far = m * error + (1 - m) * miss, m * error_far
        grad_u = (push[:, None] * i.vector).index_add(0, owner, push_far[:, None] * far.vector)
        grad_s = (contrast[:, None] * i.expo).index_add(0, owner, contrast_far[:, None] * far.expo)
        g_user = error.index_add(0, owner, error_far)
        users, items, features = Steps(self.user), Steps(self.item), Steps(self.feature)
        users.vector(au.vector, au.D, au.vector_sum, user[treated], grad_u[treated])
        users.vector(au.expo, au.E, au.expo_sum, user[shown], grad_s[shown])
        users.bias(o[treated], user[treated], g_user[treated])
        users.bias((2 * Y + o)[treated], user[treated], miss[treated])
        self._attributes(features, u, grad_u, grad_s, treated, shown,
                         ((o, g_user, treated), (2 * Y + o, miss, treated)))  # fmt: skip
        valued, valued_far = error != 0, error_far != 0
        exposed, exposed_far = contrast != 0, contrast_far != 0
        for side, who, g, e, ok, seen, biases in (
            (i, torch.arange(n, device=self.device), push, contrast, valued, exposed,
             ((o, error, valued), (ce, contrast, exposed), (2 * Y + o, miss, treated))),
            (far, owner, push_far, contrast_far, valued_far, exposed_far,
             ((o[owner], error_far, valued_far), (ce[owner], contrast_far, exposed_far))),
        ):  # fmt: skip
            grad_i, grad_t = g[:, None] * u.vector[who], e[:, None] * u.expo[who]
            items.vector(at.vector, at.D, at.vector_sum, side.rows[ok], grad_i[ok])
            items.vector(at.expo, at.E, at.expo_sum, side.rows[seen], grad_t[seen])
            for column, value, there in biases:
                items.bias(column[there], side.rows[there], value[there])
            self._attributes(features, side, grad_i, grad_t, ok, seen, biases)
        if within:
            self._session(
                (users, items, features), (u, i, far), moment, shown, owner, contrast_x,
                contrast_x_far,
            )  # fmt: skip
        if self.live:
            took, latest = counts & learns, slice(au.recent, au.recent + au.S)
            held = self.user.packed[user[took], latest]
            self.user.packed[user[took], latest] = (
                held + (i.session[took] - held) / config.session_items
            )
        # the three parts begin at the same columns in rows of every kind
        rates = {at.expo: config.lr_exposure, at.session: config.lr_session}
        for steps, lr_factor, lr_bias, pull, pull_bias in (
            (users, config.lr_user_factor, self.lr_user, config.shrink, self.shrink),
            (items, config.lr_item_factor, self.lr_item, config.shrink, self.shrink),
            (features, config.lr_feature_factor, self.lr_feature, 0.0, self.free),
        ):
            pulls = dict.fromkeys((at.vector, at.expo, at.session), pull)
            steps.take({at.vector: lr_factor} | rates, lr_bias, pulls, pull_bias)
        if self.live:
            told = torch.cat([u.linked[treated[u.owner]], i.linked[treated[i.owner]]])
            self._bump(self.feature, told, self.feature.layout.events,
                       torch.ones_like(told, dtype=torch.int32))  # fmt: skip
        if config.average > 0:
            average(self.item, torch.cat([item[valued], far.rows[valued_far]]), config.average)
            touched = [u.linked[treated[u.owner]], i.linked[valued[i.owner]]]
            touched.append(far.linked[valued_far[far.owner]])
            average(self.feature, torch.cat(touched), config.average)
        parts = (torch.ones_like(match), bias_u, bias_i, match, slope * apart, confounded)
        terms = torch.stack(parts, 1) * (c["sampled"] & treated)[:, None]
        if self.live:
            terms[:, 1] = bias_u * treated
        return prediction, control, terms, served

    def _session(
        self,
        steps: tuple[Steps, Steps, Steps],
        sides: tuple[Side, Side, Side],
        moment: Tensor,
        shown: Tensor,
        owner: Tensor,
        contrast: Tensor,
        contrast_far: Tensor,
    ) -> None:
        """Hand on the gradients of the session's scores: of users, items, pairs and attributes."""
        (users, items, features), (u, i, far) = steps, sides
        af = self.feature.layout
        grad = (contrast[:, None] * i.session).index_add(
            0, owner, contrast_far[:, None] * far.session
        )
        for own, side, g, there in (
            (users, u, grad, shown),
            (items, i, contrast[:, None] * moment, shown),
            (items, far, contrast_far[:, None] * moment[owner], shown[owner]),
        ):
            at, t = own.table.layout, there[side.owner]
            own.vector(at.session, at.S, at.session_sum, side.rows[there], g[there])
            behind = (g[side.owner] * side.x[:, None])[t]
            features.vector(af.session, af.S, af.session_sum, side.linked[t], behind)

    def _attributes(
        self,
        features: Steps,
        side: Side,
        grad: Tensor,
        grad_expo: Tensor,
        valued: Tensor,
        shown: Tensor,
        biases: tuple[tuple[Tensor, Tensor, Tensor], ...],
    ) -> None:
        """Hand the side's gradients on to the attribute values behind it."""
        af = self.feature.layout
        v, s = valued[side.owner], shown[side.owner]
        x = side.x[:, None]
        features.vector(af.vector, af.D, af.vector_sum, side.linked[v], (grad[side.owner] * x)[v])
        features.vector(af.expo, af.E, af.expo_sum, side.linked[s], (grad_expo[side.owner] * x)[s])
        for column, value, there in biases:
            t = there[side.owner]
            features.bias(column[side.owner][t], side.linked[t], (value[side.owner] * side.x)[t])

    def _withheld(
        self, c: dict[str, Tensor], u: Side, i: Side, o: Tensor, match: Tensor, lin0: Tensor,
        has0: Tensor, base0: Tensor, logit: Tensor, z: Tensor, alpha_z: Tensor,
    ) -> None:  # fmt: skip
        """Learn the control outcomes of the wave."""
        k = (c["role"] == Role.CONTROL).nonzero()[:, 0]
        if not len(k):
            return
        at, au = self.item.layout, self.user.layout
        config, Y, packed = self.config, at.Y, self.item.packed
        item, user, o, label = i.rows[k], u.rows[k], o[k], c["label"][k]
        new = ~has0[k]
        rows = item[new]
        own_vector = slice(at.vector, at.vector + at.D)
        packed[rows, at.control : at.control + at.D] = packed[rows, own_vector]
        packed[rows, at.control_sum] = config.start_factor
        own = slice(at.bias + Y, at.bias + 2 * Y)
        folded = i.bias[k][:, Y : 2 * Y] - packed[item, own]
        packed[rows, own] = (i.bias[k][:, :Y] - folded)[new]
        column = Y + o
        bias_u = u.bias[k].gather(1, column[:, None])[:, 0]
        first = base0[k] + bias_u + i.bias[k].gather(1, o[:, None])[:, 0] + match[k]
        lin = torch.where(new, first, lin0[k])
        off = torch.where(logit[k], torch.sigmoid(lin), lin) - label
        if self.live:
            self.controls += len(k)
            self.user.bits[user, au.controls] += 1
            self._bump(self.item, item, at.controls, torch.ones_like(item, dtype=torch.int32))
            self._add(0, o, sc.TOTAL_NEW + 1, label)
            self._add(0, o, sc.WEIGHT_NEW + 1, torch.ones_like(label))
            self._carried(o, lin, label, logit[k], z[k], alpha_z[k])
        value = packed[item, at.bias + column]
        tied = i.bias[k].gather(1, o[:, None])[:, 0] - folded.gather(1, o[:, None])[:, 0]
        tie = config.tie / (1 + config.tie * self.item.bits[item, at.controls].float())
        g_item = off + tie * (value - tied)
        grad = off[:, None] * u.vector[k] + tie[:, None] * (
            packed[item, at.control : at.control + at.D] - packed[item, own_vector]
        )
        users, items, features = Steps(self.user), Steps(self.item), Steps(self.feature)
        users.bias(column, user, off)
        items.bias(column, item, g_item)
        items.vector(at.control, at.D, at.control_sum, item, grad)
        for side in (u, i):
            mine = torch.isin(side.owner, k)
            back = torch.searchsorted(k, side.owner[mine])
            features.bias(column[back], side.linked[mine], off[back] * side.x[mine])
        users.take({}, self.lr_user, {}, self.free)
        items.take({at.control: config.lr_item_factor}, self.lr_item, {at.control: 0.0}, self.free)
        features.take({}, self.lr_feature, {}, self.free)

    def _carried(
        self, o: Tensor, lin: Tensor, label: Tensor, logit: Tensor, z: Tensor, alpha_z: Tensor
    ) -> None:
        """Add what the control outcomes say of the confounder path to its pending sums."""
        carried, level = (self.sw[o, column].float() for column in (sc.CARRIED, sc.LEVEL))
        lin = lin + (alpha_z + carried) * z + level
        mean = torch.where(logit, torch.sigmoid(lin), lin)
        off, bend = mean - label, torch.where(logit, mean * (1 - mean), 1.0)
        for column, value in (
            (sc.C_A, off * z), (sc.C_B, off), (sc.C_NAA, bend * z * z), (sc.C_NAB, bend * z),
            (sc.C_NBB, bend),
        ):  # fmt: skip
            self._add(3, o, column, value)

    def _calibrate(self, h: Tensor, eta: Tensor, there: Tensor, target: float) -> None:
        x = eta.double()
        chance = torch.sigmoid(self.sh[h, sc.SCALE] * x + self.sh[h, sc.SHIFT])
        off, v = (chance - target) * there, chance * (1 - chance) * there
        for column, value in (
            (sc.S_A, off * x), (sc.S_B, off), (sc.N_AA, v * x * x), (sc.N_AB, v * x), (sc.N_BB, v),
        ):  # fmt: skip
            self._add(1, h, column, value)

    def _account(
        self, o: Tensor, place: Tensor, treated: Tensor, label: Tensor, role: Tensor, w: Tensor,
        off: Tensor, curve: Tensor, q: Tensor, z: Tensor, chance: Tensor,
        theta: Tensor, plain: Tensor, alpha_z: Tensor, logit: Tensor, rest: Tensor,
    ) -> None:  # fmt: skip
        """Add the wave to the pending sums of the global terms."""
        new = treated & (role != Role.CORRECTION)
        shadow, kept = plain + alpha_z * z, plain
        shadow, kept = (torch.where(logit, theta * torch.sigmoid(x), x) for x in (shadow, kept))
        gain = ((kept - label) ** 2 - (shadow - label) ** 2).double()
        for column, value in (
            (sc.TOTAL_NEW, w * label / theta), (sc.TOTAL_NEW + 2, label / theta), (sc.Q_PENDING, q),
            (sc.Q_FRESH, torch.ones_like(q)), (sc.SCORE + 1, (shadow - label) * z),
            (sc.SEEN + 1, curve * z * z), (sc.GAIN_NEW, gain), (sc.GAIN_SQUARE_NEW, gain * gain),
            (sc.GAIN_COUNT_NEW, torch.ones_like(q)),
        ):  # fmt: skip
            self._add(0, o, column, torch.where(treated, value, 0.0))
        self._add(0, o, sc.WEIGHT_NEW, torch.where(new, w, 0.0))
        self._add(0, o, sc.WEIGHT_NEW + 2, new)
        if self.config.paths.position:
            there = treated & logit & (place > 0)
            part = (1 - theta) / rest
            self._add(2, place, sc.T_SCORE, torch.where(there, (chance - label) * part, 0.0))
            self._add(2, place, sc.T_SEEN, torch.where(there, chance * part * (1 - theta), 0.0))

    def _heat(self, item: Tensor, now: Tensor) -> Tensor:
        at = self.item.layout
        held = self.item.packed[item, at.heat].double()
        age = (now - self.item.bits[item, at.heat_s]).clamp(min=0).double()
        return held * 0.5 ** (age / self.config.half_life_s)

    def _warm(self, item: Tensor, now: Tensor, counts: Tensor) -> None:
        """Count clicks and ratings towards their items' popularity, and towards their events."""
        at, item, now = self.item.layout, item[counts], now[counts]
        self._bump(self.item, item, at.events, torch.ones_like(item, dtype=torch.int32))
        distinct, place = torch.unique(item, return_inverse=True)
        latest = torch.zeros_like(distinct).scatter_reduce(0, place, now, "amax")
        more = torch.zeros(len(distinct), dtype=torch.float64, device=self.device).index_add(
            0, place, torch.ones(len(item), dtype=torch.float64, device=self.device)
        )
        self.item.packed[distinct, at.heat] = (self._heat(distinct, latest) + more).float()
        held = self.item.bits[distinct, at.heat_s]
        self.item.bits[distinct, at.heat_s] = torch.maximum(held, latest.int())

    def _within(
        self, item: Tensor, o: Tensor, label: Tensor, q: Tensor, apart: Tensor, logit: Tensor
    ) -> None:
        """Tell the popularity path what the wave says, and move what is usual for its items."""
        at, packed, bits = self.item.layout, self.item.packed, self.item.bits
        usual = packed[item, at.rest + o]
        seen = bits[item, at.outcomes + o] > 0
        gap = label - usual
        bend = torch.where(logit, (usual * (1 - usual)).clamp(min=0.01), 1.0)
        for column, value in (
            (sc.SCORE, bend * gap * apart), (sc.SEEN, bend * bend * apart * apart),
            (sc.NOISE_NEW, gap * gap), (sc.OF_NEW, torch.ones_like(gap)),
        ):  # fmt: skip
            self._add(0, o, column, torch.where(seen, value, 0.0))
        cells, place = torch.unique(item * at.Y + o, return_inverse=True)
        row, of = cells // at.Y, cells % at.Y
        count = torch.zeros(len(cells), device=self.device).index_add(
            0, place, torch.ones_like(gap)
        )
        bits[row, at.outcomes + of] += count.int()
        rate = (count / bits[row, at.outcomes + of].float()).clamp(min=0.001)
        for first, value in ((at.usual, q - packed[item, at.usual + o]), (at.rest, gap)):
            mean = torch.zeros_like(count).index_add(0, place, value) / count
            packed[row, first + of] += rate * mean

    @staticmethod
    def _bump(table: Table, rows: Tensor, column: int, more: Tensor) -> None:
        table.bits.index_put_((rows, torch.full_like(rows, column)), more, accumulate=True)
