"""References that lead nowhere are found before anything is trained."""

from __future__ import annotations

import pytest

from tests.recipe.texts import WHOLE, faults, parsed, spoilt
from tutelage.recipe.references import check_references, nearest, roles
from tutelage.recipe.schema import TrainStage

WRONG = {
    "a net": (
        "nets: {student: big}",
        "nets: {student: bigg}",
        "no net 'bigg'; did you mean 'big'? (known: student, big)",
    ),
    "a teacher's stage": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: techer}",
        "no train stage 'techer' before this; did you mean 'teacher'? (known: teacher)",
    ),
    "a net of a stage": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: techer.ema}",
        "no train stage 'techer' before this; did you mean 'teacher'? (known: teacher)",
    ),
    "a stage that comes later": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: again}",
        "no train stage 'again' before this (known: teacher)",
    ),
    "the stage itself": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: kd}",
        "no train stage 'kd' before this (known: teacher)",
    ),
    "a stage of another kind": (
        "nets: [teacher, kd]",
        "nets: [teacher, marked]",
        "no train stage 'marked' before this (known: teacher, kd, again)",
    ),
    "a role that the method has not": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: teacher, techer: teacher}",
        "method pixel_kd has no role 'techer'; did you mean 'teacher'? (known: teacher)",
    ),
    "a teacher that is missing": (
        "    inputs: {teacher: teacher}\n",
        "",
        "method pixel_kd needs a trained net: `inputs: {teacher: <stage>}`",
    ),
    "an input for a method without teachers": (
        "    steps: 10",
        "    inputs: {teacher: kd}",
        "no train stage 'kd' before this (known: none)",
    ),
    "a start of a net that is not there": (
        "{student.encoder: kd.student}",
        "{studnt.encoder: kd.student}",
        "no net has the role 'studnt'; did you mean 'student'? (known: student)",
    ),
    "a start of a part that is not there": (
        "{student.encoder: kd.student}",
        "{student.decoder: kd.student}",
        "'student.decoder' is no net and no encoder; write student or student.encoder",
    ),
    "a start from nothing": (
        "{student.encoder: kd.student}",
        "{student: kdd}",
        "no train stage 'kdd' before this; did you mean 'kd'? (known: teacher, kd)",
    ),
    "a data set": (
        "{data: city/train}",
        "{data: citty/train}",
        "no data set 'citty'; did you mean 'city'? (known: city, mine)",
    ),
    "one of several data sets": (
        "[city/train, mine]",
        "[city/train, min]",
        "no data set 'min'; did you mean 'mine'? (known: city, mine)",
    ),
    "data of an evaluation while training": (
        "      data: city/val",
        "      data: citty",
        "no data set 'citty'; did you mean 'city'? (known: city, mine)",
    ),
    "pseudo labels": (
        "data: marked",
        "data: markd",
        "no data set 'markd'; did you mean 'marked'? (known: city, mine, marked)",
    ),
    "pseudo labels with a split": (
        "data: marked",
        "data: marked/train",
        "'marked' is an annotate stage, which has no splits; write 'marked' alone",
    ),
    "pseudo labels before they are made": (
        "[city/train, mine]",
        "[city/train, marked]",
        "no data set 'marked' (known: city, mine)",
    ),
    "a net as data": ("data: marked", "data: big", "no data set 'big' (known: city, mine, marked)"),
    "a stream that the method has not": (
        "      labeled: {data: city/train}",
        "      labeled: {data: city/train}\n      labelled: {data: city/train}",
        "method supervised has no stream 'labelled'; did you mean 'labeled'? (known: labeled)",
    ),
    "a view that the method has not": (
        "{data: city/train}",
        "{data: city/train, views: {strong: {}}}",
        "no view 'strong' (known: weak)",
    ),
    "draws of a stream that is not there": (
        "{data: city/train}",
        "{data: city/train, draws_of: label}",
        "no stream 'label'; did you mean 'labeled'? (known: labeled)",
    ),
    "numbers for other data sets": (
        "[city/train, mine]}",
        "[city/train, mine], repeat: [1]}",
        "1 numbers for 2 data sets",
    ),
    "scores": (
        "scores: score",
        "scores: scor",
        "no evaluate stage 'scor' before this; did you mean 'score'? (known: score)",
    ),
    "scores of another kind": ("scores: score", "scores: kd", "no evaluate stage 'kd' before this (known: score)"),
    "a net that is not scored": (
        "scores: score",
        "scores: score\n    baseline: techer",
        "stage 'score' scores no net 'techer'; did you mean 'teacher'? (known: teacher, kd)",
    ),
    "a stage called as a data set": (
        "  again:\n    method",
        "  mine:\n    method",
        "stage 'mine' has the name of a data set; streams could not tell them apart",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_references(what: str) -> None:
    old, new, expected = WRONG[what]
    text = spoilt((old, new))
    place, _, rest = faults(text)[0].partition(": ")
    assert rest == expected
    assert len(faults(text)) == (2 if what == "an input for a method without teachers" else 1)
    if new:
        first = text[: text.index(new)].count("\n") + 1
        assert int(place.rpartition(":")[2]) in range(first, first + 1 + new.count("\n"))


def test_a_stream_that_is_missing_says_what_it_is() -> None:
    text = spoilt(("labeled: {data: city/train}", "labelled: {data: city/train}"))
    assert any("method supervised needs a stream 'labeled' (images with masks)" in fault for fault in faults(text))


def test_the_student_is_the_net_of_that_name_or_the_only_one() -> None:
    def chosen(*overrides: str) -> dict[str, str]:
        recipe = parsed(WHOLE, *overrides).recipe
        stage = recipe.stages["kd"]
        assert isinstance(stage, TrainStage)
        return roles(recipe, stage)

    assert chosen() == {"student": "student"}
    assert chosen("nets={only: {encoder: resnet10t, decoder: lraspp}}", "stages.teacher.nets={}") == {"student": "only"}
    assert chosen("stages.kd.nets.student=big") == {"student": "big"}


def test_a_recipe_without_nets_says_so() -> None:
    text = WHOLE[: WHOLE.index("nets:\n")] + WHOLE[WHOLE.index("stages:") :]
    assert any("no net 'student' (known: none)" in fault for fault in faults(text))


def test_weight_files_are_no_stages() -> None:
    parsed(WHOLE, "stages.again.init={student: nets/my.net.safetensors}")
    parsed(WHOLE, "stages.again.init={student.encoder: x.pth}")


def test_what_is_left_out_is_known_but_not_followed() -> None:
    recipe = parsed(WHOLE).recipe
    stages = {name: stage for name, stage in recipe.stages.items() if name not in ("teacher", "marked", "score")}
    part = recipe.model_copy(update={"stages": stages, "data": {"mine": recipe.data["mine"]}})
    assert len(check_references(part)) >= 4
    left_out = [("stages", "teacher"), ("stages", "marked"), ("stages", "score"), ("data", "city")]
    assert check_references(part, left_out) == []


@pytest.mark.parametrize(
    ("given", "known", "hint"),
    [
        ("stpes", ["steps", "seed"], "; did you mean 'steps'? (known: steps, seed)"),
        ("xyz", ["steps", "seed"], " (known: steps, seed)"),
        ("x", [], " (known: none)"),
    ],
)
def test_nearest(given: str, known: list[str], hint: str) -> None:
    assert nearest(given, iter(known)) == hint
