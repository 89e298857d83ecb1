"""The recipes of published experiments: every fact of the table, and what holds for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.recipe.published import ALWAYS, CITY, FEW_LABELS, FINE, PUBLISHED, SOURCES, Facts, epoch
from tutelage.data.catalogue import CatalogueSettings, variants
from tutelage.data.folder import FolderSettings
from tutelage.nets.published.nets import NETS
from tutelage.nets.settings import NetSettings
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.schema import Recipe
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.report import ReportStage
from tutelage.recipe.stages.train import TrainStage

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "published"
FILES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


@cache
def recipe_of(file: str) -> Recipe:
    return load_recipe(FOLDER / f"{file}.yaml").recipe


def trainings(recipe: Recipe) -> dict[str, TrainStage]:
    return {name: stage for name, stage in recipe.stages.items() if isinstance(stage, TrainStage)}


def published_net(settings: NetSettings) -> str:
    """The published net that a recipe's net is, whatever its first weights."""
    plain = settings.model_copy(update={"weights": None, "width": settings.channels})
    same = (name for name, net in NETS.items() if net.model_copy(update={"width": net.channels}) == plain)
    return next(same, "none")


# The facts of a stage


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested settings, those of the branches too; defaults are there."""
    yield key, value
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))


def facts_of(recipe: Recipe, stage: Any) -> Facts:
    """The settings of a stage under the keys of the table."""
    found = dict(flat(stage))
    if isinstance(stage, AnnotateStage):
        rule = stage.policy.model_dump()
        found |= {
            f"policy.{name}": rule.get(name) for name in ("kind", "threshold", "quantile", "cap", "portion", "mixtures")
        }
    if isinstance(stage, TrainStage):
        net, optimizer = recipe.nets[stage.nets["student"]], stage.optimizer
        found |= dict(flat(stage.method_settings(), "method")) | {"method.name": stage.method.name}
        found |= dict(flat(net, "net")) | {
            "net": published_net(net),
            "net.width": net.channels,
            "net.stride": net.stride,
        }
        batches = {name: stream.batch for name, stream in stage.streams.items()}
        found["head_rate"], found["rate"] = optimizer.lr, optimizer.lr * optimizer.encoder_lr_ratio
        found["images"] = stage.steps * sum(batches.values())
        found["source_share"] = batches.get("source", 0) / sum(batches.values())
    return found


def read(facts: Facts, key: str, row: Facts) -> list[Any]:
    """The values of a key: for ``streams.*`` those of all streams that the row does not give a value of their own.

    A reference to data is its part below the data set.
    """
    keys = [key]
    if key.startswith("streams.*"):
        keys = [own for own in (key.replace("*", name) for name in facts["streams"]) if own not in row]
    values = [facts.get(one, f"no {one}") for one in keys]
    if key.partition(".")[2].endswith("data") or key in ("data", "target"):
        values = [value.rpartition("/")[2] if isinstance(value, str) else value for value in values]
    return values


def plain(value: Any) -> Any:
    """Settings as dictionaries, sequences as lists."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def agree(found: Any, expected: Any) -> bool:
    """Whether two values are the same but for rounding."""
    found, expected = plain(found), plain(expected)
    return bool(found == (pytest.approx(expected) if isinstance(expected, float) else expected))


def require_numbers(file: str) -> None:
    """The stages of the table, and their facts."""
    recipe, rows = recipe_of(file), PUBLISHED[file]
    assert {name for name, stage in recipe.stages.items() if not isinstance(stage, ReportStage)} == set(rows) - {""}
    wrong = []
    for name, row in rows.items():
        stage = recipe.stages[name] if name else recipe
        facts = facts_of(recipe, stage)
        for key, expected in ((ALWAYS if isinstance(stage, TrainStage) else {}) | row).items():
            wrong += [
                f"{name}: {key} is {one}, not {expected}" for one in read(facts, key, row) if not agree(one, expected)
            ]
    assert not wrong, "\n".join(wrong)


# What holds for all recipes


def require_scores(file: str) -> None:
    """Each training is scored by the protocol that chose its weights, and so are weights kept besides the student's."""
    recipe = recipe_of(file)
    scores = [stage for stage in recipe.stages.values() if isinstance(stage, EvaluateStage)]
    scored = {reference: stage for stage in scores for reference in stage.scored().values()}
    assert {reference.partition(".")[0] for reference in scored} == set(trainings(recipe))
    for reference, score in scored.items():
        during = trainings(recipe)[reference.partition(".")[0]].evaluate
        assert during is None or during.protocol == score.protocol, reference
    besides = {"u2pl": {"ema"}, "unimatch_v2": {"", "ema"}, "fixmatch": {"", "ema"}}
    kept = {reference.partition(".")[2] for reference in scored}
    assert kept == besides.get(file.partition("/")[0], {""})


