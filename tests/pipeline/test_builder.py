"""What the builder makes of a stage where the recipe leaves something to the method."""

from __future__ import annotations

import pytest

from tests.projects import Project
from tutelage.data.settings import ViewSettings
from tutelage.methods.settings.strong_views import STRONG_VIEW
from tutelage.pipeline.builder import Builder
from tutelage.recipe.loading import load_recipe

UNLABELED = "labeled: {data: city/train, batch: 2}\n      unlabeled: {data: city/val, batch: 2"


@pytest.mark.parametrize(
    ("said", "strong"),
    [("", STRONG_VIEW), (", views: {weak: {}}", STRONG_VIEW), (", views: {strong: {}}", ViewSettings())],
)
def test_strong_views_are_strong_unless_the_recipe_says_otherwise(
    project: Project, said: str, strong: ViewSettings
) -> None:
    streams = f"{UNLABELED}{said}}}"
    project.edit(("method: supervised", "method: unimatch_v2"), ("labeled: {data: city/train, batch: 2}", streams))
    read = load_recipe(project.recipe)
    views = Builder(read).runner("student").streams()["unlabeled"].views
    assert views == {"weak": ViewSettings(), "strong": strong, "strong2": STRONG_VIEW}
