"""All faults of a recipe at once, each with its place, its key and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe.texts import WHOLE, faults, line_of, parsed, refusal, spoilt
from tutelage.methods import METHODS
from tutelage.recipe.loading import load_recipe, resolved
from tutelage.recipe.stages.evaluate import EvaluateStage
from tutelage.recipe.stages.train import TrainStage


def test_a_good_recipe_is_read() -> None:
    read = parsed(WHOLE)
    recipe = read.recipe
    assert list(recipe.stages) == ["teacher", "kd", "marked", "again", "score", "page"]
    teacher, score = recipe.stages["teacher"], recipe.stages["score"]
    assert isinstance(teacher, TrainStage)
    assert teacher.optimizer.lr == 0.001, "YAML 1.1 reads 1e-3 as a text"
    assert isinstance(score, EvaluateStage)
    assert score.scored() == {"teacher": "teacher", "kd": "kd"}
    assert recipe.data["mine"].kind == "folder", "what has no kind is the usual one"
    assert recipe.out_folder() == "runs/demo"


def test_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(WHOLE)
    assert load_recipe(tmp_path / "r.yaml", ["seed=4"]).base == tmp_path
    assert load_recipe(tmp_path / "r.yaml", ["seed=4"]).recipe.seed == 4


# Unknown keys and wrong values


def test_an_unknown_key_has_its_line_the_nearest_key_and_all_keys() -> None:
    text = spoilt(("    steps: 10", "    stpes: 10"))
    (fault,) = faults(text)
    line = line_of(text, "stpes")
    assert (fault.line, fault.code, fault.meant) == (line, "unknown-key", "steps")
    assert "'stages.teacher.stpes'" in fault.text
    assert set(TrainStage.model_fields) <= set(fault.text.rpartition("known: ")[2].rstrip(")").split(", "))


UNKNOWN = {
    "at the top": ("name: demo", "name: demo\nsede: 1", "sede", "seed"),
    "data": ("    root: city", "    root: city\n    rooot: x", "data.city.rooot", "root"),
    "a net": ("{encoder: resnet10t,", "{encoder: resnet10t, decodr: x,", "nets.student.decodr", "decoder"),
    "a stream": ("{data: city/train}", "{data: city/train, bach: 2}", "stages.teacher.streams.labeled.bach", "batch"),
    "a method": ("      temperature: 2", "      temprature: 2", "stages.kd.method.temprature", "temperature"),
    "inside a method": (
        "      temperature: 2",
        "      task: {dise: 1}",
        "stages.kd.method.task.dise",
        "dice",
    ),
    "evaluation while training": (
        "      data: city/val",
        "      data: city/val\n      evry: 2",
        "stages.teacher.evaluate.evry",
        "every",
    ),
    # The name of its kind is also the name of a key of train stages.
    "an evaluate stage": (
        "    kind: evaluate",
        "    kind: evaluate\n    boundry: true",
        "stages.score.boundry",
        "boundary",
    ),
    "an annotate stage": ("    net: kd", "    net: kd\n    polcy: argmax", "stages.marked.polcy", "policy"),
    "a report stage": ("    scores: score", "    scores: score\n    imags: 3", "stages.page.imags", "images"),
    "a protocol": ("{kind: sliding,", "{kind: sliding, windo: 3,", "stages.score.protocol.windo", "window"),
}


@pytest.mark.parametrize("place", UNKNOWN)
def test_unknown_keys_everywhere(place: str) -> None:
    old, new, key, meant = UNKNOWN[place]
    text = spoilt((old, new))
    (fault,) = faults(text)
    line = line_of(text, key.rpartition(".")[2])
    assert (fault.line, fault.code, fault.meant) == (line, "unknown-key", meant)
    assert repr(key) in fault.text


def test_a_policy_without_its_kind_lacks_a_key() -> None:
    (fault,) = faults(WHOLE, "stages.marked.policy={threshold: 0.8}")
    assert (fault.code, "'stages.marked.policy.kind'" in fault.text) == ("missing-key", True)


def test_a_key_of_a_setting_beside_it_is_explained() -> None:
    (fault,) = faults(WHOLE, "stages.marked.threshold=0.8")
    assert fault.code == "unknown-key"
    assert "it is a key of 'policy'" in fault.text


WRONG = {
    "kind of stage": (
        "kind: evaluate",
        "kind: evalute",
        "unknown-kind",
        "evaluate",
    ),
    "kind of data": (
        "kind: toycity",
        "kind: toycitty",
        "unknown-kind",
        "toycity",
    ),
    "one of a few": (
        "decoder: lraspp",
        "decoder: lrasp",
        "invalid-value",
        "lraspp",
    ),
    "one of a few, in a method": (
        "method: supervised",
        "method: {name: supervised, loss: ohemm}",
        "invalid-value",
        "ohem",
    ),
    "method": (
        "method: supervised",
        "method: superviced",
        "unknown-method",
        "supervised",
    ),
    "method without a name": ("name: pixel_kd", "nam: pixel_kd", "missing-key", ""),
    "method of another type": (
        "method: supervised",
        "method: 5",
        "invalid-value",
        "",
    ),
    "too small": ("steps: 10", "steps: 0", "invalid-value", ""),
    "another type": (
        "steps: 10",
        "steps: ten",
        "invalid-value",
        "",
    ),
    "not whole": (
        "steps: 10",
        "steps: 10.5",
        "invalid-value",
        "",
    ),
    "not a number": ("lr: 1e-3", "lr: .nan", "invalid-value", ""),
    "too many": (
        "lr: 1e-3",
        "betas: [0, 0, 0]",
        "invalid-value",
        "",
    ),
    "in a pair": ("lr: 1e-3", "betas: [0.9, 1]", "invalid-value", ""),
    "neither of two types": (
        "{data: city/train}",
        "{data: 5}",
        "invalid-value",
        "",
    ),
    "neither of two kinds": (
        "nets: [teacher, kd]",
        "nets: 5",
        "invalid-value",
        "",
    ),
    "a list or a word": (
        "method: supervised",
        "method: {name: supervised, class_weights: equal}",
        "invalid-value",
        "",
    ),
    "in a list": (
        "method: supervised",
        "method: {name: supervised, class_weights: [1, x]}",
        "invalid-value",
        "",
    ),
    "a reference with a blank": ("nets: [teacher, kd]", "nets: [tea cher, kd]", "invalid-value", ""),
    "a name with a blank": (
        "nets: [teacher, kd]",
        "nets: {a b: kd}",
        "invalid-value",
        "",
    ),
    "a name of a net": ("student: {enc", "stu dent: {enc", "invalid-value", ""),
    "a name of the recipe": ("name: demo", "name: ../demo", "invalid-value", ""),
    "a key that is no text": ("name: demo", "name: demo\n7: x", "invalid-key", ""),
    "a class that YAML reads as no": (
        "[road, car]",
        "[road, no]",
        "invalid-value",
        "",
    ),
    "missing": ("root: city", "seed: 1", "missing-key", ""),
    "things that do not go together": (
        "decoder: lraspp",
        "decoder: fpn, output_stride: 8",
        "invalid-value",
        "",
    ),
    "windows of a whole image": (
        "kind: sliding",
        "kind: whole",
        "invalid-value",
        "",
    ),
    "nothing where a mapping should be": (
        "data: city/val\n",
        "data: city/val\n  empty:\n",
        "invalid-value",
        "",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_values(what: str) -> None:
    old, new, code, meant = WRONG[what]
    (fault,) = faults(spoilt((old, new)))
    assert (fault.code, fault.meant) == (code, meant)
    assert fault.line


def test_the_line_is_that_of_the_value() -> None:
    text = spoilt(("    splits: {train: 4, val: 2}", "    splits:\n      train: 4\n      val: -2"))
    (fault,) = faults(text)
    assert (fault.line, fault.code) == (line_of(text, "val: -2"), "invalid-value")
    assert fault.text.startswith("data.city.splits.val: ")


def test_all_faults_at_once_of_every_kind() -> None:
    """Unknown and missing keys, wrong values, methods' settings and references; one each, none hides another."""
    text = spoilt(
        ("name: demo", "nam: demo"),
        ("encoder: resnet10t", "encoderr: resnet10t"),
        ("steps: 10", "stpes: 10"),
        ("labeled: {data: city/train}", "labeled: {data: citty/train, batch: 0}"),
        ("temperature: 2", "temprature: 2"),
        ("inputs: {teacher: teacher}", "inputs: {teacher: techer}"),
        ("net: kd", "net: kdd"),
        ("method: supervised\n    init", "method: superviced\n    init"),
        ("window: [64, 64]", "window: [64, -1]"),
        ("scores: score", "scores: scor"),
    )
    found = faults(text, "seed=x", "stages.kd.optimizer.lr=-1")
    assert sorted((fault.code, fault.meant) for fault in found) == [
        ("invalid-value", ""),  # stages.teacher.streams.labeled.batch
        ("invalid-value", ""),  # stages.score.protocol.window.1
        ("invalid-value", ""),  # seed
        ("invalid-value", ""),  # stages.kd.optimizer.lr
        ("missing-key", ""),  # name
        ("missing-key", ""),  # nets.student.encoder
        ("unknown-data", "city"),
        ("unknown-key", "encoder"),
        ("unknown-key", "name"),
        ("unknown-key", "steps"),
        ("unknown-key", "temperature"),
        ("unknown-method", "supervised"),
        ("unknown-stage", "kd"),
        ("unknown-stage", "score"),
        ("unknown-stage", "teacher"),
    ]
    assert sum(fault.where == "command line" for fault in found) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    streams:\n      labeled: {data: city/train}\n", ""),  # what is missing takes its stage along
        ("kind: annotate", "kind: anotate"),
        ("kind: evaluate", "kind: evalute"),
        ("  student: {encoder: resnet10t, decoder: lraspp}", "  student: 5"),
        ("    kind: toycity", "    kind: toy"),
        ("    inputs: {teacher: teacher}", "    inputs: {teacher: 5}"),
        ("    scores: score", "    scores: 5"),
    ],
)
def test_one_fault_does_not_make_others_up(old: str, new: str) -> None:
    assert len(faults(spoilt((old, new)))) == 1


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_recipe_lacks_what_every_recipe_has(text: str) -> None:
    assert [(fault.line, fault.code) for fault in faults(text)] == [(1, "missing-key")] * 4


