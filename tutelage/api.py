"""The verbs of the command line, for Python: ``tutelage.run("recipe.yaml")``, ``tutelage.load_model(path)``.

Functions return what they found as plain objects; :mod:`tutelage.tables` puts it in words for the terminal. Recipes
are given by their path, overrides as on the command line (``"seed=1"``). Everything that the user can mend is raised
as a :class:`~tutelage.errors.TutelageError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.data.checks import Finding
    from tutelage.data.dataset import Classes
    from tutelage.data.splits import Stratify
    from tutelage.deploy.model import Model
    from tutelage.deploy.outputs import Kind
    from tutelage.deploy.predict import PredictReport
    from tutelage.evaluation.comparison import Comparison
    from tutelage.evaluation.protocol import Protocol
    from tutelage.ladders.plan import PlannedRung
    from tutelage.ladders.run import LadderResult as Ladder
    from tutelage.nets.catalogue import CatalogueRow
    from tutelage.nets.published.cirkd_checkpoint import Imported
    from tutelage.pipeline.run import Planned, RunResult
    from tutelage.pipeline.training_cost import TrainingCost
    from tutelage.recipe.loading import LoadedRecipe

PathLike = str | Path


def run(recipe: PathLike, overrides: Sequence[str] = (), *, only: Sequence[str] = (), quiet: bool = True) -> RunResult:
    """Run a recipe, or the stages ``only``; finished stages are skipped, interrupted ones go on."""
    loaded = _read(recipe, overrides)
    from tutelage.pipeline import run as work

    return work.run(loaded, only=only, quiet=quiet)


def plan(recipe: PathLike, overrides: Sequence[str] = ()) -> list[Planned]:
    """What :func:`run` would do with each stage, and why."""
    loaded = _read(recipe, overrides)
    from tutelage.pipeline import run as work

    return work.plan(loaded)


def estimate(recipe: PathLike, stage: str, overrides: Sequence[str] = ()) -> TrainingCost | str:
    """Hours, memory and disk of one training stage, from a few steps of it; a reason where that cannot be had."""
    loaded = _read(recipe, overrides)
    from tutelage.pipeline.training_cost import estimate_cost

    return estimate_cost(loaded, stage)


def ladder(
    recipe: PathLike,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    report_only: bool = False,
    quiet: bool = True,
) -> Ladder:
    """Train and score the rungs of a recipe's ladder, or those in ``only``, and write what pays and what does not."""
    loaded = _read(recipe, overrides)
    from tutelage.ladders import run as work

    return work.run(loaded, rungs=only, seeds=seeds, report_only=report_only, quiet=quiet)


def plan_ladder(
    recipe: PathLike,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    measure: bool = True,
) -> list[PlannedRung]:
    """What :func:`ladder` would train; with ``measure``, how long it takes, from a few steps of each rung."""
    loaded = _read(recipe, overrides)
    from tutelage.ladders import plan as work

    return work.plan(loaded, rungs=only, seeds=seeds, measure=measure)


def check(recipe: PathLike, overrides: Sequence[str] = (), *, quiet: bool = True) -> list[Finding]:
    """Everything that is found in a recipe's data, or in a folder's, the gravest first; every mask is read once."""
    from tutelage.errors import RecipeError

    say = (lambda text: None) if quiet else print
    loaded = None if Path(recipe).is_dir() else _read(recipe, overrides)
    from tutelage.pipeline import data_check

    if loaded is not None:
        return data_check.check(loaded, say)
    if overrides:
        raise RecipeError(
            "invalid-override", f"a folder has no settings to replace: {overrides[0]}", "write a recipe: tutelage init"
        )
    return data_check.check_folder(Path(recipe), say)


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
    stratify: Stratify = "classes",
    force: bool = False,
    quiet: bool = True,
) -> list[Path]:
    """Make train/val/test lists, or few-label partitions (``few="1/16,1/8"``), of a data set; returns the files.

    ``stratify``: `classes`, `group` (every part has its share of every group) or `none`; ``by_group`` keeps groups
    whole.
    """
    from tutelage.pipeline.partitions import write_partitions

    return write_partitions(
        _read(recipe, overrides),
        data,
        Path(out),
        parts=parts,
        few=few,
        draws=draws,
        seed=seed,
        by_group=by_group,
        stratify=stratify,
        force=force,
        say=(lambda text: None) if quiet else print,
    )


