"""Every command on a tiny project: what it prints, what it writes, how it ends; and the same verbs in Python."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from PIL import Image

import tutelage
from tests.projects import CLASSES, SIZE, Project, write_project
from tutelage import api
from tutelage.cli import main, program
from tutelage.data.lists import read_entries
from tutelage.errors import TutelageError
from tutelage.pipeline import training_cost

COMMANDS = ["run", "plan", "ladder", "show", "check", "split", "init", "evaluate", "predict", "compare", "models"]
COMMANDS += ["import-checkpoint", "doctor", "schema", "clean", "toycity"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose recipe was run to its end."""
    root = tmp_path_factory.mktemp("finished")
    write_project(root)
    assert main(["run", str(root / "recipe.yaml"), f"out={root / 'runs'}", "--quiet"]) == 0
    return root


@pytest.fixture
def project(done: Project) -> Project:
    """A copy of it, in which commands are given."""
    return done


def stage(project: Project, name: str) -> str:
    """The folder of a finished stage, as a user would name it."""
    (folder,) = (project.root / "runs").glob(f"{name}-*")
    return str(folder.relative_to(project.root))


# run, plan


def test_run_skips_what_is_finished_and_makes_what_is_new(project: Project) -> None:
    again = project.tutelage("run", "recipe.yaml")
    assert (again.status, again.err) == (0, "")
    assert again.out.splitlines()[:2] == [
        f"student: done ({Path(stage(project, 'student')).name})",
        f"score: done ({Path(stage(project, 'score')).name})",
    ]
    assert again.out.endswith("all done: runs\n")
    before = project.finished()
    other = project.tutelage("run", "recipe.yaml", "stages.student.steps=1", "out=other")
    assert other.status == 0
    assert "step 1/1" in other.out
    assert {name.rpartition("-")[0] for name in project.finished() - before} == {"student", "score"}


def test_run_only_one_stage_and_in_silence(project: Project) -> None:
    ran = project.tutelage("run", "recipe.yaml", "--only", "student", "--quiet", "out=other", "stages.student.steps=1")
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    assert [path.name.rpartition("-")[0] for path in (project.root / "other").glob("*-*")] == ["student"]


def test_overrides_stand_before_and_after_options(project: Project) -> None:
    ran = project.tutelage("plan", "recipe.yaml", "seed=3", "--no-smoke", "seed=0", "stages.student.steps=2")
    assert ran.status == 0
    assert [line.split()[2] for line in ran.out.splitlines()] == ["skip", "skip"]


def test_plan_says_what_would_run_and_why(project: Project) -> None:
    done = project.tutelage("plan", "recipe.yaml", "--no-smoke")
    assert [line.split() for line in done.out.splitlines()] == [
        ["student", "train", "skip", "done"],
        ["score", "evaluate", "skip", "done"],
    ]
    files = sorted(project.root.rglob("*"))
    changed = project.tutelage("plan", "recipe.yaml", "--no-smoke", "stages.score.boundary=false")
    assert changed.status == 0
    assert [line.split()[2:] for line in changed.out.splitlines()] == [["skip", "done"], ["runs", "is", "new"]]
    assert sorted(project.root.rglob("*")) == files


def test_plan_estimates_by_a_trial_that_leaves_nothing_behind(project: Project) -> None:
    files = sorted(project.root.rglob("*"))
    ran = project.tutelage("plan", "recipe.yaml", "stages.student.steps=1000")
    assert ran.status == 0
    assert "student" in ran.out
    assert "s a step" in ran.out
    assert "MiB of memory" in ran.out
    assert "training in all: about" in ran.out
    assert sorted(project.root.rglob("*")) == files


def test_a_script_without_a_guard_estimates_once(project: Project) -> None:
    """multiprocessing would run the script again in its child, which then fails, and wait for it without end."""
    Path("script.py").write_text("import tutelage\nprint(tutelage.estimate('recipe.yaml', 'student'))\n")
    ran = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("TrainingCost(")
    assert len(ran.stdout.splitlines()) == 1


