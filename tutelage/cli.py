"""The command line: each command is a function of :mod:`tutelage.api` and a handler that makes its output."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import click

from tutelage import api, tables
from tutelage.errors import explained
from tutelage.signatures import CONTEXT, Commands, Output, Param, command
from tutelage.version import __version__

_EPILOG = """\b
examples:
  tutelage init --images photos --masks masks     inspect a folder, write a working recipe
  tutelage check recipe.yaml                       read every mask once, report what is wrong
  tutelage plan recipe.yaml                        what would run, why, and how long it takes
  tutelage run recipe.yaml stages.distilled.steps=500
  tutelage predict runs/recipe/distilled-* photos --out predictions
"""

Call = partial[Any]
"""A function of the API with the arguments of the command line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    group, debug = program(), "--debug" in words
    try:
        with group.make_context("tutelage", words) as context:
            return int(group.invoke(context))
    except click.exceptions.Exit as ended:  # --help, --version
        raise SystemExit(ended.exit_code) from None
    except click.UsageError as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        known = explained(error)
        print(f"error[{known.code}]: {known}", file=sys.stderr)
        return int(getattr(known, "exit_status", 1))


def program() -> click.Group:
    """All commands."""

    def act() -> int:
        context = click.get_current_context()
        if context.invoked_subcommand is None:
            print(context.get_help())
        return 0

    version = click.version_option(__version__, message="tutelage %(version)s")
    group = Commands(
        "tutelage",
        params=[_debug()],
        callback=act,
        invoke_without_command=True,
        help="Train small, fast semantic-segmentation models with teachers.",
        epilog=_EPILOG,
        context_settings=CONTEXT,
    )
    for name, handler in HANDLERS.items():
        group.add_command(command(name, getattr(api, name.replace("-", "_")), handler, _debug()))
    return version(group)


def _debug() -> click.Option:
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="show tracebacks")


def _plan(
    call: Call, *, no_smoke: Annotated[bool, Param("do not train two steps of each stage to estimate time")] = False
) -> str:
    def estimate(stage: str) -> Any:
        return api.estimate(stage=stage, **call.keywords)

    return tables.plan_table(call(), None if no_smoke else estimate)


def _ladder(
    call: Call,
    *,
    plan: Annotated[bool, Param("train nothing; print what would be trained and how long it takes")] = False,
    no_smoke: Annotated[bool, Param("with --plan: do not train a few steps to estimate time")] = False,
) -> str:
    given = dict(call.keywords)
    if plan:
        del given["report_only"], given["quiet"]
        return tables.ladder_plan_table(api.plan_ladder(**given, measure=not no_smoke))
    outcome = call()
    silent = given["quiet"] or os.environ.get("RANK", "0") != "0"  # one process prints for all
    return "" if silent else tables.ladder_table(outcome)


def _check(call: Call) -> tuple[str, int]:
    findings = call(quiet=False)
    from tutelage.data.checks import format_findings, worst

    return format_findings(findings), int(worst(findings) == "error")


def _split(call: Call, *, no_stratify: Annotated[bool, Param("the same as --stratify none")] = False) -> str:
    return _lines(call(quiet=False, **({"stratify": "none"} if no_stratify else {})))


def _init(call: Call) -> str:
    path = call()
    return f"wrote {path}; next: tutelage check {path}, then tutelage plan {path}, then tutelage run {path}"


def _predict(call: Call) -> tuple[str, int]:
    report = call(quiet=False)
    return str(report), int(bool(report.failed))


def _compare(call: Call, *, json: Annotated[bool, Param("print JSON")] = False) -> str:
    comparison = call()
    return _json(comparison.as_dict()) if json else str(comparison.text())


def _doctor(call: Call) -> tuple[str, int]:
    text, healthy = call()
    return text, int(not healthy)


def _wrote(call: Call) -> str:
    lines = [*filter(None, [call()]), f"wrote {call.keywords['out']}"]
    return "\n".join(map(str, lines))


def _lines(paths: Iterable[Path]) -> str:
    return "\n".join(map(str, paths))


def _json(content: Any) -> str:
    return json.dumps(content, indent=2)


HANDLERS: dict[str, Callable[..., Output]] = {
    "run": lambda call: call() and "",
    "plan": _plan,
    "ladder": _ladder,
    "show": lambda call: _lines(call()),
    "check": _check,
    "split": _split,
    "init": _init,
    "evaluate": lambda call: tables.score_table(call(quiet=False)),
    "predict": _predict,
    "compare": _compare,
    "models": lambda call: tables.model_table(call(), **call.keywords),
    "import-checkpoint": _wrote,
    "doctor": _doctor,
    "schema": lambda call: _json(call()),
    "clean": lambda call: tables.clean_table(call(), call.keywords["really"]),
    "toycity": _wrote,
}
"""Command → how its output is made, in the order of the help; the API's function has the same name."""


if __name__ == "__main__":
    raise SystemExit(main())
