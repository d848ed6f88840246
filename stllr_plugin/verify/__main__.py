"""``python -m stllr_plugin.verify my_script:make``: verifies a model from the command line.

``make()`` returns ``(model, inputs, loss_fn)`` or ``(model, inputs, loss_fn, rule)``, or a dict of the arguments of
:func:`stllr_plugin.verify.verify`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from stllr_plugin.errors import STLLRError
from stllr_plugin.verify import verify

_NAMES = ("model", "inputs", "loss_fn", "rule")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0 if the verification passed, 1 if it did not, 2 if it could not be made.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stllr_plugin.verify",
        description="Compares the gradients that S-TLLR gives your model with a slow, independent computation.",
    )
    parser.add_argument(
        "factory",
        help="module:function; the function returns (model, inputs, loss_fn[, rule]) or a dict of verify()'s arguments",
    )
    parser.add_argument("--rule", help="preset; goes before the one that the function returns (default: dvs_gesture)")
    parser.add_argument("--exclude", action="append", default=[], help="pattern of modules to leave alone")
    parser.add_argument("--supervise-last", type=int, help="supervise the last k steps")
    parser.add_argument("--num-steps", type=int, help="number of time steps, where it cannot be told")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--steps", action="store_true", default=None, help="a call of the model is one time step")
    group.add_argument("--whole", dest="steps", action="store_false", help="the loop over time is inside the model")
    options = parser.parse_args(arguments)
    try:
        settings = _made(options.factory)
        given = {
            "rule": options.rule,
            "exclude": options.exclude or None,
            "supervise_last": options.supervise_last,
            "num_steps": options.num_steps,
            "steps": options.steps,
        }
        settings.update({name: value for name, value in given.items() if value is not None})
        settings.setdefault("rule", "dvs_gesture")
        result = verify(**settings)
    except (STLLRError, _UsageError) as error:
        print(error, file=sys.stderr)
        return 2
    print(result)
    return 0 if result.passed else 1


class _UsageError(Exception):
    pass


def _made(factory: str) -> dict[str, Any]:
    """What the user's function returns, by name of argument."""
    module, colon, name = factory.partition(":")
    if not colon or not module or not name:
        raise _UsageError(f"{factory!r}: expected module:function, e.g. my_script:make")
    try:
        function = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise _UsageError(
            f"There is no module {module!r} here; run the command from the folder that it is in."
        ) from error
    if not callable(function):
        raise _UsageError(f"Module {module!r} has no function {name!r}.")
    made = function()
    if isinstance(made, dict):
        return made
    if not isinstance(made, tuple) or not 3 <= len(made) <= 4:
        raise _UsageError(
            f"{factory} returned {type(made).__name__}; expected (model, inputs, loss_fn[, rule]) or a dict."
        )
    return dict(zip(_NAMES, made, strict=False))


if __name__ == "__main__":
    sys.exit(main())
