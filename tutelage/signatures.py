"""Commands of click from functions: a parameter annotated with :class:`Param` is an option or an argument."""

from __future__ import annotations

import inspect
import re
import typing
from collections import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

Output = str | tuple[str, int]
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@dataclass(frozen=True)
class Param:
    """Shows a parameter on the command line, as ``Annotated[type, Param(help)]``.

    Keyword-only parameters become options, others arguments. ``name`` replaces the parameter's; ``spread`` lets several
    values follow one option.
    """

    help: str
    name: str = ""
    metavar: str | None = None
    spread: bool = False


class Command(click.Command):
    """A command that allows several values after one option."""

    spread: frozenset[str] = frozenset()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words of a command line; ``--seeds 0 1`` is read as ``--seeds 0 --seeds 1``."""
        return super().parse_args(ctx, list(self._repeated(args)))

    def _repeated(self, words: Sequence[str]) -> Iterator[str]:
        overrides = any(param.name == "overrides" for param in self.params)
        option, used = "", True
        for word in words:
            is_option = word.startswith("-") and not re.fullmatch(r"-\d+", word)
            if is_option and not used:
                break
            if word in self.spread:
                option, used = word, False
            elif option and not is_option and not (overrides and "=" in word):
                used = True
                yield from (option, word)
            else:
                option = "" if is_option else option
                yield word
        if not used:
            yield option  # click reports the missing value


class Commands(click.Group):
    """Commands that the help lists in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.commands)


def command(name: str, function: Callable[..., Any], handler: Callable[..., Output], *more: click.Parameter) -> Command:
    """A command of a function; ``handler(call, ...)`` calls it and returns the text to print, with an exit status.

    ``call`` is the function with the given arguments; further marked parameters of the handler are options as well.
    The help is the first sentence of the function's docstring.
    """
    shown, own = _marked(function), _marked(handler)

    def act(**given: Any) -> int:
        extra = {one.name: given.pop(one.name) for one in own}
        output = handler(partial(function, **given), **extra)
        text, status = (output, 0) if isinstance(output, str) else output
        if text:
            print(text)
        return status

    text = re.split(r"\.\s", inspect.cleandoc(function.__doc__ or "") + "\n", maxsplit=1)[0] + "."
    made = Command(name, CONTEXT, act, [*map(_shown, [*shown, *own]), *more], help=text, short_help=text)
    made.spread = frozenset(_option(one) for one in shown if _marker(one).spread)
    return made


def _marked(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(function).parameters.values() if _marker(one)]


def _marker(parameter: inspect.Parameter) -> Any:
    """The :class:`Param` of a parameter, if any."""
    return next((one for one in getattr(parameter.annotation, "__metadata__", ()) if isinstance(one, Param)), None)


def _option(parameter: inspect.Parameter) -> str:
    return "--" + (_marker(parameter).name or parameter.name).replace("_", "-")


def _shown(parameter: inspect.Parameter) -> click.Parameter:
    marker, default = _marker(parameter), parameter.default
    kind, needed = parameter.annotation.__origin__, default is parameter.empty
    if parameter.kind is not parameter.KEYWORD_ONLY:
        several = typing.get_origin(kind) in (abc.Sequence, abc.Iterable)
        metavar = marker.metavar or parameter.name.upper() + ("..." if several else "")
        how: dict[str, Any] = {"nargs": -1 if several else 1, "required": needed}
        return click.Argument([parameter.name], metavar=metavar, help=marker.help, **how)
    options: dict[str, Any] = {"help": marker.help, "metavar": marker.metavar}
    if isinstance(default, bool):
        return click.Option([_option(parameter), parameter.name], is_flag=True, default=False, **options)
    if typing.get_origin(kind) is typing.Literal:
        options["type"] = click.Choice(typing.get_args(kind))
    if default == ():
        options["multiple"] = True
    elif not needed and default is not None:
        options |= {"default": default, "show_default": True}
    return click.Option([_option(parameter), parameter.name], required=needed, **options)
