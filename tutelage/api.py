"""The verbs of the command line, for Python: ``tutelage.run("recipe.yaml")``, ``tutelage.load_model(path)``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.deploy.model import Model, load_model
from tutelage.deploy.predict import PredictReport, predict_files
from tutelage.errors import RecipeError, RunError
from tutelage.evaluation.comparison import Comparison
from tutelage.evaluation.comparison import compare as compare_scores
from tutelage.pipeline.running import Outcome, Planned
from tutelage.recipe.reading import Read, read_recipe

if TYPE_CHECKING:
    from tutelage.evaluation.protocol import Protocol

__all__ = [
    "Comparison",
    "Model",
    "Outcome",
    "PredictReport",
    "check_text",
    "clean_text",
    "compare",
    "doctor",
    "evaluate_text",
    "init",
    "load_model",
    "models_text",
    "plan",
    "plan_text",
    "predict",
    "run",
    "show",
    "split",
    "toycity",
]

PathLike = str | Path


def run(recipe: PathLike, overrides: Sequence[str] = (), *, only: Sequence[str] = (), quiet: bool = False) -> Outcome:
    """Run a recipe, with overrides such as ``"seed=1"``; finished stages are skipped, interrupted ones go on.

    Raises :class:`~tutelage.errors.TutelageError` for everything that can be mended.
    """
    from tutelage.pipeline import running

    return running.run(read_recipe(Path(recipe), overrides), only=only, quiet=quiet)


def plan(recipe: PathLike, overrides: Sequence[str] = ()) -> list[Planned]:
    """What :func:`run` would do with each stage, and why."""
    from tutelage.pipeline import running

    return running.plan(read_recipe(Path(recipe), overrides))


def plan_text(recipe: PathLike, overrides: Sequence[str] = (), *, smoke: bool = True) -> str:
    """:func:`plan` as a table; with ``smoke``, hours, memory and disk estimated from two steps of each stage."""
    from tutelage.pipeline import running
    from tutelage.pipeline.smoke import smoke as try_out
    from tutelage.recipe.schema import TrainStage

    read = read_recipe(Path(recipe), overrides)
    rows = running.plan(read)
    wide = max(len(row.stage) for row in rows)
    lines, hours = [], 0.0
    for row in rows:
        line = f"{row.stage:<{wide}}  {row.kind:<8}  {'runs' if row.runs else 'skip'}  {row.why}"
        if row.runs and smoke and isinstance(read.recipe.stages[row.stage], TrainStage):
            cost = try_out(read, row.stage)
            if isinstance(cost, str):
                line += f"\n{'':<{wide}}  no estimate: {cost}"
            else:
                hours += cost.hours
                extra = f", {cost.note}" if cost.note else ""
                line += (
                    f"\n{'':<{wide}}  about {_duration(cost.hours)} ({cost.step_seconds:.2f} s a step{extra}), "
                    f"{cost.memory_mib:.0f} MiB of memory, {cost.disk_mib:.0f} MiB of disk"
                )
        lines.append(line)
    if hours:
        lines.append(f"training in all: about {_duration(hours)} on this machine as it is now")
    return "\n".join(lines)


def _duration(hours: float) -> str:
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h"


def show(
    recipe: PathLike,
    overrides: Sequence[str] = (),
    *,
    out: PathLike = "shown",
    stages: Sequence[str] | None = None,
    count: int = 8,
    position: int = 0,
) -> list[Path]:
    """Write pictures of exactly what the nets see in each train stage; returns the files."""
    from tutelage.pipeline.showing import show as write_pictures

    read = read_recipe(Path(recipe), overrides)
    return write_pictures(read, Path(out), stages=stages, count=count, position=position)


def predict(
    net: PathLike,
    images: Iterable[PathLike],
    *,
    out: PathLike,
    write: Iterable[str] = ("palette", "overlay"),
    protocol: Sequence[str] | Protocol | None = None,
    device: str = "auto",
    precision: str = "fp32",
    overwrite: bool = False,
) -> PredictReport:
    """Segment files and folders of images into ``out``; unreadable ones are listed in the report."""
    from tutelage.evaluation.protocol import Protocol

    chosen = protocol if protocol is None or isinstance(protocol, Protocol) else _protocol(protocol)
    model = load_model(Path(net), device=device, precision=precision, protocol=chosen)
    return predict_files(model, [Path(path) for path in images], Path(out), write=set(write), overwrite=overwrite)


def compare(a: Sequence[PathLike], b: Sequence[PathLike]) -> Comparison:
    """Compare scored runs on the same images: side ``b`` against side ``a``, each one or several seeds."""
    return compare_scores([str(path) for path in a], [str(path) for path in b])


def evaluate_text(
    nets: Sequence[PathLike],
    *,
    recipe: PathLike | None = None,
    data: str | None = None,
    images: PathLike | None = None,
    masks: PathLike | None = None,
    protocol: Sequence[str] = (),
    device: str = "auto",
    out: PathLike | None = None,
) -> str:
    """Score nets on a data set of a recipe, or on folders of images and masks; a table, and files in ``out``."""
    from tutelage.data.folder import FolderSettings, FolderSplit, open_folder
    from tutelage.evaluation.scoring import evaluate, summary, write_evaluation
    from tutelage.pipeline.builder import Builder, resolve_device

    how, place = _protocol(protocol), resolve_device(device)
    lines = []
    for path in nets:
        model = load_model(Path(path), device=device, precision=how.precision, protocol=how)
        if recipe is not None and data is not None:
            dataset = Builder(read_recipe(Path(recipe))).dataset(data)
        elif images is not None and masks is not None:
            split = FolderSplit(images=str(Path(images).resolve()), masks=str(Path(masks).resolve()))
            own = FolderSettings(
                classes=list(model.classes), palette=[tuple(c) for c in model.palette], splits={"data": split}
            )
            dataset = open_folder(own, Path.cwd())["data"]
        else:
            raise RunError("no data to evaluate on", "give --recipe and --data, or --images and --masks")
        model.check_classes(dataset.classes.names, dataset.name)
        outcome = evaluate(model.net, dataset, how, device=place, boundary=True, calibration=True)
        content = summary(outcome, dataset, how)
        interval = content["miou_interval"]
        name = Path(path).stem if Path(path).is_file() else Path(path).name
        lines.append(
            f"{name}: mIoU {100 * content['miou']:.2f} [{100 * interval['low']:.2f}, {100 * interval['high']:.2f}], "
            f"pixel accuracy {100 * content['pixel_accuracy']:.2f}, boundary IoU {100 * content['boundary']['miou']:.2f}, "
            f"calibration error {100 * content['calibration']['error']:.2f} ({len(dataset)} images; {how.describe()})"
        )
        for label, iou in zip(content["classes"], content["iou"], strict=True):
            lines.append(f"  {label:<24} {'absent' if iou is None else f'{100 * iou:6.2f}'}")
        if out is not None:
            write_evaluation(Path(out) / f"{name}.json", Path(out) / f"{name}.npz", content, outcome)
    return "\n".join(lines)


def _protocol(pairs: Sequence[str]) -> Protocol:
    """A protocol from ``a=b`` pairs. Raises :class:`RecipeError` for what cannot be meant."""
    import yaml
    from pydantic import ValidationError

    from tutelage.evaluation.protocol import Protocol

    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise RecipeError(f"protocol setting {pair!r} is no a=b", "e.g. kind=sliding window=[512,512]")
        values[key] = yaml.safe_load(value)
    try:
        return Protocol.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'protocol'}: {e['msg']}" for e in error.errors())
        raise RecipeError(f"protocol: {faults}", f"known settings: {', '.join(Protocol.model_fields)}") from None


def check_text(what: PathLike, overrides: Sequence[str] = ()) -> tuple[str, bool]:
    """Check a recipe's data, or a folder with images and masks; the findings as text, and whether any is an error."""
    from tutelage.pipeline.checking import check

    return check(Path(what), overrides)


