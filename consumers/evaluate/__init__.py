"""The evaluations behind `counterflow evaluate`; each is a module with a function `run`.

    shopping   Coat: ratings if shown, judged on random ratings, beside other methods
    movielens  MovieLens-100K: progressive errors, and rankings by each objective
    uplift     a randomised trial from a CSV file, beside two regressions
    policy     the value of another policy, from a log with propensities

This module has only the command line and imports nothing that is slow to load.
"""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumers.settings import Settings


def arguments(command: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the evaluations and their arguments to the command's parser."""
    sub = command.add_subparsers(required=True, metavar="WHAT", dest="what")

    def what(name: str, help_: str) -> argparse.ArgumentParser:
        return sub.add_parser(name, parents=[common], help=help_, description=help_)

    coat = what("coat", "learn self-selected ratings, judge on random ones, beside other methods")
    coat.add_argument("--data", required=True, metavar="DIR", help="the unpacked data set")
    coat.add_argument("--seeds", type=count, default=5)
    coat.add_argument(
        "--tune", action="store_true", help="repeat the search for settings and print them"
    )
    ml_100k = what("ml-100k", "progressive errors by segment, and rankings by objective")
    ml_100k.add_argument(
        "--ablate", action="store_true", help="repeat it with each path switched off in turn"
    )
    uplift = what("uplift", "the effect of a randomised treatment, and who responds")
    uplift.add_argument("--data", required=True, metavar="CSV")
    uplift.add_argument("--treatment", required=True, metavar="COL", help="0 or 1")
    uplift.add_argument("--outcome", required=True, metavar="COL", help="0 or 1, or a number")
    uplift.add_argument("--features", required=True, metavar="COL,COL", type=names)
    uplift.add_argument(
        "--probability", metavar="COL", help="probability of treatment, if it is not constant"
    )
    uplift.add_argument(
        "--user", metavar="COL", help="the row's user, if users have several rows; for variances"
    )
    policy = what("policy", "the value of another policy, from a log with propensities")
    policy.add_argument(
        "--data", required=True, metavar="CSV",
        help="columns action, reward, propensity, and optionally position, user, slate; all others"
        " are features",
    )  # fmt: skip
    policy.add_argument(
        "--target", default="model", metavar="model|uniform|COL",
        help="the policy to judge: the model's greedy policy, a uniform one, or a column with its"
        " probability of the logged action",
    )  # fmt: skip


def names(text: str) -> list[str]:
    """Return the comma-separated names."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("must name at least one column")
    return found


def count(text: str) -> int:
    """Return a number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def run(args: argparse.Namespace, settings: "Settings") -> dict[str, Any]:
    """Run the requested evaluation and return its figures."""
    from consumers.model_config import model_config

    config, seed = model_config(settings), settings.trainer.seed
    if args.what == "coat":
        from consumers.evaluate import shopping

        if args.tune:
            return shopping.tuned(args.data, config)
        return shopping.run(args.data, args.seeds, config)
    if args.what == "ml-100k":
        from consumers.evaluate import movielens

        return movielens.run(config, seed, args.ablate)
    if args.what == "uplift":
        from consumers.evaluate import uplift

        return uplift.run(
            args.data,
            args.treatment,
            args.outcome,
            args.features,
            args.probability,
            args.user,
            config=config,
            seed=seed,
        )
    from consumers.evaluate import policy

    return policy.run(args.data, args.target, config=config, seed=seed)


def lines(figures: dict[str, Any], name: str = "") -> list[str]:
    """Return the figures as text, one per line, with dotted names."""
    out = []
    for key, value in figures.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, dict):
            out += lines(value, path)
        else:
            shown = value if isinstance(value, list) else [value]
            text = ", ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in shown)
            out.append(f"{path:<44} {text}")
    return out