@pytest.mark.parametrize("text", ["- a\n", "5\n", "null\n", "text\n"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    assert refusal(text) == "not-a-recipe"


@pytest.mark.parametrize("section", ["data", "nets", "stages"])
@pytest.mark.parametrize("value", ["5", "[1]", "text"])
def test_a_section_that_is_no_mapping(section: str, value: str) -> None:
    head, _, rest = WHOLE.partition(f"\n{section}:")
    after = (
        rest[rest.index("\n" + {"data": "nets", "nets": "stages", "stages": ""}[section]) :]
        if section != "stages"
        else ""
    )
    found = faults(f"{head}\n{section}: {value}{after}\n")
    assert [(fault.code, fault.text.partition(":")[0]) for fault in found] == [("invalid-value", section)]


def test_a_newer_format_is_said_before_anything_else() -> None:
    text = spoilt(("tutelage: 1", "tutelage: 2"), ("steps: 10", "stepz: 10"))
    assert refusal(text) == "newer-format"


@pytest.mark.parametrize("version", ["0", "'1'", "one", "null", "1.5"])
def test_another_format_is_refused(version: str) -> None:
    (fault,) = faults(spoilt(("tutelage: 1", f"tutelage: {version}")))
    assert (fault.line, fault.code) == (1, "invalid-value")


# Overrides


def test_overrides_replace_and_add() -> None:
    read = parsed(
        WHOLE,
        "seed=3",
        "out=",
        "stages.teacher.steps=7",
        "stages.teacher.optimizer.kind=sgd",
        "stages.kd.method.temperature=4",
        "stages.teacher.method.smoothing=0.1",  # a method that was written as its name alone
        "stages.score.nets=[kd]",
        "stages.kd.streams.labeled.augment={crop: [64, 64]}",
        "run.threads=2",
        "data.city.splits.test=3",
    )
    teacher, kd = read.recipe.stages["teacher"], read.recipe.stages["kd"]
    assert isinstance(teacher, TrainStage)
    assert isinstance(kd, TrainStage)
    assert (read.recipe.seed, read.recipe.out, teacher.steps, teacher.optimizer.kind) == (3, None, 7, "sgd")
    assert teacher.optimizer.lr == 0.001, "what stands beside it stays"
    assert kd.method_settings().model_dump()["temperature"] == 4
    assert teacher.method_settings().model_dump()["smoothing"] == 0.1
    assert kd.streams["labeled"].augment.crop == (64, 64)
    assert read.recipe.run.threads == 2
    assert read.recipe.data["city"].splits == {"train": 4, "val": 2, "test": 3}  # type: ignore[union-attr]


def test_the_last_of_two_overrides_counts() -> None:
    assert parsed(WHOLE, "seed=3", "seed=4").recipe.seed == 4


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("seed=x", "invalid-value"),
        ("sede=1", "unknown-key"),
        ("stages.teacher.stepz=1", "unknown-key"),
        ("stages.kd.method.temprature=1", "unknown-key"),
        ("stages.teacher.optimizer={lr: -1}", "invalid-value"),
        ("stages.score.protocol={kind: whole, window: [3, 3]}", "invalid-value"),
        ("stages.score.boundry=1", "unknown-key"),
        ("nets.student.decoder=lrasp", "invalid-value"),
        ("stages.kd.method=pixelkd", "unknown-method"),
        ("stages.kd.inputs.teacher=techer", "unknown-stage"),
        ("run.thread=1", "unknown-key"),
        ("data=5", "invalid-value"),
    ],
)
def test_overrides_have_the_checks_of_files(override: str, code: str) -> None:
    (fault,) = faults(WHOLE, override)
    assert (fault.where, fault.code) == ("command line", code)


