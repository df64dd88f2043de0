"""Options described once: the fields of a dataclass give the command line, its help, the checks and the table in the docs.

A field made by `option` carries what is known of an option. `expanded` replaces a command's parameter of such a class by
an option for each field. A parameter of the class `Given` gets only the options that the user named. A class's `TITLE`
stands above its own options in the help.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import wraps
from types import NoneType
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer

from maskpro.errors import MaskproError

T = TypeVar("T")
_KEY = "option"


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known of an option besides its name, type and default.

    Attributes:
        help: one sentence, without the default.
        flags: all spellings on the command line, where `--name` alone is not what is wanted.
        otherwise: what holds without the option, where the default is None.
        least: the smallest number that is allowed.
        choices: the values that are allowed.
        parse: from the text on the command line to the field's value.
        positional: on the command line it is an argument without a name.
        groups: names of the groups that the option belongs to, such as those that a resumed search accepts.
    """

    help: str
    flags: tuple[str, ...] = ()
    otherwise: str = ""
    least: int | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    positional: bool = False
    groups: tuple[str, ...] = ()


def option(default: Any, help: str, *flags: str, **known: Any) -> Any:
    """A dataclass field that is an option; `known` are further attributes of `Option`, `default` MISSING if it has none."""
    return field(default=default, metadata={_KEY: Option(help=help, flags=flags, **known)})


@dataclass(frozen=True)
class Given(Generic[T]):
    """The options of the class `T` that the user named.

    Attributes:
        values: by name, as the command line has them.
    """

    values: Mapping[str, Any]


def options_of(kind: type) -> Iterator[tuple[Field[Any], Option]]:
    """The fields of an option class that are options: its own first, then those of the classes that it is made of."""
    found = {item.name: item for item in fields(kind) if _KEY in item.metadata}
    names = dict.fromkeys(name for base in kind.__mro__ for name in inspect.get_annotations(base))
    for name in names:
        if name in found:
            yield found[name], found[name].metadata[_KEY]


def _defining(kind: type, name: str) -> type:
    """The class that has defined a field."""
    return next(base for base in kind.__mro__ if name in inspect.get_annotations(base))


def names_in(kind: type, group: str) -> tuple[str, ...]:
    """The options of a class that belong to a group."""
    return tuple(item.name for item, known in options_of(kind) if group in known.groups)


def check_options(options: Any) -> None:
    """Raise MaskproError where an option is not of its type, below its least value, or none of its choices."""
    kind = type(options)
    check_values(kind, {item.name: getattr(options, item.name) for item, _ in options_of(kind)})


def check_values(kind: type, values: Mapping[str, Any]) -> None:
    """As `check_options`, of those options of a class that have `values`."""
    hints = get_type_hints(kind)
    for item, known in options_of(kind):
        if item.name not in values:
            continue
        name, value, hint = item.name, values[item.name], hints[item.name]
        if value is None and NoneType in get_args(hint):
            continue
        choices = known.choices or (get_args(hint) if get_origin(hint) is Literal else ())
        if choices and value not in choices:
            raise MaskproError(f"{name} is {value!r}; allowed: {', '.join(choices)}")
        if known.least is not None and not (isinstance(value, int) and value >= known.least):
            raise MaskproError(f"{name} is {value!r}; allowed: a whole number of at least {known.least}")
        if hint is bool and not isinstance(value, bool):
            raise MaskproError(f"{name} is {value!r}; allowed: True or False")


def spelling(name: str) -> str:
    """An option's name as it is typed: `num_trials` is `--num-trials`."""
    return "--" + name.replace("_", "-")


def expanded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, with an option for each field of its parameters that are option classes, or `Given` of one."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    classes: dict[str, tuple[type, bool]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        hint = hints[name]
        is_given = get_origin(hint) is Given
        kind = get_args(hint)[0] if is_given else hint
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        assert isinstance(kind, type)
        classes[name] = kind, is_given
        parameters += [_parameter(kind, item, known, is_given) for item, known in options_of(kind)]

    @wraps(command)
    def collected(**values: Any) -> Any:
        for name, (kind, is_given) in classes.items():
            # A field whose default is None has it anyway.
            named = {item.name: values.pop(item.name, None) for item, _ in options_of(kind)}
            named = {name: value for name, value in named.items() if value is not None}
            values[name] = Given(named) if is_given else kind(**parsed(kind, named))
        return command(**values)

    # Typer reads both.
    collected.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    collected.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return collected


def parsed(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a class's options, those that are texts of another type parsed."""
    parsers = {item.name: known.parse for item, known in options_of(kind) if known.parse}
    return {
        name: parsers[name](value) if name in parsers and isinstance(value, str) else value
        for name, value in values.items()
    }


def _parameter(kind: type, item: Field[Any], known: Option, is_given: bool) -> inspect.Parameter:
    """The parameter of a field, of which typer makes an option; None stands for one that is not given."""
    hint = get_type_hints(kind)[item.name]
    if known.parse:
        hint = str | None
    elif get_origin(hint) is Literal:
        hint = str  # the class's own check says what is allowed
    flags = known.flags
    if bool in (hint, *get_args(hint)) and not flags:
        name = spelling(item.name)
        flags = (name,) if item.default is False else (f"{name}/--no-{name[2:]}",)  # a switch that is off has no opposite
    default = None if is_given or known.parse else item.default
    if is_given and NoneType not in get_args(hint):
        hint |= None
    words: dict[str, Any] = {
        "help": _help(item, known, is_given),
        "rich_help_panel": getattr(_defining(kind, item.name), "TITLE", None),
    }
    shown = typer.Argument(**words) if known.positional else typer.Option(*flags, **words)
    annotation = Annotated[hint, shown]  # type: ignore[valid-type]
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=annotation,
        default=inspect.Parameter.empty if default is MISSING else default,
    )


def _help(item: Field[Any], known: Option, is_given: bool) -> str:
    """The sentence, with the default where typer does not show it."""
    default = default_text(item, known) if is_given or item.default is None else ""
    return f"{known.help.rstrip('.')}; default: {default}." if default else known.help


def default_text(item: Field[Any], known: Option) -> str:
    """What holds without the option; empty where that goes without saying."""
    if known.otherwise or item.default is None or item.default is False or item.default is MISSING:
        return known.otherwise
    return "yes" if item.default is True else str(item.default)
