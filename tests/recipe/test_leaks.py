"""Which weights are kept: what leaks is refused, unless it is asked for by name."""

from __future__ import annotations

import pytest

from tests.recipe.texts import faults, parsed
from tutelage.recipe.ladder import expand
from tutelage.recipe.leaks import chosen_on_target, evaluates_on_target
from tutelage.recipe.loading import resolved
from tutelage.recipe.stages.train import TrainStage

DOMAINS = """\
tutelage: 1
name: demo
data:
  day: {classes: [road, car], splits: {train: train.txt, val: val.txt}}
  dusk: {classes: [road, car], splits: {train: train.txt, val: val.txt}}
nets:
  student: {encoder: resnet10t, decoder: lraspp}
stages:
  source_only:
    method: supervised
    streams: {labeled: {data: day/train}}
    evaluate: {data: day/val}
  adapted:
    method: mean_teacher
    streams: {labeled: {data: day/train}, unlabeled: {data: dusk/train}}
    evaluate: {data: dusk/val}
"""


def kept(name: str, *overrides: str, text: str = DOMAINS) -> str:
    stage = parsed(text, *overrides).recipe.stages[name]
    assert isinstance(stage, TrainStage)
    return stage.keep


def test_where_best_would_leak_the_last_weights_are_kept() -> None:
    assert kept("adapted") == "last"
    assert kept("source_only") == "best"
    read = parsed(DOMAINS).recipe
    adapted, source = read.stages["adapted"], read.stages["source_only"]
    assert isinstance(adapted, TrainStage)
    assert isinstance(source, TrainStage)
    assert evaluates_on_target(read, adapted)
    assert not evaluates_on_target(read, source)
    assert resolved(parsed(resolved(read)).recipe) == resolved(read)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("stages.adapted.keep=best", "keep: best would choose weights by masks of dusk/val"),
        ("stages.adapted.patience=3", "patience would end training by masks of dusk/val"),
        ("stages.adapted.audit={stop: {}}", "audit.stop would end training by masks of dusk/val"),
        ("stages.source_only={method: supervised, streams: {labeled: {data: day/train}}, keep: best, "
         "evaluate: {data: dusk/val}}", "keep: best would choose"),
    ],
)  # fmt: skip
def test_what_leaks_is_refused_with_what_would_be_right(override: str, key: str) -> None:
    (fault,) = faults(DOMAINS, override)
    assert fault.code == "target-labels"
    assert fault.text.startswith(key)
    for remedy in ("best_on_target", "agreement", "last"):
        assert remedy in fault.text


@pytest.mark.parametrize(
    "overrides",
    [
        ["stages.adapted.keep=best_on_target", "stages.adapted.patience=3", "stages.adapted.audit={stop: {}}"],
        ["stages.adapted.keep=agreement", "stages.adapted.patience=3"],
        ["stages.adapted.keep=entropy", "stages.adapted.audit={stop: {}, val: null}"],
        ["stages.adapted.keep=best", "stages.adapted.evaluate.data=day/val"],
        ["stages.adapted.keep=last"],
    ],
)
def test_what_is_asked_for_or_opens_no_mask_is_allowed(overrides: list[str]) -> None:
    parsed(DOMAINS, *overrides)


def test_few_labels_with_their_own_validation_do_not_leak() -> None:
    few = ["stages.adapted.streams.labeled.data=dusk/train", "stages.adapted.keep=best"]
    assert kept("adapted", *few) == "best"


def test_masks_that_an_earlier_stage_was_trained_on_are_there() -> None:
    student = """\
  marks: {kind: annotate, net: adapted, data: dusk/train}
  student:
    method: supervised
    streams: {labeled: {data: marks}}
    evaluate: {data: dusk/val}
"""
    assert kept("student", text=DOMAINS + student) == "last"
    known = "stages.adapted.streams.labeled.data=[day/train, dusk/train]"
    assert kept("student", known, text=DOMAINS + student) == "best"


def test_what_builds_upon_a_leak_is_marked_too() -> None:
    text = (
        DOMAINS
        + """\
  marks: {kind: annotate, net: adapted, data: dusk/train}
  student: {method: supervised, streams: {labeled: {data: marks}}}
  other: {method: supervised, streams: {labeled: {data: day/train}}, init: {student: source_only}}
"""
    )
    recipe = parsed(text, "stages.adapted.keep=best_on_target").recipe
    marked = [name for name, stage in recipe.stages.items() if chosen_on_target(recipe, stage)]
    assert marked == ["adapted", "marks", "student"]


def test_choosing_on_target_needs_scores() -> None:
    (fault,) = faults(DOMAINS, "stages.adapted.keep=best_on_target", "stages.adapted.evaluate=null")
    assert fault.code == "missing-evaluate"


def test_a_published_data_set_is_one_under_two_names() -> None:
    text = DOMAINS.replace(
        "  dusk: {classes: [road, car], splits: {train: train.txt, val: val.txt}}",
        "  dusk: {kind: cityscapes, root: cs}\n  again: {kind: cityscapes, root: cs}",
    )
    (fault,) = faults(text, "stages.adapted.evaluate.data=again/val", "stages.adapted.keep=best")
    assert fault.code == "target-labels"
    assert "again/val" in fault.text


LADDER = (
    DOMAINS.partition("stages:\n")[0]
    + """\
stages: {}
ladder:
  student: student
  training:
    streams: {labeled: {data: day/train}, unlabeled: {data: dusk/train}}
    steps: 30
    evaluate: {data: dusk/val}
  score: {data: dusk/val}
  rungs:
    plain: supervised
    mt: mean_teacher
    oracle: {name: supervised, training: {streams: {labeled: {data: dusk/train}}}}
  oracle: oracle
"""
)


def test_the_rungs_of_a_ladder_are_judged_alike() -> None:
    expanded = expand(parsed(LADDER).recipe, {}).recipe.stages
    keeps = {name: stage.keep for name, stage in expanded.items() if isinstance(stage, TrainStage)}
    assert (keeps["plain-0"], keeps["mt-0"], keeps["oracle-0"]) == ("last", "last", "best")
    (fault,) = faults(LADDER, "ladder.training.keep=best")
    assert (fault.where, fault.code) == ("command line", "target-labels")
    parsed(LADDER, "ladder.training.keep=best_on_target")
    parsed(LADDER, "ladder.training.keep=balance")


def test_trials_on_target_are_refused_unless_they_are_asked_for() -> None:
    tune = "ladder.tune={data: dusk/train, values: {optimizer.lr: [1.0e-3, 2.0e-3]}}"
    (fault,) = faults(LADDER, tune)
    assert fault.code == "target-labels"
    assert "dusk/train" in fault.text
    parsed(LADDER, tune, "ladder.tune.on_target=true")
    parsed(LADDER, tune, "ladder.tune.data=day/val")