def test_a_trial_that_dies_or_fails_is_a_reason_and_no_error(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nosuch" in str(api.estimate("recipe.yaml", "student", ["nets.small.weights=nosuch.pth"]))
    monkeypatch.setattr(training_cost, "_CHILD", "import os; os.kill(os.getpid(), 9)")
    assert api.estimate("recipe.yaml", "student") == "the trial process ended with status -9 (out of memory?)"


# Data


def test_check_passes_good_data_and_fails_bad_data(project: Project) -> None:
    good = project.tutelage("check", "recipe.yaml")
    assert good.status == 0
    assert "city/train: 4 images with masks" in good.out
    assert "error " not in good.out
    Image.fromarray(np.full(SIZE, 7, np.uint8)).save(project.mask(1))
    bad = project.tutelage("check", "recipe.yaml")
    assert bad.status == 1
    assert "mask-values" in bad.out
    assert str(project.mask(1)) in bad.out
    assert "remedy: " in bad.out
    assert "1 error" in bad.out.splitlines()[-1]


def test_check_of_a_folder_needs_no_recipe(project: Project) -> None:
    ran = project.tutelage("check", "data")
    assert ran.status == 0
    assert "6 images with masks" in ran.out
    refused = project.tutelage("check", "data", "seed=1")
    assert refused.status == 1
    assert "a folder has no settings to replace: seed=1" in refused.err


def test_split_writes_lists_that_a_recipe_can_name(project: Project) -> None:
    ran = project.tutelage(
        "split", "recipe.yaml", "--data", "city/train", "--parts", "part=3,rest=1", "--out", "data/lists", "--seed", "1"
    )
    assert ran.status == 0
    assert set(ran.out.splitlines()[-2:]) == {"data/lists/part.txt", "data/lists/rest.txt"}
    lists = {name: read_entries(Path(f"data/lists/{name}.txt"), project.data) for name in ("part", "rest")}
    assert {name: len(entries) for name, entries in lists.items()} == {"part": 3, "rest": 1}
    assert len({image for entries in lists.values() for _, image, _ in entries}) == 4
    used = project.tutelage("plan", "recipe.yaml", "data.city.splits.train=lists/part.txt", "--no-smoke")
    assert used.status == 0
    few = project.tutelage("split", "recipe.yaml", "--data", "city/train", "--few", "1/2", "--out", "data/few")
    assert few.status == 0
    assert few.out.splitlines()[-2:] == ["data/few/1_2/labeled.txt", "data/few/1_2/unlabeled.txt"]
    assert len(read_entries(Path("data/few/1_2/labeled.txt"), project.data)) == 2
    (labeled,) = (line for line in few.out.splitlines() if line.startswith("1_2/labeled: "))
    assert re.search(r"2 images; sha256 [0-9a-f]{16}$", labeled)
    assert "sha256" not in next(line for line in few.out.splitlines() if line.startswith("1_2/unlabeled: "))
    asked = ("split", "recipe.yaml", r"data.city.group='i([0-9])'", "--data", "city/train", "--few", "1/2")
    shared = project.tutelage(*asked, "--stratify", "group", "--out", "data/shared")
    assert shared.status == 0
    assert "1_2/labeled: 2 images of 2 groups" in shared.out


def test_init_writes_a_recipe_that_can_be_planned(project: Project) -> None:
    ran = project.tutelage(
        "init", "--images", "data/images", "--masks", "data/masks", "--classes", ",".join(CLASSES), "--out", "own.yaml"
    )
    assert ran.status == 0
    assert "wrote own.yaml" in ran.out
    assert "#" in Path("own.yaml").read_text(encoding="utf-8")
    (data,) = yaml.safe_load(Path("own.yaml").read_text(encoding="utf-8"))["data"].values()
    assert data["classes"] == list(CLASSES)
    assert project.tutelage("plan", "own.yaml", "--no-smoke").status == 0


def test_show_writes_pictures(project: Project) -> None:
    ran = project.tutelage("show", "recipe.yaml", "--out", "seen", "--count", "2", "--stage", "student")
    assert ran.status == 0
    paths = [Path(line) for line in ran.out.splitlines()]
    assert paths
    for path in paths:
        assert path.parent == Path("seen")
        assert Image.open(path).width > SIZE[1]


def test_toycity_paints_scenes(project: Project) -> None:
    ran = project.tutelage("toycity", "toy", "--splits", "train=2,val=1", "--size", "32x64", "--domain", "dusk")
    assert ran.status == 0
    assert ran.out == "wrote toy\n"
    entries = read_entries(Path("toy/train.txt"), Path("toy"))
    assert len(entries) == 2
    assert {Image.open(Path("toy") / image).size for _, image, _ in entries} == {(64, 32)}


# Nets


def test_evaluate_on_a_recipe_and_on_folders(project: Project) -> None:
    net = stage(project, "student")
    ran = project.tutelage("evaluate", net, "--recipe", "recipe.yaml", "--data", "city/val", "--out", "scores")
    assert ran.status == 0
    name = Path(net).name
    assert ran.out.startswith(f"{name}: mIoU ")
    assert "on 2 images; " in ran.out
    assert [line.split()[0] for line in ran.out.splitlines()[-5:]] == list(CLASSES)
    mine = json.loads(Path(f"scores/{name}.json").read_text(encoding="utf-8"))
    stages = json.loads((Path(stage(project, "score")) / "scores" / "student.json").read_text(encoding="utf-8"))
    assert mine["miou"] == pytest.approx(stages["miou"], abs=1e-9)

    more = ["--subset", "few=road,sky", "--merged", "thing=car,sign", "--out", "more"]
    ran = project.tutelage("evaluate", net, "--recipe", "recipe.yaml", "--data", "city/val", *more)
    assert "mIoU of few (2)" in ran.out
    assert [line.split()[0] for line in ran.out.splitlines()[-5:]] == ["thing", "road", "sky", "tree", "mIoU"]
    content = json.loads(Path(f"more/{name}.json").read_text(encoding="utf-8"))
    assert (content["miou"], set(content["subsets"])) == (mine["miou"], {"few"})
    ran = project.tutelage("evaluate", net, "--recipe", "recipe.yaml", "--data", "city/val", "--merged", "thing")
    assert "write --merged vegetation=crop,weed" in ran.out + ran.err
    ran = project.tutelage("compare", f"scores/{name}.json", f"more/{name}.json")
    assert "merged" not in ran.out, "only one of them was scored so"

    weights = f"{net}/nets/student.safetensors"
    command = ["evaluate", weights, "--images", "data/images", "--masks", "data/masks", "--protocol"]
    whole = project.tutelage(*command, "kind=sliding", "--protocol", "window=[32,32]")
    assert whole.status == 0
    assert "on 6 images; " in whole.out
    assert "window" in whole.out


def test_predict_writes_maps_and_goes_on_after_an_unreadable_image(project: Project) -> None:
    net = stage(project, "student")
    ran = project.tutelage(
        "predict", net, "data/images", "--out", "here", "--write", "index,palette,overlay,confidence"
    )
    assert (ran.status, ran.out) == (0, "6 predicted\n")
    for ending in (".png", "_index.png", "_overlay.jpg", "_confidence.png"):
        assert Image.open(f"here/i0{ending}").size == SIZE[::-1]
    again = project.tutelage("predict", net, "data/images", "--out", "here")
    assert "0 predicted, 6 there already" in again.out
    project.image(3).write_bytes(project.image(3).read_bytes()[:200])
    failed = project.tutelage("predict", net, "data/images", "--out", "there")
    assert failed.status == 1
    assert "5 predicted, 1 failed" in failed.out
    assert str(project.image(3)) in failed.out
    assert Path("there/i5.png").is_file()
    assert not Path("there/i3.png").exists()


def test_compare_prints_a_table_or_json(project: Project) -> None:
    other = project.tutelage("run", "recipe.yaml", "--only", "student", "--quiet", "seed=1", "out=other")
    assert other.status == 0
    (net,) = Path("other").glob("student-*")
    project.tutelage("evaluate", str(net), "--recipe", "recipe.yaml", "--data", "city/val", "--out", "scores")
    sides = f"{stage(project, 'score')}:student", f"scores/{net.name}.json"
    table = project.tutelage("compare", *sides)
    assert table.status == 0
    assert "no clear difference: b - a is " in table.out
    content = json.loads(project.tutelage("compare", *sides, "--json").out)
    assert content["images"] == 2
    assert [row["name"] for row in content["classes"]] == list(CLASSES)
    assert content["gain"] == pytest.approx(content["b"]["miou"] - content["a"]["miou"])
    assert 0 <= content["p_value"] <= 1


def test_models_lists_nets(project: Project) -> None:
    ran = project.tutelage("models")
    assert ran.status == 0
    assert "small-lite0 " in ran.out
    assert "encoder: tf_efficientnet_lite0, decoder: lraspp" in ran.out
    assert "512x1024, 19 classes" in ran.out


def test_doctor_finds_this_installation_healthy(project: Project) -> None:
    ran = project.tutelage("doctor")
    assert ran.status == 0
    assert f"tutelage {tutelage.__version__}\n" in ran.out
    assert "torch 2." in ran.out
    assert "MISSING" not in ran.out


def test_doctor_names_the_fix_for_what_is_missing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.pipeline import doctor

    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else version(name))
    ran = project.tutelage("doctor")
    assert ran.status == 1
    assert "timm MISSING  fix: pip install timm" in ran.out