def split(
    recipe: PathLike,
    overrides: Sequence[str] = (),
    *,
    data: str,
    out: PathLike,
    parts: str = "train=0.7,val=0.1,test=0.2",
    few: str | None = None,
    draws: int = 1,
    seed: int = 0,
    by_group: bool = False,
    stratify: bool = True,
    force: bool = False,
) -> list[Path]:
    """Make train/val/test lists, or few-label partitions (``few="1/16,1/8"``), of a data set; returns the files."""
    from tutelage.pipeline.splitting import write_partitions

    read = read_recipe(Path(recipe), overrides)
    return write_partitions(
        read,
        data,
        Path(out),
        parts=parts,
        few=few,
        draws=draws,
        seed=seed,
        by_group=by_group,
        stratify=stratify,
        force=force,
    )


def init(
    *,
    images: PathLike,
    masks: PathLike | None = None,
    unlabeled: PathLike | None = None,
    target: PathLike | None = None,
    classes: str | None = None,
    out: PathLike = "recipe.yaml",
    force: bool = False,
) -> Path:
    """Look at folders and write a commented, working recipe; returns its path."""
    from tutelage.pipeline.proposal import write_proposal

    return write_proposal(
        images=Path(images),
        masks=None if masks is None else Path(masks),
        unlabeled=None if unlabeled is None else Path(unlabeled),
        target=None if target is None else Path(target),
        classes=classes,
        out=Path(out),
        force=force,
    )