def require_reports(file: str) -> None:
    """Of CIRKD's: a taught student against the same net alone."""
    stages = trainings(recipe_of(file))
    reports = [stage for stage in recipe_of(file).stages.values() if isinstance(stage, ReportStage)]
    if file.startswith("cirkd"):
        assert {report.student for report in reports} == {name for name, stage in stages.items() if stage.inputs}
        for report in reports:
            student, baseline = (stages[name or ""] for name in (report.student, report.baseline))
            assert student.inputs == {"teacher": report.teacher}
            assert (baseline.nets, baseline.inputs) == (student.nets, {})


def require_data(file: str) -> None:
    """The data sets of the experiment, and their splits."""
    recipe, (paper, _, name) = recipe_of(file), file.partition("/")
    kinds = {data.kind for data in recipe.data.values() if isinstance(data, CatalogueSettings)}
    source = next((one for one in SOURCES if one in name), "")
    if source:
        assert set(recipe.data) == {source, "cityscapes"}
        for stage in trainings(recipe).values():
            for stream, settings in stage.streams.items():
                if isinstance(settings.data, str) and "/" in settings.data:
                    domain = "cityscapes" if stream == "target" else source
                    assert settings.data.partition("/")[0] == domain
    elif file in FEW_LABELS:
        (data,) = recipe.data.values()
        assert isinstance(data, CatalogueSettings | FolderSettings)
        lists = {stage.streams[part].data for stage in trainings(recipe).values() for part in ("labeled", "unlabeled")}
        assert set(data.splits) - {"val"} == {str(one).partition("/")[2] for one in lists}
    else:
        of_name = {"voc": "voc_aug", "coco_stuff": "coco_stuff", "ade20k": "ade20k", "camvid": "camvid"}
        kind = next((kind for part, kind in of_name.items() if part in name), "cityscapes")
        assert kinds == {kind}, paper
        splits = {"train_aug" if kind == "voc_aug" else "train"}
        streams = [stream for stage in trainings(recipe).values() for stream in stage.streams.values()]
        assert {str(stream.data).partition("/")[2] for stream in streams} == splits
        variant = {data.variant for data in recipe.data.values() if isinstance(data, CatalogueSettings)}
        assert variant <= {None, "182" if kind == "coco_stuff" else variants(kind)[0]}
        scores = {stage.data for stage in recipe.stages.values() if isinstance(stage, EvaluateStage)}
        assert {one.partition("/")[2] for one in scores} == {"test" if kind == "camvid" else "val"}


def require_text(file: str) -> None:
    """A recipe states its source and what differs, and stands in the table of the folder."""
    text = (FOLDER / f"{file}.yaml").read_text(encoding="utf-8")
    header = " ".join(line.removeprefix("#").strip() for line in text.partition("\ntutelage:")[0].splitlines())
    if not file.startswith("cirkd") and not file.endswith("_repaired"):
        assert [words for words in ("Source: ", "Not run here", "Differs: ", "ublished") if words not in header] == []
    assert file not in FEW_LABELS or "Hardware: published on" in header
    assert all(len(line) <= 120 for line in text.splitlines())
    assert f"`{file}.yaml`" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_is_the_published_experiment(file: str) -> None:
    require_numbers(file)
    require_scores(file)
    require_reports(file)
    require_data(file)
    require_text(file)


def test_every_recipe_is_in_the_table_and_the_table_has_no_others() -> None:
    assert sorted(PUBLISHED) == FILES


def test_a_wrong_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("method.task.loss", "ohem"), ("rate", 0.02), ("streams.*.batch", 4), ("method.no_such", 1)):
        row = PUBLISHED["unimatch/voc"]["r50_92"] | {key: value}
        monkeypatch.setitem(PUBLISHED, "unimatch/voc", {**PUBLISHED["unimatch/voc"], "r50_92": row})
        with pytest.raises(AssertionError, match=f"r50_92: {re.escape(key)} is .*, not {value}"):
            require_numbers("unimatch/voc")


def test_epochs_are_as_long_as_the_specifications_say() -> None:
    assert [epoch(images, 4, 2) for images in CITY.values()] == [349, 325, 279, 186]
    assert [epoch(images, 4, 2) for images in FINE.values()] == [1311, 1300, 1277, 1231, 1140]
    steps = [PUBLISHED["trikd/cityscapes"][f"tiny_11m_{name}"]["steps"] for name in ("1_30", *CITY)]
    assert steps == [107_700, 104_700, 97_500, 83_700, 55_800]


def test_names_are_unique_and_run_folders_are_shared_where_stages_are() -> None:
    recipes = {file: recipe_of(file) for file in FILES}
    assert len({recipe.name for recipe in recipes.values()}) == len(recipes)
    own = [recipe.out_folder() for file, recipe in recipes.items() if file in FEW_LABELS]
    assert len(set(own)) == len(own)
    # With one run folder, a stage that several recipes have is made once.
    seen: dict[tuple[str, str, str], Any] = {}
    for file, recipe in recipes.items():
        for stage in trainings(recipe).values() if file.startswith("cirkd") else ():
            if stage.method.name == "supervised":
                net = stage.nets["student"]
                place = (recipe.out_folder(), net, published_net(recipe.nets[net]))
                assert seen.setdefault(place, (stage, recipe.nets[net])) == (stage, recipe.nets[net]), (file, net)