def test_schema_accepts_the_recipe_and_refuses_a_misspelt_one(project: Project) -> None:
    validators = pytest.importorskip("jsonschema").validators
    ran = project.tutelage("schema")
    assert ran.status == 0
    schema = json.loads(ran.out)
    validator = validators.validator_for(schema)(schema)
    recipe = yaml.safe_load(project.recipe.read_text(encoding="utf-8"))
    recipe["data"]["city"]["kind"], recipe["stages"]["student"]["kind"] = "folder", "train"
    assert list(validator.iter_errors(recipe)) == []
    recipe["stages"]["student"]["stepz"] = 3
    assert list(validator.iter_errors(recipe)) != []


def test_clean_removes_only_what_no_recipe_refers_to_and_only_when_told(project: Project) -> None:
    assert project.tutelage("clean", "runs").out == "nothing to remove\n"
    first = stage(project, "score")
    project.edit(("data: city/val}", "data: city/val, boundary: false}"))
    assert project.tutelage("run", "recipe.yaml", "--quiet").status == 0
    would = project.tutelage("clean", "runs")
    assert would.status == 0
    assert f"would remove {first} " in would.out
    assert "add --yes" in would.out
    assert Path(first).is_dir()
    assert f"removed {first} " in project.tutelage("clean", "runs", "--yes").out
    assert not Path(first).exists()
    kept = project.tutelage("plan", "recipe.yaml", "--no-smoke").out
    assert [line.split()[2] for line in kept.splitlines()] == ["skip", "skip"]


