"""A ladder is made of ordinary artefacts: in any order, by any number of processes, killed or not, it is the same."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.pipeline.chain import content, course
from tests.processes import die, in_child, kill_until_done
from tests.projects import DATA, Project, made, write_project
from tests.report.test_page import checked
from tutelage import api
from tutelage.cli import main
from tutelage.errors import RecipeError, RunError
from tutelage.evaluation.intervals import gap_share, paired_bootstrap
from tutelage.pipeline import training_cost
from tutelage.pipeline.run import Work
from tutelage.runs.lock import locked

LADDER = f"""\
tutelage: 1
name: tiny
out: runs
run: {{device: cpu, threads: 1, weak_teacher: warn}}
{DATA}\
nets:
  big: {{encoder: test_efficientnet, decoder: lraspp, width: 24}}
  small: {{encoder: test_efficientnet, decoder: lraspp, width: 16}}
stages:
  teacher:
    method: supervised
    nets: {{student: big}}
    streams: &labels
      labeled: {{data: city/train, batch: 2, augment: {{crop: [32, 32]}}}}
    steps: 3
    keep: last
ladder:
  student: small
  teacher: teacher
  training: {{streams: *labels, steps: 3, checkpoint_every: 1, log_every: 1, keep: last}}
  score: {{data: city/val}}
  seeds: [0, 1]
  rungs:
    plain: supervised
    pseudo: {{name: pseudo_labels, data: city/train}}
    kd: {{name: pixel_kd, temperature: 2.0}}
"""

TUNE = "ladder.tune={data: city/train, steps: 2, values: {optimizer.lr: [1.0e-3, 2.0e-3]}}"


def calm(patch: pytest.MonkeyPatch) -> None:
    """Try stages in this process instead of one of their own."""
    patch.setattr(training_cost, "estimate_cost", training_cost.measure)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose ladder was climbed in one go."""
    root = tmp_path_factory.mktemp("ladder") / "project"
    write_project(root, LADDER)
    with pytest.MonkeyPatch.context() as patch:
        calm(patch)
        patch.chdir(root)
        assert main(["ladder", "recipe.yaml", "--quiet"]) == 0
    return root


