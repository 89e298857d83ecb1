"""The commands of the command line, for Python: ``tutelage.run("recipe.yaml")``, ``tutelage.load_model(path)``.

Functions return plain objects; :mod:`tutelage.cli` prints them. Recipes are given by their path, overrides as on the
command line (``"seed=1"``). Errors that the user can fix are raised as :class:`~tutelage.errors.TutelageError`.

:mod:`tutelage.cli` builds each command from a signature here: a parameter with ``Param`` is an option or an argument.
"""

# Annotations are evaluated (no `annotations` of __future__): the command line reads them.

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tutelage.errors import RecipeError, RunError
from tutelage.signatures import Param

if TYPE_CHECKING:
    from tutelage.data.checks import Finding
    from tutelage.data.dataset import Classes
    from tutelage.deploy.model import Model
    from tutelage.deploy.outputs import Kind
    from tutelage.deploy.predict import PredictReport
    from tutelage.evaluation.comparison import Comparison
    from tutelage.evaluation.protocol import Protocol
    from tutelage.ladders.plan import PlannedRung
    from tutelage.ladders.run import LadderResult
    from tutelage.nets.catalogue import CatalogueRow
    from tutelage.nets.published.cirkd_checkpoint import Imported
    from tutelage.pipeline.run import Planned, RunResult
    from tutelage.pipeline.training_cost import TrainingCost
    from tutelage.recipe.loading import LoadedRecipe

PathLike = str | Path

Recipe = Annotated[PathLike, Param("recipe file (YAML)")]
Overrides = Annotated[Sequence[str], Param("settings that replace the recipe's", metavar="[a.b=c]...")]
Plugins = Annotated[
    Sequence[str], Param("import this module, which defines METHODS (repeatable)", name="plugin", metavar="MODULE")
]
Quiet = Annotated[bool, Param("print errors only")]
OnlyRungs = Annotated[Sequence[str], Param("train only this (repeatable)", metavar="RUNG")]
Seeds = Annotated[Sequence[int | str], Param("only these seeds", metavar="SEED...", spread=True)]
Pairs = Annotated[
    "Sequence[str] | Protocol", Param("e.g. kind=sliding 'window=[512,512]'", metavar="a=b...", spread=True)
]
Groups = Mapping[str, Sequence[str]] | Sequence[str]
Device = Annotated[str, Param("auto, cpu, cuda or cuda:N")]
Size = str | tuple[int, int]


def run(
    recipe: Recipe,
    overrides: Overrides = (),
    *,
    only: Annotated[Sequence[str], Param("run only this stage (repeatable)", metavar="STAGE")] = (),
    plugins: Plugins = (),
    quiet: Quiet = True,
) -> "RunResult":
    """Run a recipe; finished stages are skipped, interrupted ones continue."""
    loaded = _read(recipe, overrides, plugins)
    from tutelage.pipeline import run as work

    return work.run(loaded, only=only, quiet=quiet)


def plan(recipe: Recipe, overrides: Overrides = (), *, plugins: Plugins = ()) -> "list[Planned]":
    """List what a run would do and why; the command adds how long it takes."""
    loaded = _read(recipe, overrides, plugins)
    from tutelage.pipeline import run as work

    return work.plan(loaded)


def estimate(
    recipe: PathLike, stage: str, overrides: Sequence[str] = (), *, plugins: Sequence[str] = ()
) -> "TrainingCost | str":
    """Hours, memory and disk of one training stage, from a few steps of it; a reason if they cannot be measured."""
    loaded = _read(recipe, overrides, plugins)
    from tutelage.pipeline.training_cost import estimate_cost

    return estimate_cost(loaded, stage)


def ladder(
    recipe: Recipe,
    overrides: Overrides = (),
    *,
    only: OnlyRungs = (),
    seeds: Seeds = (),
    report_only: Annotated[bool, Param("train nothing, write the table of the finished rungs")] = False,
    plugins: Plugins = (),
    quiet: Quiet = True,
) -> "LadderResult":
    """Test whether a teacher improves the student: train with and without it, and compare."""
    loaded, chosen = _read(recipe, overrides, plugins), _seeds(seeds)
    from tutelage.ladders import run as work

    return work.run(loaded, rungs=only, seeds=chosen, report_only=report_only, quiet=quiet)


def plan_ladder(
    recipe: PathLike,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int | str] = (),
    plugins: Sequence[str] = (),
    measure: bool = True,
) -> "list[PlannedRung]":
    """List what :func:`ladder` would train; with ``measure``, how long it takes, from a few steps of each rung."""
    loaded, chosen = _read(recipe, overrides, plugins), _seeds(seeds)
    from tutelage.ladders import plan as work

    return work.plan(loaded, rungs=only, seeds=chosen, measure=measure)


