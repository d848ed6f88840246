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
_BAD_OPTION_OF_CALLABLE = re.compile(
    r"Option '(?P<option>[\w.]+)' is not accepted\. Got value: Namespace\(class_path='(?P<path>[\w.]+)'"
)
_BAD_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\w+)")
_BAD_NAME = re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")
_BAD_MODULE = re.compile(r"No module named '(?P<module>[\w.]+)'")
_BAD_KEY = re.compile(r"(?:does not accept option|Key|Parser key) '(?P<key>[\w.]+)'(?: is not expected)?$")
_BAD_ARGUMENT = re.compile(r"^unrecognized arguments: (?P<argument>\S+)")
_MISSING = re.compile(r"the following arguments are required: (?P<names>[\w., ]+)")
_MISSING_PARTS = re.compile(r"^the following arguments are required: (?P<names>(?:(?:\w+\.)?(?:model|data)(?:, )?)+)$")
_KEY = re.compile(r"Parser key \"(?P<key>[\w.]+)\"")
_CLASS_PATH = re.compile(r"class_path='(?P<path>[\w.]+)'")
_EXPECTED = re.compile(r"Expected a (?P<type>typing\.Literal\[[^]]*\]|<class '[\w.]+'>)")
_FOUND = re.compile(r"Given value: (?P<value>.*)|Got value: (?P<other>.*)")

_EXPLAINED = re.compile(r"\w+ has no option '|There is no class '|There is no module '|\w+ needs |[\w.]+: found '")
_PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list"}
_HOMES = {  # last part of a key: modules (the package's own begin with a dot), and the class that is wanted there
    "model": ((".",), "lightning.pytorch.LightningModule"),
    "data": ((".data",), "lightning.pytorch.LightningDataModule"),
    "network": ((".networks",), "torch.nn.Module"),
    "loss": ((".flow.contrast", ".flow.photometric", ".flow.supervised"), "torch.nn.Module"),
    "callbacks": ((".callbacks", "lightning.pytorch.callbacks"), "lightning.pytorch.Callback"),
    "logger": (("lightning.pytorch.loggers",), "lightning.pytorch.loggers.Logger"),
    "optimizer": (("torch.optim",), "torch.optim.Optimizer"),
    "lr_scheduler": (("torch.optim.lr_scheduler",), "torch.optim.lr_scheduler.LRScheduler"),
}


