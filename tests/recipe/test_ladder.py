"""The section `ladder`: what it expands into, and which faults of it are said where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.recipe.texts import faults, line_of, parsed
from tutelage.annotate.policies import ThresholdSettings
from tutelage.recipe.ladder import NET, TEACHER_SCORE, combinations, expand, train_stage, untuned
from tutelage.recipe.ladder_settings import LadderSettings
from tutelage.recipe.loading import json_schema, load_recipe, resolved
from tutelage.recipe.references import moved
from tutelage.recipe.stages.annotate import AnnotateStage
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.fit import FitStage
from tutelage.recipe.stages.train import TrainStage

ROOT = Path(__file__).resolve().parents[2]

LADDER = """\
tutelage: 1
name: demo
data:
  city:
    classes: [road, car]
    splits: {train: train.txt, val: val.txt, test: test.txt, more: more.txt}
nets:
  small: {encoder: resnet10t, decoder: lraspp}
  big: {encoder: resnet18, decoder: deeplabv3plus}
stages:
  teacher:
    method: supervised
    nets: {student: big}
    streams: {labeled: {data: city/train}}
  unused: {kind: evaluate, nets: [teacher], data: city/val}
ladder:
  student: small
  teacher: teacher
  training:
    streams:
      labeled: {data: city/train, batch: 4, augment: {crop: [64, 64]}}
    steps: 30
    optimizer: {lr: 1.0e-3, momentum: 0.8}
    keep: last
  score:
    data: city/test
    protocol: {precision: bf16}
  seeds: [0, 5]
  rungs:
    plain: supervised
    pseudo: {name: pseudo_labels, data: city/train, policy: {kind: threshold, threshold: 0.8}}
    kd:
      name: pixel_kd
      temperature: 2.0
