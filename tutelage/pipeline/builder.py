"""Builds what stages work with: data sets, nets, streams, methods, by the names that a recipe gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tutelage.data.copies import with_copies
from tutelage.data.dataset import Classes, Dataset, describe_bridge
from tutelage.data.draws import key as draw_key
from tutelage.data.pseudo_labels import with_pseudo_labels
from tutelage.data.settings import StreamSettings
from tutelage.data.sources import open_data, task_classes
from tutelage.data.statistics import read_statistics
from tutelage.data.stream import LoaderSettings, Stream
from tutelage.data.weights import with_weights
from tutelage.engine.contract import Method, TaskInfo
from tutelage.errors import DataError, RecipeError, TutelageError
from tutelage.methods import find_method, find_settings
from tutelage.nets.build import build
from tutelage.nets.checkpoints import read_tensors
from tutelage.nets.segmentor import Segmentor
from tutelage.nets.storage import check_classes, load_segmentor, read_metadata
from tutelage.nets.weights import fill
from tutelage.pipeline import fits
from tutelage.prototypes.storage import load_tensors
from tutelage.recipe.reading import LoadedRecipe, method_settings
from tutelage.recipe.references import WEIGHT_SUFFIXES, listed, nearest, roles
from tutelage.recipe.schema import AnnotateStage, FitStage, ImportStage, TrainStage, TransformStage
from tutelage.runs.store import Artefact

Say = Callable[[str], None]


class Builder:
    """Everything by name; data sets are opened when first asked for, and once."""

    def __init__(self, read: LoadedRecipe, say: Say = lambda text: None) -> None:
        self.recipe = read.recipe
        self.base = read.base
        self.say = say
        self.artefacts: dict[str, Artefact] = {}
        """Stage name → its artefact, finished or not."""
        self.caches: dict[str, Artefact] = {}
        """Key of a training stage → the artefact with its teacher's answers, where it replays them."""
        self._opened: dict[str, Mapping[str, Dataset]] = {}
        self._bridged: dict[str, Dataset] = {}

    # Data

    @cached_property
    def classes(self) -> Classes:
        """The task's classes: the recipe's, or those of its first data set."""
        name = next(iter(self.recipe.data))
        splits = self.splits(name)
        return task_classes(self.recipe.classes, splits[next(iter(splits))])

    def dataset(self, reference: str) -> Dataset:
        """The data set that ``name/split`` or ``name`` means, in the task's classes; or what a stage made of
        one: pseudo labels, images in another style.

        Raises :class:`RecipeError` for a split that does not exist and :class:`DataError` for what is on the disk.
        """
        stage = self.recipe.stages.get(reference)
        if isinstance(stage, AnnotateStage):
            return with_pseudo_labels(self.dataset(stage.data), self.artefacts[reference].labels)
        if isinstance(stage, TransformStage):
            return with_copies(self.dataset(stage.data), self.artefacts[reference].folder)
        if reference not in self._bridged:
            name, _, split = reference.partition("/")
            splits = self.splits(name)
            if not split:
                if len(splits) != 1:
                    raise RecipeError(
                        f"data set {name!r} has several splits: {', '.join(splits)}", f"write {name}/<split>"
                    )
                split = next(iter(splits))
            if split not in splits:
                raise RecipeError(
                    f"{reference!r}: data set {name!r} has no split {split!r}{nearest(split, splits)}",
                    f"name one of its splits, or add this one under data.{name}.splits",
                )
            dataset = splits[split]
            mapping = self.recipe.data[name].bridge
            try:
                for line in describe_bridge(dataset, self.classes, mapping):
                    self.say(line)
                self._bridged[reference] = dataset.bridged(self.classes, mapping)
            except DataError as error:
                raise DataError(f"data.{name}: {error.message}", named(error.remedy, name)) from error
        return self._bridged[reference]

    def data_key(self, reference: str) -> str:
        """What identifies a data set's content: its fingerprint, or the key of the stage that makes it."""
        stage = self.recipe.stages.get(reference)
        if isinstance(stage, AnnotateStage | TransformStage):
            return f"stage:{self.artefacts[reference].key}"
        return self.dataset(reference).fingerprint

    def full_name(self, reference: str) -> str:
        """``name/split``, the split filled in where the data set has only one."""
        name, _, split = reference.partition("/")
        return reference if split else f"{name}/{next(iter(self.splits(name)))}"

    def root(self, name: str) -> Path:
        """The folder that a data set's list files are relative to."""
        return (self.base / self.recipe.data[name].root).resolve()

    def splits(self, name: str) -> Mapping[str, Dataset]:
        """The splits of a data set, in its own classes.

        Raises :class:`RecipeError` for a name that the recipe has not, and as :func:`open_data` does.
        """
        if name not in self.recipe.data:
            known = self.recipe.data
            raise RecipeError(f"no data set {name!r}{nearest(name, known)}", "name one of the recipe's data sets")
        if name not in self._opened:
            try:
                self._opened[name] = open_data(self.recipe.data[name], self.base, self.say)
            except DataError as error:
                raise DataError(f"data.{name}: {error.message}", named(error.remedy, name)) from error
        return self._opened[name]

    # Nets

    def new_net(self, name: str, seed: int) -> Segmentor:
        """A net of the recipe with its first weights; which is a function of the name and the seed."""
        settings, file = self.recipe.nets[name], None
        if settings.weights is not None and settings.weights.endswith(WEIGHT_SUFFIXES):
            file = self.base / settings.weights
            settings = settings.model_copy(update={"weights": None})
        try:
            net = build(settings, len(self.classes), seed=draw_key(seed, "net", name) % (1 << 62))
            if file is not None:
                net.load_report = fill(net, self._tensors(file, name), str(file))
        except TutelageError as error:
            raise TutelageError(f"net {name!r}: {error.message}", error.remedy) from error
        if net.load_report is not None:
            self.say(f"net {name}: {net.load_report}")
        return net

    def trained_net(self, reference: str) -> Segmentor:
        """The net of a finished stage (``stage`` or ``stage.net``). Raises when its classes are not the task's."""
        path = self.net_path(reference)
        assert path is not None
        net, metadata = load_segmentor(path)
        check_classes(metadata, self.classes.names, "this recipe's task")
        return net

    def net_path(self, reference: str, missing_ok: bool = False) -> Path | None:
        """The weight file that a reference means.

        Where it is not there: ``None`` if it may be missing, else a :class:`RecipeError` that lists what is.
        """
        stage, _, net = reference.partition(".")
        artefact = self.artefacts[stage]
        path = artefact.net(net or "student")
        if not path.is_file():
            if missing_ok:
                return None
            known = sorted(found.stem for found in path.parent.glob("*.safetensors"))
            raise RecipeError(
                f"stage {stage!r} has no net {net or 'student'!r}", f"it has: {', '.join(known) or 'none yet'}"
            )
        return path

    def nets(self, stage: TrainStage, seed: int, stand_ins: bool = False) -> dict[str, Segmentor]:
        """The nets of a training stage by role: new ones, started as ``init`` says, and trained inputs.

        With ``stand_ins`` (a trial of a stage whose inputs are not made yet) untrained nets take their places.
        """
        result = {role: self.new_net(name, seed) for role, name in roles(self.recipe, stage).items()}
        for target, source in stage.init.items():
            role, _, part = target.partition(".")
            path = self.base / source if source.endswith(WEIGHT_SUFFIXES) else self.net_path(source, stand_ins)
            if path is None:
                continue
            if part not in ("", "encoder"):
                raise RecipeError(f"init target {target!r} is no net and no encoder", f"write {role} or {role}.encoder")
            tensors = self._tensors(path, role, encoder_only=bool(part))
            report = fill(result[role], tensors, str(path))
            self.say(f"net {role} starts from {path.name}: {report}")
        for role, reference in self.taught_by(stage).items():
            trained = self.net_path(reference, stand_ins) is not None
            result[role] = self.trained_net(reference) if trained else self._stand_in(reference)
        return result

    def taught_by(self, stage: TrainStage) -> dict[str, str]:
        """Role → the trained net under `inputs`, without what `fit` stages made."""
        stages = self.recipe.stages
        return {role: it for role, it in stage.inputs.items() if not isinstance(stages.get(it), FitStage)}

    def fitted(self, reference: str) -> dict[str, Tensor]:
        """The tensors of a finished `fit` stage, on the CPU.

        Raises :class:`TutelageError` for a file that is missing, damaged or made for other classes.
        """
        stage = self.recipe.stages[reference]
        assert isinstance(stage, FitStage)
        path = self.artefacts[reference].fitted
        tensors, about = load_tensors(path, fits.FILE_KINDS[stage.what.kind])
        classes = tuple(about.get("classes", ()))
        if classes != self.classes.names:
            raise TutelageError(
                f"{path} was fitted for other classes: {', '.join(classes)}",
                f"run the stage {reference!r} again for: {', '.join(self.classes.names)}",
            )
        return tensors

    def _fitted_for(self, stage: TrainStage, stand_ins: bool) -> dict[str, dict[str, Tensor]]:
        """Tensors by role; random ones of the right shape for a fit that is not made yet, with ``stand_ins``."""
        result = {}
        for role, reference in stage.inputs.items():
            fit = self.recipe.stages.get(reference)
            if isinstance(fit, FitStage):
                if stand_ins and not self.artefacts[reference].fitted.is_file():
                    assert fit.net is not None
                    path = self.net_path(fit.net, True)
                    net = self._stand_in(fit.net) if path is None else self.trained_net(fit.net)
                    result[role] = fits.stand_in(fit.what, len(self.classes), net.embedding_channels)
                else:
                    result[role] = self.fitted(reference)
        return result

    def _tensors(self, path: Path, net: str, encoder_only: bool = False) -> dict[str, Tensor]:
        """The tensors of a weight file from which a net may start."""
        tensors, _ = read_tensors(path)
        if encoder_only:
            return {name: value for name, value in tensors.items() if _of_encoder(name)} or tensors
        others = _classes_of(path)
        if others is not None and others != self.classes.names and len(others) == len(self.classes):
            # Another number of classes is seen by the shapes; other names of as many are not.
            self.say(f"net {net}: {path.name} knows other classes ({', '.join(others)}): its classifier is remade")
            tensors = {name: value for name, value in tensors.items() if not name.startswith(_HEADS)}
        return tensors

    def _stand_in(self, reference: str) -> Segmentor:
        stage = self.recipe.stages[reference.partition(".")[0]]
        if isinstance(stage, ImportStage):
            return load_segmentor(self.base / stage.file)[0]
        assert isinstance(stage, TrainStage)
        chosen = roles(self.recipe, stage)
        name = chosen.get(reference.partition(".")[2], chosen.get("student", next(iter(chosen.values()))))
        settings = self.recipe.nets[name].model_copy(update={"weights": None})
        return build(settings, len(self.classes), seed=0)

    # Training

    def streams(self, stage: TrainStage, seed: int, stand_ins: bool = False) -> dict[str, Stream]:
        """The streams of a training stage; with ``stand_ins`` without weights that are not there yet."""
        run = self.recipe.run
        loader = LoaderSettings(run.workers, run.ahead, run.cache, run.cache_folder, run.on_unreadable)
        needs = find_settings(stage.method.name).streams
        return {
            name: Stream(
                name=name,
                datasets=_pooled(self._datasets(settings, stand_ins)),
                seed=seed,
                batch=settings.batch,
                views=needs[name].shown(settings.views),
                augment=settings.augment,
                labels=needs[name].labels,
                loader=loader,
                repeat=settings.repeat or (),
                draws_of=settings.draws_of,
                sampler=settings.sampler,
            )
            for name, settings in stage.streams.items()
        }

    def _datasets(self, settings: StreamSettings, stand_ins: bool) -> list[Dataset]:
        """The data of a stream, with its weights; with ``stand_ins`` originals for copies that are not there yet."""
        find = self._present if stand_ins else self.dataset
        datasets = [find(reference) for reference in listed(settings.data)]
        if settings.weights is None:
            return datasets
        folder = self.artefacts[settings.weights].folder
        if stand_ins and self.artefacts[settings.weights].manifest() is None:
            return datasets
        return [with_weights(dataset, folder) for dataset in datasets]

    def _present(self, reference: str) -> Dataset:
        """What there is of a data set: the originals of copies that are not made yet.

        Raises :class:`RecipeError` for pseudo labels that are not: nothing else is like them.
        """
        stage = self.recipe.stages.get(reference)
        if isinstance(stage, AnnotateStage | TransformStage) and self.artefacts[reference].manifest() is None:
            if isinstance(stage, AnnotateStage):
                raise RecipeError(
                    f"it reads the labels of {reference!r}, which are not made yet", "run that stage first"
                )
            return self._present(stage.data)
        return self.dataset(reference)

    def method(
        self,
        stage: TrainStage,
        nets: Mapping[str, Segmentor],
        streams: Mapping[str, Stream],
        stand_ins: bool = False,
    ) -> Method:
        """The method of a training stage, holding its nets; with ``stand_ins`` fits that are not there are random."""

        def pixel_counts() -> Sequence[int]:
            labeled = [dataset for stream in streams.values() if stream.labels for dataset in stream.datasets]
            totals = [read_statistics(dataset).class_pixels() for dataset in labeled]
            return [int(sum(counts[index] for counts in totals)) for index in range(len(self.classes))]

        kind = find_method(stage.method.name)
        first = next(iter(streams.values()))
        facts = TaskInfo(
            len(self.classes),
            pixel_counts,
            size=first.view_size,
            names=self.classes.names,
            fitted_inputs=self._fitted_for(stage, stand_ins),
        )
        with torch.random.fork_rng(devices=[]):
            # What a method adds to its nets (critics, projections, queues) starts from the stage's seed, too.
            torch.default_generator.manual_seed(draw_key(first.seed, "method", stage.method.name) % (1 << 62))
            return kind(nets, method_settings(stage), facts)


def _pooled(datasets: list[Dataset]) -> list[Dataset]:
    """Masks that people made have no confidence; pseudo labels that are pooled with them leave theirs out."""
    samples = [sample for dataset in datasets for sample in dataset.samples]
    if len({sample.confidence is None for sample in samples}) < 2:
        return datasets
    plain = [tuple(replace(sample, confidence=None) for sample in dataset.samples) for dataset in datasets]
    return [replace(dataset, samples=its) for dataset, its in zip(datasets, plain, strict=True)]


_HEADS = ("classifier.", "auxiliary.")


def _classes_of(path: Path) -> tuple[str, ...] | None:
    """The classes of a net that we wrote; ``None`` for another weight file."""
    try:
        return read_metadata(path).classes
    except TutelageError:
        return None


def _of_encoder(name: str) -> bool:
    return "encoder." in name and not name.startswith(("decoder.", "classifier.", "auxiliary."))


def named(remedy: str, data: str) -> str:
    """A remedy of any data set as that of the recipe's ``data``, to be copied as it stands."""
    return remedy.replace("data.<name>", f"data.{data}")
