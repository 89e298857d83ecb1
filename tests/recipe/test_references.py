"""References that lead nowhere are found before anything is trained."""

from __future__ import annotations

import pytest

from tests.recipe.texts import WHOLE, faults, parsed, spoilt
from tutelage.recipe.base import nearest
from tutelage.recipe.references import check_references

WRONG = {
    "a net": (
        "nets: {student: big}",
        "nets: {student: bigg}",
        "unknown-net",
        "big",
    ),
    "a teacher's stage": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: techer}",
        "unknown-stage",
        "teacher",
    ),
    "a net of a stage": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: techer.ema}",
        "unknown-stage",
        "teacher",
    ),
    "a stage that comes later": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: again}",
        "unknown-stage",
        "",
    ),
    "the stage itself": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: kd}",
        "unknown-stage",
        "",
    ),
    "a stage of another kind": (
        "nets: [teacher, kd]",
        "nets: [teacher, marked]",
        "unknown-stage",
        "",
    ),
    "a role that the method has not": (
        "inputs: {teacher: teacher}",
        "inputs: {teacher: teacher, techer: teacher}",
        "unknown-role",
        "teacher",
    ),
    "a teacher that is missing": (
        "    inputs: {teacher: teacher}\n",
        "",
        "missing-input",
        "",
    ),
    "an input for a method without teachers": (
        "    steps: 10",
        "    inputs: {teacher: kd}",
        "unknown-stage",
        "",
    ),
    "a start of a net that is not there": (
        "{student.encoder: kd.student}",
        "{studnt.encoder: kd.student}",
        "unknown-role",
        "student",
    ),
    "a start of a part that is not there": (
        "{student.encoder: kd.student}",
        "{student.decoder: kd.student}",
        "invalid-start",
        "",
    ),
    "a start from nothing": (
        "{student.encoder: kd.student}",
        "{student: kdd}",
        "unknown-stage",
        "kd",
    ),
    "a data set": (
        "{data: city/train}",
        "{data: citty/train}",
        "unknown-data",
        "city",
    ),
    "one of several data sets": (
        "[city/train, mine]",
        "[city/train, min]",
        "unknown-data",
        "mine",
    ),
    "data of an evaluation while training": (
        "      data: city/val",
        "      data: citty",
        "unknown-data",
        "city",
    ),
    "pseudo labels": (
        "data: marked",
        "data: markd",
        "unknown-data",
        "marked",
    ),
    "pseudo labels with a split": (
        "data: marked",
        "data: marked/train",
        "stage-has-no-splits",
        "",
    ),
    "pseudo labels before they are made": (
        "[city/train, mine]",
        "[city/train, marked]",
        "unknown-data",
        "",
    ),
    "a net as data": ("data: marked", "data: big", "unknown-data", ""),
    "a stream that the method has not": (
        "      labeled: {data: city/train}",
        "      labeled: {data: city/train}\n      labelled: {data: city/train}",
        "unknown-stream",
        "labeled",
    ),
    "a view that the method has not": (
        "{data: city/train}",
        "{data: city/train, views: {strong: {}}}",
        "unknown-view",
        "",
    ),
    "draws of a stream that is not there": (
        "{data: city/train}",
        "{data: city/train, draws_of: label}",
        "unknown-stream",
        "labeled",
    ),
    "numbers for other data sets": (
        "[city/train, mine]}",
        "[city/train, mine], repeat: [1]}",
        "repeat-count",
        "",
    ),
    "scores": (
        "scores: score",
        "scores: scor",
        "unknown-stage",
        "score",
    ),
    "scores of another kind": ("scores: score", "scores: kd", "unknown-stage", ""),
    "a net that is not scored": (
        "scores: score",
        "scores: score\n    baseline: techer",
        "unknown-label",
        "teacher",
    ),
    "a stage called as a data set": (
        "  again:\n    method",
        "  mine:\n    method",
        "name-taken",
        "",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_references(what: str) -> None:
    old, new, code, meant = WRONG[what]
    text = spoilt((old, new))
    found = faults(text)
    assert (found[0].code, found[0].meant) == (code, meant)
    assert len(found) == (2 if what == "an input for a method without teachers" else 1)
    if new:
        first = text[: text.index(new)].count("\n") + 1
        assert found[0].line in range(first, first + 1 + new.count("\n"))


def test_a_stream_that_is_missing_says_what_it_is() -> None:
    text = spoilt(("labeled: {data: city/train}", "labelled: {data: city/train}"))
    (fault,) = (fault for fault in faults(text) if fault.code == "missing-stream")
    assert "'labeled' (images with masks)" in fault.text


def test_the_student_is_the_net_of_that_name_or_the_only_one() -> None:
    def chosen(*overrides: str) -> dict[str, str]:
        recipe = parsed(WHOLE, *overrides).recipe
        return recipe.stages["kd"].nets_by_role(recipe)

    assert chosen() == {"student": "student"}
    assert chosen("nets={only: {encoder: resnet10t, decoder: lraspp}}", "stages.teacher.nets={}") == {"student": "only"}
    assert chosen("stages.kd.nets.student=big") == {"student": "big"}


def test_a_recipe_without_nets_says_so() -> None:
    text = WHOLE[: WHOLE.index("nets:\n")] + WHOLE[WHOLE.index("stages:") :]
    assert ("unknown-net", "") in {(fault.code, fault.meant) for fault in faults(text)}


def test_weight_files_are_no_stages() -> None:
    parsed(WHOLE, "stages.again.init={student: nets/my.net.safetensors}")
    parsed(WHOLE, "stages.again.init={student.encoder: x.pth}")


def test_what_is_left_out_is_known_but_not_followed() -> None:
    recipe = parsed(WHOLE).recipe
    stages = {name: stage for name, stage in recipe.stages.items() if name not in ("teacher", "marked", "score")}
    part = recipe.model_copy(update={"stages": stages, "data": {"mine": recipe.data["mine"]}})
    assert len(check_references(part)[0]) >= 4
    left_out = [("stages", "teacher"), ("stages", "marked"), ("stages", "score"), ("data", "city")]
    assert check_references(part, left_out)[0] == []


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
