"""The law of learning, one interaction after the other, compiled.

With g_u = p_u + sum_a x_a v_a / sqrt(n_u) over the user's attribute values a, g_i alike, and biases
composed in the same way, the score of outcome o if shown is

    lin = base + a_u + c_i + g_u . g_i + kappa (q_i - q) + alpha_z (s_u . t_i)
    mu  = lin (identity), sigmoid(lin) (logit); at position k: theta_k mu, theta_1 = 1

with q_i = log(1 + decayed count). Withheld: mu0 = link^-1(base0 + a0_u + c0_i + g_u . h0_i),
h0_i = q0_i and the same attributes. What this arm carries of the confounder path is learned beside
(`scalars.fit`), teaches no row, and enters what is served alone.
Exposure: eta = m_i + s_u . t_i, fitted by noise-contrastive estimation (Gutmann & Hyvarinen 2010)
of what was exposed against uniform pairs; pi = 1 - exp(-rate), rate = rho n exp(A eta + B), with
rho the share of pairs exposed and n the uniform pairs an event, calibrated online (Platt 1999).
This is what lasts, and what weights and the confounder path know. What goes with the moment is
fitted on top of it, eta + (x_u + share r_u) . x_i, r_u a running mean of the latest items' x_i, as
in models of item similarity (FISM, Kabbur, Ning and Karypis, KDD 2013); it has a calibration of its
own, and serves consumption alone.

The loss of one interaction is self-normalised and doubly robust (StableDR, Li et al. 2023):

    w L(mu, y) + d [ mean over uniform pairs L(mu', r') - w L(mu, r) ] + exposure + imputation

with w = max(pi, clip)^(alpha-1) over its running mean, r the imputed outcome (biases alone), d the
robust share, L half the squared error or the log loss. Every parameter then takes one step of
Adagrad (Duchi et al. 2011), one accumulator a vector (row-wise, as in Mudigere et al. 2022).

Nothing here looks beyond its interaction, so how a stream is cut into batches cannot matter.

Alphabet: D factors, E exposure factors, S session factors, Y outcomes, C biases; o an outcome, h an
exposure head; j an interaction, p a uniform pair, k a link, f a feature row.
"""

import numpy as np

from stream.model import scalars as sc
from stream.model.kernels import (
    Array,
    average,
    averaged_score,
    compiled,
    gather,
    inlined,
    linked,
    mix,
    product,
    share,
    square,
    step_bias,
    step_vector,
)
from stream.model.layout import HEADS, Layout
from stream.model.living import LISTED, LIVING, enlist, revive
from stream.roles import SYNTHETIC, Role

SAMPLE = 8  # one in so many interactions tells the regression of the paths
TERMS = ("intercept", "user", "item", "match", "popularity", "confounder")
USER, ITEM, FEATURE = 0, 1, 2  # the salt of a new row's vector
# the rates, one float32 array
(
    LR_UB, LR_UF, LR_IB, LR_IF, LR_FB, LR_FF, LR_E, SHRINK, KEEP, ALPHA, CLIP, ROBUST, TIE,
    HALF_LIFE, MIX, START, LR_EB, IMAGINED, LR_S, SESSION, RECENT,
) = range(21)  # fmt: skip
# the open paths, one bool array
EXPOSURE, WEIGHTS, DOUBLY, POPULARITY, POSITION, CONFOUNDER, CONTROL_PATH = range(7)
FACTUAL, EXPOSED, CONTROL = int(Role.FACTUAL), int(Role.EXPOSED), int(Role.CONTROL)
CONSUMED, CORRECTION = int(Role.CONSUMED), int(Role.CORRECTION)
PREDICT, CLOSED = int(Role.PREDICT), int(Role.CLOSED)