def load_model(
    path: PathLike, device: str = "auto", precision: str = "fp32", protocol: Protocol | None = None
) -> Model:
    """A trained net, from its file or its stage's folder, as an object with ``.predict(image)``."""
    from tutelage.deploy import model

    return model.load_model(path, device, precision, protocol)


def predict(
    net: PathLike,
    images: Iterable[PathLike],
    *,
    out: PathLike,
    write: Iterable[Kind] = ("palette", "overlay"),
    protocol: Sequence[str] | Protocol | None = None,
    device: str = "auto",
    precision: str = "fp32",
    overwrite: bool = False,
    quiet: bool = True,
) -> PredictReport:
    """Segment files, folders and patterns into ``out``; files that cannot be read are listed in the report."""
    from tutelage.deploy.predict import predict_files
    from tutelage.evaluation.protocol import Protocol
    from tutelage.pipeline.display import Display

    chosen = protocol if protocol is None or isinstance(protocol, Protocol) else _protocol(protocol)
    model = load_model(net, device, precision, chosen if chosen != Protocol() else None)
    display = Display(quiet)
    with display.bar("predict", 0) as progress:
        return predict_files(
            model,
            [Path(path) for path in images],
            Path(out),
            write=set(write),
            overwrite=overwrite,
            progress=progress,
            say=display.say,
        )


def evaluate(
    nets: Sequence[PathLike],
    *,
    recipe: PathLike | None = None,
    data: str | None = None,
    images: PathLike | None = None,
    masks: PathLike | None = None,
    protocol: Sequence[str] | Protocol = (),
    subsets: Mapping[str, Sequence[str]] | None = None,
    merged: Mapping[str, Sequence[str]] | None = None,
    device: str = "auto",
    out: PathLike | None = None,
    quiet: bool = True,
) -> dict[str, dict[str, Any]]:
    """Score nets on a data set of a recipe, or on folders of images and masks: name → all figures.

    ``subsets``: classes over which a mean IoU is taken besides; ``merged``: classes that are taken as one besides. With
    ``out``, figures and per-image counts are written there, for :func:`compare`.
    """
    from tutelage.evaluation.protocol import Protocol
    from tutelage.pipeline import score

    how = protocol if isinstance(protocol, Protocol) else _protocol(protocol)
    folder = None if out is None else Path(out)
    way = score.Way(how, device, subsets or {}, merged or {})
    if recipe is not None and data is not None:
        return score.on_recipe(_read(recipe, ()), data, map(Path, nets), way, folder, quiet)
    if images is not None and masks is not None:
        return score.on_folders(Path(images), Path(masks), map(Path, nets), way, folder, quiet)
    from tutelage.errors import RunError

    raise RunError("missing-option", "no data to evaluate on", "give --recipe and --data, or --images and --masks")


def compare(a: Sequence[PathLike], b: Sequence[PathLike]) -> Comparison:
    """Compare scored runs on the same images: side ``b`` against side ``a``, each one or several seeds."""
    from tutelage.evaluation import comparison

    return comparison.compare(a, b)


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
    from tutelage.pipeline import stream_sheets

    return stream_sheets.show(_read(recipe, overrides), Path(out), stages=stages, count=count, position=position)


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
    from tutelage.proposal.recipe_text import write_proposal

    return write_proposal(
        images=Path(images),
        masks=None if masks is None else Path(masks),
        unlabeled=None if unlabeled is None else Path(unlabeled),
        target=None if target is None else Path(target),
        classes=classes,
        out=Path(out),
        force=force,
    )


def models(size: tuple[int, int] = (512, 1024), classes: int = 19) -> list[CatalogueRow]:
    """Nets worth starting from, with parameters and multiply-adds at an input (height, width)."""
    from tutelage.nets.catalogue import rows

    return rows(size, classes)