def models_text(size: str = "512x1024", classes: int = 19) -> str:
    """The curated nets as a table."""
    from tutelage.nets.catalogue import CATALOGUE, rows

    height, width = _size(size)
    lines = [
        f"{'name':<28}{'parameters':>12}{'GFLOPs':>9}  use   (multiply-adds at {height}x{width}, {classes} classes)"
    ]
    for row in rows((height, width), classes):
        entry = CATALOGUE[row.name]
        lines.append(f"{row.name:<28}{row.parameters / 1e6:>10.2f} M{row.flops / 1e9:>9.1f}  {entry.use}")
        lines.append(f"{'':<28}{entry.settings.encoder} + {entry.settings.decoder}")
    return "\n".join(lines)


def doctor(*, hub: bool = False) -> tuple[str, bool]:
    """Versions, devices and weights as text, and whether all that is needed works."""
    from tutelage.pipeline.doctor import diagnose

    return diagnose(hub)


def clean_text(out: PathLike, *, keep: int = 1, really: bool = False) -> str:
    """Remove artefacts that none of the ``keep`` newest recipes of a run folder refers to; says what went."""
    from tutelage.runs.store import Store

    store = Store(Path(out))
    if not store.out.is_dir():
        raise RunError(f"run folder not found: {out}", "name the folder that holds the stages")
    old = store.recipes()[: -keep or None]
    known = store.referenced(store.recipes()[len(old) :])
    doomed = [artefact for artefact in store.artefacts() if artefact.key not in known]
    lines = []
    for artefact in doomed:
        size = store.remove(artefact) if really else artefact.size()
        lines.append(f"{'removed' if really else 'would remove'} {artefact.folder} ({size / 2**20:.1f} MiB)")
    if really:
        for path in old:
            store.forget(path)
    if not doomed:
        lines.append("nothing to remove")
    elif not really:
        lines.append("nothing was removed; add --yes to do it")
    return "\n".join(lines)


def toycity(
    out: PathLike,
    splits: str = "train=200,val=50,test=50",
    size: str = "128x256",
    domain: str = "day",
    seed: int = 0,
) -> None:
    """Paint a procedural street-scene data set into ``out``."""
    from tutelage.data.opening import ToycitySettings, open_data

    counts = {name: int(count) for name, count in (pair.split("=") for pair in splits.split(","))}
    settings = ToycitySettings.model_validate(
        {"kind": "toycity", "root": str(out), "splits": counts, "size": _size(size), "domain": domain, "seed": seed}
    )
    open_data(settings, Path.cwd())


def _size(text: str) -> tuple[int, int]:
    height, separator, width = text.partition("x")
    if not separator or not height.isdigit() or not width.isdigit():
        raise RecipeError(f"size {text!r} is no HEIGHTxWIDTH", "e.g. 512x1024")
    return int(height), int(width)