def show(
    recipe: Recipe,
    overrides: Overrides = (),
    *,
    out: Annotated[PathLike, Param("folder for the pictures")] = "shown",
    stages: Annotated[Sequence[str], Param("only this stage (repeatable)", name="stage", metavar="STAGE")] = (),
    count: Annotated[int, Param("samples per stream")] = 8,
    position: Annotated[int, Param("position in the stream to begin at")] = 0,
    plugins: Plugins = (),
) -> list[Path]:
    """Write pictures of exactly what the nets see in each training stage. Returns the files."""
    from tutelage.pipeline import stream_sheets

    return stream_sheets.show(
        _read(recipe, overrides, plugins), Path(out), stages=stages or None, count=count, position=position
    )


def check(
    recipe: Annotated[PathLike, Param("recipe file, or a folder of images and masks")],
    overrides: Overrides = (),
    *,
    plugins: Plugins = (),
    quiet: bool = True,
) -> "list[Finding]":
    """Read every mask once and report errors in the data, most severe first, each with a remedy."""
    say = (lambda text: None) if quiet else print
    loaded = None if Path(recipe).is_dir() else _read(recipe, overrides, plugins)
    from tutelage.pipeline import data_check

    if loaded is not None:
        return data_check.check(loaded, say)
    if overrides:
        text = f"a folder has no settings to replace: {overrides[0]}"
        raise RecipeError("invalid-override", text, "write a recipe: tutelage init")
    return data_check.check_folder(Path(recipe), say)


def split(
    recipe: Recipe,
    overrides: Overrides = (),
    *,
    data: Annotated[str, Param("data set to split (name or name/split)")],
    out: Annotated[PathLike, Param("folder for the list files")],
    parts: Annotated[str, Param("shares or counts of the parts")] = "train=0.7,val=0.1,test=0.2",
    few: Annotated[str | None, Param("few-label partitions instead: 1/16,1/8,1/4 or counts")] = None,
    draws: Annotated[int, Param("independent draws of few-label partitions")] = 1,
    seed: Annotated[int, Param("seed of the draws")] = 0,
    by_group: Annotated[bool, Param("keep sequences, tiles or patients together")] = False,
    stratify: Annotated[
        Literal["classes", "group", "none"],
        Param("balance: every part shows every class, or has its share of every group"),
    ] = "classes",
    force: Annotated[bool, Param("replace lists that exist")] = False,
    plugins: Plugins = (),
    quiet: bool = True,
) -> list[Path]:
    """Write train/val/test or few-label partitions of a data set as list files. Returns the files."""
    from tutelage.pipeline.partitions import write_partitions

    return write_partitions(
        _read(recipe, overrides, plugins),
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


def init(
    *,
    images: Annotated[PathLike, Param("folder of images")],
    masks: Annotated[PathLike | None, Param("folder of masks")] = None,
    unlabeled: Annotated[PathLike | None, Param("folder of images without masks")] = None,
    target: Annotated[PathLike | None, Param("folder of images from the target domain")] = None,
    classes: Annotated[str | None, Param("a,b,c or a file with class names")] = None,
    out: Annotated[PathLike, Param("recipe to write")] = "recipe.yaml",
    force: Annotated[bool, Param("replace a recipe that exists")] = False,
) -> Path:
    """Inspect a folder and write a commented, working recipe. Returns its path."""
    from tutelage.proposal.recipe_text import write_proposal

    folders = {"masks": masks, "unlabeled": unlabeled, "target": target}
    given = {name: None if folder is None else Path(folder) for name, folder in folders.items()}
    return write_proposal(images=Path(images), **given, classes=classes, out=Path(out), force=force)


def load_model(
    path: PathLike, device: str = "auto", precision: str = "fp32", protocol: "Protocol | None" = None
) -> "Model":
    """A trained net, from its file or its stage's folder, as an object with ``.predict(image)``."""
    from tutelage.deploy import model

    return model.load_model(path, device, precision, protocol)


def evaluate(
    nets: Annotated[Sequence[PathLike], Param("net files or stage folders")],
    *,
    recipe: Annotated[PathLike | None, Param("recipe that describes the data")] = None,
    data: Annotated[str | None, Param("name/split of the recipe")] = None,
    images: Annotated[PathLike | None, Param("folder of images (without a recipe)")] = None,
    masks: Annotated[PathLike | None, Param("folder of masks (without a recipe)")] = None,
    protocol: Pairs = (),
    subsets: Annotated[
        Groups, Param("also the mean IoU over these classes (repeatable)", name="subset", metavar="NAME=A,B")
    ] = (),
    merged: Annotated[Groups, Param("also with these classes merged (repeatable)", metavar="NAME=A,B")] = (),
    device: Device = "auto",
    out: Annotated[PathLike | None, Param("folder for the scores (JSON and per-image counts)")] = None,
    plugins: Plugins = (),
    quiet: bool = True,
) -> dict[str, dict[str, Any]]:
    """Score trained nets on labelled data. Returns all figures by name.

    ``subsets`` adds mean IoUs over some classes, ``merged`` scores in which several classes count as one. With ``out``,
    figures and per-image counts are written there, for :func:`compare`.
    """
    from tutelage.pipeline import score

    groups = _class_groups("--subset", subsets), _class_groups("--merged", merged)
    way = score.Way(_protocol(protocol), device, *groups)
    folder = None if out is None else Path(out)
    if recipe is not None and data is not None:
        return score.on_recipe(_read(recipe, (), plugins), data, map(Path, nets), way, folder, quiet)
    if images is not None and masks is not None:
        return score.on_folders(Path(images), Path(masks), map(Path, nets), way, folder, quiet)
    raise RunError("missing-option", "no data to evaluate on", "give --recipe and --data, or --images and --masks")


def predict(
    net: Annotated[PathLike, Param("net file or stage folder")],
    images: Annotated[Iterable[PathLike], Param("images, folders or patterns")],
    *,
    out: Annotated[PathLike, Param("folder for the results")],
    write: Annotated["str | Iterable[Kind]", Param("of: index,palette,overlay,confidence")] = "palette,overlay",
    protocol: Pairs = (),
    device: Device = "auto",
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Param("number format")] = "fp32",
    overwrite: Annotated[bool, Param("replace results that exist")] = False,
    quiet: bool = True,
) -> "PredictReport":
    """Segment images: index and palette masks, overlays, confidence. The report lists unreadable files."""
    from tutelage.deploy.predict import predict_files
    from tutelage.evaluation.protocol import Protocol
    from tutelage.pipeline.display import Display

    chosen = _protocol(protocol)
    model = load_model(net, device, precision, chosen if chosen != Protocol() else None)
    display = Display(quiet)
    with display.bar("predict", 0) as progress:
        return predict_files(
            model,
            [Path(path) for path in images],
            Path(out),
            write=set(write.split(",") if isinstance(write, str) else write),
            overwrite=overwrite,
            progress=progress,
            say=display.say,
        )


