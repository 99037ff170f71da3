import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_longpo.generation.engine import ChatTokenizer
from megatron_longpo.generation.pipeline import Generator
from megatron_longpo.generation.run import generate, journal_path
from megatron_longpo.generation.settings import GenerationSettings, Sampling
from megatron_longpo.generation.transformers_engine import TransformersEngine

REPOSITORY = Path(__file__).parents[3]
SETTINGS = GenerationSettings(
    num_turns=2,
    seq_length=2048,
    min_chunk_tokens=60,
    max_chunk_tokens=200,
    max_question_tokens=40,
    question_sampling=Sampling(temperature=1.0, max_new_tokens=8),
    answer_sampling=Sampling(temperature=1.0, max_new_tokens=8),
)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "documents.jsonl"
    paragraph = "A paragraph about something, told by someone to somebody else.\n\n"
    lines = [json.dumps({"document_id": f"d{number}", "text": paragraph * (6 + number % 3)}) for number in range(5)]
    path.write_text("\n".join(lines))
    return path


def make_generator(folder: Path) -> Generator:
    tokenizer = ChatTokenizer.load(folder)
    engine = TransformersEngine.load(folder, tokenizer, dtype="float32", device=torch.device("cpu"))
    return Generator(engine, engine, tokenizer, engine.context_length, SETTINGS)


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    documents: Path, tmp_path: Path, chain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make_generator(chain_model)
    straight = tmp_path / "straight.jsonl"
    summary = generate(documents, straight, generator, group_size=2)
    assert (summary.documents, summary.resumed, summary.records, summary.turns) == (5, 0, 5, 10)

    resumed = tmp_path / "resumed.jsonl"
    calls = 0
    complete = TransformersEngine.complete

    def fail_late(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise KeyboardInterrupt
        return complete(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(TransformersEngine, "complete", fail_late)
    with pytest.raises(KeyboardInterrupt):
        generate(documents, resumed, generator, group_size=2)
    monkeypatch.undo()
    assert not resumed.exists()
    done = len(journal_path(resumed).read_bytes().splitlines())
    assert 0 < done < 5
    assert generate(documents, resumed, generator, group_size=2).resumed == done
    assert resumed.read_bytes() == straight.read_bytes()

    monkeypatch.setattr(TransformersEngine, "complete", fail_late)  # a re-run asks the model for nothing
    assert generate(documents, resumed, generator, group_size=2).resumed == 5
    assert resumed.read_bytes() == straight.read_bytes()


def test_other_settings_and_other_texts_are_made_anew(documents: Path, tmp_path: Path, chain_model: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    generator = make_generator(chain_model)
    generate(documents, output, generator)
    before = output.read_text()
    lines = documents.read_text().splitlines()
    documents.write_text("\n".join([lines[0].replace("something", "anything"), *lines[1:]]))
    assert generate(documents, output, generator).resumed == 4
    assert before.splitlines()[1:] == output.read_text().splitlines()[1:]
    raised = Generator(generator.short, generator.long.with_rotary_base(1e7), generator.tokenizer, 4096, SETTINGS)
    assert generate(documents, output, raised).resumed == 0


def run_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/generate_preference_data.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_the_command_makes_records_with_their_origin(documents: Path, tmp_path: Path, chain_model: Path) -> None:
    output = tmp_path / "out" / "pairs.jsonl"
    lead_ins = tmp_path / "lead_ins.txt"
    lead_ins.write_text("Say briefly:\n\nTell me:\n")
    options = ["--preset", "release", "--seq-length", 2048, "--min-chunk-tokens", 60, "--max-chunk-tokens", 200]
    options += ["--max-new-tokens", 4, "--lead-in-file", lead_ins, "--rotary-base", 1e6, "--max-documents", 3]
    done = run_tool("--input", documents, "--output", output, "--model", chain_model, *options)
    assert done.returncode == 0, done.stderr
    assert "3 records with 6 turns, from 3 documents" in done.stdout
    assert "answers cut off by --max-new-tokens: 12" in done.stdout
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["document_id"] for record in records] == ["d0", "d1", "d2"]
    for record in records:
        generation = record["metadata"]["generation"]
        assert generation["answer_sampling"] == {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4}
        assert (generation["short"]["rope"]["rope_theta"], generation["long"]["rope"]["rope_theta"]) == (1e4, 1e6)
        for turn, origin in zip(record["turns"], record["metadata"]["turns"], strict=True):
            assert turn["instruction"].startswith(("Say briefly: Which thing", "Tell me: Which thing"))
            assert origin["finish_reason_chosen"] == origin["finish_reason_rejected"] == "length"


def test_the_command_fails_in_one_line(documents: Path, tmp_path: Path, random_model: Path) -> None:
    silent = run_tool("--input", documents, "--output", tmp_path / "a.jsonl", "--model", tmp_path)
    assert (silent.returncode, silent.stderr.count("error:")) == (1, 1)
    assert "no tokenizer could be read" in silent.stderr
    options = ["--seq-length", 1024, "--min-chunk-tokens", 60, "--max-chunk-tokens", 200, "--max-new-tokens", 8, "--num-turns", 1]
    options += ["--question-max-new-tokens", 8]
    nothing = run_tool("--input", documents, "--output", tmp_path / "b.jsonl", "--model", random_model, *options)
    assert nothing.returncode == 1
    assert "no question in the model's output" in nothing.stdout
    assert "gave a pair; the reasons are above" in nothing.stderr
