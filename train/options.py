"""Command lines made from config dataclasses: one option per field, a recipe gives the defaults."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from eam_core.errors import EAMError

ConfigT = TypeVar("ConfigT")


def parse_config(recipes: Mapping[str, Callable[[], ConfigT]], *, description: str | None) -> ConfigT:
    """Read `RECIPE [--field value ...]` from the command line.

    Args:
        recipes: functions by name, each returning a complete, frozen config; nested dataclasses are flattened.
        description: shown by --help.

    Returns:
        The recipe's config with the given fields replaced and validated; exits with status 2 on a bad value.
    """
    # The recipe stands first: what follows are its fields, whose defaults must be known to build the parser.
    config = recipes.get(sys.argv[1] if len(sys.argv) > 1 else "", next(iter(recipes.values())))()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("recipe", choices=sorted(recipes), help="named config whose values are the defaults below")
    _add_fields(parser, config)
    values = vars(parser.parse_args())
    try:
        return _replace(config, values)
    except ValueError as error:
        parser.error(str(error))


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main; a mistake in a file or setting becomes one sentence and exit status 2."""
    try:
        main()
    except EAMError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _add_fields(parser: argparse.ArgumentParser, config: Any) -> None:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _add_fields(parser, value)
            continue
        hint, many = hints[field.name], typing.get_origin(hints[field.name]) is tuple
        option = f"--{field.name.replace('_', '-')}"
        if hint is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=value, help=" ")
            continue
        parser.add_argument(
            option,
            type=typing.get_args(hint)[0] if many else (type(value) if value is not None else str),
            nargs="+" if many else None,
            default=value,
            choices=typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else None,
            help=" ",
        )


def _replace(config: Any, values: Mapping[str, Any]) -> Any:
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = _replace(value, values)
        else:
            new = values[field.name]
            changed[field.name] = tuple(new) if isinstance(new, list) else new
    return dataclasses.replace(config, **changed)