# The command line itself


def test_the_commands_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    listed = text.partition("Commands:\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in listed.splitlines() if line[2] != " "] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: tutelage {command} ")
    assert len(text.split("\n\n")[1].split()) > 3


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tutelage {tutelage.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["rnu", "recipe.yaml"],
        ["run"],
        ["run", "a.yaml", "--quite"],
        ["models", "a=b"],
    ],
)
def test_what_is_no_command_is_refused_with_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "Usage: tutelage" in capsys.readouterr().err


def test_several_values_follow_one_option() -> None:
    words = ["r.yaml", "--seeds", "0", "-1", "seed=3", "--only", "a", "--seeds", "2", "--only", "b", "name=x"]
    given = program().commands["ladder"].make_context("ladder", words).params
    assert given["seeds"] == ("0", "-1", "2")
    assert given["only"] == ("a", "b")
    assert given["overrides"] == ("seed=3", "name=x")
    words = ["a.pt", "--protocol", "kind=sliding", "window=[8,8]", "--device", "cpu"]
    given = program().commands["evaluate"].make_context("evaluate", words).params
    assert (given["nets"], given["device"]) == (("a.pt",), "cpu")
    assert given["protocol"] == ("kind=sliding", "window=[8,8]")
    for words in (["r.yaml", "--seeds"], ["r.yaml", "--seeds", "--quiet"]):
        with pytest.raises(click.UsageError, match=r"--seeds.* requires an argument"):
            program().commands["ladder"].make_context("ladder", words)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_parameters_of_the_function(name: str) -> None:
    """Defaults are those of the function, but for switches, which are off."""
    accepted = inspect.signature(getattr(api, name.replace("-", "_"))).parameters
    for option in program().commands[name].params:
        if option.name not in ("no_smoke", "plan", "no_stratify", "json", "debug"):
            default = accepted[str(option.name)].default
            assert isinstance(default, bool) or default in (None, (), inspect.Parameter.empty, option.default)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1)])
