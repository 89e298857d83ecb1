"""Artefacts by content address: found again, verified, forgotten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.errors import raises_code
from tests.processes import Countdown, count_disk_calls, in_child
from tutelage.runs.atomic import write_text
from tutelage.runs.store import KEY_LENGTH, Artefact, Store, content_key


def finished(store: Store, stage: str, key: str, files: dict[str, str]) -> Artefact:
    artefact = store.artefact(stage, key)
    artefact.begin("settings: {}\n")
    paths = [artefact.folder / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        write_text(path, content)
    artefact.finish("train", reversed(paths), {"fact": 1.5})
    return artefact


KEY, OTHER = "0123456789ab", "ba9876543210"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


# Keys


def test_a_key_is_of_the_content_and_not_of_its_order() -> None:
    key = content_key({"a": 1, "b": [1, 2], "c": {"x": None, "y": "ü"}})
    assert key == content_key({"c": {"y": "ü", "x": None}, "b": [1, 2], "a": 1})
    assert len(key) == KEY_LENGTH
    assert set(key) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "other",
    [{"a": 2}, {"a": 1.5}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": 1, "b": None}, {"a": True}, {}, {"a": {"a": 1}}],
)
def test_other_content_has_another_key(other: dict) -> None:
    assert content_key({"a": 1}) != content_key(other)


def test_the_order_of_a_list_is_content() -> None:
    assert content_key([1, 2]) != content_key([2, 1])


# Finished, unfinished, changed


def test_unfinished_until_the_manifest_is_there(store: Store) -> None:
    artefact = store.artefact("stage", KEY)
    assert artefact.fault() == "it is not finished"
    artefact.begin("settings: {}\n")
    write_text(artefact.net("student"), "weights")
    assert artefact.fault() == "it is not finished"
    assert artefact.manifest() is None
    artefact.finish("train", [artefact.net("student")], {"score": 0.5})
    assert artefact.fault() is None
    assert artefact.facts() == {"score": 0.5}
    manifest = artefact.manifest()
    assert manifest is not None
    assert manifest["key"] == KEY
    assert list(manifest["files"]) == ["nets/student.safetensors"]


def test_equal_content_gives_equal_manifests(tmp_path: Path) -> None:
    contents = {"nets/a.safetensors": "1", "scores/b.json": "2"}
    one, other = (finished(Store(tmp_path / name), "stage", KEY, contents) for name in ("x", "y"))
    assert (one.folder / "artefact.json").read_bytes() == (other.folder / "artefact.json").read_bytes()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"format": 1}', '{"format": 99, "files": {}}'])
def test_a_manifest_that_cannot_be_read_vouches_for_nothing(store: Store, content: str) -> None:
    artefact = finished(store, "stage", KEY, {"a": "1", "labels/b.png": "2"})
    (artefact.folder / "artefact.json").write_text(content)
    assert artefact.fault() == "artefact.json cannot be read"
    with artefact.lock(print):
        artefact.reopen()
        assert sorted(path.name for path in artefact.folder.iterdir()) == ["lock", "lock.holder"]
    assert artefact.fault() == "it is not finished"


@pytest.mark.parametrize("name", ["../../victim.txt", "labels/../../../victim.txt", "{root}/victim.txt"])
def test_a_manifest_that_leads_out_of_its_folder_removes_nothing_there(store: Store, name: str) -> None:
    victim = store.out.parent / "victim.txt"
    victim.write_text("mine")
    artefact = finished(store, "stage", KEY, {"a": "1"})
    content = json.loads((artefact.folder / "artefact.json").read_text())
    content["files"][name.format(root=victim.parent)] = "0"
    (artefact.folder / "artefact.json").write_text(json.dumps(content))
    assert artefact.fault() == "artefact.json cannot be read"
    artefact.reopen()
    assert victim.read_text() == "mine"


def test_a_file_that_was_changed_or_is_gone_is_named(store: Store) -> None:
    artefact = finished(store, "stage", KEY, {"labels/a.png": "1", "labels/b.png": "2"})
    write_text(artefact.folder / "labels" / "b.png", "3")
    assert artefact.fault() == "labels/b.png was changed after it was made"
    (artefact.folder / "labels" / "a.png").unlink()
    assert artefact.fault() == "labels/a.png is gone"


def test_files_that_are_no_content_may_change(store: Store) -> None:
    artefact = finished(store, "stage", KEY, {"a": "1"})
    write_text(artefact.log, "{}\n")
    write_text(artefact.times, "{}\n")
    assert artefact.fault() is None


def test_reopening_takes_away_what_was_changed_and_keeps_the_rest(store: Store) -> None:
    """A stage that goes on from the files that are there must not take a changed one for its own."""
    artefact = finished(store, "stage", KEY, {"labels/a.png": "1", "labels/b.png": "2", "labels/c.png": "3"})
    write_text(artefact.folder / "labels" / "b.png", "drawn by hand")
    (artefact.folder / "labels" / "c.png").unlink()
    artefact.reopen()
    assert artefact.fault() == "it is not finished"
    assert [path.name for path in (artefact.folder / "labels").iterdir()] == ["a.png"]
    artefact.reopen()  # an unfinished one is left as it is
    assert (artefact.folder / "labels" / "a.png").exists()


def test_beginning_removes_leftovers_of_a_kill(store: Store) -> None:
    artefact = store.artefact("stage", KEY)
    left = artefact.folder / "labels" / ".1-2-3.partial.png"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"")
    artefact.begin("x\n")
    assert not left.exists()


def _finish_and_die(out: Path, number: int) -> None:
    artefact = Store(out).artefact("stage", KEY)
    countdown = Countdown(number)
    count_disk_calls(countdown)
    artefact.finish("train", [artefact.folder / "a"], {})
    raise SystemExit(countdown.calls)


def test_killed_while_finishing(store: Store) -> None:
    artefact = finished(store, "stage", KEY, {"a": "1"})
    artefact.reopen()
    for number in (1, 2):  # before its flush, before its name
        assert in_child(_finish_and_die, store.out, number) == -9
        assert artefact.fault() == "it is not finished"
    assert in_child(_finish_and_die, store.out, 3) == -9
    assert artefact.fault() is None


# The store


def test_an_artefact_is_found_under_any_stages_name(store: Store) -> None:
    first = finished(store, "warmup", KEY, {"a": "1"})
    found = Store(store.out).artefact("other", KEY)
    assert found.folder == first.folder
    assert found.fault() is None
    assert Store(store.out).artefact("warmup", OTHER).folder == store.out / f"warmup-{OTHER}"


def test_two_stages_that_make_the_same_share_one_artefact(store: Store) -> None:
    one, other = store.artefact("one", KEY), store.artefact("other", KEY)
    assert one.folder == other.folder
    finished(store, "one", KEY, {"a": "1"})
    assert other.fault() is None


def test_a_finished_one_goes_before_an_unfinished_one(store: Store) -> None:
    (store.out / f"a-{KEY}").mkdir(parents=True)
    finished(Store(store.out / "elsewhere"), "b", KEY, {"a": "1"}).folder.rename(store.out / f"b-{KEY}")
    assert Store(store.out).artefact("c", KEY).folder.name == f"b-{KEY}"


def test_what_looks_like_an_artefact_and_what_does_not(store: Store) -> None:
    first, second = finished(store, "a", KEY, {"x": ""}), store.artefact("b-c", OTHER)
    second.begin("x\n")
    (store.out / "notes-of-mine").mkdir()
    (store.out / f"empty-{KEY[::-1]}").mkdir()
    assert [artefact.folder for artefact in store.artefacts()] == [first.folder, second.folder]
    assert [artefact.key for artefact in store.artefacts()] == [KEY, OTHER]
    assert Store(store.out / "nowhere").artefacts() == []


def test_a_lock_of_its_own(store: Store) -> None:
    artefact = finished(store, "stage", KEY, {"a": "12345"})
    with artefact.lock(print):
        with raises_code("locked-run"):
            store.remove(artefact)
        assert artefact.fault() is None
    assert store.remove(artefact) > 5
    assert not artefact.folder.exists()


def test_recipes_are_remembered_in_order_and_forgotten(store: Store) -> None:
    assert store.recipes() == []
    first = store.remember("demo", "a: 1\n", [OTHER, KEY])
    second = store.remember("demo", "a: 2\n", iter([KEY]))
    for age, path in enumerate((second, first)):
        os.utime(path, (1000 - age, 1000 - age))
    assert store.recipes() == [first, second]
    assert store.referenced([first]) == {KEY, OTHER}
    assert store.referenced([second]) == {KEY}
    assert store.referenced(store.recipes()) == {KEY, OTHER}
    assert store.remember("demo", "a: 1\n", [KEY, OTHER]) == first, "the same recipe is one, and the newest again"
    assert store.recipes() == [second, first]
    assert first.read_text() == "a: 1\n"
    store.forget(first)
    assert store.recipes() == [second]
    assert not first.with_suffix(".keys.json").exists()
    store.forget(first)


def test_a_recipe_that_is_half_forgotten_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys without it harm nobody; without its keys, cleaning could not tell which artefacts it needs."""
    first, second = store.remember("demo", "a: 1\n", [OTHER]), store.remember("demo", "a: 2\n", [KEY])
    unlink = Path.unlink

    def once(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", once)
    with pytest.raises(KeyboardInterrupt):
        store.forget(first)
    assert store.recipes() == [second]
    assert store.referenced(store.recipes()) == {KEY}


def test_a_training_that_is_finished_has_not_diverged(store: Store) -> None:
    artefact = store.artefact("stage", KEY)
    assert not artefact.diverged
    write_text(artefact.folder / "checkpoints" / "not-finite-000000007.json", "{}")
    assert artefact.diverged
    assert not finished(store, "stage", KEY, {"a": "1"}).diverged


def _remember_and_die(out: Path, number: int) -> None:
    count_disk_calls(Countdown(number))
    Store(out).remember("demo", "a: 1\n", [KEY])


@pytest.mark.parametrize("number", [2, 4, 5])
def test_a_recipe_is_never_there_without_its_keys(store: Store, number: int) -> None:
    assert in_child(_remember_and_die, store.out, number) == -9
    assert store.referenced(store.recipes()) == set()


def test_the_newest_report_is_put_where_a_user_looks(store: Store) -> None:
    artefact = finished(store, "report", KEY, {"report.html": "<p>1</p>"})
    store.publish_report(artefact)
    assert store.report.read_text() == "<p>1</p>"
    before = store.report.stat().st_mtime_ns
    store.publish_report(artefact)
    assert store.report.stat().st_mtime_ns == before, "an equal one is not written again"


def test_checkpoints_go_when_the_stage_is_finished(store: Store) -> None:
    artefact = finished(store, "stage", KEY, {"a": "1"})
    artefact.checkpoints(2, print).save(1, lambda path: path.write_bytes(b"") and None, {})
    write_text(artefact.best_net("student"), "x")
    size = artefact.size()
    artefact.clear_checkpoints()
    assert artefact.fault() is None
    assert artefact.size() < size
    artefact.clear_checkpoints()
    assert json.loads((artefact.folder / "artefact.json").read_text())["files"].keys() == {"a"}


def test_maps_of_audits_lie_beside_the_checkpoints(store: Store) -> None:
    artefact = store.artefact("semi", "a" * KEY_LENGTH)
    for step, rank in ((3, 0), (3, 1), (12, 0)):
        write_text(artefact.audited_maps(step, rank), "")
    assert artefact.audited_steps() == [3, 12]
    assert artefact.all_audited_maps(3) == [artefact.audited_maps(3, 0), artefact.audited_maps(3, 1)]
    artefact.forget_audited_maps([3, 5])
    assert artefact.audited_steps() == [12]
    artefact.clear_checkpoints()
    assert artefact.audited_steps() == []