@pytest.mark.parametrize("override", ["seed", "=1", "", "a..b=1", ".seed=1", "seed.=1"])
def test_what_is_no_override(override: str) -> None:
    assert refusal(WHOLE, override) == "invalid-override"


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("name.x=1", "invalid-override"),
        ("stages.score.nets.0=kd", "invalid-override"),
        ("stages.kd.method.temperature.x=1", "invalid-override"),
        ("seed={a: 1, a: 2}", "invalid-yaml"),
        ("seed=!!python/name:os.system x", "invalid-yaml"),
    ],
)
def test_invalid_overrides(override: str, code: str) -> None:
    assert refusal(WHOLE, override) == code


def test_an_override_can_mend_a_recipe() -> None:
    assert parsed(spoilt(("steps: 10", "steps: 0")), "stages.teacher.steps=5")


# Resolved recipes


def test_a_resolved_recipe_reads_back_to_itself() -> None:
    recipe = parsed(WHOLE, "stages.teacher.evaluate.protocol={flip: true, blend: logits}").recipe
    text = resolved(recipe)
    again = parsed(text).recipe
    assert resolved(again) == text
    for name, stage in recipe.stages.items():
        other = again.stages[name]
        if isinstance(stage, TrainStage):
            assert isinstance(other, TrainStage)
            assert other.method_settings() == stage.method_settings()
            stage, other = (one.model_copy(update={"method": None}) for one in (stage, other))
        assert other == stage
    assert again.model_copy(update={"stages": {}}) == recipe.model_copy(update={"stages": {}})