@compiled
def draw(
    user: Array, item: Array, known: Array, key: Array, role: Array, counts: Array,
    history: Array, living: Array, place: Array, size: Array, pair: Array, mark_user: Array,
    mark_item: Array, users: Array, items: Array,
) -> tuple[int, int]:  # fmt: skip
    """Write the uniform pairs (-1 where none), remember what was seen, name the rows touched.

    Rows touched are those of the interactions, not of their pairs. Returns how many users and items
    were written; the marks are 0 again. `living, place, size` are those of `Living`: an item that
    was removed is in no pair until an interaction of its own, which revives it.
    """
    nu = ni = 0
    for j in range(user.size):
        u, i = user[j], item[j]
        if counts[j]:
            ring = history[u]
            ring[1 + ring[0] % (ring.size - 1)] = i
            ring[0] += 1
            if ring[0] == 2 * (ring.size - 1):  # only the place and "full" matter
                ring[0] = ring.size - 1
        counter = key[j]
        if size[LISTED] > 0:
            enlist(living, place, size, known[j])
            revive(living, place, size, i)
        for p in range(pair.shape[1]):
            if known[j] > 0 and role[j] != PREDICT and role[j] != CLOSED:
                counter = mix(counter)
                if size[LISTED] > 0:
                    pair[j, p] = living[counter % np.uint64(size[LIVING])]
                else:
                    pair[j, p] = np.int32(counter % np.uint64(known[j]))
            else:
                pair[j, p] = -1
        if mark_user[u] == 0:
            mark_user[u] = 1
            users[nu] = u
            nu += 1
        if mark_item[i] == 0:
            mark_item[i] = 1
            items[ni] = i
            ni += 1
    for j in range(nu):
        mark_user[users[j]] = 0
    for j in range(ni):
        mark_item[items[j]] = 0
    return nu, ni


@inlined
def popularity(items: Array, bits: Array, i: int, ai: Layout, now: int, half_life: float) -> float:
    """Return the item's decayed count of clicks and ratings as of now (s)."""
    held = np.float64(items[i, ai.heat])
    if held == 0.0:
        return 0.0
    age = now - np.int64(bits[i, ai.heat_s])
    return float(held * 0.5 ** (age / half_life)) if age > 0 else float(held)


@inlined
def sigmoid(x: np.float32) -> np.float32:
    """Return 1 / (1 + exp(-x))."""
    one = np.float32(1)
    chance: np.float32 = one / (one + np.exp(-x))
    return chance


