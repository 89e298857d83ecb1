"""Builds data sets, nets and artefacts by their names in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from tutelage.class_lists import differences, renamed
from tutelage.data.dataset import Classes, Dataset, describe_bridge
from tutelage.data.draws import key as draw_key
from tutelage.data.sources import open_data, task_classes
from tutelage.errors import DataError, RecipeError, TutelageError
from tutelage.nets.build import build
from tutelage.nets.checkpoints import read_tensors
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.settings import NetSettings
from tutelage.nets.storage import NetMetadata, check_classes, load_segmentor, read_metadata
from tutelage.nets.weights import fill
from tutelage.pipeline.runner import StageRunner
from tutelage.pipeline.stages import find_runner
from tutelage.prototypes.storage import load_tensors
from tutelage.recipe.base import nearest
from tutelage.recipe.loading import LoadedRecipe
from tutelage.runs.atomic import sha256
from tutelage.runs.store import Artefact, Store, content_key
from tutelage.settings import WEIGHT_SUFFIXES, Reference, key_content

Say = Callable[[str], None]


class Builder:
    """Data sets, nets and artefacts by name; a data set is opened once, on first use."""

    def __init__(self, loaded: LoadedRecipe, say: Say = lambda text: None) -> None:
        self.recipe = loaded.recipe
        self.base = loaded.base
        self.say = say
        self.artefacts: dict[str, Artefact] = {}
        """Stage name → its artefact, finished or not."""
        self.shared: dict[tuple[str, str], Artefact] = {}
        """Stage name and kind → an artefact shared between stages, such as a teacher's cached outputs."""
        self._runners: dict[str, StageRunner[Any]] = {}
        self._opened: dict[str, Mapping[str, Dataset]] = {}
        self._bridged: dict[str, Dataset] = {}
        self._renamed: set[tuple[str, ...]] = set()

    # Stages

    def runner(self, stage: str) -> StageRunner[Any]:
        """The work of a stage of the recipe."""
        if stage not in self._runners:
            settings = self.recipe.stages[stage]
            self._runners[stage] = find_runner(settings.kind)(self, stage, settings)
        return self._runners[stage]

    def assign(self, store: Store, until: Sequence[str] | None = None) -> None:
        """Assign every stage its artefact, in order: a key depends on the keys of earlier stages.

        ``until``: only the artefacts that these stages need.
        """
        missing = set(self.recipe.stages if until is None else until)
        for name in self.recipe.stages:
            if not missing:
                return
            runner = self.runner(name)
            self.artefacts[name] = store.artefact(name, content_key(runner.content()))
            for kind, content in runner.shared_content().items():
                self.shared[name, kind] = store.artefact(kind, content_key(content))
            missing.discard(name)

    # Data

    @cached_property
    def classes(self) -> Classes:
        """The task's classes: the recipe's, or those of its first data set."""
        name = next(iter(self.recipe.data))
        splits = self.splits(name)
        return task_classes(self.recipe.classes, splits[next(iter(splits))])

    def dataset(self, reference: str, stand_ins: bool = False) -> Dataset:
        """The data set ``name/split`` or ``name``, or a stage's output data, in the task's classes.

        ``stand_ins``: the originals in place of copies not made yet. Raises :class:`RecipeError` for a split that does
        not exist and :class:`DataError` for invalid files.
        """
        if reference in self.recipe.stages:
            return self.runner(reference).dataset(stand_ins)
        if reference not in self._bridged:
            name, _, split = reference.partition("/")
            splits = self.splits(name)
            if not split:
                if len(splits) != 1:
                    text = f"data set {name!r} has several splits: {', '.join(splits)}"
                    raise RecipeError("several-splits", text, f"write {name}/<split>")
                split = next(iter(splits))
            if split not in splits:
                text = f"{reference!r}: data set {name!r} has no split {split!r}{nearest(split, splits)}"
                remedy = f"name one of its splits, or add this split under data.{name}.splits"
                raise RecipeError("unknown-split", text, remedy)
            dataset = splits[split]
            mapping = self.recipe.data[name].bridge
            try:
                for line in describe_bridge(dataset, self.classes, mapping):
                    self.say(line)
                self._bridged[reference] = dataset.bridged(self.classes, mapping)
            except DataError as error:
                raise within(error, name) from error
        return self._bridged[reference]

    def splits(self, name: str) -> Mapping[str, Dataset]:
        """The splits of a data set, in its own classes.

        Raises :class:`RecipeError` for a data set that is not in the recipe, and as :func:`open_data` does.
        """
        if name not in self.recipe.data:
            text = f"no data set {name!r}{nearest(name, self.recipe.data)}"
            raise RecipeError("unknown-data", text, "name one of the recipe's data sets")
        if name not in self._opened:
            try:
                self._opened[name] = open_data(self.recipe.data[name], self.base, self.say)
            except DataError as error:
                raise within(error, name) from error
        return self._opened[name]

    def full_name(self, reference: str) -> str:
        """``name/split``, the split filled in where the data set has only one."""
        name, _, split = reference.partition("/")
        return reference if split else f"{name}/{next(iter(self.splits(name)))}"

    def root(self, name: str) -> Path:
        """The base folder of a data set's list files."""
        return (self.base / self.recipe.data[name].root).resolve()

    # Nets

    def new_net(self, name: str, seed: int) -> Segmentor:
        """A net of the recipe with its initial weights, which depend on the name and the seed."""
        settings, file = self.recipe.nets[name], None
        if settings.weights is not None and settings.weights.endswith(WEIGHT_SUFFIXES):
            file = self.base / settings.weights
            settings = settings.model_copy(update={"weights": None})
        try:
            net = build(settings, len(self.classes), seed=draw_key(seed, "net", name) % (1 << 62))
            if file is not None:
                net.load_report = fill(net, self.start_tensors(file, name), str(file))
        except TutelageError as error:
            raise TutelageError(error.code, f"net {name!r}: {error.message}", error.remedy) from error
        if net.load_report is not None:
            self.say(f"net {name}: {net.load_report}")
        return net

    def trained_net(self, reference: str) -> Segmentor:
        """The net of a finished stage (``stage`` or ``stage.net``). Raises when its classes are not the task's."""
        path = self.net_path(reference)
        assert path is not None
        net, metadata = load_segmentor(path)
        self._check_class_names(path, metadata)
        return net

    def stand_in_net(self, reference: str) -> Segmentor:
        """The net of a stage for a trial: trained if finished, else untrained."""
        if self.net_path(reference, missing_ok=True) is not None:
            return self.trained_net(reference)
        settings = self.net_settings(reference).model_copy(update={"weights": None})
        return build(settings, len(self.classes), seed=0)

    def net_settings(self, reference: str) -> NetSettings:
        """The settings of a trained net (``stage`` or ``stage.net``)."""
        stage, _, net = reference.partition(".")
        return self.runner(stage).net_settings(net)

    def net_path(self, reference: str, missing_ok: bool = False) -> Path | None:
        """The weight file of ``stage`` or ``stage.net``.

        Where it does not exist: ``None`` with ``missing_ok``, else a :class:`RecipeError` that lists the existing nets.
        """
        stage, _, net = reference.partition(".")
        path = self.artefacts[stage].net(net or "student")
        if not path.is_file():
            if missing_ok:
                return None
            known = sorted(found.stem for found in path.parent.glob("*.safetensors"))
            text = f"stage {stage!r} has no net {net or 'student'!r}"
            raise RecipeError("unknown-net", text, f"its nets: {', '.join(known) or 'none yet'}")
        return path

    def fitted(self, reference: str, stand_ins: bool = False) -> Mapping[str, Tensor]:
        """The tensors of a finished `fit` stage, on the CPU; with ``stand_ins`` random ones where it is not finished.

        Raises :class:`TutelageError` for a file that is missing, damaged or made for other classes.
        """
        path, runner = self.artefacts[reference].fitted, self.runner(reference)
        if stand_ins and not path.is_file():
            return runner.stand_in_fit()
        tensors, about = load_tensors(path, runner.file_kind())
        classes = tuple(about.get("classes", ()))
        if not renamed(classes, self.classes.names):
            text = f"{path} was fitted for other classes: {', '.join(classes)}"
            remedy = f"run the stage {reference!r} again for the classes {', '.join(self.classes.names)}"
            raise TutelageError("other-classes", text, remedy)
        self._say_renamed(path, classes)
        return tensors

    def start_tensors(
        self, path: Path, net: str, *, encoder_only: bool = False, of_stage: bool = False
    ) -> dict[str, Tensor]:
        """The tensors from which a net starts; ``of_stage``: of a stage, which must have the task's classes."""
        tensors, _ = read_tensors(path)
        if encoder_only:
            return {name: value for name, value in tensors.items() if _of_encoder(name)} or tensors
        others = _classes_of(path)
        if of_stage and others is not None and renamed(others, self.classes.names):
            self._say_renamed(path, others)
        elif others is not None and others != self.classes.names and len(others) == len(self.classes):
            # Shapes reveal another number of classes, but not other names.
            text = f"net {net}: {path.name} has other classes ({', '.join(others)}): new classifier weights"
            self.say(text)
            tensors = {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
        return tensors

    def check_class_names(self, stages: Sequence[str]) -> None:
        """Print renamed classes of finished nets once; raises :class:`TutelageError` for classes in another order."""
        made = [name for name in stages if self.recipe.stages[name].makes == "nets" and self.artefacts[name].manifest()]
        for path in (
            path for name in made for path in sorted(self.artefacts[name].net("").parent.glob("*.safetensors"))
        ):
            if _classes_of(path) is not None:
                self._check_class_names(path, read_metadata(path))

    def _check_class_names(self, path: Path, metadata: NetMetadata) -> None:
        if renamed(metadata.classes, self.classes.names):
            self._say_renamed(path, metadata.classes)
        else:
            check_classes(metadata, self.classes.names, "this recipe's task")

    def _say_renamed(self, path: Path, theirs: tuple[str, ...]) -> None:
        """Report once that class names differ; artefacts stay valid, as class ids identify classes."""
        if theirs != self.classes.names and theirs not in self._renamed:
            self._renamed.add(theirs)
            self.say(
                f"{path.parent.parent.name} was made under other class names: {differences(theirs, self.classes.names)}"
            )

    # Identity

    def data_key(self, reference: str) -> str:
        """Identifies a data set's content: its fingerprint, or the key of its stage."""
        if reference in self.recipe.stages:
            return f"stage:{self.artefacts[reference].key}"
        return self.dataset(reference).fingerprint

    def net_key(self, reference: str) -> str:
        """Identifies one net of a stage: the stage's key and the net's name."""
        stage, _, net = reference.partition(".")
        return f"{self.artefacts[stage].key}.{net or 'student'}"

    def net_content(self, name: str) -> dict[str, Any]:
        """All inputs that determine a net of the recipe with its initial weights, including its name."""

        def weights(reference: Reference) -> str:
            return self.source_key(reference.value) if reference.value.endswith(WEIGHT_SUFFIXES) else reference.value

        return {**key_content(self.recipe.nets[name], weights), "name": name}

    def source_key(self, source: str) -> str:
        """Identifies start weights: a trained net, or the content of a file."""
        if not source.endswith(WEIGHT_SUFFIXES):
            return self.net_key(source)
        path = self.base / source
        if not path.is_file():
            return f"missing:{source}"
        # The classifier of a file with other class names is not loaded.
        others = _classes_of(path)
        return sha256(path) if others in (None, self.classes.names) else f"{sha256(path)} for other classes"

    def class_id(self, name: str) -> int:
        """The id of a class of the task. Raises :class:`RecipeError` for a name that is not one."""
        names = self.classes.names
        if name not in names:
            raise RecipeError("unknown-class", f"no class {name!r}{nearest(name, names)}", "name a class of the task")
        return names.index(name)


_HEADS = ("classifier.", "auxiliary.")


def within(error: DataError, data: str) -> DataError:
    """An error of a data set, with the data set's name in the recipe."""
    return DataError(error.code, f"data.{data}: {error.message}", named(error.remedy, data))


def named(remedy: str, data: str) -> str:
    """A remedy with the path of the data set in the recipe, ready to copy."""
    return remedy.replace("data.<name>", f"data.{data}")


def _classes_of(path: Path) -> tuple[str, ...] | None:
    """The classes of a net file of tutelage; ``None`` for any other weight file."""
    try:
        return read_metadata(path).classes
    except TutelageError:
        return None


def _of_encoder(name: str) -> bool:
    return "encoder." in name and not name.startswith(("decoder.", "classifier.", "auxiliary."))
