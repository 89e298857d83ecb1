"""The command line: thin, no logic, nothing heavy imported before a command needs it."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tutelage import __version__
from tutelage.errors import RecipeError, TutelageError

_EPILOG = """examples:
  tutelage init --images photos --masks masks     look at a folder, write a working recipe
  tutelage check recipe.yaml                       read every mask once, report what is wrong
  tutelage plan recipe.yaml                        what would run, why, and how long it takes
  tutelage run recipe.yaml stages.distilled.steps=500
  tutelage predict runs/recipe/distilled-* photos --out predictions
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    given = _parsed(parser, arguments)
    if given.command is None:
        parser.print_help()
        return 0
    try:
        status: int = given.act(given)
    except TutelageError as error:
        if given.debug:
            raise
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return int(getattr(error, "exit_status", 1))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if given.debug:
            raise
        found = _unforeseen(error)
        print(f"error[{found.code}]: {found}", file=sys.stderr)
        return 1
    return status


def _unforeseen(error: Exception) -> TutelageError:
    """What no other place put in words: the system's refusals, and faults of tutelage itself."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = "" if error.filename is None else f": {error.filename}"
        return TutelageError(
            "disk-full",
            f"the disk is full{place} ({error.strerror})",
            "free some space and give the same command again",
        )
    if isinstance(error, OSError) and error.filename is not None:
        reason = f"{error.filename} ({error.strerror})"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return TutelageError(
                "permission-denied", f"the system refuses: {reason}", "change its permissions, or name another place"
            )
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            return TutelageError(
                "path-conflict", f"a file stands where a folder should be, or a folder: {reason}", "name another place"
            )
    return TutelageError(
        "unexpected-error",
        f"{type(error).__name__}: {error}",
        "this is not a fault that tutelage knows; run the command again with --debug for the traceback",
    )


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides may also stand after an option, where argparse by itself would not know them."""
    given, left = parser.parse_known_args(arguments)
    if left and (not hasattr(given, "overrides") or any(one.startswith("-") or "=" not in one for one in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        given.overrides = [*given.overrides, *left]
    return given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tutelage",
        description="Train small, fast semantic-segmentation models with teachers.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tutelage {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", metavar="command")

    def command(name: str, act: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        # SUPPRESS: without it the subcommand's default would undo a --debug before the command's name.
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        sub.set_defaults(act=act)
        return sub

    def with_recipe(sub: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub.add_argument("recipe", type=Path, help="recipe file (YAML)")
        sub.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace the recipe's")
        return sub

    run = with_recipe(command("run", _run, "run a recipe; finished stages are skipped, interrupted ones go on"))
    run.add_argument("--only", action="append", default=[], metavar="STAGE", help="run only this stage (repeatable)")
    run.add_argument("--quiet", action="store_true", help="print errors only")

    plan = with_recipe(command("plan", _plan, "say what a run would do, why, and how long it takes"))
    plan.add_argument("--no-smoke", action="store_true", help="do not run two steps of each stage to estimate time")

    ladder = with_recipe(command("ladder", _ladder, "say whether a teacher pays: train with and without, and compare"))
    ladder.add_argument("--only", action="append", default=[], metavar="RUNG", help="train only this (repeatable)")
    ladder.add_argument("--seeds", nargs="+", action="extend", default=[], metavar="SEED", help="only these seeds")
    ladder.add_argument("--report-only", action="store_true", help="train nothing, write the table of what is finished")
    ladder.add_argument("--plan", action="store_true", help="train nothing, say what would be and how long it takes")
    ladder.add_argument("--no-smoke", action="store_true", help="with --plan: do not run a few steps to estimate time")
    ladder.add_argument("--quiet", action="store_true", help="print errors only")

    show = with_recipe(command("show", _show, "write pictures of exactly what the nets see"))
    show.add_argument("--out", type=Path, default=Path("shown"), help="folder for the pictures (default: shown)")
    show.add_argument("--stage", action="append", default=[], metavar="STAGE", help="only this stage (repeatable)")
    show.add_argument("--count", type=int, default=8, help="samples per stream (default: 8)")
    show.add_argument("--position", type=int, default=0, help="position in the stream to begin at (default: 0)")

    check = command("check", _check, "read every mask once and report what is wrong, with the remedy")
    check.add_argument("recipe", type=Path, help="recipe file, or a folder of images and masks")
    check.add_argument("overrides", nargs="*", metavar="a.b=c", help="settings that replace the recipe's")

    split = with_recipe(command("split", _split, "make train/val/test or few-label partitions as list files"))
    split.add_argument("--data", required=True, help="data set to split (name or name/split)")
    split.add_argument("--parts", default="train=0.7,val=0.1,test=0.2", help="train=0.7,val=0.1,test=0.2 (or counts)")
    split.add_argument("--few", help="few-label partitions instead: 1/16,1/8,1/4 or counts")
    split.add_argument("--draws", type=int, default=1, help="independent draws of few-label partitions")
    split.add_argument("--seed", type=int, default=0)
    split.add_argument("--by-group", action="store_true", help="keep sequences, tiles or patients together")
    split.add_argument(
        "--stratify",
        choices=["classes", "group", "none"],
        default="classes",
        help="what is balanced: every part shows every class, or has its share of every group (default: classes)",
    )
    split.add_argument("--no-stratify", action="store_true", help="the same as --stratify none")
    split.add_argument("--out", type=Path, required=True, help="folder for the list files")
    split.add_argument("--force", action="store_true", help="replace lists that exist")

    init = command("init", _init, "look at a folder and write a commented, working recipe")
    init.add_argument("--images", type=Path, required=True, help="folder of images")
    init.add_argument("--masks", type=Path, help="folder of masks")
    init.add_argument("--unlabeled", type=Path, help="folder of images without masks")
    init.add_argument("--target", type=Path, help="folder of images from the domain that matters")
    init.add_argument("--classes", help="a,b,c or a file with class names")
    init.add_argument("--out", type=Path, default=Path("recipe.yaml"), help="recipe to write (default: recipe.yaml)")
    init.add_argument("--force", action="store_true", help="replace a recipe that exists")

    evaluate = command("evaluate", _evaluate, "score trained nets on labelled data")
    evaluate.add_argument("nets", nargs="+", type=Path, help="net files or stage folders")
    evaluate.add_argument("--recipe", type=Path, help="recipe that describes the data")
    evaluate.add_argument("--data", help="name/split of the recipe")
    evaluate.add_argument("--images", type=Path, help="folder of images (without a recipe)")
    evaluate.add_argument("--masks", type=Path, help="folder of masks (without a recipe)")
    evaluate.add_argument(
        "--protocol", nargs="*", action="extend", default=[], metavar="a=b", help="e.g. kind=sliding 'window=[512,512]'"
    )
    evaluate.add_argument(
        "--subset", action="append", default=[], metavar="NAME=A,B", help="also the mean IoU over classes (repeatable)"
    )
    evaluate.add_argument(
        "--merged", action="append", default=[], metavar="NAME=A,B", help="also with classes taken as one (repeatable)"
    )
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--out", type=Path, help="folder for the scores (JSON and per-image counts)")

    predict = command("predict", _predict, "segment images: index and palette masks, overlays, confidence")
    predict.add_argument("net", type=Path, help="net file or stage folder")
    predict.add_argument("images", nargs="+", type=Path, help="images, folders or patterns")
    predict.add_argument("--out", type=Path, required=True, help="folder for the results")
    predict.add_argument("--write", default="palette,overlay", help="of: index,palette,overlay,confidence")
    predict.add_argument(
        "--protocol", nargs="*", action="extend", default=[], metavar="a=b", help="e.g. kind=sliding 'window=[512,512]'"
    )
    predict.add_argument("--device", default="auto")
    predict.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"])
    predict.add_argument("--overwrite", action="store_true", help="make results again that exist")

    compare = command("compare", _compare, "compare two scored runs on the same images: gain, interval, p")
    compare.add_argument("a", help="scores of the first side: file, or stage folder:label; several seeds: a,b,c")
    compare.add_argument("b", help="scores of the second side")
    compare.add_argument("--json", action="store_true", help="print JSON")

    models = command("models", _models, "list nets worth starting from, with parameters and FLOPs")
    models.add_argument("--size", default="512x1024", help="input height x width for the FLOPs (default: 512x1024)")
    models.add_argument("--classes", type=int, default=19)

    imported = command("import-checkpoint", _import_checkpoint, "make a published checkpoint a net file of tutelage")
    imported.add_argument("file", type=Path, help="checkpoint of CIRKD's repository (a state dict)")
    imported.add_argument("--net", required=True, help="which net, e.g. deeplabv3_resnet18_v1, segformer_b0")
    imported.add_argument("--classes", help="number of classes, or a,b,c, or a file with class names")
    imported.add_argument("--like", type=Path, metavar="RECIPE", help="take class names and colours from a recipe")
    imported.add_argument("--out", type=Path, required=True, help="net file to write (.safetensors)")
    imported.add_argument("--force", action="store_true", help="replace a file that exists")

    doctor = command("doctor", _doctor, "print versions, devices and weights, and the fix for what is wrong")
    doctor.add_argument("--hub", action="store_true", help="also try to reach the weight hub (uses the network)")

    command("schema", _schema, "print the JSON schema of recipes, for editors")

    clean = command("clean", _clean, "remove artefacts that no recipe of a run folder refers to")
    clean.add_argument("out", type=Path, help="run folder, e.g. runs/demo")
    clean.add_argument("--keep", type=int, default=1, help="remembered recipes to keep, newest first (default: 1)")
    clean.add_argument("--yes", action="store_true", help="remove; without it, only say what would go")

    city = command("toycity", _toycity, "paint a procedural street-scene data set (no download)")
    city.add_argument("out", type=Path, help="folder to write")
    city.add_argument("--splits", default="train=200,val=50,test=50")
    city.add_argument("--size", default="128x256", help="height x width")
    city.add_argument("--domain", choices=["day", "dusk"], default="day")
    city.add_argument("--seed", type=int, default=0)
    return parser


def _run(given: argparse.Namespace) -> int:
    from tutelage import api

    api.run(given.recipe, given.overrides, only=given.only, quiet=given.quiet)
    return 0


def _plan(given: argparse.Namespace) -> int:
    from tutelage import api, tables

    def estimate(stage: str) -> Any:
        return api.estimate(given.recipe, stage, given.overrides)

    print(tables.plan_table(api.plan(given.recipe, given.overrides), None if given.no_smoke else estimate))
    return 0


def _ladder(given: argparse.Namespace) -> int:
    from tutelage import api, tables

    # Overrides that stand behind `--seeds 0 1` are read as seeds.
    overrides = [*given.overrides, *(text for text in given.seeds if "=" in text)]
    seeds = [text for text in given.seeds if "=" not in text]
    if not all(re.fullmatch(r"-?\d+", seed) for seed in seeds):
        raise RecipeError("invalid-value", f"these are no seeds: {' '.join(seeds)}", "e.g. --seeds 0 1")
    which: dict[str, Any] = {"only": given.only, "seeds": [int(seed) for seed in seeds]}
    if given.plan:
        planned = api.plan_ladder(given.recipe, overrides, **which, measure=not given.no_smoke)
        print(tables.ladder_plan_table(planned))
        return 0
    outcome = api.ladder(given.recipe, overrides, **which, report_only=given.report_only, quiet=given.quiet)
    if not given.quiet and os.environ.get("RANK", "0") == "0":  # of several processes, one says it
        print(tables.ladder_table(outcome))
    return 0


def _show(given: argparse.Namespace) -> int:
    from tutelage import api

    for path in api.show(
        given.recipe,
        given.overrides,
        out=given.out,
        stages=given.stage or None,
        count=given.count,
        position=given.position,
    ):
        print(path)
    return 0


def _check(given: argparse.Namespace) -> int:
    from tutelage import api

    findings = api.check(given.recipe, given.overrides, quiet=False)
    from tutelage.data.checks import format_findings, worst

    print(format_findings(findings))
    return 1 if worst(findings) == "error" else 0


def _split(given: argparse.Namespace) -> int:
    from tutelage import api

    for path in api.split(
        given.recipe,
        given.overrides,
        data=given.data,
        parts=given.parts,
        few=given.few,
        draws=given.draws,
        seed=given.seed,
        by_group=given.by_group,
        stratify="none" if given.no_stratify else given.stratify,
        out=given.out,
        force=given.force,
        quiet=False,
    ):
        print(path)
    return 0


def _init(given: argparse.Namespace) -> int:
    from tutelage import api

    path = api.init(
        images=given.images,
        masks=given.masks,
        unlabeled=given.unlabeled,
        target=given.target,
        classes=given.classes,
        out=given.out,
        force=given.force,
    )
    print(f"wrote {path}; next: tutelage check {path}, then tutelage plan {path}, then tutelage run {path}")
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    from tutelage import api, tables

    scores = api.evaluate(
        given.nets,
        recipe=given.recipe,
        data=given.data,
        images=given.images,
        masks=given.masks,
        protocol=given.protocol,
        subsets=_class_groups("--subset", given.subset),
        merged=_class_groups("--merged", given.merged),
        device=given.device,
        out=given.out,
        quiet=False,
    )
    print(tables.score_table(scores))
    return 0


def _class_groups(option: str, given: Sequence[str]) -> dict[str, list[str]]:
    """``name=a,b`` as name → classes."""
    from tutelage.errors import RunError

    groups = {}
    for one in given:
        name, equals, classes = one.partition("=")
        if not (name and equals and classes):
            raise RunError(
                "invalid-value", f"{option} {one} is no name with classes", f"write {option} vegetation=crop,weed"
            )
        groups[name] = [part.strip() for part in classes.split(",")]
    return groups


def _predict(given: argparse.Namespace) -> int:
    from tutelage import api

    report = api.predict(
        given.net,
        given.images,
        out=given.out,
        write=given.write.split(","),
        protocol=given.protocol,
        device=given.device,
        precision=given.precision,
        overwrite=given.overwrite,
        quiet=False,
    )
    print(report)
    return 1 if report.failed else 0


def _compare(given: argparse.Namespace) -> int:
    from tutelage import api

    comparison = api.compare(given.a.split(","), given.b.split(","))
    if given.json:
        import json

        print(json.dumps(comparison.as_dict(), indent=2))
    else:
        print(comparison.text())
    return 0


def _models(given: argparse.Namespace) -> int:
    from tutelage import api, tables

    size = _size(given.size)
    print(tables.model_table(api.models(size, given.classes), size, given.classes))
    return 0


def _import_checkpoint(given: argparse.Namespace) -> int:
    from tutelage import api

    report = api.import_checkpoint(
        given.file, net=given.net, out=given.out, classes=given.classes, like=given.like, force=given.force
    )
    print(f"{report}\nwrote {given.out}")
    return 0


def _doctor(given: argparse.Namespace) -> int:
    from tutelage import api

    text, healthy = api.doctor(hub=given.hub)
    print(text)
    return 0 if healthy else 1


def _schema(given: argparse.Namespace) -> int:
    import json

    from tutelage.recipe.loading import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _clean(given: argparse.Namespace) -> int:
    from tutelage import api, tables

    print(tables.clean_table(api.clean(given.out, keep=given.keep, really=given.yes), given.yes))
    return 0


def _toycity(given: argparse.Namespace) -> int:
    from tutelage import api

    api.toycity(given.out, _counts(given.splits), _size(given.size), given.domain, given.seed)
    print(f"wrote {given.out}")
    return 0


def _size(text: str) -> tuple[int, int]:
    height, separator, width = text.partition("x")
    if not separator or not height.isdigit() or not width.isdigit():
        raise RecipeError("invalid-value", f"size {text!r} is no HEIGHTxWIDTH", "e.g. 512x1024")
    return int(height), int(width)


def _counts(text: str) -> dict[str, int]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and count.isdigit() for name, _, count in pairs):
        raise RecipeError("invalid-value", f"splits {text!r} are no name=count,...", "e.g. train=200,val=50,test=50")
    return {name: int(count) for name, _, count in pairs}


if __name__ == "__main__":
    raise SystemExit(main())
