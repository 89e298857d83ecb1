"""All faults of a recipe at once, each with its place, its key and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipe.texts import WHOLE, faults, line_of, parsed, refusal, spoilt
from tutelage.methods import METHODS
from tutelage.recipe.reading import method_settings, read_recipe, resolved
from tutelage.recipe.schema import EvaluateStage, TrainStage


def test_a_good_recipe_is_read() -> None:
    read = parsed(WHOLE)
    recipe = read.recipe
    assert list(recipe.stages) == ["teacher", "kd", "marked", "again", "score", "page"]
    teacher, score = recipe.stages["teacher"], recipe.stages["score"]
    assert isinstance(teacher, TrainStage)
    assert teacher.optimizer.lr == 0.001, "YAML 1.1 reads 1e-3 as a text"
    assert isinstance(score, EvaluateStage)
    assert score.named() == {"teacher": "teacher", "kd": "kd"}
    assert recipe.data["mine"].kind == "folder", "what has no kind is the usual one"
    assert recipe.out_folder() == "runs/demo"


def test_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(WHOLE)
    assert read_recipe(tmp_path / "r.yaml", ["seed=4"]).base == tmp_path
    assert read_recipe(tmp_path / "r.yaml", ["seed=4"]).recipe.seed == 4


# Unknown keys and wrong values


def test_an_unknown_key_has_its_line_the_nearest_key_and_all_keys() -> None:
    text = spoilt(("    steps: 10", "    stpes: 10"))
    (fault,) = faults(text)
    line = line_of(text, "stpes")
    assert fault.startswith(f"r.yaml:{line}: unknown key 'stages.teacher.stpes'; did you mean 'steps'? (known: ")
    assert set(TrainStage.model_fields) <= set(fault.rpartition("known: ")[2].rstrip(")").split(", "))


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
    "an annotate stage": ("    net: kd", "    net: kd\n    treshold: 0.3", "stages.marked.treshold", "threshold"),
    "a report stage": ("    scores: score", "    scores: score\n    imags: 3", "stages.page.imags", "images"),
    "a protocol": ("{kind: sliding,", "{kind: sliding, windo: 3,", "stages.score.protocol.windo", "window"),
}


@pytest.mark.parametrize("place", UNKNOWN)
def test_unknown_keys_everywhere(place: str) -> None:
    old, new, key, meant = UNKNOWN[place]
    text = spoilt((old, new))
    (fault,) = faults(text)
    line = line_of(text, key.rpartition(".")[2])
    assert fault.startswith(f"r.yaml:{line}: unknown key '{key}'; did you mean '{meant}'? (known: ")


WRONG = {
    "kind of stage": (
        "kind: evaluate",
        "kind: evalute",
        "stages.score.kind is 'evalute'; did you mean 'evaluate'? "
        "(known: train, import, fit, transform, annotate, evaluate, report)",
    ),
    "kind of data": (
        "kind: toycity",
        "kind: toycitty",
        "data.city.kind is 'toycitty'; did you mean 'toycity'? (known: folder, toycity,",
    ),
    "one of a few": (
        "decoder: lraspp",
        "decoder: lrasp",
        "nets.student.decoder is 'lrasp'; did you mean 'lraspp'? (known: deeplabv2, ",
    ),
    "one of a few, in a method": (
        "method: supervised",
        "method: {name: supervised, loss: ohemm}",
        "stages.teacher.method.loss is 'ohemm'; did you mean 'ohem'? (known: cross_entropy, ohem)",
    ),
    "method": (
        "method: supervised",
        "method: superviced",
        "unknown method 'superviced'; did you mean 'supervised'? (known: supervised, ",
    ),
    "method without a name": ("name: pixel_kd", "nam: pixel_kd", "'stages.kd.method.name' is missing"),
    "method of another type": (
        "method: supervised",
        "method: 5",
        "stages.teacher.method should be a mapping (given: 5)",
    ),
    "too small": ("steps: 10", "steps: 0", "stages.teacher.steps should be greater than 0 (given: 0)"),
    "another type": (
        "steps: 10",
        "steps: ten",
        "stages.teacher.steps should be a valid integer, unable to parse string as an integer (given: 'ten')",
    ),
    "not whole": (
        "steps: 10",
        "steps: 10.5",
        "stages.teacher.steps should be a valid integer, got a number with a fractional part (given: 10.5)",
    ),
    "not a number": ("lr: 1e-3", "lr: .nan", "stages.teacher.optimizer.lr should be greater than 0 (given: nan)"),
    "too many": (
        "lr: 1e-3",
        "betas: [0, 0, 0]",
        "stages.teacher.optimizer.betas should have at most 2 items after validation, not 3 (given: [0, 0, 0])",
    ),
    "in a pair": ("lr: 1e-3", "betas: [0.9, 1]", "stages.teacher.optimizer.betas.1 should be less than 1 (given: 1)"),
    "neither of two types": (
        "{data: city/train}",
        "{data: 5}",
        "stages.teacher.streams.labeled.data should be a valid string or a valid list (given: 5)",
    ),
    "neither of two kinds": (
        "nets: [teacher, kd]",
        "nets: 5",
        "stages.score.nets should be a mapping or a valid list (given: 5)",
    ),
    "a list or a word": (
        "method: supervised",
        "method: {name: supervised, class_weights: equal}",
        "stages.teacher.method.class_weights should be a valid list or 'balanced' (given: 'equal')",
    ),
    "in a list": (
        "method: supervised",
        "method: {name: supervised, class_weights: [1, x]}",
        "stages.teacher.method.class_weights.1 should be a valid number, unable to parse",
    ),
    "a reference with a blank": ("nets: [teacher, kd]", "nets: [tea cher, kd]", "stages.score.nets.0 should match "),
    "a name with a blank": (
        "nets: [teacher, kd]",
        "nets: {a b: kd}",
        "the name 'a b' in stages.score.nets.a b should match ",
    ),
    "a name of a net": ("student: {enc", "stu dent: {enc", "the name 'stu dent' in nets.stu dent should match "),
    "a name of the recipe": ("name: demo", "name: ../demo", "name should match "),
    "a key that is no text": ("name: demo", "name: demo\n7: x", "key '7' should be a text; put it in quotes"),
    "a class that YAML reads as no": (
        "[road, car]",
        "[road, no]",
        "data.mine.classes.1 should be a valid string (given: False)",
    ),
    "missing": ("root: city", "seed: 1", "'data.city.root' is missing"),
    "things that do not go together": (
        "decoder: lraspp",
        "decoder: fpn, output_stride: 8",
        "nets.student: decoder fpn needs output_stride 32; leave output_stride out (given: {",
    ),
    "windows of a whole image": (
        "kind: sliding",
        "kind: whole",
        "stages.score.protocol: overlap, window would have no effect with kind 'whole'; write kind: sliding (given: {",
    ),
    "nothing where a mapping should be": (
        "data: city/val\n",
        "data: city/val\n  empty:\n",
        "stages.empty should be a mapping (given: None)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_values(what: str) -> None:
    old, new, expected = WRONG[what]
    (fault,) = faults(spoilt((old, new)))
    place, _, rest = fault.partition(" ")
    assert rest.startswith(expected)
    assert place.startswith("r.yaml:")


def test_the_line_is_that_of_the_value() -> None:
    text = spoilt(("    splits: {train: 4, val: 2}", "    splits:\n      train: 4\n      val: -2"))
    assert faults(text) == [
        f"r.yaml:{line_of(text, 'val: -2')}: data.city.splits.val should be greater than 0 (given: -2)"
    ]


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
    expected = [
        "name' is missing",
        "unknown key 'nam'",
        "unknown key 'nets.student.encoderr'",
        "'nets.student.encoder' is missing",
        "unknown key 'stages.teacher.stpes'",
        "streams.labeled.batch should be",
        "no data set 'citty'; did you mean 'city'?",
        "unknown key 'stages.kd.method.temprature'",
        "no train stage 'techer' before this; did you mean 'teacher'?",
        "no train stage 'kdd' before this; did you mean 'kd'?",
        "unknown method 'superviced'",
        "protocol.window.1 should be",
        "no evaluate stage 'scor' before this; did you mean 'score'?",
        "seed should be",
        "stages.kd.optimizer.lr should be",
    ]
    unnamed = [part for part in expected if not any(part in fault for fault in found)]
    assert not unnamed, found
    assert len(found) == len(expected), found
    assert sum(fault.startswith("command line: ") for fault in found) == 2


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
    assert faults(text) == [f"r.yaml:1: '{key}' is missing" for key in ("tutelage", "name", "data", "stages")]


@pytest.mark.parametrize("text", ["- a\n", "5\n", "null\n", "text\n"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    assert refusal(text) == "r.yaml: a recipe is a mapping of keys"


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
    assert any(f"{section} should be a mapping (given: " in fault for fault in found)


def test_a_newer_format_is_said_before_anything_else() -> None:
    text = spoilt(("tutelage: 1", "tutelage: 2"), ("steps: 10", "stepz: 10"))
    assert refusal(text) == "r.yaml:1: recipe format 2 is newer than this tutelage knows (1)"


@pytest.mark.parametrize("version", ["0", "'1'", "one", "null", "1.5"])
def test_another_format_is_refused(version: str) -> None:
    (fault,) = faults(spoilt(("tutelage: 1", f"tutelage: {version}")))
    assert fault.startswith("r.yaml:1: tutelage is ")


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
    assert method_settings(kd).model_dump()["temperature"] == 4
    assert method_settings(teacher).model_dump()["smoothing"] == 0.1
    assert kd.streams["labeled"].augment.crop == (64, 64)
    assert read.recipe.run.threads == 2
    assert read.recipe.data["city"].splits == {"train": 4, "val": 2, "test": 3}  # type: ignore[union-attr]


def test_the_last_of_two_overrides_counts() -> None:
    assert parsed(WHOLE, "seed=3", "seed=4").recipe.seed == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=x", "seed should be a valid integer"),
        ("sede=1", "unknown key 'sede'; did you mean 'seed'? (known: tutelage, name, seed,"),
        ("stages.teacher.stepz=1", "unknown key 'stages.teacher.stepz'; did you mean 'steps'?"),
        ("stages.kd.method.temprature=1", "unknown key 'stages.kd.method.temprature'; did you mean 'temperature'?"),
        ("stages.teacher.optimizer={lr: -1}", "stages.teacher.optimizer.lr should be greater than 0"),
        ("stages.score.protocol={kind: whole, window: [3, 3]}", "stages.score.protocol: window would have no effect"),
        ("stages.score.boundry=1", "unknown key 'stages.score.boundry'; did you mean 'boundary'?"),
        ("nets.student.decoder=lrasp", "nets.student.decoder is 'lrasp'; did you mean 'lraspp'?"),
        ("stages.kd.method=pixelkd", "unknown method 'pixelkd'; did you mean 'pixel_kd'?"),
        ("stages.kd.inputs.teacher=techer", "no train stage 'techer' before this; did you mean 'teacher'?"),
        ("run.thread=1", "unknown key 'run.thread'; did you mean 'threads'?"),
        ("data=5", "data should be a mapping (given: 5)"),
    ],
)
def test_overrides_have_the_checks_of_files(override: str, expected: str) -> None:
    assert any(fault.startswith(f"command line: {expected}") for fault in faults(WHOLE, override))


@pytest.mark.parametrize("override", ["seed", "=1", "", "a..b=1", ".seed=1", "seed.=1"])
def test_what_is_no_override(override: str) -> None:
    assert refusal(WHOLE, override) == f"command line: {override!r} is no override"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name.x=1", "command line: name has no keys, so no 'x'"),
        ("stages.score.nets.0=kd", "command line: stages.score.nets has no keys, so no '0'"),
        ("stages.kd.method.temperature.x=1", "command line: stages.kd.method.temperature has no keys, so no 'x'"),
        ("seed={a: 1, a: 2}", "command line:1: key 'a' occurs twice (first on line 1)"),
        (
            "seed=!!python/name:os.system x",
            "command line:1: YAML tag 'tag:yaml.org,2002:python/name:os.system' is not allowed",
        ),
    ],
)
def test_overrides_that_cannot_be_meant(override: str, expected: str) -> None:
    assert refusal(WHOLE, override) == expected


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
            assert method_settings(other) == method_settings(stage)
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