@compiled
def learn(
    user: Array, item: Array, outcome: Array, label: Array, role: Array, propensity: Array,
    position: Array, ts_s: Array, counts: Array, pair: Array,
    users: Array, items: Array, features: Array, au: Layout, ai: Layout, af: Layout,
    user_links: Array, user_values: Array, item_links: Array, item_values: Array,
    logit: Array, low: Array, high: Array, rates: Array, on: Array, memory: float,
    so: Array, sh: Array, st: Array, sw: Array, sn: Array, live: bool, prediction: Array,
    control: Array, terms: Array, served: Array,
) -> None:  # fmt: skip
    """Learn the interactions in order; write what was expected of each before it was learned.

    `prediction` is of the outcome if shown, `control` if withheld (nan while nothing is known of
    that arm). Where not `live` (replay), nothing is counted and no global term moves. Of every
    SAMPLEth interaction `terms` (B, 6) holds the terms of the score, behind a 1; of the others
    the user's alone. `served` is what a list by outcome would have said of a treated one: at the
    first place, at the mean popularity.
    """
    D, E, S, Y, C = au.D, au.E, au.S, au.Y, au.C
    P = pair.shape[1]
    one, zero = np.float32(1), np.float32(0)
    tiny, flat = np.float32(1e-6), np.float32(0.01)
    m = rates[MIX]
    gu, su, bu = np.empty(D, np.float32), np.empty(E, np.float32), np.empty(C, np.float32)
    g, s, b = (
        np.empty((1 + P, D), np.float32), np.empty((1 + P, E), np.float32),
        np.empty((1 + P, C), np.float32),
    )  # fmt: skip
    xu, x_ = np.empty(S, np.float32), np.empty((1 + P, S), np.float32)
    grad_xu, grad_x = np.empty(S, np.float32), np.empty(S, np.float32)
    contrast_x = np.empty(1 + P, np.float32)
    grad_u, grad_s = np.empty(D, np.float32), np.empty(E, np.float32)
    grad_i, grad_t = np.empty(D, np.float32), np.empty(E, np.float32)
    error, contrast = np.empty(1 + P, np.float32), np.empty(1 + P, np.float32)
    eta = np.empty(1 + P, np.float32)
    count_links, weight_links = np.empty(1 + P, np.int64), np.empty(1 + P, np.float32)
    user_bits, item_bits = users.view(np.uint32), items.view(np.uint32)
    feature_bits = features.view(np.uint32)
    shrink, keep = rates[SHRINK], rates[KEEP]
    le, ls = rates[LR_E], rates[LR_S]
    averaged = keep > 0
    for j in range(user.size):
        u, i, o, r = user[j], item[j], outcome[j], role[j]
        if live and (
            r == CLOSED or (r == EXPOSED and logit[o] and label[j] == 0 and not counts[j])
        ):
            user_bits[u, au.exposures] += np.uint32(1)
            item_bits[i, ai.exposures] += np.uint32(1)
        if r == CLOSED:
            continue
        treated = r == FACTUAL or r == EXPOSED or r == CORRECTION or r == SYNTHETIC
        nu, ni = linked(user_links, u), linked(item_links, i)
        wu = one / np.sqrt(np.float32(max(nu, 1)))
        count_links[0], weight_links[0] = ni, one / np.sqrt(np.float32(max(ni, 1)))
        gather(gu, su, xu, bu, users, u, au, features, af, user_links, user_values, nu, wu)
        gather(
            g[0], s[0], x_[0], b[0], items, i, ai, features, af, item_links, item_values, ni,
            weight_links[0],
        )  # fmt: skip
        base, base0 = np.float32(so[o, sc.BASE]), np.float32(so[o, sc.BASE + 1])
        base_f = np.float32(so[o, sc.BASE + 2])
        heat = popularity(items, item_bits, i, ai, ts_s[j], rates[HALF_LIFE])
        q = np.float32(np.log1p(heat))
        # from what is usual for the item, so that quality is not in it; nothing is unusual at first
        apart = q - items[i, ai.usual + o] if item_bits[i, ai.outcomes + o] > 0 else zero
        z = product(su, s[0])
        slope = np.float32(so[o, sc.SLOPE]) if on[POPULARITY] else zero
        gate = on[CONFOUNDER] and so[o, sc.GATE] > 0
        alpha_z = np.float32(so[o, sc.SLOPE + 1])
        match = product(gu, g[0])
        plain = base + bu[o] + b[0, o] + match + slope * apart
        lin = plain + alpha_z * z if gate else plain
        place = min(max(position[j], 1), st.shape[0]) - 1
        theta = np.float32(st[place, sc.THETA]) if on[POSITION] and logit[o] else one
        if r == PREDICT or r == CONTROL:
            mu = theta * sigmoid(lin) if logit[o] else min(max(lin, low[o]), high[o])
            if items[i, ai.control_sum] > 0:
                lin0 = base0 + bu[Y + o] + b[0, Y + o]
                for d in range(D):
                    lin0 += gu[d] * (items[i, ai.control + d] + g[0, d] - items[i, ai.vector + d])
            else:
                lin0 = lin - base + base0
            mu0 = sigmoid(lin0) if logit[o] else min(max(lin0, low[o]), high[o])
            prediction[j] = mu
            control[j] = mu0 if sn[sc.SETTLED] > 0 else np.float32(np.nan)
            if r == PREDICT:
                continue
        if live and counts[j]:
            if user_bits[u, au.events] == 0:
                sn[sc.USERS] += 1
            if item_bits[i, ai.events] == 0:
                sn[sc.ITEMS] += 1
            user_bits[u, au.events] += np.uint32(1)
            item_bits[i, ai.events] += np.uint32(1)
            items[i, ai.heat] = np.float32(heat + 1.0)
            item_bits[i, ai.heat_s] = max(item_bits[i, ai.heat_s], np.uint32(ts_s[j]))

        # who is shown what
        h = 0 if r == FACTUAL or r == CONSUMED else 1
        ce = 3 * Y + h
        for p in range(P):
            other = pair[j, p]
            if other >= 0:
                n = linked(item_links, other)
                count_links[1 + p] = n
                weight_links[1 + p] = one / np.sqrt(np.float32(max(n, 1)))
                gather(
                    g[1 + p], s[1 + p], x_[1 + p], b[1 + p], items, other, ai, features, af,
                    item_links, item_values, n, weight_links[1 + p],
                )  # fmt: skip
        exposing = on[EXPOSURE] and r != CORRECTION and P > 0 and pair[j, 0] >= 0
        eta[0] = b[0, ce] + z
        within = exposing and live and S > 0  # a replay has not the moment
        if within:
            for d in range(S):
                xu[d] += rates[SESSION] * users[u, au.recent + d]
        for p in range(1 + P):
            contrast[p] = contrast_x[p] = zero
        if exposing:
            contrast[0] = sigmoid(eta[0]) - one
            for p in range(1, 1 + P):
                eta[p] = b[p, ce] + product(su, s[p])
                contrast[p] = sigmoid(eta[p])
            if live:
                calibrates = sn[sc.STEPS] < sc.BLOCK or sn[sc.STEPS] % sc.CALIBRATES == 0
                for p in range(1 + P):
                    aim = one if p == 0 else zero
                    whole = eta[p]
                    if within:
                        whole += product(xu, x_[p])
                        contrast_x[p] = sigmoid(whole) - aim
                    if calibrates:
                        sc.calibrate(sh, h, eta[p], aim)
                        sc.calibrate(sh, HEADS + h, whole, aim)
                sh[h, sc.EXPOSED_NEW] += 1.0
                sh[HEADS + h, sc.EXPOSED_NEW] += 1.0

        # what comes of it
        for p in range(1 + P):
            error[p] = zero
        miss = zero
        if treated:
            # what is observed, unweighted: it predicts, imputes, and shapes the vectors
            fact = base_f + bu[2 * Y + o] + b[0, 2 * Y + o] + match + slope * apart
            if gate:
                fact += alpha_z * z
            w = one
            if on[WEIGHTS] and r != SYNTHETIC:
                pi = propensity[j]
                if np.isnan(pi):
                    pi = one
                    if on[EXPOSURE] and P > 0:
                        size = sh[h, sc.SCALE] * np.float64(eta[0]) + sh[h, sc.SHIFT]
                        rate = sh[h, sc.SHARE] * P * np.exp(min(size, 40.0))
                        pi = np.float32(-np.expm1(-rate))
                pi = min(max(pi, rates[CLIP]), one)
                raw = np.float64(pi) ** np.float64(rates[ALPHA] - one)
                if live:
                    so[o, sc.W_PENDING] += raw
                    so[o, sc.W_FRESH] += 1.0
                w = np.float32(raw * (so[o, sc.W_COUNT] + 1.0) / (so[o, sc.W_SUM] + raw))
            if logit[o]:
                mu, filled = sigmoid(lin), sigmoid(fact)
                chance = theta * filled
                prediction[j] = chance
                miss = (chance - label[j]) * (one - filled) / max(one - chance, tiny)
                chance = theta * mu
                rest = max(one - chance, tiny)
                off = (chance - label[j]) * (one - mu) / rest
                curve = mu * (one - mu)
                if live and place > 0 and on[POSITION]:
                    rest = (one - theta) / rest
                    st[place, sc.T_SCORE] += (chance - label[j]) * rest
                    st[place, sc.T_SEEN] += chance * rest * (one - theta)
            else:
                mu, filled = lin, fact
                off, miss = mu - label[j], fact - label[j]
                prediction[j] = min(max(fact, low[o]), high[o])
                curve = one
            fair = lin - slope * (q - np.float32(so[o, sc.Q_MEAN]))
            if averaged:
                fair += averaged_score(
                    gu, items, i, ai, o, features, af, item_links, item_values, ni, weight_links[0]
                ) - (b[0, o] + match)  # fmt: skip
            served[j] = sigmoid(fair) if logit[o] else min(max(fair, low[o]), high[o])
            if live:
                so[o, sc.TOTAL_NEW] += w * label[j] / theta
                so[o, sc.WEIGHT_NEW] += zero if r == CORRECTION else w
                so[o, sc.TOTAL_NEW + 2] += label[j] / theta
                so[o, sc.WEIGHT_NEW + 2] += zero if r == CORRECTION else one
            if r == SYNTHETIC:  # the label is what is left to chance, and is added again
                near = min(max(mu, low[o]), high[o])
                off = rates[IMAGINED] * (near - min(max(near + label[j], low[o]), high[o]))
                near = min(max(filled, low[o]), high[o])
                miss = rates[IMAGINED] * (near - min(max(near + label[j], low[o]), high[o]))
            error[0] = w * off
            if on[DOUBLY] and r != SYNTHETIC:
                error[0] -= rates[ROBUST] * w * (mu - filled)
                pairs = 0
                for p in range(P):
                    pairs += pair[j, p] >= 0
                for p in range(P):
                    if pair[j, p] >= 0:
                        reach = product(gu, g[1 + p])
                        far = base + bu[o] + b[1 + p, o] + reach
                        guess = base_f + bu[2 * Y + o] + b[1 + p, 2 * Y + o] + reach
                        if logit[o]:
                            far, guess = sigmoid(far), sigmoid(guess)
                        error[1 + p] = rates[ROBUST] * (far - guess) / np.float32(pairs)
            if live:
                terms[j, 1] = bu[o]
                if sn[sc.STEPS] % SAMPLE == 0:
                    terms[j, 0], terms[j, 2] = one, b[0, o]
                    terms[j, 3], terms[j, 4] = match, slope * apart
                    terms[j, 5] = alpha_z * z if gate else zero
                so[o, sc.Q_PENDING] += q
                so[o, sc.Q_FRESH] += 1.0
                if place == 0 or not logit[o]:
                    # popularity within the item: the outcome from the item's mean against
                    # popularity from the item's mean, so that quality is in neither (Mundlak 1978);
                    # at the first place alone, where examination is certain
                    count = item_bits[i, ai.outcomes + o]
                    usual = items[i, ai.rest + o]
                    if count > 0:
                        gap = label[j] - usual
                        bend = max(usual * (one - usual), flat) if logit[o] else one
                        so[o, sc.SCORE] += bend * gap * apart
                        so[o, sc.SEEN] += bend * bend * apart * apart
                        so[o, sc.NOISE_NEW] += gap * gap
                        so[o, sc.OF_NEW] += 1.0
                    item_bits[i, ai.outcomes + o] = count + np.uint32(1)
                    rate = max(one / np.float32(count + np.uint32(1)), np.float32(0.001))
                    items[i, ai.usual + o] += rate * (q - items[i, ai.usual + o])
                    items[i, ai.rest + o] += rate * (label[j] - usual)
                # the confounder path is learned beside, and opens when it predicts better
                shadow = plain + alpha_z * z
                kept = plain
                if logit[o]:
                    shadow, kept = theta * sigmoid(shadow), theta * sigmoid(kept)
                so[o, sc.SCORE + 1] += (shadow - label[j]) * z
                so[o, sc.SEEN + 1] += curve * z * z
                gain = np.float64((kept - label[j]) ** 2 - (shadow - label[j]) ** 2)
                so[o, sc.GAIN_NEW] += gain
                so[o, sc.GAIN_SQUARE_NEW] += gain * gain
                so[o, sc.GAIN_COUNT_NEW] += 1.0

        if r == CONTROL and on[CONTROL_PATH]:
            if items[i, ai.control_sum] == 0:
                # it starts as the treated: the tie holds it there until controls say otherwise
                for d in range(D):
                    items[i, ai.control + d] = items[i, ai.vector + d]
                items[i, ai.control_sum] = rates[START]
                for c in range(Y):
                    folded = b[0, Y + c] - items[i, ai.bias + Y + c]
                    items[i, ai.bias + Y + c] = b[0, c] - folded
                b[0, Y + o] = b[0, o]
                lin0 = base0 + bu[Y + o] + b[0, o] + match
                mu0 = sigmoid(lin0) if logit[o] else lin0
            elif not logit[o]:
                mu0 = lin0
            off = mu0 - label[j]
            if live:
                sn[sc.CONTROLS] += 1
                so[o, sc.TOTAL_NEW + 1] += label[j]
                so[o, sc.WEIGHT_NEW + 1] += 1.0
                # what this arm carries of the confounder path is learned beside it
                carried = lin0 + (alpha_z + np.float32(sw[o, sc.CARRIED])) * z
                carried += np.float32(sw[o, sc.LEVEL])
                mu_z = sigmoid(carried) if logit[o] else carried
                bend = mu_z * (one - mu_z) if logit[o] else one
                sw[o, sc.C_A] += (mu_z - label[j]) * z
                sw[o, sc.C_B] += mu_z - label[j]
                sw[o, sc.C_NAA] += bend * z * z
                sw[o, sc.C_NAB] += bend * z
                sw[o, sc.C_NBB] += bend
                user_bits[u, au.controls] += np.uint32(1)
                item_bits[i, ai.controls] += np.uint32(1)
            c = Y + o
            own = items[i, ai.bias + c]
            tie = rates[TIE] / (one + rates[TIE] * np.float32(item_bits[i, ai.controls]))
            pull = tie * (own - (b[0, o] - (b[0, c] - own)))
            step_bias(users, u, au, c, off, rates[LR_UB], zero)
            step_bias(items, i, ai, c, off + pull, rates[LR_IB], zero)
            for k in range(nu):
                f = user_links[u, k] - 1
                x = share(features, f, af, user_values[u, k], wu)
                step_bias(features, f, af, c, off * x, rates[LR_FB], zero)
            for k in range(ni):
                f = item_links[i, k] - 1
                x = share(features, f, af, item_values[i, k], weight_links[0])
                step_bias(features, f, af, c, off * x, rates[LR_FB], zero)
            for d in range(D):
                tied = items[i, ai.control + d] - items[i, ai.vector + d]
                grad_i[d] = off * gu[d] + tie * tied
            step_vector(
                items, i, ai.control, ai.control_sum, grad_i, square(grad_i), one, rates[LR_IF],
                zero,
            )  # fmt: skip

        # one step of every row
        for d in range(D):
            grad_u[d] = (m * error[0] + (one - m) * miss) * g[0, d]
        for d in range(E):
            grad_s[d] = contrast[0] * s[0, d]
        for d in range(S):
            grad_xu[d] = contrast_x[0] * x_[0, d]
        far_error = error[0]
        for p in range(1, 1 + P):
            if error[p] != 0:
                far_error += error[p]
                for d in range(D):
                    grad_u[d] += m * error[p] * g[p, d]
            if contrast[p] != 0:
                for d in range(E):
                    grad_s[d] += contrast[p] * s[p, d]
            if within:
                for d in range(S):
                    grad_xu[d] += contrast_x[p] * x_[p, d]
        if treated:
            size = square(grad_u)
            step_vector(users, u, au.vector, au.vector_sum, grad_u, size, one, rates[LR_UF], shrink)
            step_bias(users, u, au, o, far_error, rates[LR_UB], shrink)
            step_bias(users, u, au, 2 * Y + o, miss, rates[LR_UB], shrink)
        size_e, size_x = square(grad_s), square(grad_xu)
        if exposing:
            step_vector(users, u, au.expo, au.expo_sum, grad_s, size_e, one, le, shrink)
        if within:
            step_vector(users, u, au.session, au.session_sum, grad_xu, size_x, one, ls, shrink)
        for k in range(nu):
            f = user_links[u, k] - 1
            x = share(features, f, af, user_values[u, k], wu)
            if treated:
                step_vector(
                    features, f, af.vector, af.vector_sum, grad_u, size, x, rates[LR_FF], zero
                )
                step_bias(features, f, af, o, far_error * x, rates[LR_FB], zero)
                step_bias(features, f, af, 2 * Y + o, miss * x, rates[LR_FB], zero)
            if exposing:
                step_vector(features, f, af.expo, af.expo_sum, grad_s, size_e, x, le, zero)
            if within:
                step_vector(features, f, af.session, af.session_sum, grad_xu, size_x, x, ls, zero)
        for p in range(1 + P):
            other = i if p == 0 else pair[j, p - 1]
            if other < 0:
                continue
            valued, shown = error[p] != 0, contrast[p] != 0
            if valued:
                push = m * error[p] + (one - m) * miss if p == 0 else m * error[p]
                for d in range(D):
                    grad_i[d] = push * gu[d]
                size = square(grad_i)
                step_vector(
                    items, other, ai.vector, ai.vector_sum, grad_i, size, one, rates[LR_IF], shrink
                )
                step_bias(items, other, ai, o, error[p], rates[LR_IB], shrink)
            if shown:
                for d in range(E):
                    grad_t[d] = contrast[p] * su[d]
                size_e = square(grad_t)
                step_vector(items, other, ai.expo, ai.expo_sum, grad_t, size_e, one, le, shrink)
                step_bias(items, other, ai, ce, contrast[p], rates[LR_EB], zero)
            if within:
                for d in range(S):
                    grad_x[d] = contrast_x[p] * xu[d]
                size_x = square(grad_x)
                step_vector(
                    items, other, ai.session, ai.session_sum, grad_x, size_x, one, ls, shrink
                )
            if p == 0 and treated:
                step_bias(items, other, ai, 2 * Y + o, miss, rates[LR_IB], shrink)
            if averaged and valued:
                average(items, item_bits, other, ai, keep)
            for k in range(count_links[p]):
                f = item_links[other, k] - 1
                x = share(features, f, af, item_values[other, k], weight_links[p])
                if valued:
                    step_vector(
                        features, f, af.vector, af.vector_sum, grad_i, size, x, rates[LR_FF], zero
                    )
                    step_bias(features, f, af, o, error[p] * x, rates[LR_FB], zero)
                if shown:
                    step_vector(features, f, af.expo, af.expo_sum, grad_t, size_e, x, le, zero)
                    step_bias(features, f, af, ce, contrast[p] * x, le, zero)
                if within:
                    step_vector(
                        features, f, af.session, af.session_sum, grad_x, size_x, x, ls, zero
                    )
                if p == 0 and treated:
                    step_bias(features, f, af, 2 * Y + o, miss * x, rates[LR_FB], zero)
                if live and p == 0 and treated:
                    feature_bits[f, af.events] += np.uint32(1)
                if averaged and valued:
                    average(features, feature_bits, f, af, keep)
        if treated:
            for k in range(nu):
                f = user_links[u, k] - 1
                if live:
                    feature_bits[f, af.events] += np.uint32(1)
                if averaged:
                    average(features, feature_bits, f, af, keep)
        if live and counts[j]:
            for d in range(S):
                users[u, au.recent + d] += rates[RECENT] * (x_[0, d] - users[u, au.recent + d])
        if live:
            sn[sc.STEPS] += 1
            if sc.border(sn[sc.STEPS]):
                sc.refresh(so, sh, st, sw, sn, memory)