def explain(message: str, keys: Iterable[str], home: ModuleType) -> str:
    """Turn a message of the parser into one for people.

    Args:
        message: The parser's message, which may spell out whole configurations.
        keys: The keys that the parser knows, such as ``trainer.max_epochs``.
        home: Package whose classes YAML may name without their module.
    """
    for kind in (_BAD_OPTION, _BAD_OPTION_OF_CALLABLE):
        if match := kind.search(message):
            path, option = match["path"], match["option"]
            options = list(accepted_options(path))
            name = path.rpartition(".")[2]
            return (
                f"{name} has no option {option!r}.{did_you_mean(option, options)}\nIts options: {', '.join(options)}."
            )
    if match := _BAD_CLASS.search(message):
        return _no_class(match["name"], _key_before(message, match.start()), home)
    if match := _EXPLAINED.search(message):  # by the parser of the class in question
        message = message[match.start() :]
    elif match := _BAD_NAME.search(message):
        module, name = match["module"], match["name"]
        known = [f"{module}.{one}" for one in dir(import_module(module)) if one[:1].isupper()]
        return f"There is no class '{module}.{name}'.{did_you_mean(f'{module}.{name}', known)}"
    elif match := _BAD_MODULE.search(message):
        return (
            f"There is no module {match['module']!r}. A class_path is a name, or a module and a name: torch.optim.Adam."
        )
    elif match := _MISSING_PARTS.search(message.strip()):
        names = [name.rpartition(".")[2] for name in match["names"].split(", ")]
        return (
            f"{' and '.join(sorted(names, reverse=True))} not given. Name a YAML file that has them: "
            "--config configs/quickstart.yaml"
        )
    elif (match := _MISSING.search(message)) and (path := _CLASS_PATH.search(message)):
        return f"{path['path'].rpartition('.')[2]} needs {match['names']}: put it under init_args."
    elif match := _BAD_ARGUMENT.search(message):
        return _no_argument(match["argument"], list(keys))
    elif match := _BAD_KEY.search(message.strip()):
        key = match["key"]
        return f"There is no option {key!r}.{did_you_mean(key, keys)}"
    elif text := _wrong_value(message):
        return text
    lines = [line for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    return "\n".join(
        " " * 2 * sorted(set(indents)).index(i) + line.strip() for i, line in zip(indents, lines, strict=True)
    )


def _key_before(message: str, end: int) -> str:
    """The last key that the message names before a place."""
    names = [match["key"] for match in _KEY.finditer(message, 0, end)]
    return names[-1] if names else ""


def _no_class(name: str, key: str, home: ModuleType) -> str:
    known = list(known_classes(key, home))
    shown = [one for one in known if getattr(home, one, None) or hasattr(getattr(home, "data", None), one)] or known
    return (
        f"There is no class {name!r}.{did_you_mean(name, known)}\n"
        f"Known by name alone: {', '.join(shown)}. Give any other class with its module: package.module.Class."
    )


def known_classes(key: str, home: ModuleType) -> Iterator[str]:
    """Names of the classes that YAML may give by name alone.

    Args:
        key: Where the class stands, such as ``trainer.callbacks``; all classes of ``home`` if it is not known.
        home: The package.
    """
    found = _HOMES.get(key.rpartition(".")[2])
    if found is None:
        yield from (name for name in getattr(home, "__all__", ()) if name[:1].isupper())
        return
    modules, path = found
    base_module, _, base_name = path.rpartition(".")
    base = getattr(import_module(base_module), base_name)
    for path in modules:
        module = import_module(f"{home.__name__}{path.rstrip('.')}" if path.startswith(".") else path)
        for name in getattr(module, "__all__", dir(module)):
            one = getattr(module, name, None)
            if inspect.isclass(one) and issubclass(one, base) and one is not base and not inspect.isabstract(one):
                yield name


def _no_argument(argument: str, keys: list[str]) -> str:
    if not argument.startswith("-"):
        hint = f" Did you mean --config {argument}?" if argument.endswith((".yaml", ".yml")) else ""
        return f"{argument!r} belongs to no option.{hint}"
    name = argument.partition("=")[0].lstrip("-")
    head, dot, rest = name.partition(".")
    close = difflib.get_close_matches(name, keys, n=1, cutoff=0.8) or [
        f"{one}{dot}{rest}" for one in difflib.get_close_matches(head, [key.partition(".")[0] for key in keys], n=1)
    ]
    hint = f" Did you mean --{close[0]}?" if close and close[0] != name else ""
    return f"There is no option --{name}.{hint}"


def _wrong_value(message: str) -> str:
    """``trainer.max_epochs: found 'many'; expected a whole number``, if that is all that the message says."""
    found, key = _FOUND.search(message), _key_before(message, len(message))
    kinds = [match["type"] for match in _EXPECTED.finditer(message)]
    said = [line for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
    if not found or not key or not kinds or len(said) > 1 + len(kinds) or "class_path" in message:
        return ""
    value = (found["value"] or found["other"]).strip()
    words, plain = [], []
    for kind in kinds:
        if kind.startswith("typing.Literal"):
            words += re.findall(r"'([^']*)'", kind)
        elif "NoneType" not in kind:
            name = kind.split("'")[1]
            plain.append(_PLAIN.get(name, name))
    expected = ([f"one of {', '.join(words)}"] if words else []) + list(dict.fromkeys(plain))
    return f"{key}: found {value!r}; expected {' or '.join(expected)}.{did_you_mean(value, words)}" if expected else ""


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
    if "torch.optim" in module:  # the command fills in the parameters, and the optimizer of a schedule
        seen |= {"params", "optimizer"}
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