def compare(
    a: Annotated[
        PathLike | Sequence[PathLike], Param("scores of one side: file, or stage folder:label; several seeds: a,b,c")
    ],
    b: Annotated[PathLike | Sequence[PathLike], Param("scores of the other side")],
) -> "Comparison":
    """Compare scored runs on the same images, side b against side a: gain, interval, p."""
    from tutelage.evaluation import comparison

    def runs(side: PathLike | Sequence[PathLike]) -> Sequence[PathLike]:
        return side.split(",") if isinstance(side, str) else [side] if isinstance(side, Path) else side

    return comparison.compare(runs(a), runs(b))


def models(
    *,
    size: Annotated[Size, Param("input height x width for the FLOPs")] = "512x1024",
    classes: Annotated[int, Param("number of classes")] = 19,
) -> "list[CatalogueRow]":
    """List recommended nets, with parameters and FLOPs (multiply-adds)."""
    from tutelage.nets.catalogue import rows

    return rows(_size(size), classes)


def import_checkpoint(
    file: Annotated[PathLike, Param("checkpoint of CIRKD's repository (a state dict)")],
    *,
    net: Annotated[str, Param("which net, e.g. deeplabv3_resnet18_v1, segformer_b0")],
    out: Annotated[PathLike, Param("net file to write (.safetensors)")],
    classes: Annotated[int | str | None, Param("number of classes, or a,b,c, or a file with class names")] = None,
    like: Annotated[PathLike | None, Param("take class names and colours from a recipe", metavar="RECIPE")] = None,
    force: Annotated[bool, Param("replace a file that exists")] = False,
    plugins: Plugins = (),
) -> "Imported":
    """Convert a published checkpoint to a net file that every command reads.

    Returns which tensors were loaded. Raises :class:`~tutelage.errors.TutelageError` if the file lacks some of the net.
    """
    from tutelage.nets.published import cirkd_checkpoint
    from tutelage.nets.storage import save_segmentor
    from tutelage.pipeline.builder import Builder

    target = Path(out)
    if target.suffix != ".safetensors":
        text = f"invalid name of a net file: {target.name}; expected NAME.safetensors"
        raise RunError("invalid-value", text, f"--out {target.stem}.safetensors")
    if target.exists() and not force:
        raise RunError("file-exists", f"{target} exists", "give --force to replace it, or another --out")
    if (classes is None) == (like is None):
        text = "the classes of the net need exactly one of --classes and --like"
        raise RunError("missing-option", text, "give one of them")
    cirkd_checkpoint.settings_of(net)  # before any data is opened
    task = _named_classes(str(classes)) if like is None else Builder(_read(like, (), plugins)).classes
    imported, report = cirkd_checkpoint.import_checkpoint(Path(file), net, len(task))
    facts = {"imported": {"file": Path(file).name, "net": net}}
    save_segmentor(imported, target, classes=task.names, palette=task.palette, extra=facts)
    return report


