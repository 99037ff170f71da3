"""Hashes are of content, and what has been read is not read again."""

from __future__ import annotations

import json
import os
import time

import pytest

from megatron_longpo.evolution.hashing import SETTLED, Hasher
from megatron_longpo.evolution.stages import EXPORTED, NATIVE, SCORES, TOKENIZER, Artifact


def write_old(path, text):
    """Write a file whose last change is long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, ns=(10**18, 10**18))


def test_a_file_is_known_by_size_and_time_once_it_was_read(tmp_path):
    path = tmp_path / "f"
    write_old(path, "one")
    hasher = Hasher()
    first = hasher.digest(Artifact(path))
    write_old(path, "two")
    assert hasher.digest(Artifact(path)) == first, "it was not read again"
    assert Hasher().digest(Artifact(path)) != first
    write_old(path, "three")
    assert hasher.digest(Artifact(path)) != first
    hasher.save(tmp_path / "known")
    assert json.loads((tmp_path / "known").read_text()) == {str(path): [5, 10**18, hasher.digest(Artifact(path))]}
    write_old(path, "seven")
    assert Hasher.load(tmp_path / "known").digest(Artifact(path)) == hasher.digest(Artifact(path))


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    path, now = tmp_path / "f", time.time_ns()
    hasher, digests = Hasher(), []
    for text in ("one", "two"):
        path.write_text(text)
        os.utime(path, ns=(now, now))  # as when both changes fall into one tick of the clock
        digests.append(hasher.digest(Artifact(path)))
    assert digests[0] != digests[1]
    assert SETTLED > 0


def test_what_was_known_may_be_lost(tmp_path):
    (tmp_path / "known").write_text("{")
    write_old(tmp_path / "f", "x")
    assert Hasher.load(tmp_path / "known").digest(Artifact(tmp_path / "f")) == Hasher().digest(Artifact(tmp_path / "f"))


def test_a_folder_is_its_names_and_contents(tmp_path):
    def digest(files):
        folder = tmp_path / "folder"
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return Hasher().digest(Artifact(folder))

    whole = {"a": "1", "b/c": "2"}
    assert digest(whole) == digest(whole)
    assert len({digest(some) for some in (whole, {"a": "1", "b/c": "3"}, {"a": "1", "b/d": "2"}, {"a": "1"})}) == 4


def test_what_is_absent_or_not_whole_has_no_hash(tmp_path):
    assert Hasher().digest(Artifact(tmp_path / "nothing")) is None
    (tmp_path / "run" / "iter_0000002").mkdir(parents=True)
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("2")
    assert Hasher().digest(Artifact(tmp_path / "run", NATIVE)) is None, "the checkpoint has no index"
    (tmp_path / "results.json").write_text('{"ruler": ')
    assert Hasher().digest(Artifact(tmp_path / "results.json", SCORES)) is None


def native(folder, **changes):
    files = {
        "latest_checkpointed_iteration.txt": "2", "iter_0000002/.metadata": "index", "iter_0000002/__0_0.distcp": "weights",
        "iter_0000002/longpo_model.json": "{}", "iter_0000002/config.json": "{}", "hf/config.json": "{}",
        "metrics.jsonl": "times", "iter_0000001/__0_0.distcp": "old",
    }  # fmt: skip
    for name, text in {**files, **changes}.items():
        write_old(folder / name, text)
    return Hasher().digest(Artifact(folder, NATIVE))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("iter_0000002/__0_0.distcp", True), ("iter_0000002/longpo_model.json", True), ("hf/config.json", True),
        ("iter_0000002/.metadata", False), ("iter_0000002/config.json", False), ("metrics.jsonl", False),
        ("iter_0000001/__0_0.distcp", False),
    ],
)  # fmt: skip
def test_of_a_native_checkpoint_counts_what_the_newest_holds(tmp_path, name, counts):
    assert (native(tmp_path / "a") != native(tmp_path / "b", **{name: "changed"})) == counts


@pytest.mark.parametrize(
    ("view", "name", "counts"),
    [
        (EXPORTED, "model.safetensors", True), (EXPORTED, "config.json", True), (EXPORTED, "README.md", False),
        (EXPORTED, "longpo_export.json", False), (TOKENIZER, "model.safetensors", False), (TOKENIZER, "tokenizer.json", True),
    ],
)  # fmt: skip
def test_of_a_hugging_face_folder_counts_the_model_or_the_tokenizer(tmp_path, view, name, counts):
    def digest(folder, **changes):
        files = ("model.safetensors", "config.json", "tokenizer.json", "README.md", "longpo_export.json")
        for file, text in {**dict.fromkeys(files, "{}"), **changes}.items():
            write_old(folder / file, text)
        return Hasher().digest(Artifact(folder, view))

    assert (digest(tmp_path / "a") != digest(tmp_path / "b", **{name: "changed"})) == counts


def test_of_results_count_the_scores_and_not_the_time_they_took(tmp_path):
    def digest(**content):
        (tmp_path / "results.json").write_text(json.dumps(content))
        return Hasher().digest(Artifact(tmp_path / "results.json", SCORES))

    assert digest(ruler=1, run={"seconds": 3}) == digest(run={"seconds": 4}, ruler=1) != digest(ruler=2, run={"seconds": 3})