def test_a_resolved_recipe_has_the_defaults_written_out() -> None:
    text = resolved(parsed(WHOLE).recipe)
    for part in ("accumulate: 1", "weight_decay: 0.01", "temperature: 2.0", "on_unreadable: error", "smoothing: 0.0"):
        assert part in text
    assert text.index("teacher:") < text.index("  kd:") < text.index("  marked:"), "stages keep their order"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resolves(name: str) -> None:
    streams = {
        "supervised": "labeled",
        "pixel_kd": "labeled",
        "mean_teacher": "labeled, unlabeled",
        "fixmatch": "labeled, unlabeled",
        "unimatch": "labeled, unlabeled",
        "unimatch_v2": "labeled, unlabeled",
        "advent": "source, target",
    }.get(name)
    if streams is None:
        pytest.skip("its own tests know its streams")
    written = ", ".join(f"{stream}: {{data: city/train}}" for stream in streams.split(", "))
    inputs = "teacher: teacher" if name == "pixel_kd" else ""
    text = WHOLE + f"  own: {{method: {name}, streams: {{{written}}}, inputs: {{{inputs}}}}}\n"
    once = resolved(parsed(text).recipe)
    assert resolved(parsed(once).recipe) == once


def test_the_same_recipe_written_otherwise_resolves_alike() -> None:
    shared = spoilt(
        ("      labeled: {data: city/train}", "      labeled: &stream {data: city/train}"),
        ("      labeled:\n        data: marked", "      labeled: {<<: *stream, data: marked}"),
        ("      name: pixel_kd\n      temperature: 2", "      temperature: 2.0\n      name: pixel_kd"),
    )
    assert resolved(parsed(shared).recipe) == resolved(parsed(WHOLE).recipe)
