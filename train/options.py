"""Command lines made from config dataclasses: one option per field, a recipe gives the defaults."""

import argparse
import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from eam_core.console import show_any_text
from eam_core.errors import EAMError

ConfigT = TypeVar("ConfigT")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description, name the defaults."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one sentence; a misspelt option is told what it may have meant."""
        if message.startswith("unrecognized arguments: "):
            given = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(given, known, n=1)
            message += f"; did you mean {near[0]}?" if near else f"; {self.prog} --help lists what there is"
        self.exit(2, f"error: {message}\n")


def parse_config(
    recipes: Mapping[str, Callable[[], ConfigT]], *, description: str | None, argv: Sequence[str] | None = None
) -> ConfigT:
    """Read `RECIPE [--field value ...]` from the command line.

    Args:
        recipes: functions by name, each returning a complete, frozen config; nested dataclasses are flattened, those
            whose field has a "prefix" in its metadata with that prefix.
        description: shown by --help.
        argv: the words after the script's name; those of the process when None.

    Returns:
        The recipe's config with the given fields replaced and validated; exits with status 2 on a bad value.
    """
    argv = sys.argv[1:] if argv is None else argv
    # The recipe stands first: what follows are its fields, whose defaults must be known to build the parser.
    config = recipes.get(argv[0] if argv else "", next(iter(recipes.values())))()
    parser = _Parser(description=description, formatter_class=_Formatter, allow_abbrev=False)
    parser.add_argument("recipe", choices=sorted(recipes), help="named config whose values are the defaults below")
    _add_fields(parser, config, "")
    values = vars(parser.parse_args(argv))
    try:
        return _replace(config, values, "")
    except ValueError as error:
        parser.error(str(error))


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; a mistake in a file or setting becomes one sentence and exit status 2."""
    show_any_text()
    try:
        main()
    except EAMError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def field_help(config_type: type) -> dict[str, str]:
    """Read what each field of a dataclass means from the "Args:" or "Attributes:" of its docstring and its bases'."""
    found: dict[str, str] = {}
    for kind in reversed(config_type.__mro__):
        arguments = re.split(r"(?:Args|Attributes):\n", kind.__doc__ or "", maxsplit=1)[-1]
        for names, text in re.findall(r"^        ([\w, ]+): (.*(?:\n            .*)*)", arguments, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), re.sub(r"\s+", " ", text).replace("%", "%%"))
    return found


def _add_fields(parser: argparse.ArgumentParser, config: Any, prefix: str) -> None:
    hints, helps = typing.get_type_hints(type(config)), field_help(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _add_fields(parser, value, field.metadata.get("prefix", ""))
            continue
        if field.name == "recipe":  # the first word on the command line
            continue
        hint, many = hints[field.name], typing.get_origin(hints[field.name]) is tuple
        text = helps.get(field.name, " ") or " "
        option = f"--{prefix}{field.name}".replace("_", "-")
        if hint is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=value, help=text)
            continue
        parser.add_argument(
            option,
            type=typing.get_args(hint)[0] if many else (type(value) if value is not None else str),
            nargs="*" if many else None,
            default=value,
            choices=typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None,
            metavar=None if typing.get_origin(hint) is typing.Literal else field.name.upper(),
            help=text,
        )


def _replace(config: Any, values: Mapping[str, Any], prefix: str) -> Any:
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = _replace(value, values, field.metadata.get("prefix", ""))
        else:
            new = values[f"{prefix}{field.name}"]
            changed[field.name] = tuple(new) if isinstance(new, list) else new
    return dataclasses.replace(config, **changed)
