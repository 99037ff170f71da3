"""A tiny model that was taught to answer some prompts and not others, with the files and flags to ask it."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from megatron_longpo.config.schema import DataConfig, EvaluationConfig, ModelConfig, ParallelConfig, RunConfig, TrainingConfig
from tests.support.hf_models import make_hf_model

LENGTH = 640
"""Of RULER's prompts: little more than the shortest with this tokenizer."""
SAMPLES = 4
WORDS = ["amber", "river", "stone", "lamp", "mill", "north", "harbour", "bridge"]


@dataclasses.dataclass(frozen=True)
class TaughtModel:
    """Paths.

    Attributes:
        hf: Hugging Face folder.
        native: converted checkpoint.
        questions: a file of questions, of groups ``taught`` and ``strange``.
    """

    hf: Path
    native: Path
    questions: Path

    def config(self, parallel: ParallelConfig | None = None, **evaluation: Any) -> RunConfig:
        """A run that asks it the questions and RULER's first needle."""
        tasks = (f"niah_single_1:{LENGTH}", f"questions:{self.questions}")
        return RunConfig(
            model=ModelConfig(pretrained_checkpoint=str(self.native)),
            parallel=parallel or ParallelConfig(),
            data=DataConfig(seq_length=1024),
            training=TrainingConfig(logit_chunk_size=7),
            evaluation=EvaluationConfig(**{"eval_tasks": tasks, "eval_tasks_samples": SAMPLES, **evaluation}),
        )


def write_questions(path: Path) -> Path:
    """Write questions: about one long text and about short ones, with one right answer or several."""
    rng = random.Random(3)
    book = "The book. " + " ".join(rng.choices(WORDS, k=40))
    records = []
    for group in ("taught", "strange"):
        for number in range(SAMPLES):
            context = book if number % 2 else " ".join(rng.choices(WORDS, k=3))
            right = " ".join(rng.sample(WORDS, 2))
            answers = ["no answer", right] if number % 2 else [right]
            records.append({"context": context, "question": f"What of {group} {number}?", "answers": answers, "group": group})
    # what it was taught begins with this answer and goes on: as a whole reply it is wrong
    records.append({**records[0], "answers": [records[0]["answers"][0].split()[0]], "group": "begun"})
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def make_taught_model(folder: Path, steps: int = 60) -> TaughtModel:
    """Make, teach and convert it: half of RULER's samples and one group of the questions are taught."""
    import torch
    from transformers import AutoModelForCausalLM

    from megatron_longpo.conversion.import_hf import hf_to_mcore
    from megatron_longpo.conversion.workers import Workers

    taught = TaughtModel(folder / "hf", folder / "native", write_questions(folder / "own.jsonl"))
    make_hf_model(taught.hf, "llama")
    hf_to_mcore(taught.hf, folder / "raw", Workers())
    config = dataclasses.replace(taught.config(), model=ModelConfig(pretrained_checkpoint=str(folder / "raw")))
    model = AutoModelForCausalLM.from_pretrained(taught.hf, dtype=torch.float32)
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in _lessons(config)]
    lengths = [len(answer) for _, answer in _lessons(config)]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        for ids, length in zip(rows, lengths, strict=True):
            logits = model(input_ids=ids[None], logits_to_keep=length + 1).logits[0, :-1]
            (torch.nn.functional.cross_entropy(logits, ids[-length:]) / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(taught.hf)
    hf_to_mcore(taught.hf, taught.native, Workers())
    return taught


def items_of(config: RunConfig) -> tuple[list[tuple[str, ...]], list[Any]]:
    """Labels and items of the samples that a run asks."""
    from megatron_longpo.training.eval_tasks import open_eval_tasks
    from megatron_longpo.training.pretrained import read_record

    samples = open_eval_tasks(config, read_record(str(config.model.pretrained_checkpoint)).architecture)
    return [sample.labels for sample in samples], [sample.make() for sample in samples]


def _lessons(config: RunConfig) -> list[tuple[list[int], list[int]]]:
    labels, items = items_of(config)
    wanted = [place for place, names in enumerate(labels) if "own/taught" in names]
    wanted += [place for place, names in enumerate(labels) if names == (f"niah_single_1/{LENGTH}",)][: SAMPLES // 2]
    return [(items[place].prompt.tolist(), items[place].answers[-1].tolist()) for place in wanted]


def measure(config: RunConfig) -> tuple[dict[str, float], dict[int, tuple[bool, float]]]:
    """The metrics that a run would report of its first weights, and the scores of this rank's samples (runs inside a worker)."""
    from megatron_longpo.config.context_layout import settle_exchange
    from megatron_longpo.models.gpt import build_model
    from megatron_longpo.models.transformer_config import apply_overrides, virtual_pipeline_size
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.training.answers import score_answers
    from megatron_longpo.training.checkpoint import load_weights
    from megatron_longpo.training.eval_tasks import divide, open_eval_tasks
    from megatron_longpo.training.pretrained import read_record
    from megatron_longpo.training.step import wrap_data_parallel
    from megatron_longpo.training.task_evaluation import TaskEvaluation

    checkpoint = str(config.model.pretrained_checkpoint)
    architecture = apply_overrides(read_record(checkpoint).architecture, config.model, config.data.seq_length)
    config, _ = settle_exchange(config, architecture, ranks_per_node=1)
    samples = open_eval_tasks(config, architecture)
    state = parallel_state.initialize(config.parallel, 1, virtual_pipeline_size(architecture, config.parallel))
    try:
        chunks = build_model(architecture, config.parallel, config.training, state)
        load_weights(chunks, checkpoint)
        tasks = TaskEvaluation(samples, config, state)
        metrics = tasks.measure(wrap_data_parallel(chunks, config))
        mine = divide(samples, state.dp_group.size())[state.dp_group.rank()]
        scores = score_answers(chunks, [samples[number].make() for number in mine], config.data.seq_length, state)
        assert all(chunk.training for chunk in chunks), "the mode was not given back"
        return metrics, {number: (score.solved, score.nll) for number, score in zip(mine, scores, strict=True)}
    finally:
        parallel_state.destroy()