def test_an_interruption_is_no_fault(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(api, "models", stopped)
    assert main(["models"]) == status
    assert "error" not in capsys.readouterr().err


LIGHT = (["--help"], ["run", "--help"], ["--version"], ["models"], ["clean", "nowhere"])


def test_help_and_lists_import_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import json, sys\n"
        "import tutelage\n"
        "from tutelage.cli import main\n"
        "found = {}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        main(command)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    found[' '.join(command)] = [m for m in ('torch', 'numpy', 'timm', 'PIL') if m in sys.modules]\n"
        "print(json.dumps(found))\n"
    )
    command = [sys.executable, "-c", program, json.dumps(LIGHT)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ran.stdout.splitlines()[-1]) == {" ".join(command): [] for command in LIGHT}


def test_the_package_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tutelage", "--version"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == f"tutelage {tutelage.__version__}\n"


# Python


def test_python_has_every_verb() -> None:
    verbs = [name.replace("-", "_") for name in COMMANDS]
    assert [name for name in verbs if not callable(getattr(tutelage, name, None))] == []
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tutelage.trian  # noqa: B018


def test_dir_lists_the_functions_and_nothing_else() -> None:
    public = {name for name, value in vars(api).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert {name for name in dir(tutelage) if not name.startswith("__")} == set(tutelage.__all__) == public
    assert all(inspect.isfunction(getattr(tutelage, name)) for name in tutelage.__all__)
    program = "import tutelage.ladders.run, tutelage.pipeline.run, tutelage.cli; print(type(tutelage.run))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "<class 'function'>\n"


def test_python_does_what_the_commands_do(project: Project) -> None:
    outcome = tutelage.run("recipe.yaml")
    assert set(outcome.artefacts) == {"student", "score"}
    assert [row.runs for row in tutelage.plan("recipe.yaml")] == [False, False]
    assert [row.runs for row in tutelage.plan("recipe.yaml", ["seed=1"])] == [True, True]
    assert not [finding for finding in tutelage.check("recipe.yaml") if finding.severity == "error"]

    folder = outcome.artefacts["student"].folder
    model = tutelage.load_model(folder)
    assert model.classes == CLASSES
    result = model.predict("data/images/i1.png", confidence=True)
    assert project.tutelage("predict", str(folder), "data/images/i1.png", "--out", "here").status == 0
    np.testing.assert_array_equal(result.labels, np.asarray(Image.open("here/i1.png")))
    assert result.confidence is not None
    assert result.confidence.shape == SIZE
    np.testing.assert_array_equal(model.predict(np.asarray(Image.open("data/images/i1.png"))).labels, result.labels)
    report = tutelage.predict(folder, ["data/images"], out="there")
    assert (report.done, report.failed) == (6, ())

    scores = tutelage.evaluate([folder], recipe="recipe.yaml", data="city/val", out="scores")
    (label,) = scores
    comparison = tutelage.compare([f"scores/{label}.json"], [outcome.artefacts["score"].folder])
    assert comparison.gain.gain == pytest.approx(0, abs=1e-9)
    assert tutelage.clean("runs") == []


def test_python_raises_what_the_commands_print(project: Project) -> None:
    with pytest.raises(TutelageError) as raised:
        tutelage.run("recipe.yaml", ["stages.student.stepz=1"])
    assert raised.value.remedy
    ran = project.tutelage("run", "recipe.yaml", "stages.student.stepz=1")
    assert ran.err == f"error[{raised.value.code}]: {raised.value}\n"
    assert "unknown key 'stages.student.stepz'" in ran.err