@pytest.fixture
def done(done: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it."""
    calm(monkeypatch)
    return done


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    """The same project before anything was trained."""
    root = tmp_path / "fresh"
    write_project(root, LADDER)
    calm(monkeypatch)
    monkeypatch.chdir(root)
    return Project(root, capsys)


def result(root: Path) -> dict[str, Any]:
    """What `ladder.json` says."""
    return dict(json.loads((root / "runs" / "ladder.json").read_text(encoding="utf-8")))


def timeless(found: Any) -> Any:
    """The same without what the clock measured."""
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key not in ("times", "notes")}
    return [timeless(each) for each in found] if isinstance(found, list) else found


# What comes out


def test_a_ladder_has_a_row_for_every_rung(finished: Path) -> None:
    found = result(finished)
    assert list(found["rungs"]) == sorted(found["rungs"]) == ["kd", "plain", "pseudo"]
    for name, rung in found["rungs"].items():
        assert set(rung["seeds"]) == {"0", "1"}
        assert rung["miou"] == pytest.approx(sum(rung["seeds"].values()) / 2)
        assert rung["spread"] is not None
        assert rung["times"]["training_seconds"] > 0
        assert rung["times"]["memory_mib"] > 100
        assert (rung["gain"] is None) == (rung["verdict"] is None) == (name == "plain")
        assert (rung["times"]["annotation_seconds"] is not None) == (name == "pseudo")
        assert rung["teacher"] == (name != "plain")
    kd, plain = found["rungs"]["kd"], found["rungs"]["plain"]
    assert kd["gain"]["gain"] == pytest.approx(kd["miou"] - plain["miou"])
    assert kd["method"] == "pixel_kd, temperature: 2.0"
    assert kd["verdict"] == "cannot tell"  # two images
    assert not kd["gain"]["reliable"]
    assert kd["multiply_adds_per_step"] > 1.2 * plain["multiply_adds_per_step"] > 0
    assert found["rungs"]["pseudo"]["multiply_adds_per_step"] == plain["multiply_adds_per_step"]
    assert found["missing"] == {}
    assert found["teacher"]["miou"] is not None
    assert found["teacher"]["parameters"] > found["student"]["parameters"] > 0


def test_its_gain_is_that_of_compare(finished: Path) -> None:
    runs = finished / "runs"
    sides = [[next(runs.glob(f"score-{rung}-{seed}-*")) for seed in (0, 1)] for rung in ("plain", "kd")]
    told = api.compare(*sides).as_dict()
    gain = result(finished)["rungs"]["kd"]["gain"]
    assert {key: told[key] for key in ("gain", "low", "high", "p_value")} == {
        key: gain[key] for key in ("gain", "low", "high", "p_value")
    }


def test_the_texts_say_what_the_numbers_say(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = result(finished)
    text = (finished / "runs" / "ladder.md").read_text(encoding="utf-8")
    page = checked((finished / "runs" / "ladder.html").read_text(encoding="utf-8"))
    for name, rung in found["rungs"].items():
        assert f"| {name} | {100 * rung['miou']:.1f} ± " in text
        if name != "plain":
            assert f"- **{name}**: {rung['times']['sentence']}." in text
            assert rung["times"]["sentence"].startswith("cannot tell with these data: ")
            assert rung["times"]["sentence"] in page.words
    for note in found["notes"]:
        assert note in text


def test_multiply_adds_of_a_step_are_those_of_both_directions(finished: Path) -> None:
    """Of the plain student: forward once, backward about twice."""
    from tutelage.nets.cost import flops
    from tutelage.nets.storage import load_segmentor

    net, _ = load_segmentor(next((finished / "runs").glob("plain-0-*")) / "nets" / "student.safetensors")
    forward = 2 * flops(net, (32, 32))
    assert 2.3 < result(finished)["rungs"]["plain"]["multiply_adds_per_step"] / forward < 3.2


# Again, in parts, in another order


def test_a_finished_ladder_trains_nothing_and_says_the_same(done: Project) -> None:
    before = content(done.root / "runs")
    found, page = result(done.root), (done.root / "runs" / "ladder.html").read_bytes()
    ran = done.tutelage("ladder", "recipe.yaml")
    assert ran.status == 0
    assert made(ran.out) == []
    assert content(done.root / "runs") == before
    assert result(done.root) == found
    assert (done.root / "runs" / "ladder.html").read_bytes() == page
    for name in ("ladder.md", "ladder.html", "ladder.json"):
        (done.root / "runs" / name).unlink()
    assert done.tutelage("ladder", "recipe.yaml", "--report-only").status == 0
    assert result(done.root) == found


def test_the_order_does_not_matter(fresh: Project, finished: Path) -> None:
    assert fresh.tutelage("ladder", "recipe.yaml", "--only", "kd", "--seeds", "1").status == 0
    part = result(fresh.root)
    assert part["missing"] == {"plain": [0, 1], "pseudo": [0, 1], "kd": [0]}
    assert part["rungs"]["kd"]["gain"] is None
    assert part["rungs"]["kd"]["times"]["sentence"] == "not finished: no score of plain yet"
    assert not list((fresh.root / "runs").glob("label-*"))
    assert fresh.tutelage("ladder", "recipe.yaml", "--only", "pseudo", "--only", "plain", "--seeds", "1").status == 0
    part = result(fresh.root)
    assert part["missing"] == {"plain": [0], "pseudo": [0], "kd": [0]}
    assert part["rungs"]["kd"]["gain"] is not None
    assert "with one seed of kd the spread over seeds is unknown" in part["rungs"]["kd"]["times"]["sentence"]
    assert "kd: seed 0" in (fresh.root / "runs" / "ladder.md").read_text(encoding="utf-8")
    assert fresh.tutelage("ladder", "recipe.yaml", "--seeds", "0", "--seeds", "1", "seed=0").status == 0
    assert timeless(result(fresh.root)) == timeless(result(finished))
    ours, theirs = content(fresh.root / "runs"), content(finished / "runs")
    assert ours == theirs
    assert course(fresh.root / "runs") == course(finished / "runs")


def test_rungs_in_another_order_are_found_again(done: Project) -> None:
    line = "    plain: supervised\n"
    done.edit((line, ""))
    done.recipe.write_text(done.recipe.read_text(encoding="utf-8") + line.replace("plain", "alone"), encoding="utf-8")
    found = result(done.root)["rungs"]
    ran = done.tutelage("ladder", "recipe.yaml", "ladder.plain=alone", "ladder.seeds=[1, 0]")
    assert made(ran.out) == []
    again = result(done.root)["rungs"]
    assert again["alone"]["seeds"] == found["plain"]["seeds"]
    assert again["kd"]["miou"] == found["kd"]["miou"]


def test_what_a_run_of_the_recipe_made_is_found(fresh: Project) -> None:
    stage = """\
  baseline:
    method: supervised
    nets: {student: small}
    streams: *labels
    steps: 3
    keep: last
    seed: 1
ladder:
"""
    fresh.edit(("ladder:\n", stage))
    ran = fresh.tutelage("run", "recipe.yaml")
    assert ran.status == 0
    assert made(ran.out) == ["teacher", "baseline"]
    ran = fresh.tutelage("ladder", "recipe.yaml", "--only", "plain")
    assert made(ran.out) == ["score-teacher", "plain-0", "score-plain-0", "score-plain-1"]
    rung = result(fresh.root)["rungs"]["plain"]
    assert set(rung["seeds"]) == {"0", "1"}
    assert rung["multiply_adds_per_step"] > 0


def test_stages_of_the_recipe_that_are_not_needed_are_left_alone(fresh: Project) -> None:
    fresh.edit(("ladder:\n", "  other: {kind: evaluate, nets: [teacher], data: gone}\nladder:\n"))
    fresh.edit(("nets:\n", "  gone: {root: nowhere, classes: [a, b], splits: {all: all.txt}}\nnets:\n"))
    ran = fresh.tutelage("ladder", "recipe.yaml", "--only", "plain", "--seeds", "0")
    assert ran.status == 0
    assert "other" not in made(ran.out)


# Killed, and in company


def climb(root: Path) -> None:
    """Climb the ladder in ``root``; for a process that is killed."""
    os.environ["TUTELAGE_CACHE"] = str(root / "cache")
    os.chdir(root)
    training_cost.estimate_cost = training_cost.measure
    raise SystemExit(main(["ladder", "recipe.yaml", "--quiet"]))


def test_a_ladder_that_is_killed_again_and_again_is_the_same(fresh: Project, finished: Path) -> None:
    draw = random.Random(0)
    kills = kill_until_done(climb, fresh.root, lambda: draw.uniform(0.6, 4.0))
    print(f"killed {kills} times")
    assert timeless(result(fresh.root)) == timeless(result(finished))
    assert content(fresh.root / "runs") == content(finished / "runs")
    assert fresh.partial() == []


def climb_and_die(root: Path, ending: str) -> None:
    """Climb until a file whose name ends so is about to get its name."""
    replace = os.replace

    def dying(source: Path, target: Path) -> None:
        if str(target).endswith(ending):
            die()
        replace(source, target)

    os.replace = dying  # type: ignore[assignment]
    climb(root)


def test_half_written_tables_and_recipes_do_not_stay(fresh: Project) -> None:
    for ending in (".keys.json", ".yaml", "ladder.json", "ladder.md", "ladder.html"):
        assert in_child(climb_and_die, fresh.root, ending) == -signal.SIGKILL
        assert fresh.partial() != []
    assert fresh.tutelage("ladder", "recipe.yaml", "--only", "plain", "--seeds", "0").status == 0
    assert fresh.partial() == []


def test_a_rung_that_another_process_trains_is_left_to_it(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh.tutelage("ladder", "recipe.yaml", "--only", "pseudo", "--seeds", "0").status == 0
    planned = fresh.tutelage("run", "recipe.yaml")  # nothing but the teacher
    assert planned.status == 0
    with pytest.MonkeyPatch.context() as patch:
        seen: list[str] = []
        patch.setattr(Work, "make", lambda work, name: seen.append(str(work.builder.artefacts[name].folder)))
        fresh.tutelage("ladder", "recipe.yaml", "--only", "plain", "--seeds", "0")
    folder = next(Path(path) for path in seen if "plain-0" in path)
    other = locked(folder / "lock")
    other.__enter__()
    waited: list[float] = []

    def let_go(seconds: float) -> None:
        waited.append(seconds)
        other.__exit__(None, None, None)

    monkeypatch.setattr("tutelage.ladders.run.time.sleep", let_go)
    ran = fresh.tutelage("ladder", "recipe.yaml")
    assert ran.status == 0
    assert len(waited) == 1
    assert made(ran.out)[-2:] == ["plain-0", "score-plain-0"]
    assert ran.out.count("plain-0: another process is making it; waiting") == 1
    assert result(fresh.root)["missing"] == {}


# Trials


def test_trials_choose_for_every_rung(fresh: Project, finished: Path) -> None:
    ran = fresh.tutelage("ladder", "recipe.yaml", TUNE, "--only", "plain", "--only", "kd")
    assert ran.status == 0
    names = made(ran.out)
    assert names.index("score-kd-lr2e-3") < names.index("plain-0")
    assert not any("pseudo" in name for name in names)
    found = result(fresh.root)
    for name in ("plain", "kd"):
        trials = found["rungs"][name]["trials"]
        assert [trial["values"] for trial in trials] == ["optimizer.lr: 0.001", "optimizer.lr: 0.002"]
        best = max(trials, key=lambda trial: trial["miou"])
        assert [trial["chosen"] for trial in trials] == [trial is best for trial in trials]
        lr = best["values"].rpartition(" ")[2]
        stage = next((fresh.root / "runs").glob(f"{name}-0-*")) / "stage.yaml"
        assert re.search(rf"  {name}-0:(\n    .*)*\n      lr: {lr}\n", stage.read_text(encoding="utf-8"))
    assert [trial["miou"] for trial in found["rungs"]["pseudo"]["trials"]] == [None, None]
    assert found["missing"] == {"pseudo": [0, 1]}
    assert made(fresh.tutelage("ladder", "recipe.yaml", TUNE, "--only", "plain").out) == []
    text = (fresh.root / "runs" / "ladder.md").read_text(encoding="utf-8")
    assert "equal trials on city/train" in text
    checked((fresh.root / "runs" / "ladder.html").read_text(encoding="utf-8"))


def test_of_equal_trials_the_first_is_taken_and_it_is_said(fresh: Project) -> None:
    # The net of the last step is scored, whatever the patience.
    tie = "ladder.tune={data: city/train, steps: 2, values: {patience: [3, 4]}}"
    assert fresh.tutelage("ladder", "recipe.yaml", tie, "--only", "plain", "--seeds", "0").status == 0
    found = result(fresh.root)
    assert found["tie"] == ["plain"]
    assert [trial["chosen"] for trial in found["rungs"]["plain"]["trials"]] == [True, False]
    assert "Tied trials of plain" in (fresh.root / "runs" / "ladder.md").read_text(encoding="utf-8")


def test_a_trial_that_diverges_is_the_worst(fresh: Project) -> None:
    wild = "ladder.tune={data: city/train, steps: 3, values: {optimizer.lr: [1.0e+30, 1.0e-3]}}"
    ran = fresh.tutelage("ladder", "recipe.yaml", wild, "--only", "plain", "--seeds", "0")
    assert ran.status == 0
    trials = result(fresh.root)["rungs"]["plain"]["trials"]
    assert [(trial["diverged"], trial["chosen"]) for trial in trials] == [(True, False), (False, True)]
    again = fresh.tutelage("ladder", "recipe.yaml", wild, "--only", "plain", "--seeds", "0")
    assert made(again.out) == []


# An oracle, other images, several stages

CHAINS = """\
    oracle: {name: supervised, training: {streams: {labeled: {data: [city/train, city/val]}}}}
    chain:
      stages:
        warm: {method: supervised, steps: 1}
        marks: {kind: annotate, net: warm, data: city/train}
        adapt:
          method: supervised
          steps: 2
          init: {student: warm}
          streams: {labeled: {data: [city/train, marks]}}
    other:
      scored: again
      stages:
        first: {method: supervised, steps: 1}
        again: {method: pixel_kd, steps: 1, init: {student: first}}
"""


def test_a_chain_is_a_rung_and_the_oracle_a_bound(fresh: Project) -> None:
    fresh.recipe.write_text(LADDER.replace("  rungs:", "  oracle: oracle\n  rungs:") + CHAINS, encoding="utf-8")
    names = ("plain", "oracle", "chain", "other")
    ran = fresh.tutelage("ladder", "recipe.yaml", "--seeds", "0", *(it for name in names for it in ("--only", name)))
    assert ran.status == 0
    assert [name for name in made(ran.out) if "chain" in name or "other" in name] == [
        *("chain-0-warm", "chain-0-marks", "chain-0-adapt", "score-chain-0"),
        *("other-0-again", "score-other-0"),  # they begin with the same net
    ]
    found = result(fresh.root)
    rungs = found["rungs"]
    assert {name: rungs[name]["updates"] for name in names} == {"plain": 3, "oracle": 3, "chain": 3, "other": 2}
    assert rungs["oracle"]["data"] == "streams: {labeled: {data: [city/train, city/val]}}"
    assert (rungs["oracle"]["verdict"], rungs["oracle"]["gap_share"]) == (None, None)
    share = rungs["chain"]["gap_share"]
    gap = rungs["oracle"]["miou"] - rungs["plain"]["miou"]
    assert share["share"] == pytest.approx((rungs["chain"]["miou"] - rungs["plain"]["miou"]) / gap)
    assert "only 2 images" in share["reason"]
    times = {
        part: json.loads(next((fresh.root / "runs").glob(f"chain-0-{part}-*/times.json")).read_text(encoding="utf-8"))
        for part in ("warm", "adapt", "marks")
    }
    spent = times["warm"]["training_seconds"] + times["adapt"]["training_seconds"]
    assert rungs["chain"]["times"]["training_seconds"] == pytest.approx(spent)
    assert rungs["chain"]["times"]["annotation_seconds"] == times["marks"]["seconds"]
    assert rungs["chain"]["multiply_adds_per_step"] == pytest.approx(rungs["plain"]["multiply_adds_per_step"])
    assert (rungs["chain"]["teacher"], rungs["other"]["teacher"]) == (False, True)
    text = (fresh.root / "runs" / "ladder.md").read_text(encoding="utf-8")
    assert "| of the gap | p | updates |" in text
    assert "other (2 updates in total)" in text
    assert "Trained on other images: oracle (streams:" in text
    checked((fresh.root / "runs" / "ladder.html").read_text(encoding="utf-8"))
    again = fresh.tutelage("ladder", "recipe.yaml", "--seeds", "0", "--only", "chain", "--only", "other")
    assert made(again.out) == []


def test_other_classes_have_tables_of_their_own(done: Project) -> None:
    """The same predictions over some of the classes, and with several taken as one; nothing is trained for that."""
    before = result(done.root)
    changes = ["ladder.score.subsets={few: [road, sky], most: [road, car, sky, tree]}"]
    ran = done.tutelage("ladder", "recipe.yaml", *changes)
    assert made(ran.out) == [], "means of the same counts"
    merged = "ladder.score.merged={thing: [car, sign]}"
    ran = done.tutelage("ladder", "recipe.yaml", *changes, merged, "ladder.oracle=pseudo")
    assert ran.status == 0
    assert made(ran.out) == [f"score-{rung}-{seed}" for seed in (0, 1) for rung in ("plain", "pseudo", "kd")]
    found = result(done.root)
    for name, rung in found["rungs"].items():
        assert rung["miou"] == before["rungs"][name]["miou"]
    assert found["merged"]["groups"] == {"thing": ["car", "sign"]}
    assert found["merged"]["classes"] == ["thing", "road", "sky", "tree"]
    sides: dict[str, list[NDArray[np.int64]]] = {}
    for name in ("plain", "kd", "pseudo"):
        sides[name] = []
        rung = found["merged"]["rungs"][name]
        for seed in (0, 1):
            folders = list((done.root / "runs").glob(f"score-{name}-{seed}-*/scores"))
            (folder,) = [one for one in folders if "merged" in np.load(one / "net.npz")]
            sides[name].append(np.load(folder / "net.npz")["merged"])
            own = json.loads((folder / "net.json").read_text(encoding="utf-8"))
            assert rung["seeds"][str(seed)] == pytest.approx(own["merged"]["miou"])
            few = found["subsets"]["few"]["rungs"][name]["seeds"][str(seed)]
            known = [own["iou"][index] for index in (0, 2) if own["iou"][index] is not None]
            assert few == pytest.approx(sum(known) / len(known))
        assert rung["miou"] == pytest.approx(sum(rung["seeds"].values()) / 2)
    gain = paired_bootstrap(sides["plain"], sides["kd"])
    told = found["merged"]["rungs"]["kd"]["gain"]
    assert (told["gain"], told["low"], told["high"]) == (gain.gain, gain.low, gain.high)
    share = gap_share(sides["plain"], sides["kd"], sides["pseudo"])
    assert found["merged"]["rungs"]["kd"]["gap_share"]["reason"] == share.reason
    assert found["merged"]["rungs"]["plain"]["gain"] is None
    text = (done.root / "runs" / "ladder.md").read_text(encoding="utf-8")
    assert "With thing (car, sign) merged into one class, mIoU over thing, road, sky, tree:" in text
    assert "| rung | mIoU (5) | gain | of the gap | few (2) | gain | of the gap | most (4) |" in text
    page = checked((done.root / "runs" / "ladder.html").read_text(encoding="utf-8"))
    assert "With thing (car, sign) merged into one class" in page.words
    again = done.tutelage("ladder", "recipe.yaml", *changes, merged, "ladder.oracle=pseudo")
    assert made(again.out) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("ladder.score.subsets={few: [road, bus]}", "ladder.score: subsets.few: unknown class: bus"),
        ("ladder.score.merged={sky: [road, car]}", "ladder.score: merged.sky has the name of a class"),
        ("ladder.score.merged={a: [road, car], b: [car]}", "car in more than one group"),
        ("ladder.score.subsets={few: [road, road]}", "subsets.few: duplicate classes road"),
    ],
)
def test_other_classes_that_are_not_there(fresh: Project, change: str, message: str) -> None:
    for more in ((), ("--plan", "--no-smoke")):
        ran = fresh.tutelage("ladder", "recipe.yaml", change, *more)
        assert ran.status != 0
        assert message in ran.out + ran.err
    assert not fresh.finished(), "said before anything ran"


def test_a_plan_counts_all_trainings_of_a_chain_once(fresh: Project) -> None:
    fresh.recipe.write_text(LADDER + CHAINS, encoding="utf-8")
    rows = {row.name: row for row in api.plan_ladder("recipe.yaml", only=["chain", "other"], seeds=[0])}
    chain, other = rows["chain"].cost, rows["other"].cost
    assert isinstance(chain, training_cost.TrainingCost)
    assert isinstance(other, training_cost.TrainingCost)
    assert rows["chain"].hours == pytest.approx(3 * chain.step_seconds / 3600)
    assert rows["other"].hours < 2 * other.step_seconds / 3600  # the first net is counted already
    assert "without labels, fits and copies of images" in rows["chain"].note
    assert "estimated from the plain rung's steps" in rows["chain"].note
    assert rows["other"].note == ""


# Failures


def test_a_rung_that_fails_does_not_keep_the_others(fresh: Project) -> None:
    fresh.edit(
        (
            "    plain: supervised",
            "    wild: {name: supervised, training: {optimizer: {lr: 1.0e+30}}}\n    plain: supervised",
        )
    )
    ran = fresh.tutelage("ladder", "recipe.yaml", "--seeds", "0")
    assert ran.status == 1
    assert "stage 'wild-0' failed" in ran.err
    assert "lower the learning rate" in ran.err
    found = result(fresh.root)
    assert found["rungs"]["wild"]["diverged"] == [0]
    assert found["rungs"]["wild"]["differs"] == "optimizer: {lr: 1.0e+30}"
    assert all("0" in found["rungs"][name]["seeds"] for name in ("plain", "kd", "pseudo"))
    text = (fresh.root / "runs" / "ladder.md").read_text(encoding="utf-8")
    assert "wild: seeds 0, 1 (the loss became infinite with seed 0)" in text
    assert "budget is not equal: wild (optimizer: {lr: 1.0e+30})" in text


def test_a_teacher_with_nothing_to_hand_on_fails_its_rungs_alone(fresh: Project) -> None:
    fresh.edit((", weak_teacher: warn", ""))
    ran = fresh.tutelage("ladder", "recipe.yaml", "--seeds", "0")
    assert ran.status == 1
    assert "too weak to teach" in ran.err
    assert result(fresh.root)["missing"] == {"plain": [1], "pseudo": [1], "kd": [0, 1]}


def test_an_interruption_stops_all(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tutelage.pipeline.runner.StageRunner.run", interrupted)
    assert fresh.tutelage("ladder", "recipe.yaml").status == 130


def test_what_is_not_there_is_named(fresh: Project) -> None:
    with pytest.raises(RunError, match="no rung 'cwd' in the ladder") as raised:
        api.ladder("recipe.yaml", only=["cwd"])
    assert raised.value.remedy == "rungs: plain, pseudo, kd"
    with pytest.raises(RunError, match="no seed 7 in the ladder"):
        api.ladder("recipe.yaml", seeds=[7])
    assert "invalid seeds: one" in fresh.tutelage("ladder", "recipe.yaml", "--seeds", "one").err
    fresh.recipe.write_text(LADDER.partition("ladder:\n")[0], encoding="utf-8")
    with pytest.raises(RecipeError, match="has no ladder"):
        api.ladder("recipe.yaml")
    assert not (fresh.root / "runs").exists()


# Around it


def test_a_table_of_nothing_says_that_all_is_missing(fresh: Project) -> None:
    ran = fresh.tutelage("ladder", "recipe.yaml", "--report-only")
    assert ran.status == 0
    assert made(ran.out) == []
    assert result(fresh.root)["missing"] == {"plain": [0, 1], "pseudo": [0, 1], "kd": [0, 1]}
    assert "There is no comparison before a score of plain." in ran.out
    assert fresh.finished() == set()


def test_a_plan_says_what_is_missing_and_how_long_it_takes(fresh: Project) -> None:
    rows = {row.name: row for row in api.plan_ladder("recipe.yaml", [TUNE])}
    assert [(row.done, row.missing, row.trials) for row in rows.values()] == [(0, 2, 2)] * 3
    for row in rows.values():
        assert isinstance(row.cost, training_cost.TrainingCost)
        assert row.hours == pytest.approx((2 * 3 + 2 * 2) * row.cost.step_seconds / 3600)
    assert not (fresh.root / "runs").exists()
    told = fresh.tutelage("ladder", "recipe.yaml", "--plan")
    assert "0 done, 2 to train" in told.out
    assert "training in all: about" in told.out
    told = fresh.tutelage("ladder", "recipe.yaml", "--plan", "--no-smoke", "--only", "kd", "--seeds", "0", TUNE)
    assert told.out.splitlines() == ["kd  0 done, 1 to train, 2 trials"]


def test_a_plan_of_a_finished_ladder_is_empty(done: Project) -> None:
    assert done.tutelage("ladder", "recipe.yaml", "--plan").out.splitlines() == [
        "plain   2 done, 0 to train",
        "pseudo  2 done, 0 to train",
        "kd      2 done, 0 to train",
    ]


def test_cleaning_keeps_what_the_ladder_refers_to(done: Project) -> None:
    assert done.tutelage("ladder", "recipe.yaml", "--only", "plain", "--seeds", "0").status == 0
    before = content(done.root / "runs")
    assert done.tutelage("clean", "runs", "--yes").status == 0
    assert content(done.root / "runs") == before


def test_the_other_commands_take_a_recipe_with_a_ladder(done: Project) -> None:
    ran = done.tutelage("run", "recipe.yaml")
    assert (ran.status, made(ran.out)) == (0, [])
    assert done.tutelage("plan", "recipe.yaml", "--no-smoke").out.split()[0] == "teacher"
    assert done.tutelage("show", "recipe.yaml", "--count", "1").status == 0
    assert "city/val" in done.tutelage("check", "recipe.yaml").out
    kept = sorted((done.root / "runs" / "recipes").glob("*.yaml"), key=lambda path: path.stat().st_mtime)[-1]
    assert "ladder:" in kept.read_text(encoding="utf-8")


def test_costs_are_measured_in_a_process_of_their_own(
    fresh: Project, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(fresh.root)
    hog = torch.zeros(300 * 2**18)  # 300 MiB here are nothing of the rung's
    assert fresh.tutelage("ladder", "recipe.yaml", "--only", "plain", "--seeds", "0").status == 0
    rung = result(fresh.root)["rungs"]["plain"]
    own = json.loads(next((fresh.root / "runs").glob("plain-0-*/times.json")).read_text(encoding="utf-8"))
    assert rung["times"]["memory_mib"] < own["peak_memory_mib"] - 200
    assert rung["multiply_adds_per_step"] > 0
    del hog
