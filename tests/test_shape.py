"""The learner's code stays in functions that fit a screen."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "stream" / "model"
LINES, ARGUMENTS = 60, 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    """Yield every function, those within others too, by file and name."""
    for path in sorted(FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}: {node.name}", node


def lines(function: Function) -> int:
    """Return how long the function is, its decorators counted."""
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    return (function.end_lineno or first) - first + 1


def arguments(function: Function) -> int:
    """Return how many arguments the function takes, `self` apart."""
    a = function.args
    stars = [each for each in (a.vararg, a.kwarg) if each]
    named = [each.arg for each in (*a.posonlyargs, *a.args, *a.kwonlyargs, *stars)]
    return len([name for name in named if name not in ("self", "cls")])


def test_no_function_of_the_model_is_longer_than_a_screen() -> None:
    long = {name: lines(of) for name, of in functions() if lines(of) > LINES}
    assert not long


def test_no_function_of_the_model_takes_more_than_eight_arguments() -> None:
    many = {name: arguments(of) for name, of in functions() if arguments(of) > ARGUMENTS}
    assert not many


def test_the_functions_of_the_model_are_found() -> None:
    found = dict(functions())
    assert len(found) > 200
    assert arguments(found["stream/model/learner.py: step"]) == 1
