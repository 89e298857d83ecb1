"""What is said before the first step: warnings that do not end the run, each once for all stages that it is true of."""

import numpy as np
import pytest
from PIL import Image

from tests.projects import Project, image_name, write_list
from tutelage.pipeline.builder import Builder
from tutelage.recipe.loading import load_recipe

SEMI = (
    ("val: val.txt", "val: val.txt, more: more.txt"),
    ("method: supervised", "method: mean_teacher"),
    ("batch: 2}", "batch: 2}\n      unlabeled: {data: city/more, batch: 2}"),
)


@pytest.fixture
def semi(project: Project) -> Project:
    """Two labelled images, and two others whose masks are named but not there."""
    project.edit(*SEMI)
    write_list(project.data / "train.txt", [0, 1])
    write_list(project.data / "more.txt", [2, 3])
    for number in (2, 3):
        project.mask(number).unlink()
    return project


def warnings(project: Project, *overrides: str) -> list[str]:
    ran = project.tutelage("run", "recipe.yaml", "--only", "student", *overrides)
    assert ran.status == 0
    return [line for line in ran.out.splitlines() if line.startswith("warning: ")]


def test_masks_of_unlabelled_images_need_not_be_there(semi: Project) -> None:
    assert warnings(semi) == []
    checked = semi.tutelage("check", "recipe.yaml")
    assert checked.status == 0
    assert "mask-lost" not in checked.out
    refused = semi.tutelage("run", "recipe.yaml", "stages.score.data=city/more")
    assert refused.status == 1
    assert "stage 'score', data city/more: 2 of 2 masks" in refused.err
    taught = semi.tutelage("run", "recipe.yaml", "stages.student.streams.labeled.data=city/more")
    assert "stage 'student', stream 'labeled', data city/more: 2 of 2 masks" in taught.err


def test_classes_that_no_labelled_image_shows_are_named(semi: Project) -> None:
    for number in (0, 1):
        values = np.array(Image.open(semi.mask(number)))
        values[np.isin(values, (1, 3))] = 255
        Image.fromarray(values).save(semi.mask(number))
    (line,) = warnings(semi)
    assert "classes car, tree do not occur in the labelled images of stage 'student'" in line
    assert "cannot be learnt" in line


def test_a_score_on_pseudo_labels_is_said_to_be_none(project: Project) -> None:
    project.edit(("score: {", "labels: {kind: annotate, net: student, data: city/val}\n  score: {"))
    plain = project.tutelage("run", "recipe.yaml")
    assert "has pseudo labels" not in plain.out
    ran = project.tutelage("run", "recipe.yaml", "stages.score.data=labels")
    (line,) = (line for line in ran.out.splitlines() if line.startswith("warning: "))
    assert line.startswith("warning: stage 'score': labels has pseudo labels")


def test_an_overlap_of_the_lists_is_named(semi: Project) -> None:
    write_list(semi.data / "more.txt", [2, 1, 0])
    (line,) = warnings(semi)
    assert "2 of the 3 images of city/more, unlabelled in stage 'student', are labelled in city/train: " in line
    assert f"{image_name(1)}, {image_name(0)};" in line


def test_only_five_of_many_are_named_and_all_stages_at_once(project: Project) -> None:
    """The same whole set on purpose is an overlap, too."""
    project.edit(*SEMI[1:], ("data: city/more", "data: city/every"), ("val: val.txt", "val: val.txt, every: every.txt"))
    project.edit(("data: city/train", "data: city/every"))
    write_list(project.data / "every.txt", range(6))
    text = project.recipe.read_text(encoding="utf-8")
    stage = text[text.index("  student:\n") : text.index("  score:")]
    project.edit(("  score:", stage.replace("student:\n", "other:\n", 1) + "  score:"))
    ran = project.tutelage("run", "recipe.yaml", "--only", "student", "--only", "other")
    assert ran.status == 0
    (line,) = [line for line in ran.out.splitlines() if line.startswith("warning: ")]
    assert "6 of the 6 images" in line
    assert "i0.jpg, i1.png, i2.png, i3.png, i4.png and 1 more" in line
    assert "stages 'student' and 'other'" in line


def test_check_says_how_many_images_are_smaller_than_the_crop(project: Project) -> None:
    project.edit(("batch: 2}", "batch: 2, augment: {crop: [64, 64]}}"))
    ran = project.tutelage("check", "recipe.yaml")
    assert ran.status == 0
    assert "image-below-crop" in ran.out
    assert "4 of 4 images smaller than the crop of 64x64" in ran.out
    assert project.tutelage("run", "recipe.yaml", "--only", "student").status == 0
    resized = project.tutelage("check", "recipe.yaml", "stages.student.streams.labeled.augment.resize=[64, 128]")
    assert "image-below-crop" not in resized.out


def test_no_list_is_cut_to_the_length_of_the_other(semi: Project) -> None:
    """More labelled than unlabelled images: all of them are seen (a published code cuts the longer list)."""
    write_list(semi.data / "train.txt", [0, 1, 4])
    write_list(semi.data / "more.txt", [2])
    assert warnings(semi, "stages.student.steps=3") == []
    read = load_recipe(semi.recipe)
    streams = Builder(read).runner("student").streams()
    labeled, unlabeled = (
        [stream.sample_at(position)[1] for position in range(6)]
        for stream in (streams["labeled"], streams["unlabeled"])
    )
    assert sorted(labeled[:3]) == sorted(labeled[3:]) == [0, 1, 2]
    assert unlabeled == [0] * 6


def test_start_weights_that_are_not_there_are_found_before_anything_runs(project: Project) -> None:
    ran = project.tutelage("run", "recipe.yaml", "stages.student.init.student=missing.pt")
    assert "error[file-missing]: stage 'student', init.student" in ran.err
    assert "student: train" not in ran.out


def test_a_class_that_does_not_exist_is_named_with_its_place(project: Project) -> None:
    ran = project.tutelage("plan", "recipe.yaml", "stages.score.subsets={few: [rode]}", "--no-smoke")
    assert "error[unknown-class]: stage 'score', subsets.few: no class 'rode'" in ran.err


def test_a_recipe_that_is_refused_is_not_stored(project: Project) -> None:
    assert project.tutelage("run", "recipe.yaml", "nets.small.encoder=resnet81").status == 1
    assert not list((project.root / "runs").glob("recipes/*"))