def import_checkpoint(
    file: PathLike,
    *,
    net: str,
    out: PathLike,
    classes: int | str | None = None,
    like: PathLike | None = None,
    force: bool = False,
) -> Imported:
    """Make a published checkpoint of the net ``net`` (``deeplabv3_resnet18_v1`` ...) a net file that every verb reads.

    Its classes are a number, ``"a,b,c"`` or a file of names, or those of the recipe ``like``. Says what was loaded;
    refuses a file that does not hold the whole net.
    """
    from tutelage.errors import RunError
    from tutelage.nets.published import cirkd_checkpoint
    from tutelage.nets.storage import save_segmentor
    from tutelage.pipeline.builder import Builder

    target = Path(out)
    if target.suffix != ".safetensors":
        raise RunError(
            "invalid-value",
            f"a net file is called NAME.safetensors, not {target.name}",
            f"--out {target.stem}.safetensors",
        )
    if target.exists() and not force:
        raise RunError("file-exists", f"{target} exists", "give --force to replace it, or another --out")
    if (classes is None) == (like is None):
        raise RunError("missing-option", "the classes of the net are not known", "give either --classes or --like")
    cirkd_checkpoint.settings_of(net)  # before any data is opened
    task = _named_classes(str(classes)) if like is None else Builder(_read(like, ())).classes
    imported, report = cirkd_checkpoint.import_checkpoint(Path(file), net, len(task))
    facts = {"imported": {"file": Path(file).name, "net": net}}
    save_segmentor(imported, target, classes=task.names, palette=task.palette, extra=facts)
    return report


def doctor(*, hub: bool = False) -> tuple[str, bool]:
    """Versions, devices and weights as text, and whether all that is needed works; ``hub`` uses the network."""
    from tutelage.pipeline.doctor import diagnose

    return diagnose(hub)


def clean(out: PathLike, *, keep: int = 1, really: bool = False) -> list[tuple[Path, int]]:
    """Artefacts that none of the ``keep`` newest recipes of a run folder refers to, with their bytes.

    They are removed only if ``really``.
    """
    from tutelage.errors import RunError
    from tutelage.runs.store import Store

    store = Store(Path(out))
    if not store.out.is_dir():
        raise RunError(
            "folder-missing", f"run folder not found: {out}", "name the folder that holds the stages, e.g. runs/demo"
        )
    recipes = store.recipes()
    kept = recipes[len(recipes) - keep :] if keep else []
    known = store.referenced(kept)
    doomed = [(artefact, artefact.size()) for artefact in store.artefacts() if artefact.key not in known]
    if really:
        for artefact, _ in doomed:
            store.remove(artefact)
        for recipe in recipes[: len(recipes) - len(kept)]:
            store.forget(recipe)
    return [(artefact.folder, size) for artefact, size in doomed]


def toycity(
    out: PathLike,
    splits: dict[str, int],
    size: tuple[int, int] = (128, 256),
    domain: str = "day",
    seed: int = 0,
) -> None:
    """Paint a procedural street-scene data set into ``out``."""
    from tutelage.data.sources import ToycitySettings, open_data

    settings = ToycitySettings.model_validate(
        {"kind": "toycity", "root": str(out), "splits": splits, "size": size, "domain": domain, "seed": seed}
    )
    open_data(settings, Path.cwd())


def _named_classes(text: str) -> Classes:
    """``19``, ``a,b,c`` or a file of names as classes."""
    from tutelage.data.dataset import Classes
    from tutelage.proposal.names import given_names

    if text.isdecimal():
        return Classes(tuple(f"class {number}" for number in range(int(text))))
    given = given_names(text)
    free = Classes(given.names)
    return Classes(free.names, tuple(map(given.colours.get, free.names, free.palette)))


def _read(recipe: PathLike, overrides: Sequence[str]) -> LoadedRecipe:
    from tutelage.recipe.loading import load_recipe

    return load_recipe(Path(recipe), overrides)


def _protocol(pairs: Sequence[str]) -> Protocol:
    from tutelage.recipe.loading import protocol_from

    return protocol_from(pairs)