def doctor(
    *, hub: Annotated[bool, Param("also connect to the weight hub (uses the network)")] = False
) -> tuple[str, bool]:
    """Print versions, devices and weights, and the fix for each problem.

    Returns the text, and whether everything that is needed works.
    """
    from tutelage.pipeline.doctor import diagnose

    return diagnose(hub)


def schema(*, plugins: Plugins = ()) -> dict[str, Any]:
    """Print the JSON schema of recipes, for editors."""
    from tutelage.methods import load_plugins
    from tutelage.recipe.loading import json_schema

    load_plugins(plugins)
    return json_schema()


def clean(
    out: Annotated[PathLike, Param("run folder, e.g. runs/demo")],
    *,
    keep: Annotated[int, Param("stored recipes to keep, newest first")] = 1,
    really: Annotated[bool, Param("remove; without it, only list what would be removed", name="yes")] = False,
) -> list[tuple[Path, int]]:
    """Remove artefacts that no recipe of a run folder refers to. Returns their folders and bytes."""
    from tutelage.runs.store import Store

    store = Store(Path(out))
    if not store.out.is_dir():
        text = f"run folder not found: {out}"
        raise RunError("folder-missing", text, "name the folder that holds the stages, e.g. runs/demo")
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
    out: Annotated[PathLike, Param("folder to write")],
    *,
    splits: Annotated[str | Mapping[str, int], Param("images of each split")] = "train=200,val=50,test=50",
    size: Annotated[Size, Param("height x width")] = "128x256",
    domain: Annotated[Literal["day", "dusk"], Param("lighting")] = "day",
    seed: Annotated[int, Param("seed of the scenes")] = 0,
) -> None:
    """Generate a procedural street-scene data set (no download)."""
    counts = _counts(splits) if isinstance(splits, str) else dict(splits)
    content = {"kind": "toycity", "root": str(out), "splits": counts, "size": _size(size)}
    from tutelage.data.sources import ToycitySettings, open_data

    open_data(ToycitySettings.model_validate({**content, "domain": domain, "seed": seed}), Path.cwd())


def _named_classes(text: str) -> "Classes":
    """``19``, ``a,b,c`` or a file of names as classes."""
    from tutelage.data.dataset import Classes
    from tutelage.proposal.names import given_names

    if text.isdecimal():
        return Classes(tuple(f"class {number}" for number in range(int(text))))
    given = given_names(text)
    free = Classes(given.names)
    return Classes(free.names, tuple(map(given.colours.get, free.names, free.palette)))


def _class_groups(option: str, given: Groups) -> Mapping[str, Sequence[str]]:
    """``name=a,b`` as name → classes."""
    if isinstance(given, Mapping):
        return given
    groups = {}
    for one in given:
        name, equals, classes = one.partition("=")
        if not (name and equals and classes):
            text = f"invalid class group {option} {one}; expected a name and classes"
            raise RunError("invalid-value", text, f"write {option} vegetation=crop,weed")
        groups[name] = [part.strip() for part in classes.split(",")]
    return groups


def _size(given: Size) -> tuple[int, int]:
    if not isinstance(given, str):
        return given
    height, _, width = given.partition("x")
    if not height.isdigit() or not width.isdigit():
        raise RecipeError("invalid-value", f"invalid size {given!r}; expected HEIGHTxWIDTH", "e.g. 512x1024")
    return int(height), int(width)


def _counts(text: str) -> dict[str, int]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and count.isdigit() for name, _, count in pairs):
        text = f"invalid splits {text!r}; expected name=count,..."
        raise RecipeError("invalid-value", text, "e.g. train=200,val=50,test=50")
    return {name: int(count) for name, _, count in pairs}


def _seeds(given: Sequence[int | str]) -> list[int]:
    try:
        return [int(seed) for seed in given]
    except ValueError:
        text = f"invalid seeds: {' '.join(map(str, given))}; expected integers"
        raise RecipeError("invalid-value", text, "e.g. --seeds 0 1") from None


def _read(recipe: PathLike, overrides: Sequence[str], plugins: Sequence[str]) -> "LoadedRecipe":
    from tutelage.methods import load_plugins
    from tutelage.recipe.loading import load_recipe

    load_plugins(plugins)
    return load_recipe(Path(recipe), overrides)


def _protocol(given: "Sequence[str] | Protocol") -> "Protocol":
    from tutelage.evaluation.protocol import Protocol
    from tutelage.recipe.loading import protocol_from

    return given if isinstance(given, Protocol) else protocol_from(given)
