"""Command lines made from config dataclasses: one option per field, a recipe gives the defaults."""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

ConfigT = TypeVar("ConfigT")


def parse_config(recipes: Mapping[str, Callable[[], ConfigT]], *, description: str | None) -> ConfigT:
    """Read `RECIPE [--field value ...]` from the command line.

    Args:
        recipes: functions by name, each returning a complete, frozen config; nested dataclasses are flattened.
        description: shown by --help.

    Returns:
        The recipe's config with the given fields replaced and validated; exits with status 2 on a bad value.
    """
    names = argparse.ArgumentParser(add_help=False)
    names.add_argument("recipe", choices=sorted(recipes), nargs="?")
    recipe, _ = names.parse_known_args()
    config = recipes[recipe.recipe or next(iter(recipes))]()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("recipe", choices=sorted(recipes), help="named config whose values are the defaults below")
    _add_fields(parser, config)
    values = vars(parser.parse_args())
    try:
        return _replace(config, values)
    except ValueError as error:
        parser.error(str(error))


def _add_fields(parser: argparse.ArgumentParser, config: Any) -> None:
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _add_fields(parser, value)
            continue
        hint, many = hints[field.name], typing.get_origin(hints[field.name]) is tuple
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
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
