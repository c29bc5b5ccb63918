"""Coverage of the published 95 % intervals where users return, differ, and see correlated slates.

    python -m tests.benchmarks.coverage [average|off_policy|slopes|paths] [SEEDS]

Each line is a cell of a grid; `none` is the share of streams that have no interval yet.
"""

import argparse
from itertools import product

import numpy as np

from stream.effects import AverageEffect, OffPolicy, PathRegression, Slopes

LIFT = 0.5  # of the chance of a click, on average
WINDOWS = (500, 1_000, 5_000, 20_000, 100_000)


def users(rng, n, each, k):
    """Return user, slate, the users' own tendency and their own lift of n windows."""
    user = np.arange(n, dtype=np.int32) // each
    # a slate is of one user
    slate = user.astype(np.int64) * each + np.arange(n) % each // min(k, each)
    tendency = rng.uniform(0.5, 1.5, user[-1] + 1)
    lift = rng.choice([LIFT - 1, LIFT + 1], user[-1] + 1)
    return user, np.unique(slate, return_inverse=True)[1], tendency[user], lift[user]


def shown(rng, n, each, k, withheld, base):
    """Return the columns of closed windows; showing lifts the chance of a click by LIFT * base."""
    user, slate, tendency, lift = users(rng, n, each, k)
    mood = rng.choice([0.0, 2.0], slate[-1] + 1)[slate]
    control = base * tendency * mood
    arm = rng.random(n) >= withheld
    click = rng.random(n) < control * np.where(arm, 1 + lift, 1.0)
    treated = control * (1 + LIFT) * rng.uniform(0.5, 1.5, n)
    return arm, click.astype(float), np.full(n, 1 - withheld), treated, control, user


def averages(rng, n, each, k, withheld, base):
    """Return the interval of the average effect, the true one, and why there is none."""
    columns = shown(rng, n, each, k, withheld, base)
    effect = AverageEffect(n // each + 1)
    effect.update(*columns)
    figures = effect.figures()
    return {"effect": figures["interval"]}, {"effect": LIFT * base}


def policies(rng, n, each, k, explored, base):
    """Return the intervals of the greedy policy's value, and the true ones; users differ."""
    user, slate, tendency, _ = users(rng, n, each, k)
    mood = rng.choice([0.0, 2.0], slate[-1] + 1)[slate]
    greedy = rng.random(n) >= explored / 2
    chance = base * tendency * mood * np.where(greedy, 1.5, 0.5)
    click = (rng.random(n) < chance).astype(float)
    judge = OffPolicy(users=n // each + 1)
    propensity = np.where(greedy, 1 - explored / 2, explored / 2)
    model = np.full(n, base)
    judge.update(click, propensity, greedy.astype(float), model, model, user)
    figures = judge.figures()
    names = ("ips", "snips", "dr")
    return {x: figures[x]["interval"] for x in names}, dict.fromkeys(names, 1.5 * base)


def market(rng, n, each, *_):
    """Return item, label, user's bias, numbers and user of n outcomes; users and items differ.

    A price lasts for a hundred outcomes; what one unit does is -.1 on average.
    """
    items, user = 40, rng.permutation(np.arange(n, dtype=np.int32) // each)
    item = rng.integers(items, size=n).astype(np.int32)
    price = rng.uniform(-2, 2, (n // 100 + 1, items))[np.arange(n) // 100, item]
    slope = -0.1 + rng.normal(0, 0.1, n // each + 1)[user] + rng.normal(0, 0.03, items)[item]
    bias = rng.normal(0, 0.3, n // each + 1)[user]
    label = rng.normal(0, 0.8, items)[item] + bias + slope * price + rng.uniform(-0.5, 0.5, n)
    return item, label, bias.astype(np.float32), price[:, None].astype(np.float32), user


def slopes(rng, n, each, *_):
    """Return the interval of the slope of a price, and the true one."""
    fit = Slopes(False, 40, 1, n // each + 1)
    fit.update(*market(rng, n, each))
    said = fit.figures(("price",))
    interval = said["interval"]
    return {"slope": interval and interval[0]}, {"slope": -0.1}


def paths(rng, n, each, *_):
    """Return the interval of a path's coefficient, and the true one; users and items differ."""
    item, label, bias, price, user = market(rng, n, each)
    fit = PathRegression(("one", "user", "price"), users=n // each + 1, items=40)
    fit.update(np.column_stack([np.ones(n), bias, price]), label, user, item)
    beta, covariance = fit.fit()
    half = 1.959964 * covariance[2, 2] ** 0.5
    interval = None if fit.reason else [beta[2] - half, beta[2] + half]
    return {"path": interval}, {"path": -0.1}


def cell(make, seeds, *where):
    """Return by name how often the interval held the truth, and how often there was one."""
    found: dict[str, list[bool]] = {}
    for seed in range(seeds):
        intervals, truth = make(np.random.default_rng([seed, 7]), *where)
        for name, said in intervals.items():
            held = found.setdefault(name, [])
            if said is not None:
                held.append(said[0] <= truth[name] <= said[1])
    return {name: (float(np.mean(h)) if h else None, len(h)) for name, h in found.items()}


def grid(make, seeds, windows=WINDOWS):
    """Print a line for each cell."""
    print("windows  a user   k  withheld  base   coverage (streams with an interval)")
    for n, each, k, withheld, base in product(
        windows, (1, 10, 100), (1, 5, 20), (0.005, 0.05, 0.5), (0.02, 0.1)
    ):
        if k > each and k > 1:
            continue  # a slate is of one user
        if make is averages and n * withheld < 400:
            continue
        if make in (slopes, paths) and (k > 1 or withheld < 0.5 or base < 0.1):
            continue  # of outcomes, not of slates
        few = seeds if n < 100_000 else max(seeds // 2, 1)
        said = cell(make, few, n, each, k, withheld, base)
        text = "  ".join(
            f"{name} {'none' if c is None else format(c, '.3f')} ({m}/{few})"
            for name, (c, m) in said.items()
        )
        print(f"{n:7} {each:7} {k:4} {withheld:8}  {base:5}  {text}", flush=True)


if __name__ == "__main__":
    made = {"average": averages, "off_policy": policies, "slopes": slopes, "paths": paths}
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks.coverage", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", nargs="?", choices=made, default="average")
    parser.add_argument("seeds", nargs="?", type=int, default=400, help="streams a cell (400)")
    args = parser.parse_args()
    grid(made[args.what], args.seeds)
