"""tools/evaluate.py in this process: flags, models, files."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from megatron_longpo.evaluation import scoring, short
from megatron_longpo.evaluation.models import name_places
from megatron_longpo.evaluation.plan import TASK_NAMES, select_tasks
from megatron_longpo.utils.errors import UserError
from tests.support.evaluation import read_out, write_books
from tests.support.hf_models import make_hf_model
from tests.support.launch import ROOT
from tests.support.scripted_generation import Completion, OpenAIServer


@pytest.fixture(scope="module")
def command():
    specification = importlib.util.spec_from_file_location("evaluate_command", ROOT / "tools" / "evaluate.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_hf_model(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture
def run(command, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        command.main()

    return call


def results_of(folder: Path):
    return json.loads((folder / "results.json").read_text())


def test_models_are_asked_one_after_the_other_and_compared(run, tiny, tmp_path, capsys):
    other = make_hf_model(tmp_path / "other", "qwen2", seed=3)
    run("--model", f"first={tiny}", other, "--tasks", "vt", "--lengths", 700, "--samples", 2, "--output", tmp_path / "out")
    text = capsys.readouterr().out
    assert "first  0.0" in text
    assert "other  0.0" in text
    first, second = results_of(tmp_path / "out" / "first"), results_of(tmp_path / "out" / "other")
    assert first["settings"] == second["settings"]
    assert first["model"]["engine"]["model_sha256"] != second["model"]["engine"]["model_sha256"]
    assert (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "first" / "needles.png").exists(), "variable tracking hides no needle"


def test_a_rope_base_is_the_engines(run, tiny, tmp_path):
    for name, flags in (("own", ()), ("raised", ("--rotary-base", 1e6))):
        run(
            "--model",
            f"{name}={tiny}",
            "--tasks",
            "niah_single_1",
            "--lengths",
            700,
            "--samples",
            1,
            *flags,
            "--output",
            tmp_path,
        )
    own, raised = (results_of(tmp_path / name)["model"]["engine"]["rope"]["rope_theta"] for name in ("own", "raised"))
    assert (own, raised) == (10000.0, 1e6)


def test_a_length_beyond_the_models_positions_is_said(run, tiny, tmp_path, capsys):
    run("--model", f"tiny={tiny}", "--tasks", "fwe", "--lengths", 2500, "--samples", 1, "--output", tmp_path)
    assert "tiny: announces 2048 positions, and is asked with 2500" in capsys.readouterr().out


def test_a_server_is_asked_by_its_chat_endpoint(run, tiny, tmp_path, capsys):
    with OpenAIServer(reply=lambda message, seed: Completion(read_out(message), "stop", 3)) as server:
        run(
            "--server", server.url, "--tokenizer-model", tiny, "--tasks", "niah", "vt", "--lengths", 1500, "--samples", 2,
            "--output", tmp_path, "--name", "served",
        )  # fmt: skip
        assert len(server.asked) == 9 * 2
        assert {request["temperature"] for request in server.asked} == {0.0}
        assert {request["max_tokens"] for request in server.asked} == {128, 64}
    assert "served  100.0" in capsys.readouterr().out
    assert results_of(tmp_path / "served")["ruler"]["mean"]["groups"] == {"NIAH": 100.0, "VT": 100.0}


def test_reports_are_made_again_without_a_model(run, tiny, tmp_path):
    run("--model", f"tiny={tiny}", "--tasks", "niah_single_1", "--lengths", 700, "--samples", 1, "--output", tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    run("--report-only", "--output", tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def test_reading_is_left_out_with_a_word_unless_it_was_asked_for(run, tiny, tmp_path, capsys):
    with pytest.raises(UserError, match="--tasks qa_1: give --squad FILE"):
        run("--model", tiny, "--tasks", "qa_1", "--output", tmp_path)
    with pytest.raises(UserError, match="does not fit into 100 tokens"):
        run("--model", f"t={tiny}", "--tasks", "ruler", "--lengths", 100, "--output", tmp_path)
    assert "qa_2 is left out: it is made of --hotpotqa FILE" in capsys.readouterr().out


def test_own_questions_are_asked_alone_unless_tasks_are_given(run, tiny, tmp_path, capsys):
    file, other = tmp_path / "mine.jsonl", tmp_path / "other.jsonl"
    for path in (file, other):
        path.write_text(json.dumps({"context": "A lamp.", "question": "What?", "answers": "a lamp", "group": "8x"}) + "\n")
    output = ("--output", tmp_path / "out", "--name", "m")
    flags = ("--questions-metric", "exact", "--questions-max-new-tokens", 5, *output)
    with OpenAIServer(reply=lambda message, seed: Completion("A lamp", "stop", 1)) as server:
        to = ("--server", server.url, "--tokenizer-model", tiny)
        run(*to, "--questions", file, f"named={other}", *flags)
        found = results_of(tmp_path / "out" / "m")
        assert len(server.asked) == 2
        assert {request["max_tokens"] for request in server.asked} == {5}
        assert [request["messages"][0]["content"] for request in server.asked] == ["A lamp.\n\nWhat?"] * 2
        run(*to, "--tasks", "vt", "--lengths", 700, "--samples", 1, "--questions", file, *flags)
        assert len(server.asked) == 3
    assert found.keys() == {"model", "settings", "questions", "run"}
    assert found["questions"].keys() == found["settings"]["questions"].keys() == {"mine", "named"}
    assert found["questions"]["named"]["groups"]["8x"]["score"] == 100.0
    assert found["settings"]["questions"]["mine"]["metric"] == "exact"
    assert results_of(tmp_path / "out" / "m").keys() == {"model", "settings", "questions", "ruler", "run"}
    assert "Questions: mine" in capsys.readouterr().out


def test_every_suite_and_every_task_can_be_named():
    assert select_tasks(["ruler", "infinitebench", "short"]) == TASK_NAMES
    assert select_tasks(["agg", "vt"]) == ("vt", "cwe", "fwe")
    assert select_tasks(["winogrande", "niah_single_1"]) == ("niah_single_1", "winogrande")
    with pytest.raises(UserError, match="'rulers' is none of ruler, niah"):
        select_tasks(["rulers"])


def test_a_models_name_is_given_or_its_folders(tmp_path):
    places = name_places(["a=/x/y", "/x/z", f"{tmp_path}/"])
    assert [place.name for place in places] == ["a", "z", tmp_path.name]
    odd = tmp_path / "b=c"
    odd.mkdir()
    with pytest.raises(UserError, match="the name must be of letters"):
        name_places([str(odd)])
    with pytest.raises(UserError, match="two are called 'm'"):
        name_places(["/x/m", "/y/m"])


BAD = [
    ((), "give one of --model"),
    (("--model", "x", "--server", "u"), "give one of --model"),
    (("--server", "u"), "--server needs --tokenizer-model"),
    (("--server", "u", "--tokenizer-model", "x", "--rotary-base", "1e6"), "--rotary-base goes with --model"),
    (("--model", "x", "--samples", "0"), "--samples must be at least 1"),
    (("--model", "x", "--lengths", "0"), "--lengths must be at least 1"),
    (("--model", "x", "--tasks", "nothing"), "'nothing' is none of"),
    (("--model", "x", "--tasks", "infinitebench"), "give --infinitebench DIR"),
    (("--model", "x", "--tasks", "short"), "give --short-data DIR, or --allow-hub"),
    (("--model", "x", "--infinitebench", "none", "--tasks", "en_qa"), "No such file or directory; give the folder"),
    (("--model", "x", "--haystack", "none"), "--haystack none: No such file"),
    (("--model", "/none/x", "--tasks", "vt"), "/none/x: no tokenizer could be read"),
    (("--server", "http://127.0.0.1:9/v1", "--tokenizer-model", "/none/x", "--tasks", "vt"), "no tokenizer could be read"),
    (("--model", "x", "--questions", "none.jsonl"), "--questions none.jsonl: No such file or directory; give a JSON Lines file"),
    (("--model", "x", "--questions", "/x/vt.jsonl"), "'vt' is the name of a task; name it otherwise"),
    (("--model", "x", "--questions", "/x/a.jsonl", "/y/a.jsonl"), "'a'; name them, as in --questions mine=/x/a.jsonl"),
    (("--model", "x", "--questions-max-new-tokens", "0"), "--questions-max-new-tokens must be at least 1"),
    (("--report-only",), "holds no results"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[message for _, message in BAD])
def test_a_mistake_is_one_line(run, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        run(*arguments, "--output", tmp_path)
    assert "\n" not in str(caught.value)


def test_short_tasks_say_which_package_they_lack(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(short.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"lm-eval, which is not installed: pip install 'megatron-longpo\[eval\]'"):
        run("--model", tiny, "--tasks", "short", "--short-data", tmp_path, "--output", tmp_path)


def test_summaries_say_which_package_they_lack_before_anything_is_asked(run, tiny, tmp_path, monkeypatch):
    scoring.load_rouge.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    flags = ("--infinitebench", write_books(tmp_path / "books"), "--output", tmp_path / "out")
    with pytest.raises(UserError, match=r"scored by rouge_score, but .* is not installed: pip install 'megatron-longpo\[eval\]'"):
        run("--model", tiny, "--tasks", "en_sum", *flags)
    assert not (tmp_path / "out").exists()


def test_short_tasks_and_a_server_do_not_go_together(run, tiny, tmp_path):
    with OpenAIServer() as server, pytest.raises(UserError, match="short tasks need log-probs"):
        run(
            "--server", server.url, "--tokenizer-model", tiny, "--tasks", "short", "--short-data", tmp_path, "--output", tmp_path
        )  # fmt: skip


def test_books_are_read_from_their_folder(run, tiny, tmp_path):
    with OpenAIServer(reply=lambda message, seed: Completion("A", "stop", 1)) as server:
        run(
            "--server", server.url, "--tokenizer-model", tiny, "--tasks", "infinitebench", "--infinitebench-length", 3000,
            "--infinitebench", write_books(tmp_path / "books"), "--output", tmp_path / "out", "--name", "m",
        )  # fmt: skip
    found = results_of(tmp_path / "out" / "m")["infinitebench"]
    assert {name: task["samples"] for name, task in found["tasks"].items()} == {"en_sum": 2, "en_qa": 4, "en_mc": 4}
    assert found["tasks"]["en_mc"]["score"] == 25.0
    assert found["tasks"]["en_mc"]["cut"] == 4
    assert found["average"] == pytest.approx(sum(task["score"] for task in found["tasks"].values()) / 3)
