"""lm-eval with a model of ours, data on disk, and a journal of every log-prob. Needs the package ``lm_eval``."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from megatron_longpo.evaluation.answering import identify
from megatron_longpo.evaluation.models import Model
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.evaluation.short import MMLU_SUBJECTS, TASKS, ShortResult, find_data, find_subjects
from megatron_longpo.inference.journal import Journal
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.progress import progress_bar

REQUESTS_AT_ONCE = 64
"""Log-probs that are computed, and kept, together: what a killed run loses at most."""
BATCH_SIZE = 8
METRICS = ("acc", "acc_norm")
TASK_FOLDER = Path(lm_eval.__file__).parent / "tasks"
TASK_FOLDERS = ("mmlu/default", "arc", "hellaswag", "winogrande")
"""Where lm-eval describes our tasks; reading all of its folders takes many seconds."""


class KeptScores(LM):
    """A model of lm-eval's whose log-probs are in a journal as soon as they are known, and not computed again."""

    def __init__(self, inner: HFLM, journal: Journal, identity: str, stream: TextIO) -> None:
        """Take the model, what its log-probs depend on, and where a bar is drawn."""
        super().__init__()
        self._inner, self._journal, self._identity, self._stream = inner, journal, identity, stream

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return log-prob of each continuation, and whether it is the greedy one.

        Requests are asked in pieces that do not depend on what is known, since rounding depends on a row's company.
        """
        keys = [self._key(request) for request in requests]
        different = dict(zip(keys, requests, strict=True))
        ordered = list(dict.fromkeys(keys))
        known = sum(key in self._journal for key in ordered)
        with progress_bar(total=len(ordered), initial=known, unit="answer", desc="short", stream=self._stream) as bar:
            for start in range(0, len(ordered), REQUESTS_AT_ONCE):
                piece = ordered[start : start + REQUESTS_AT_ONCE]
                missing = [key for key in piece if key not in self._journal]
                if missing:
                    scores = self._inner.loglikelihood([different[key] for key in piece], disable_tqdm=True)
                    kept = {key: [float(logp), bool(greedy)] for key, (logp, greedy) in zip(piece, scores, strict=True)}
                    self._journal.append(kept)
                    bar.update(len(missing))
        return [(logp, greedy) for logp, greedy in map(self._journal.read, keys)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refuse: none of our tasks asks for it."""
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Refuse: none of our tasks asks for it."""
        raise NotImplementedError

    def _key(self, request: Instance) -> str:
        digest = hashlib.sha256(json.dumps(list(request.args)).encode()).hexdigest()[:32]
        return f"short/{self._identity}/{digest}"


def harness_model(model: Model, *, batch_size: int, max_length: int | None = None) -> HFLM:
    """Show lm-eval a model of this process, with the RoPE base that it was opened with."""
    engine: Any = model.engine
    engine.model.model.rotary_emb = engine.rotary  # engines of other RoPE bases share the model
    return HFLM(pretrained=engine.model, tokenizer=model.tokenizer.tokenizer, batch_size=batch_size, max_length=max_length)


def ask_harness(plan: Plan, model: Model, journal: Journal) -> ShortResult:
    """Evaluate the plan's short tasks; see `short.evaluate_short`."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    inner = harness_model(model, batch_size=BATCH_SIZE)
    identity = identify({"engine": model.engine.describe(), "harness": lm_eval.__version__})
    scores = KeptScores(inner, journal, identity, sys.stderr)
    manager = TaskManager(include_defaults=False, include_path=[TASK_FOLDER / name for name in TASK_FOLDERS])
    group = {"group": "megatron_longpo_short", "task": list(_tasks(plan, manager))}
    with contextlib.redirect_stderr(io.StringIO()):  # a bar for each subject
        try:
            found = lm_eval.simple_evaluate(scores, tasks=[group], limit=plan.limit, bootstrap_iters=0, task_manager=manager)
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0]
            raise UserError(
                f"short tasks: lm-eval failed ({type(error).__name__}: {reason}); are the data as published?"
            ) from error
    assert found is not None
    return _collect(plan, found)


def _tasks(plan: Plan, manager: TaskManager) -> Iterator[dict[str, Any]]:
    """Describe lm-eval's own tasks with our data and number of examples."""
    for name in plan.short:
        few_shot = {"num_fewshot": TASKS[name].few_shot}
        if plan.short_data is None:
            yield {"task": name, **few_shot} if name != "mmlu" else {"group": name, **few_shot}
        elif name == "mmlu":
            for subject, files in find_subjects(plan.short_data).items():
                if f"mmlu_{subject}" not in manager.all_subtasks:
                    raise UserError(f"{plan.short_data / 'mmlu' / subject}: {subject!r} is no subject of MMLU; take it away")
                yield {"task": f"mmlu_{subject}", **few_shot, **_local(files)}
        else:
            yield {"task": name, **few_shot, **_local(find_data(plan.short_data, name))}


def _local(files: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    first = next(iter(files.values()))[0]
    form = "parquet" if first.endswith(".parquet") else "json"
    return {"dataset_path": form, "dataset_name": None, "dataset_kwargs": {"data_files": dict(files)}}


def _collect(plan: Plan, found: Mapping[str, Any]) -> ShortResult:
    """Bring lm-eval's samples into our form; MMLU is the mean over its questions, as lm-eval's group is."""
    summary: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    prompts: list[dict[str, Any]] = []
    for name in plan.short:
        parts = {part: rows for part, rows in found["samples"].items() if part == name or part.startswith(f"{name}_")}
        rows = [row for some in parts.values() for row in some]
        summary[name] = _summarise(name, rows)
        if name == "mmlu":
            summary[name] |= {"subjects": len(parts), "of_subjects": MMLU_SUBJECTS}
        for part, some in parts.items():
            samples += [_sample(name, part, row) for row in some]
            prompts += [{"task": part, "index": row["doc_id"], "message": row["arguments"][0][0]} for row in some]
    return ShortResult(summary, samples, prompts)


def _summarise(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    metric = TASKS[name].metric
    means = {other: 100 * sum(row[other] for row in rows) / len(rows) for other in METRICS if other in rows[0]}
    share = means[metric] / 100
    error = 100 * math.sqrt(share * (1 - share) / (len(rows) - 1)) if len(rows) > 1 else None
    described = {"score": means[metric], "stderr": error, "samples": len(rows), "metric": metric}
    return {**described, "few_shot": TASKS[name].few_shot, **means}


def _sample(name: str, part: str, row: Mapping[str, Any]) -> dict[str, Any]:
    prompt = row["arguments"][0][0]
    tails = [context.rsplit("\n\n", 1)[-1] for context, _ in row["arguments"]]
    continuations = [continuation for _, continuation in row["arguments"]]
    differ = len(set(tails)) > 1  # Winogrande's choices are in the middle of the sentence
    return {
        "task": name,
        "part": part,
        "index": row["doc_id"],
        "score": float(row[TASKS[name].metric]),
        "question": tails[0] if not differ else "",
        "prompt_sha256": hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest(),
        "choices": [tail + end for tail, end in zip(tails, continuations, strict=True)] if differ else continuations,
        "logps": [response[0] for response in row["filtered_resps"]],
        "expected": int(row["doc"]["answer"]) - 1 if name == "winogrande" else int(row["target"]),
    }