"""

TUNE = "ladder.tune={data: city/val, steps: 10, values: {optimizer.lr: [4.0e-3, 0.0025]}}"


def ladder(text: str = LADDER, *overrides: str) -> LadderSettings:
    found = parsed(text, *overrides).recipe.ladder
    assert found is not None
    return found


def stages(*overrides: str) -> dict[str, object]:
    return dict(expand(parsed(LADDER, *overrides).recipe, {}).recipe.stages)


def train(name: str, *overrides: str) -> TrainStage:
    stage = stages(*overrides)[name]
    assert isinstance(stage, TrainStage)
    return stage


# What it becomes


def test_all_rungs_come_at_the_first_seed_before_the_second() -> None:
    own = ["teacher", "unused"]
    first = ["plain-0", "score-plain-0", "pseudo-0", "score-pseudo-0", "kd-0", "score-kd-0"]
    second = [name.replace("-0", "-5") for name in first]
    assert list(stages()) == [*own, TEACHER_SCORE, "label-pseudo", *first, *second]


def test_a_rung_is_a_train_stage_that_has_all_but_the_method_from_the_ladder() -> None:
    plain, kd = train("plain-0"), train("kd-5")
    assert (plain.method.name, plain.inputs, plain.seed, plain.nets) == ("supervised", {}, 0, {"student": "small"})
    assert (kd.method.name, kd.method.own(), kd.seed) == ("pixel_kd", {"temperature": 2.0}, 5)
    assert kd.inputs == {"teacher": "teacher"}
    assert kd.nets == plain.nets
    for stage in (plain, kd):
        assert (stage.steps, stage.keep, stage.evaluate) == (30, "last", None)
        assert (stage.optimizer.lr, stage.optimizer.momentum) == (1e-3, 0.8)
        assert stage.streams == ladder().training.streams


def test_it_is_the_stage_that_a_user_would_have_written() -> None:
    """So that artefacts of stages that are written out are found again."""
    written = parsed(
        LADDER.replace(
            "  unused:",
            """\
  mine:
    method: {name: pixel_kd, temperature: 2.0}
    nets: {student: small}
    inputs: {teacher: teacher}
    streams:
      labeled: {data: city/train, batch: 4, augment: {crop: [64, 64]}}
    steps: 30
    optimizer: {lr: 1.0e-3, momentum: 0.8}
    keep: last
    seed: 5
  unused:""",
        )
    )
    assert written.recipe.stages["mine"] == train("kd-5")


def test_every_net_is_scored_alone() -> None:
    score = stages()["score-kd-5"]
    assert isinstance(score, EvaluateStage)
    assert (score.nets, score.data, score.protocol.precision) == ({NET: "kd-5"}, "city/test", "bf16")
    assert not score.boundary
    teacher = stages()[TEACHER_SCORE]
    assert isinstance(teacher, EvaluateStage)
    assert teacher.nets == {NET: "teacher"}


def test_pseudo_labels_are_pooled_with_the_labels() -> None:
    label = stages()["label-pseudo"]
    assert isinstance(label, AnnotateStage)
    assert (label.net, label.data, label.policy) == ("teacher", "city/train", ThresholdSettings(threshold=0.8))
    pseudo = train("pseudo-0")
    assert pseudo.method.name == "supervised"
    assert pseudo.inputs == {}
    assert pseudo.streams["labeled"].data == ["city/train", "label-pseudo"]
    assert pseudo.streams["labeled"].repeat == "equal"
    several = "ladder.training.streams.labeled={data: [city/train, city/more], repeat: [2, 1]}"
    pooled = train("pseudo-0", several).streams["labeled"]
    assert (pooled.data, pooled.repeat) == (["city/train", "city/more", "label-pseudo"], [2, 1, 1])


def test_a_rung_gets_the_streams_of_its_method() -> None:
    streams = """ladder.training.streams={
        labeled: {data: city/train, views: {weak: {colour: {brightness: 0.2}}}},
        unlabeled: {data: city/more, draws_of: labeled, views: {weak: {colour: {brightness: 0.5}}}}}"""
    rung = "ladder.rungs.mt=mean_teacher"
    assert list(train("mt-0", streams, rung).streams) == ["labeled", "unlabeled"]
    assert list(train("mt-0", streams, rung).streams["unlabeled"].views) == ["weak"]
    assert list(train("plain-0", streams, rung).streams) == ["labeled"]
    assert train("plain-0", streams, rung).streams["labeled"] == train("mt-0", streams, rung).streams["labeled"]


UNLABELED = "ladder.training.streams={labeled: {data: city/train}, unlabeled: {data: city/more}}"


def test_a_rung_may_bring_nets_beside_the_student() -> None:
    rung = "ladder.rungs.three={name: trikd, nets: {cnn: big, vit: big}}"
    assert train("three-0", UNLABELED, rung).nets == {"student": "small", "cnn": "big", "vit": "big"}
    assert train("plain-0", UNLABELED, rung).nets == {"student": "small"}


def test_a_rung_may_score_another_of_its_nets() -> None:
    rung = "ladder.rungs.mt={name: mean_teacher, scored: ema}"
    score = stages(UNLABELED, rung)["score-mt-0"]
    assert isinstance(score, EvaluateStage)
    assert score.nets == {NET: "mt-0.ema"}
    assert "scored" not in train("mt-0", UNLABELED, rung).method.own()


def test_a_rung_may_be_trained_otherwise() -> None:
    longer = train("long-0", "ladder.rungs.long={name: supervised, training: {steps: 60, optimizer: {lr: 0.1}}}")
    assert (longer.steps, longer.optimizer.lr, longer.optimizer.momentum) == (60, 0.1, 0.8)
    assert train("plain-0").steps == 30


def test_trials_come_first_and_are_the_same_for_every_rung() -> None:
    names = [name for name in stages(TUNE) if name not in stages()]
    assert names == [
        f"{prefix}{rung}-{value}"
        for rung in ("plain", "pseudo", "kd")
        for value in ("lr4e-3", "lr2_5e-3")
        for prefix in ("", "score-")
    ]
    trial = train("kd-lr2_5e-3", TUNE)
    assert (trial.steps, trial.optimizer.lr, trial.optimizer.momentum, trial.seed) == (10, 0.0025, 0.8, 0)
    score = stages(TUNE)["score-kd-lr2_5e-3"]
    assert isinstance(score, EvaluateStage)
    assert score.data == "city/val"
    recipe = parsed(LADDER, TUNE).recipe
    expanded = expand(recipe, {"kd": {"optimizer.lr": 0.0025}})
    assert set(expanded.attempts) == {("kd", 0), ("kd", 5)}
    chosen = expanded.recipe.stages["kd-5"]
    assert isinstance(chosen, TrainStage)
    assert (chosen.steps, chosen.optimizer.lr) == (30, 0.0025)


def test_several_keys_are_tried_in_every_combination() -> None:
    both = ladder(LADDER, "ladder.tune={data: city/val, values: {optimizer.lr: [1, 2], clip: [0.5, 1.0, null]}}")
    tried = list(combinations(both))
    assert len(tried) == 6
    assert tried[1] == {"optimizer.lr": 1, "clip": 1.0}
    assert untuned(both)["kd"] == {"optimizer.lr": 1, "clip": 0.5}
    assert train_stage(both, "kd", 0, tried[2]).clip is None


def test_a_resolved_ladder_is_the_same_ladder() -> None:
    for overrides in ((), (TUNE, "ladder.rungs.long={name: supervised, training: {steps: 60}}")):
        text = resolved(parsed(LADDER, *overrides).recipe)
        again = parsed(text).recipe
        assert resolved(again) == text
        assert yaml.safe_load(text)["ladder"]["rungs"]["kd"]["temperature"] == 2.0
    assert "ladder" not in yaml.safe_load(resolved(parsed(LADDER.partition("ladder:\n")[0]).recipe))


def test_start_weights_move_with_the_recipe(tmp_path: Path) -> None:
    recipe = parsed(LADDER, "ladder.training.init={student: start.pt, student.encoder: teacher}").recipe
    kept = moved(recipe, tmp_path, tmp_path / "runs" / "recipes").ladder
    assert kept is not None
    assert kept.training.init == {"student": "../../start.pt", "student.encoder": "teacher"}


def test_the_schema_for_editors_knows_ladders() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert "LadderSettings" in schema["$defs"]
    assert {"type": "string"} not in schema["$defs"]["Rung"]["anyOf"]
    assert "pixel_kd" in schema["$defs"]["Rung"]["anyOf"][1]["enum"]


# Faults


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("student: small", "student: smal", "unknown-net"),
        ("  teacher: teacher", "  teacher: unused", "unknown-stage"),
        ("    data: city/test", "    data: town/test", "unknown-data"),
        ("labeled: {data: city/train, batch", "labeled: {data: cty/train, batch", "unknown-data"),
        ("    plain: supervised", "    plan: supervised", "unknown-rung"),
        ("    plain: supervised", "    plain: supervise", "unknown-method"),
        ("pseudo_labels, data", "pseudo_label, data", "unknown-method"),
        ("data: city/train, policy", "data: ctiy/train, policy", "unknown-data"),
        ("kind: threshold", "kind: all", "unknown-kind"),
        (
            "temperature: 2.0",
            "temprature: 2.0",
            "unknown-key",
        ),
        (
            "temperature: 2.0",
            "training: {stps: 1}",
            "unknown-key",
        ),
        ("temperature: 2.0", "training: {steps: 0}", "invalid-value"),
        ("seeds: [0, 5]", "seeds: [0, 0]", "invalid-value"),
        ("seeds: [0, 5]", "seeds: []", "invalid-value"),
        ("seeds: [0, 5]", "sedes: [0, 5]", "unknown-key"),
        ("      labeled: {data", "      labelled: {data", "unknown-stream"),
        ("batch: 4, ", "views: {waek: {}}, ", "unknown-view"),
        ("    keep: last", "    init: {student: unused}", "unknown-stage"),
        ("    keep: last", "    evaluate: {data: town/val}", "unknown-data"),
    ],
)
def test_errors_have_their_line(old: str, new: str, code: str) -> None:
    assert LADDER.count(old) >= 1
    text = LADDER.replace(old, new, 1)
    line = line_of(text, "rungs:" if code == "unknown-rung" else new.strip())
    assert (line, code) in {(fault.line, fault.code) for fault in faults(text)}


def test_what_the_rungs_share_is_said_once() -> None:
    found = faults(LADDER.replace("labeled: {data: city/train, batch", "labeled: {data: cty/train, batch"))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("ladder.rungs.mt=mean_teacher", "missing-stream"),
        ("ladder.tune={data: city/test, values: {optimizer.lr: [1, 2]}}", "tuned-on-scored-data"),
        ("ladder.tune={data: cty, values: {optimizer.lr: [1, 2]}}", "unknown-data"),
        ("ladder.tune={data: city/val, values: {optimizer.lr: [1]}}", "invalid-value"),
        ("ladder.tune={data: city/val, values: {optimizer.lr: [1, 1.0]}}", "invalid-value"),
        ("ladder.tune={data: city/val, values: {}}", "invalid-value"),
        ("ladder.tune={data: city/val, values: {optimizer.lrr: [1, 2]}}", "unknown-key"),
        ("ladder.tune={data: city/val, values: {steps: [1, 2]}}", "tuned-steps"),
        ("ladder.rungs.three={name: trikd, nets: {cnn: big}}", "missing-net"),
        ("ladder.rungs.plain={name: supervised, nets: {cnn: big}}", "unknown-role"),
        ("ladder.rungs.three={name: trikd, nets: {cnn: bg, vit: big}}", "unknown-net"),
        ("stages.plain-0={kind: evaluate, nets: [teacher], data: city/val}", "name-taken"),
    ],
)
def test_errors_of_overrides(override: str, code: str) -> None:
    assert code in {fault.code for fault in faults(LADDER, override)}


def test_a_ladder_without_a_teacher_has_rungs_that_need_none() -> None:
    text = LADDER.replace("  teacher: teacher\n  training", "  training")
    found = faults(text)
    assert len(found) == 2
    assert {fault.code for fault in found} == {"missing-teacher"}
    alone = text.partition("    pseudo:")[0]
    assert TEACHER_SCORE not in expand(parsed(alone).recipe, {}).recipe.stages


def test_faults_of_a_ladder_and_of_the_rest_are_said_at_once() -> None:
    text = LADDER.replace("decoder: lraspp", "decodr: lraspp").replace("temperature", "temprature")
    text = text.replace("data: city/test", "data: town/test")
    found = {(fault.code, fault.meant) for fault in faults(text)}
    assert {("unknown-key", "decoder"), ("unknown-key", "temperature"), ("unknown-data", "")} <= found


def test_a_rung_that_is_only_named_can_be_given_settings() -> None:
    assert ladder(LADDER, "ladder.rungs.kd=pixel_kd", "ladder.rungs.kd.temperature=3").rungs["kd"].own() == {
        "temperature": 3
    }


# Ours


def test_our_ladders_can_be_read_and_share_the_teacher() -> None:
    camvid = load_recipe(ROOT / "recipes" / "camvid" / "ladder.yaml").recipe
    distil = load_recipe(ROOT / "recipes" / "camvid" / "distil.yaml").recipe
    assert camvid.data == distil.data
    assert camvid.nets == distil.nets
    assert camvid.stages["teacher"] == distil.stages["teacher"]
    assert camvid.out_folder() == distil.out_folder()
    expanded = expand(camvid, {}).recipe.stages
    plain, baseline = expanded["plain-0"], distil.stages["baseline"]
    assert isinstance(baseline, TrainStage)
    assert plain == baseline.model_copy(update={"seed": 0})
    dubai = load_recipe(ROOT / "recipes" / "dubai" / "ladder.yaml").recipe
    assert dubai.ladder is not None
    assert dubai.ladder.tune is not None


# Other images, several stages


def test_a_rung_may_be_trained_on_other_images() -> None:
    rung = "ladder.rungs.oracle={name: supervised, training: {streams: {labeled: {data: city/more}}}}"
    oracle, plain = train("oracle-0", rung), train("plain-0", rung)
    assert oracle.streams["labeled"].data == "city/more"
    changed = plain.streams["labeled"].model_copy(update={"data": "city/more"})
    assert oracle.streams["labeled"] == changed
    wrong = "ladder.rungs.oracle={name: supervised, training: {streams: {labeled: {data: city/more, bath: 2}}}}"
    assert "batch" in {fault.meant for fault in faults(LADDER, wrong)}
    nowhere = "ladder.rungs.oracle={name: supervised, training: {streams: {labeled: {data: town}}}}"
    assert "unknown-data" in {fault.code for fault in faults(LADDER, nowhere)}


CHAIN = """ladder.rungs.chain={stages: {
    warm: {method: supervised, steps: 10},
    marks: {kind: annotate, net: warm, data: city/more, policy: {kind: threshold, threshold: 0.8}},
    adapt: {method: {name: pixel_kd, temperature: 3.0}, steps: 20, init: {student: warm}, inputs: {teacher: warm},
            streams: {labeled: {data: [city/train, marks], repeat: [2, 1]}}, optimizer: {lr: 0.1}}}}"""


def test_a_rung_may_have_stages_of_its_own() -> None:
    names = [name for name in stages(CHAIN) if "chain" in name]
    first = ["chain-0-warm", "chain-0-marks", "chain-0-adapt", "score-chain-0"]
    assert names == [*first, *(name.replace("-0", "-5") for name in first)]
    warm, adapt = train("chain-5-warm", CHAIN), train("chain-5-adapt", CHAIN)
    plain = train("plain-5", CHAIN)
    assert warm == plain.model_copy(update={"steps": 10})
    assert (adapt.steps, adapt.seed, adapt.nets) == (20, 5, {"student": "small"})
    assert (adapt.optimizer.lr, adapt.optimizer.momentum) == (0.1, 0.8)
    assert (adapt.init, adapt.inputs) == ({"student": "chain-5-warm"}, {"teacher": "chain-5-warm"})
    assert adapt.streams["labeled"].data == ["city/train", "chain-5-marks"]
    assert adapt.streams["labeled"].batch == plain.streams["labeled"].batch
    marks = stages(CHAIN)["chain-5-marks"]
    assert isinstance(marks, AnnotateStage)
    assert (marks.net, marks.data) == ("chain-5-warm", "city/more")
    score = stages(CHAIN)["score-chain-5"]
    assert isinstance(score, EvaluateStage)
    assert score.nets == {NET: "chain-5-adapt"}


def test_all_kinds_of_stages_find_one_another() -> None:
    rung = """ladder.rungs.chain={stages: {
        copies: {kind: transform, data: city/train, target: city/more},
        warm: {method: supervised, streams: {labeled: {data: copies}}},
        entropy: {kind: fit, what: entropies, net: warm, data: city/train},
        weights: {kind: fit, what: transferability, net: warm, data: city/train, target: city/more, entropies: entropy},
        mixtures: {kind: fit, what: mixtures, net: warm, data: city/train},
        marks: {kind: annotate, net: warm, data: city/more, policy: {kind: mixtures, mixtures: mixtures, quantile: 0.5
        }},
        adapt: {method: supervised, streams: {labeled: {weights: weights}}}}}"""
    found = {name.removeprefix("chain-5-"): stage for name, stage in stages(rung).items() if "chain-5-" in name}
    assert train("chain-5-warm", rung).streams["labeled"].data == "chain-5-copies"
    assert train("chain-5-adapt", rung).streams["labeled"].weights == "chain-5-weights"
    weights, marks = found["weights"], found["marks"]
    assert isinstance(weights, FitStage)
    assert (weights.net, weights.entropies, weights.data) == ("chain-5-warm", "chain-5-entropy", "city/train")
    assert isinstance(marks, AnnotateStage)
    assert (marks.net, marks.policy.mixtures) == ("chain-5-warm", "chain-5-mixtures")


def test_any_net_of_a_chain_may_be_scored() -> None:
    for scored, net in (("warm", "chain-0-warm"), ("adapt.ema", "chain-0-adapt.ema"), ("ema", "chain-0-adapt.ema")):
        score = stages(CHAIN, f"ladder.rungs.chain.scored={scored}")["score-chain-0"]
        assert isinstance(score, EvaluateStage)
        assert score.nets == {NET: net}


def test_a_chain_is_tried_in_proportion() -> None:
    assert train("chain-lr4e-3-warm", CHAIN, TUNE).steps == 3
    adapt = train("chain-lr4e-3-adapt", CHAIN, TUNE)
    assert (adapt.steps, adapt.optimizer.lr, adapt.seed) == (6, 0.004, 0)
    assert adapt.init == {"student": "chain-lr4e-3-warm"}


def test_a_resolved_chain_is_the_same_chain() -> None:
    recipe = parsed(LADDER, CHAIN).recipe
    text = resolved(recipe)
    assert resolved(parsed(text).recipe) == text
    again = expand(parsed(text).recipe, {}).recipe.stages
    assert again["chain-5-marks"] == stages(CHAIN)["chain-5-marks"]
    assert again["chain-5-adapt"] == train("chain-5-adapt", CHAIN)


def test_start_weights_of_a_chain_move_with_the_recipe(tmp_path: Path) -> None:
    recipe = parsed(LADDER, CHAIN, "ladder.rungs.chain.stages.warm.init={student: start.pt}").recipe
    kept = moved(recipe, tmp_path, tmp_path / "runs" / "recipes").ladder
    assert kept is not None
    assert kept.rungs["chain"].stages["warm"]["init"] == {"student": "../../start.pt"}
    assert kept.rungs["chain"].stages["adapt"]["init"] == {"student": "warm"}


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("ladder.rungs.chain.stages.marks.net=wram", "unknown-stage"),
        ("ladder.rungs.chain.stages.marks.kind=evaluate", "unknown-kind"),
        ("ladder.rungs.chain.stages.adapt.method.temprature=1", "unknown-key"),
        ("ladder.rungs.chain.stages.adapt.stps=1", "unknown-key"),
        ("ladder.rungs.chain.stages.adapt.method=pixelkd", "unknown-method"),
        ("ladder.rungs.chain.stages.teacher={method: supervised}", "name-taken"),
        ("ladder.rungs.chain.stages.adapt.streams={labeled: {data: town}}", "unknown-data"),
        ("ladder.rungs.chain.stages={marks: {kind: annotate, net: teacher, data: city/more}}", "nothing-trains"),
        ("ladder.rungs.chain.name=supervised", "invalid-value"),
        ("ladder.rungs.kd.scored=warm.ema", "invalid-value"),
        ("ladder.oracle=orcale", "unknown-rung"),
        ("ladder.oracle=plain", "oracle-is-plain"),
    ],
)
def test_errors_of_chains(override: str, code: str) -> None:
    assert code in {fault.code for fault in faults(LADDER, CHAIN, override)}
