"""Which samples a run asks, under which names, on which rank; and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.config.schema import DataConfig, EvaluationConfig, ModelConfig, RunConfig
from megatron_longpo.conversion.import_hf import hf_to_mcore
from megatron_longpo.conversion.record import find_iteration
from megatron_longpo.conversion.workers import Workers
from megatron_longpo.evaluation.sources import Sources
from megatron_longpo.evaluation.text import load_haystack
from megatron_longpo.evaluation.tokens import PromptTokens
from megatron_longpo.inference.engine import PromptTokenizer
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.training.eval_tasks import ONE_ANSWER, EvalSample, divide, open_eval_tasks
from megatron_longpo.training.pretrained import read_record
from megatron_longpo.training.prompt_encoder import PromptEncoder
from megatron_longpo.utils.errors import UserError
from tests.support.hf_models import make_hf_model


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_hf_model(folder / "hf", num_hidden_layers=2)
    hf_to_mcore(folder / "hf", folder / "native", Workers())
    return folder / "native"


@pytest.fixture(scope="module")
def architecture(native: Path) -> ModelArchitecture:
    return read_record(str(native)).architecture


def config_of(checkpoint: Path, *tasks: str, seq_length: int = 1024, **settings: object) -> RunConfig:
    return RunConfig(
        model=ModelConfig(pretrained_checkpoint=str(checkpoint)),
        data=DataConfig(seq_length=seq_length),
        evaluation=EvaluationConfig(eval_tasks=tasks, **settings),  # type: ignore[arg-type]
    )


def write(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def test_niah_is_the_tasks_of_one_answer_and_a_sample_in_two_scores_is_asked_once(
    native: Path, architecture: ModelArchitecture
) -> None:
    config = config_of(native, "niah:700,800", "niah_single_2:800", eval_tasks_samples=2)
    samples = open_eval_tasks(config, architecture)
    assert list(ONE_ANSWER) == [*(f"niah_single_{n}" for n in (1, 2, 3)), *(f"niah_multikey_{n}" for n in (1, 2, 3))]
    assert len(samples) == 6 * 2 * 2
    labels = [sample.labels for sample in samples]
    assert labels.count(("niah/700",)) == 12
    assert labels.count(("niah/800",)) == 10
    assert labels.count(("niah/800", "niah_single_2/800")) == 2


def test_a_generated_sample_is_the_evaluation_s_and_its_answer_stands_without_an_end(
    native: Path, architecture: ModelArchitecture
) -> None:
    config = config_of(native, "niah_multikey_2:900", eval_tasks_samples=2)
    items = [sample.make() for sample in open_eval_tasks(config, architecture)]
    tokenizer = PromptTokenizer.load(native / "hf")
    sources = Sources(count=PromptTokens(tokenizer).count, haystack=load_haystack(None), seed=config.training.seed)
    for index, item in enumerate(items):
        sample = ONE_ANSWER["niah_multikey_2"].make(sources, 900, index)
        assert item.prompt.tolist() == tokenizer.encode_message(sample.message)
        assert [answer.tolist() for answer in item.answers] == [tokenizer.encode(sample.expected[0])]


def test_own_questions_end_their_turn_and_count_in_their_file_and_group(
    native: Path, architecture: ModelArchitecture, tmp_path: Path
) -> None:
    records = [
        {"context": "A text.", "question": f"Q{number}?", "answers": [" yes ", "no"], "group": ("a", "b", None)[number % 3]}
        for number in range(12)
    ]
    path = write(tmp_path / "mine.jsonl", *records)
    samples = open_eval_tasks(config_of(native, f"questions:{path}", eval_tasks_samples=3), architecture)
    labels = [sample.labels for sample in samples]
    assert labels == [("mine", "mine/a"), ("mine", "mine/b"), ("mine",)] * 3
    tokenizer = PromptTokenizer.load(native / "hf")
    assert samples[0].make().prompt.tolist() == tokenizer.encode_message("A text.\n\nQ0?")
    assert [answer.tolist() for answer in samples[0].make().answers] == [
        tokenizer.encode(f"{word}<|im_end|>") for word in ("yes", "no")
    ]
    named = open_eval_tasks(config_of(native, f"questions:other={path}", eval_tasks_samples=1), architecture)
    assert named[0].labels == ("other", "other/a")


def test_no_task_is_no_sample_and_needs_no_tokenizer(native: Path, architecture: ModelArchitecture) -> None:
    assert open_eval_tasks(config_of(native.parent / "absent"), architecture) == ()


def test_an_answer_that_merges_with_the_template_is_encoded_alone(native: Path) -> None:
    tokenizer = PromptTokenizer.load(native / "hf")
    encoder = PromptEncoder(tokenizer, 320, "here")
    merging = PromptEncoder(tokenizer, 320, "here")
    merging._short = "ab"
    tokenizer.encode = lambda text: [1, 2] if text == "ab" else [1, 9] if text.startswith("ab") else [7, 8]  # type: ignore[method-assign]
    assert merging._answer("c", ended=False).tolist() == [7, 8]
    del tokenizer.encode
    assert encoder._answer("c", ended=False).tolist() == tokenizer.encode("c")


REFUSED = [
    (("vt:700",), "vt has no one right answer that a reply begins with"),
    (("niah_multivalue:700",), "niah_multivalue has no one right answer"),
    (("ruler:700",), "ruler has no one right answer"),
    (("qa_1:700",), "qa_1 is made of another file"),
    (("nia:700",), "'nia' is none of niah, niah_single_1,"),
    (("niah",), "--eval-tasks niah: give lengths in tokens after the name, as in niah:2048,4096"),
    (("niah:7k",), "give lengths in tokens after the name"),
    (("niah:700,",), "give lengths in tokens after the name"),
    (("niah:0",), "give lengths in tokens after the name"),
    (
        ("niah:700,2048",),
        "niah:2048: prompt and answer have up to 2048 tokens, --seq-length is 1024; raise it, or leave this out",
    ),
    (
        ("niah_single_3:200",),
        r"niah_single_3:200: its shortest prompt has \d+ tokens, and its answer may have 128; give at least",
    ),
    (("questions:",), "names no file; give questions:FILE.jsonl"),
    (("questions:none.jsonl",), "--eval-tasks questions:none.jsonl: No such file or directory; give a JSON Lines file"),
    (("questions:/x/niah.jsonl",), "'niah' is the name of a task; name it otherwise, as in --eval-tasks questions:mine="),
    (("questions:/x/a.jsonl", "questions:/y/a.jsonl"), "two are called 'a'; name them, as in --eval-tasks questions:mine="),
]


@pytest.mark.parametrize(("tasks", "message"), REFUSED, ids=[" ".join(tasks) for tasks, _ in REFUSED])
def test_what_cannot_be_asked_is_refused_in_one_line(
    native: Path, architecture: ModelArchitecture, tasks: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_eval_tasks(config_of(native, *tasks), architecture)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "long " * 300, "answers": "a"}, r"mine.jsonl:1: question: prompt and answer have up to 15\d\d tokens"),
        ({"question": "q", "answers": "long " * 300}, r"mine.jsonl:1: question: prompt and answer have up to 15\d\d tokens"),
        ({"question": "q", "answers": "a", "group": "nll"}, "mine.jsonl:1: group: 'nll' is how scores are called"),
        ({"question": "q", "answer": "a"}, "mine.jsonl:1: answer: unknown field"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(
    native: Path, architecture: ModelArchitecture, tmp_path: Path, record: dict[str, object], message: str
) -> None:
    path = write(tmp_path / "mine.jsonl", record)
    with pytest.raises(UserError, match=message):
        open_eval_tasks(config_of(native, f"questions:{path}"), architecture)


def test_the_model_s_positions_bound_lengths_too(native: Path, architecture: ModelArchitecture) -> None:
    small = dataclasses.replace(architecture, max_position_embeddings=512)
    with pytest.raises(UserError, match="--max-position-embeddings is 512"):
        open_eval_tasks(config_of(native, "niah:700"), small)


def test_a_haystack_that_is_absent_is_refused_by_its_flag(native: Path, architecture: ModelArchitecture) -> None:
    with pytest.raises(UserError, match="--eval-tasks-haystack none: No such file or directory"):
        open_eval_tasks(config_of(native, "niah:700", eval_tasks_haystack="none"), architecture)


def test_a_checkpoint_without_a_usable_tokenizer_is_refused(
    native: Path, architecture: ModelArchitecture, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(native, copy)
    config = config_of(copy, "niah_single_1:700")
    assert open_eval_tasks(config_of(find_iteration(copy), "niah_single_1:700"), architecture)
    settings = json.loads((copy / "hf" / "tokenizer_config.json").read_text())
    (copy / "hf" / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    with pytest.raises(UserError, match="names no eos_token"):
        open_eval_tasks(config, architecture)
    shutil.rmtree(copy / "hf")
    with pytest.raises(UserError, match="keeps no tokenizer"):
        open_eval_tasks(config, architecture)


def test_a_token_that_is_no_word_of_the_model_is_refused(native: Path, architecture: ModelArchitecture, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"question": "q", "answers": "a"})
    small = dataclasses.replace(architecture, vocab_size=200)
    with pytest.raises(UserError, match=r"gives token \d+, the model has 200 words"):
        open_eval_tasks(config_of(native, f"questions:{path}"), small)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50), st.integers(0, 200)), max_size=30), st.integers(1, 5))
def test_ranks_divide_the_samples_and_keep_a_text_s_together(drawn: list[tuple[int, int, int]], ranks: int) -> None:
    samples = [
        EvalSample(labels=("a",), size=own + text, shared=str(name), own=own, make=lambda: pytest.fail("not wanted"))
        for name, own, text in drawn
    ]
    shares = divide(samples, ranks)
    assert sorted(number for share in shares for number in share) == list(range(len(samples)))
    homes = {
        sample.shared: [rank for rank in range(ranks) if any(samples[n].shared == sample.shared for n in shares[rank])]
        for sample in samples
    }
    assert all(len(home) == 1 for home in homes.values())


def test_equal_samples_are_divided_evenly() -> None:
    samples = [EvalSample(labels=("a",), size=9, shared=str(n), own=9, make=lambda: pytest.fail("not wanted")) for n in range(10)]
    assert sorted(map(len, divide(samples, 4))) == [2, 2, 3, 3]
