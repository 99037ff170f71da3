"""What a chain of stages does again, what it does not, and how it ends."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from megatron_longpo.evolution.manifest import Manifest
from megatron_longpo.evolution.stages import Artifact, Stage
from megatron_longpo.utils.errors import UserError
from tests.support.stage_chains import run, started, write_stage


def chain(folder: Path, *words: str) -> list[Stage]:
    """Stages that each read what the one before wrote."""
    stages: list[Stage] = []
    for number, word in enumerate(words):
        inputs = [stages[-1].outputs[0].path] if stages else []
        stages.append(write_stage(folder, f"stage{number}", word, inputs))
    return stages


def test_a_stage_runs_once_and_again_when_it_or_one_before_it_changes(tmp_path, capfd):
    first = run(chain(tmp_path, "a", "b", "c"), tmp_path)
    assert started(tmp_path) == ["stage0", "stage1", "stage2"]
    assert "[2/3] write b\n$ sh -c" in capfd.readouterr().out
    assert run(chain(tmp_path, "a", "b", "c"), tmp_path) == first
    assert started(tmp_path) == []
    run(chain(tmp_path, "a", "B", "c"), tmp_path)
    assert started(tmp_path) == ["stage1", "stage2"]
    assert (tmp_path / "stage2.txt").read_text() == "a\nB\nc\n"
    (tmp_path / "stage2.txt").unlink()
    run(chain(tmp_path, "a", "B", "c"), tmp_path)
    assert started(tmp_path) == ["stage2"]


@dataclasses.dataclass
class World:
    """What a random graph of stages should have written, by simulation."""

    words: dict[str, str]
    inputs: dict[str, list[str]]
    counts: set[str]
    sources: dict[str, str]

    def stages(self, folder: Path) -> list[Stage]:
        return [
            write_stage(folder, name, word, [folder / f"{one}.txt" for one in self.inputs[name]], counts=name in self.counts)
            for name, word in self.words.items()
        ]

    def contents(self) -> dict[str, str]:
        found = dict(self.sources)
        for name, word in self.words.items():
            read = "".join(found[one] for one in self.inputs[name])
            found[name] = f"{read.count(chr(10))}\n" if name in self.counts else f"{read}{word}\n"
        return found


def random_world(rng: random.Random) -> World:
    sources = {f"source{number}": f"{number}\n" for number in range(2)}
    inputs: dict[str, list[str]] = {}
    for number in range(6):
        known = [*sources, *inputs]
        inputs[f"stage{number}"] = rng.sample(known, rng.randint(1, min(3, len(known))))
    return World({name: name for name in inputs}, inputs, {name for name in inputs if rng.random() < 0.3}, sources)


def change(world: World, folder: Path, rng: random.Random) -> set[str]:
    """Change something; return the stages that must run again for that reason alone."""
    what, name = rng.choice(("source", "touch", "word", "delete", "damage")), rng.choice(list(world.words))
    source = rng.choice(list(world.sources))
    if what == "source":
        world.sources[source] = f"{rng.random()}\n"
        (folder / f"{source}.txt").write_text(world.sources[source])
    elif what == "touch":
        os.utime(folder / f"{source}.txt", (time.time(), time.time() - rng.randint(10, 1000)))
    elif what == "word":
        world.words[name] = f"{rng.random()}"
    elif what == "delete":
        (folder / f"{name}.txt").unlink()
    else:
        (folder / f"{name}.txt").write_text("something else\n")
    return {name} if what in ("word", "delete", "damage") else set()


@pytest.mark.parametrize("seed", range(5))
def test_a_change_runs_what_depends_on_its_content_and_nothing_else(tmp_path, seed, capfd):
    rng = random.Random(seed)
    world = random_world(rng)
    for name, content in world.sources.items():
        (tmp_path / f"{name}.txt").write_text(content)
    run(world.stages(tmp_path), tmp_path)
    assert started(tmp_path) == list(world.words)
    for _ in range(4):
        before = world.contents()
        again = change(world, tmp_path, rng)
        after = world.contents()
        again |= {name for name, inputs in world.inputs.items() if any(before[one] != after[one] for one in inputs)}
        run(world.stages(tmp_path), tmp_path)
        assert started(tmp_path) == [name for name in world.words if name in again]
        assert {name: (tmp_path / f"{name}.txt").read_text() for name in after} == after


def test_a_stage_that_fails_stops_the_chain_and_is_started_over_what_it_left(tmp_path, capfd):
    output, switch = tmp_path / "output", tmp_path / "switch"
    code = f"import os; open({str(output)!r}, 'a').write('part '); os.path.exists({str(switch)!r}) or exit(3)"
    weak = Stage(name="weak", title="fail once", command=("python", "-c", code), outputs=(Artifact(output),))
    stages = [weak, write_stage(tmp_path, "after", "x", [output])]
    with pytest.raises(UserError, match="stage weak failed with exit code 3"):
        run(stages, tmp_path)
    assert started(tmp_path) == []
    assert Manifest(tmp_path).get("weak").exit_code == 3
    switch.touch()
    run(stages, tmp_path)
    assert output.read_text() == "part part "
    assert started(tmp_path) == ["after"]
    assert (Manifest(tmp_path).get("weak").attempts, Manifest(tmp_path).get("after").attempts) == (2, 1)


def test_an_interrupted_stage_starts_from_scratch_when_its_input_has_changed(tmp_path, capfd):
    home, source = tmp_path / "home", tmp_path / "source"
    source.write_text("1")
    code = f"echo part >> {home}/out; test $(cat {source}) = 2"
    outputs = (Artifact(home / "out"),)
    stage = Stage(name="s", title="", command=("sh", "-c", code), inputs=(Artifact(source),), outputs=outputs)
    for _ in range(2):
        with pytest.raises(UserError):
            run([stage], home)
    assert (home / "out").read_text() == "part\npart\n"
    source.write_text("2")
    run([stage], home)
    assert (home / "out").read_text() == "part\n"
    assert Manifest(home).get("s").attempts == 1


def test_a_changed_stage_starts_without_what_its_old_command_left(tmp_path, capfd):
    output, outside = tmp_path / "home" / "output", tmp_path / "outside"

    def stage(word: str) -> Stage:
        code = f"for f in {output} {outside} {output}.work; do echo {word} >> $f; done"
        outputs = (Artifact(output), Artifact(outside))
        return Stage(name="s", title="", command=("sh", "-c", code), outputs=outputs, leftovers=(f"{output}.*",))

    run([stage("a")], tmp_path / "home")
    run([stage("b")], tmp_path / "home")
    assert output.read_text() == "b\n"
    assert Path(f"{output}.work").read_text() == "b\n"
    assert outside.read_text() == "a\nb\n", "what is not in the output folder is not removed"


def test_what_lies_there_without_a_record_is_not_trusted(tmp_path, capfd):
    stages = chain(tmp_path, "a")
    (tmp_path / "stage0.txt").write_text("from nowhere\n")
    run(stages, tmp_path)
    assert (tmp_path / "stage0.txt").read_text() == "a\n"


def test_a_change_of_how_the_work_is_done_runs_nothing(tmp_path, capfd):
    def stage(*flags: str) -> Stage:
        code = f"echo x >> {tmp_path}/log; echo > {tmp_path}/out"
        return Stage(
            name="s", title="", command=("sh", "-c", code, *flags), outputs=(Artifact(tmp_path / "out"),),
            how=frozenset({"--workers", "--server"}),
        )  # fmt: skip

    run([stage("--workers", "1", "--lr", "3", "--server", "a", "b")], tmp_path)
    run([stage("--lr", "3", "--server", "c", "--workers=7")], tmp_path)
    assert len(started(tmp_path)) == 1
    run([stage("--workers", "1", "--lr", "4")], tmp_path)
    assert len(started(tmp_path)) == 1


def test_a_decision_to_stop_skips_what_follows(tmp_path, capfd):
    gate = tmp_path / "decision.json"

    def stages(go_on: bool) -> list[Stage]:
        code = f"echo '{json.dumps({'continue': go_on})}' > {gate}"
        decide = Stage(name="decide", title="", command=("sh", "-c", code), outputs=(Artifact(gate),), gate=gate)
        return [write_stage(tmp_path, "before", "x"), decide, write_stage(tmp_path, "after", "y")]

    run(stages(False), tmp_path)
    assert started(tmp_path) == ["before"]
    assert "skipped, because the decision is to stop: after" in capfd.readouterr().out
    run(stages(False), tmp_path, only="after")
    assert started(tmp_path) == []
    run(stages(True), tmp_path)
    assert started(tmp_path) == ["after"]


def test_a_stage_alone_runs_only_when_what_it_needs_is_done(tmp_path, capfd):
    stages = chain(tmp_path, "a", "b", "c")
    with pytest.raises(UserError, match="stage stage2 needs stage0, which is not done"):
        run(stages, tmp_path, only="stage2")
    run(stages, tmp_path, only="stage0")
    run(stages, tmp_path, only="stage1")
    assert started(tmp_path) == ["stage0", "stage1"]
    run(chain(tmp_path, "a", "b", "c"), tmp_path, only="stage2")
    assert started(tmp_path) == ["stage2"]
    with pytest.raises(UserError, match="stage stage2 needs stage0"):
        run(chain(tmp_path, "A", "b", "c"), tmp_path, only="stage2")


def test_a_second_run_is_refused(tmp_path, capfd):
    with (tmp_path / "lock").open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(UserError, match="another run is at work here"):
            run([], tmp_path)
    run([], tmp_path)


def test_a_stage_that_makes_nothing_is_an_error(tmp_path, capfd):
    stage = Stage(name="idle", title="", command=("true",), outputs=(Artifact(tmp_path / "never"),))
    for _ in range(2):
        with pytest.raises(UserError, match=r"ended without making .*never"):
            run([stage], tmp_path)


def test_a_command_that_does_not_exist_is_an_error_in_one_line(tmp_path, capfd):
    stage = Stage(name="s", title="", command=("no-such-program",), outputs=(Artifact(tmp_path / "never"),))
    with pytest.raises(UserError, match="stage s failed"):
        run([stage], tmp_path)
    assert capfd.readouterr().err.strip() == "error: no-such-program: cannot be started (No such file or directory)"


def test_a_missing_input_is_named(tmp_path, capfd):
    with pytest.raises(UserError, match=r"stage s needs .*nothing.txt, which is not there"):
        run([write_stage(tmp_path, "s", "x", [tmp_path / "nothing.txt"])], tmp_path)


def test_the_manifest_tells_what_was_run_read_and_left(tmp_path, capfd):
    source = tmp_path / "source.txt"
    source.write_text("1\n")
    run([write_stage(tmp_path, "s", "x", [source])], tmp_path)
    (record,) = json.loads((tmp_path / "manifest.json").read_text())["stages"].values()
    assert record["command"][0] == "sh"
    assert record["inputs"] == {str(source): "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865"}
    assert list(record["outputs"]) == [str(tmp_path / "s.txt")]
    assert (record["exit_code"], record["attempts"]) == (0, 1)
    assert record["versions"].keys() >= {"megatron-longpo", "python", "torch", "megatron-core", "transformers"}
    assert record["seconds"] >= 0
    assert record["start"].endswith("+00:00")


def test_a_damaged_manifest_is_refused_in_one_line(tmp_path, capfd):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json: not a manifest .*; remove it to run every stage anew"):
        run([], tmp_path)


def test_a_copied_output_folder_is_done_where_its_paths_are_the_same(tmp_path, capfd):
    home = tmp_path / "home"
    run(chain(home, "a", "b"), home)
    shutil.copytree(home, tmp_path / "copy")
    shutil.rmtree(home)
    (tmp_path / "copy").rename(home)
    started(home)
    run(chain(home, "a", "b"), home)
    assert started(home) == []
