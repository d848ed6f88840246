"""Texts of the command line: errors that say what was probably meant, help pages without endless lists."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from textwrap import fill
from types import ModuleType

_NOISE = re.compile(
    r"^\s*(Does not validate against|Subtypes: |Errors:|Given value type: |Given value: "
    r"|- Expected a <class 'NoneType'>|- Expected a path but|- Does not validate)"
)
_BAD_OPTION = re.compile(
    r"Problem with given class_path '(?P<path>[\w.]+)':\s+Option '(?P<option>[\w.]+)' is not accepted"
)
_BAD_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\w+)")
_BAD_KEY = re.compile(r"(?:does not accept option|Key|Parser key) '(?P<key>[\w.]+)'(?: is not expected)?$")

_EXPLAINED = re.compile(r"\w+ has no option '|There is no class '")


def explain(message: str, keys: Iterable[str], home: ModuleType) -> str:
    """Turn a message of the parser into one for people.

    Args:
        message: The parser's message, which may spell out whole configurations.
        keys: The keys that the parser knows, such as ``trainer.max_epochs``.
        home: Package whose classes YAML may name without their module.
    """
    if match := _BAD_OPTION.search(message):
        path, option = match["path"], match["option"]
        options = list(accepted_options(path))
        name = path.rpartition(".")[2]
        return f"{name} has no option {option!r}.{did_you_mean(option, options)}\nIts options: {', '.join(options)}."
    if match := _BAD_CLASS.search(message):
        name, known = match["name"], [name for name in getattr(home, "__all__", ()) if name[:1].isupper()]
        return (
            f"There is no class {name!r}.{did_you_mean(name, known)}\n"
            f"Known by name alone: {', '.join(known)}. Give any other class with its module: package.module.Class."
        )
    if match := _BAD_KEY.search(message.strip()):
        key = match["key"]
        return f"There is no option {key!r}.{did_you_mean(key, keys)}"
    if match := _EXPLAINED.search(message):  # by the parser of the class in question
        message = message[match.start() :]
    lines = [line for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    return "\n".join(
        " " * 2 * sorted(set(indents)).index(i) + line.strip() for i, line in zip(indents, lines, strict=True)
    )


def shorten_help(text: str, package: str, most: int = 8) -> str:
    """Cut the lists of known classes in a help page.

    The parser lists every subclass that it can find, hundreds for ``torch.nn.Module``. Kept are the classes of
    ``package``, or else the first ``most``.
    """

    def shorten(match: re.Match[str]) -> str:
        known = match["names"].replace("\n", "").replace(" ", "").split(",")
        ours = [name for name in known if name.startswith(f"{package}.")]
        kept = ours or known[:most]
        rest = "" if len(kept) == len(known) else f", and {len(known) - len(kept)} more"
        indent = " " * 24  # where the parser's descriptions begin
        return "\n" + fill(
            f"known subclasses: {', '.join(kept)}{rest})", 79, initial_indent=indent, subsequent_indent=indent
        )

    return re.sub(r"\s*known\s+subclasses:\s(?P<names>[^)]*)\)", shorten, text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'size'?`` if something close is known, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def accepted_options(class_path: str) -> Iterator[str]:
    """Names of the constructor's arguments of a class, those of its bases included where it passes ``**kwargs`` on."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(import_module(module), name)
    seen: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        for parameter in parameters:
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.name not in {"self", *seen}:
                seen.add(parameter.name)
                yield parameter.name
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return


def our_error(error: BaseException, packages: tuple[str, ...]) -> BaseException | None:
    """The error at the root of a chain, if it is a ValueError that one of these packages raised on purpose."""
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    trace = root.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    ours = raised_in.partition(".")[0] in packages
    return root if ours and isinstance(root, (ValueError, FileNotFoundError)) else None