@compiled
def serve(
    rows: Array, table: Array, at: Layout, features: Array, af: Layout, links: Array,
    values: Array, averaged: bool, share_recent: np.float32, vector: Array, expo: Array,
    bias: Array,
) -> None:  # fmt: skip
    """Write the rows as they are served: own parts and attributes', means where there are any.

    `expo` (n, E + S): what lasts, then the session, to which a user's has its recent items added.
    """
    means = averaged and at.mean >= 0
    first = at.mean if means else at.vector
    first_f = af.mean if means else af.vector
    for j in range(rows.size):
        row = rows[j]
        n = linked(links, row)
        weight = np.float32(1) / np.sqrt(np.float32(max(n, 1)))
        for d in range(at.D):
            vector[j, d] = table[row, first + d]
        for d in range(at.E):
            expo[j, d] = table[row, at.expo + d]
        for d in range(at.S):
            expo[j, at.E + d] = table[row, at.session + d]
            if at.recent >= 0:
                expo[j, at.E + d] += share_recent * table[row, at.recent + d]
        for c in range(at.C):
            bias[j, c] = table[row, at.bias + c]
        if means:
            for c in range(at.Y):
                bias[j, c] = table[row, at.mean_bias + c]
        for k in range(n):
            f = links[row, k] - 1
            x = share(features, f, af, values[row, k], weight)
            for d in range(at.D):
                vector[j, d] += x * features[f, first_f + d]
            for d in range(at.E):
                expo[j, d] += x * features[f, af.expo + d]
            for d in range(at.S):
                expo[j, at.E + d] += x * features[f, af.session + d]
            for c in range(at.C):
                at_c = af.mean_bias + c if means and c < at.Y else af.bias + c
                bias[j, c] += x * features[f, at_c]
