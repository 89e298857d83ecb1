"""`tutelage init`: the recipe that it writes is read, planned and run as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

import tutelage
from tests.proposal.test_folder_scan import pairs, photo
from tutelage.errors import RecipeError
from tutelage.proposal.recipe_text import write_proposal
from tutelage.recipe.loading import load_recipe
from tutelage.recipe.stages.train import TrainStage


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """Twenty labelled images, twelve without masks, and another domain with masks."""
    pairs(tmp_path, "day/images/a{i}.jpg", "day/masks/a{i}.png", (0, 1, 2), count=20)
    pairs(tmp_path, "dusk/images/b{i}.jpg", "dusk/masks/b{i}.png", (0, 1, 2), count=10)
    for i in range(12):
        photo(tmp_path / "bare" / f"c{i}.jpg", i)
    return tmp_path


def test_a_folder_becomes_a_recipe_that_runs(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(city)
    path = write_proposal(
        images=Path("day/images"), masks=Path("day/masks"), unlabeled=Path("bare"), target=Path("dusk")
    )
    recipe = load_recipe(path, ()).recipe
    trained = {name for name, stage in recipe.stages.items() if isinstance(stage, TrainStage)}
    assert trained == {"teacher", "baseline", "distilled", "semi", "adapted"}
    assert {"score", "score_target", "report"} <= set(recipe.stages)
    small = [
        "run.threads=1",
        "run.weak_teacher=warn",
        "nets.teacher.encoder=mobilenetv3_small_050",
        "nets.teacher.weights=null",
    ]
    small += ["nets.teacher.decoder=lraspp", "nets.student.encoder=mobilenetv3_small_050", "nets.student.weights=null"]
    small += [f"stages.{name}.steps=1" for name in trained]
    small += [f"stages.{name}.evaluate.every=1" for name in trained - {"adapted"}]
    small += [f"stages.{name}.streams.{stream}.batch=2" for name, stream in _streams(recipe.stages)]
    tutelage.run(path, small)
    assert (city / "runs" / "recipe").is_dir()
    assert list((city / "runs" / "recipe").glob("report-*/report.html"))
    assert all(finding.severity != "error" for finding in tutelage.check(path))


def test_splits_are_whole_and_apart(city: Path) -> None:
    write_proposal(images=city / "day" / "images", masks=city / "day" / "masks", out=city / "r.yaml")
    lists = {path.stem: set(path.read_text().splitlines()) for path in (city / "r_splits").glob("*.txt")}
    assert set(lists) == {"train", "val", "test"}
    assert sum(map(len, lists.values())) == len(set.union(*lists.values())) == 20


def test_nothing_is_overwritten_unasked(city: Path) -> None:
    out = city / "r.yaml"
    given = {"images": city / "day" / "images", "masks": city / "day" / "masks", "out": out}
    first = write_proposal(**given).read_text()
    out.write_text("mine")
    with pytest.raises(RecipeError, match="recipe exists"):
        write_proposal(**given)
    assert out.read_text() == "mine"
    assert write_proposal(**given, force=True).read_text() == first


def test_names_that_yaml_would_misread_survive(city: Path) -> None:
    path = write_proposal(
        images=city / "day" / "images", masks=city / "day" / "masks", classes="no,Straße: nass,#1", out=city / "r.yaml"
    )
    (data,) = load_recipe(path, ()).recipe.data.values()
    assert data.classes == ["no", "Straße: nass", "#1"]  # type: ignore[union-attr]


def test_a_folder_without_a_recipe_is_checked(city: Path) -> None:
    assert {finding.code for finding in tutelage.check(city / "day")} >= {"values"}
    (city / "day" / "masks" / "a3.png").write_bytes(b"")
    assert any(finding.severity == "error" and "a3.png" in finding.message for finding in tutelage.check(city / "day"))
    with pytest.raises(RecipeError, match="no settings"):
        tutelage.check(city / "day", ["seed=1"])


def _streams(stages: dict) -> list[tuple[str, str]]:
    trained = [(name, stage) for name, stage in stages.items() if isinstance(stage, TrainStage)]
    return [(name, stream) for name, stage in trained for stream in stage.streams]
