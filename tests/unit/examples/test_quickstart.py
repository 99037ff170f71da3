"""The quickstart's own machinery; the commands that it runs have tests of their own."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.test_examples import assert_flags_are_taken
from tests.support.recorded_commands import ROOT, read_command

QUICKSTART = ROOT / "examples" / "quickstart"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import one of the quickstart's scripts as running it would."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    specification = importlib.util.spec_from_file_location(name, QUICKSTART / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, name, module)
    specification.loader.exec_module(module)
    return module


def test_every_command_takes_its_flags(monkeypatch):
    stages = load("run", monkeypatch).stages()
    assert len({stage.name for stage in stages}) == len(stages) == 11
    for stage in stages:
        assert_flags_are_taken(read_command(list(stage.command)))


def test_every_stage_reads_what_its_command_names(monkeypatch):
    """So that a change of it runs the stage again."""
    made: set[str] = set()
    for stage in load("run", monkeypatch).stages():
        read = {str(artifact.path) for artifact in stage.inputs}
        named = {word for word in stage.command if word in made or word.endswith("lead_ins.txt")}
        prefixes = {word for word in stage.command if f"{word}.bin" in made}
        outputs = {str(artifact.path) for artifact in stage.outputs}
        assert named - outputs <= read, stage.name
        assert {f"{prefix}.{end}" for prefix in prefixes for end in ("bin", "idx", "json")} <= read | outputs, stage.name
        made |= outputs


def test_documents_are_starts_of_topics_in_whole_paragraphs(tmp_path):
    from pydoc_data.topics import topics

    output = tmp_path / "documents.jsonl"
    subprocess.run([sys.executable, QUICKSTART / "make_documents.py", "--output", output], cwd=ROOT, check=True, timeout=60)
    documents = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(documents) == 8
    for document in documents:
        topic = topics[document["document_id"].removeprefix("python-")].strip()
        assert 6000 <= len(document["text"]) <= 7800
        assert topic.startswith(document["text"])
        assert topic[len(document["text"]) :][:2] in ("", "\n\n")


def test_the_summary_holds_what_it_promises(tmp_path, monkeypatch):
    module = load("summary", monkeypatch)
    metrics = {name: 0.5 for name, _ in module.SHOWN}
    answer = {
        "document_id": "d", "prompt_tokens": 7, "instruction": "Why?", "answer": "Because.",
        "before_from_chunk": "A\nb", "before_from_document": "C",
    }  # fmt: skip
    for name, content in (("before", metrics), ("after", {**metrics, "loss": 0.25}), ("answer", answer), ("pairs", {"x": 1})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "trained").mkdir()
    rows = [json.dumps({"iteration": number, **metrics}) for number in (1, 2)]
    (tmp_path / "trained" / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    settings = {"iterations": 2, "learning_rate": 1e-5, "rotary_base": 1e6}
    text = module.summarize(tmp_path, {"train": 3.0, "export": 4.0}, settings)
    assert "objective                               0.5000    0.2500" in text
    assert "  trained, from the document:  Because." in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seconds"] == {"train": 3.0, "export": 4.0, "total": 7.0}
    assert (summary["before"]["loss"], summary["after"]["loss"], summary["answer"]) == (0.5, 0.25, "Because.")
    assert summary["hf_path"] == str(tmp_path / "exported")
    assert Path(summary["plot"]).read_bytes().startswith(b"\x89PNG")


def test_processes_share_the_cores_and_one_process_has_them_all(monkeypatch):
    run = load("run", monkeypatch)
    monkeypatch.setattr(run.os, "sched_getaffinity", lambda _: set(range(8)))
    for stage in run.stages():
        shared = {"OMP_NUM_THREADS": "4"} if stage.command[0] == "torchrun" else {}
        assert dict(stage.environment) == shared, stage.name
    assert "OMP_NUM_THREADS" not in run.environment()
