"""One model through a plan: answers, scores, and the files that hold them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.evaluation import infinitebench, ruler
from megatron_longpo.evaluation.answering import Request, answer_all, hash_message, read_answer
from megatron_longpo.evaluation.asking import book_requests, question_requests, ruler_requests
from megatron_longpo.evaluation.models import Model
from megatron_longpo.evaluation.plan import Plan
from megatron_longpo.evaluation.questions import METRICS, OwnQuestion, QuestionTask
from megatron_longpo.evaluation.scores import Scored, summarise_books, summarise_questions, summarise_ruler
from megatron_longpo.evaluation.short import ShortResult, evaluate_short
from megatron_longpo.inference.journal import Journal
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.utils.errors import UserError
from megatron_longpo.utils.files import whole_file, write_json
from megatron_longpo.utils.versions import installed_versions

JOURNAL, SAMPLES, PROMPTS, RESULTS = "journal.jsonl", "samples.jsonl", "prompts.jsonl", "results.json"
PACKAGES = ("torch", "transformers", "lm_eval", "rouge_score")


def evaluate(plan: Plan, model: Model, folder: Path) -> dict[str, Any]:
    """Ask a model everything that its folder's journal does not have, score the answers, write results and samples.

    Args:
        plan: what is asked.
        model: who is asked.
        folder: of this model's results; made if absent.

    Raises:
        UserError: a task does not fit, an engine gives up, or some requests got no answer.
    """
    started = time.monotonic()
    with Journal(folder / JOURNAL) as journal:
        requests = [*ruler_requests(plan, model), *book_requests(plan, model), *question_requests(plan, model)]
        _check_context(requests, model)
        known = sum(request.key in journal for request in requests)
        failures = answer_all(requests, model.engine, journal, Sampling(temperature=plan.temperature), plan.seed, model.name)
        if failures.number:
            raise UserError(
                f"{failures.number} of {len(requests)} requests got no answer (the first: {failures.first}); no results were "
                "written. The same command asks for them again"
            )
        scored = _score_all(plan, requests, journal)
        short = evaluate_short(plan, model, journal)
        results = {
            "model": {"name": model.name, "folder": model.folder and str(model.folder), "engine": model.engine.describe()},
            "settings": plan.describe(),
            **_summarise(plan, scored, short),
            "run": {"seconds": round(time.monotonic() - started, 1), "known": known, **installed_versions(PACKAGES)},
        }
        _write_samples(folder / SAMPLES, scored, short)
        if plan.save_prompts:
            _write_prompts(folder / PROMPTS, requests, journal, short)
    write_json(folder / RESULTS, results)
    return results


def _check_context(requests: Sequence[Request], model: Model) -> None:
    longest = max((request.length for request in requests), default=0)
    if model.context_length is not None and longest > model.context_length:
        print(f"{model.name}: announces {model.context_length} positions, and is asked with {longest}")


def _score_all(plan: Plan, requests: Sequence[Request], journal: Journal) -> list[Scored]:
    """Score every answer; those to the user's own questions come in the order of their files."""
    own = {(task.file.name, question.index): (task, question) for task in plan.questions for question in task.file.questions}
    places = {key: place for place, key in enumerate(own)}
    scored = [_score(request, journal, own.get((request.task, request.index))) for request in requests]
    return sorted(scored, key=lambda one: places.get((one.task, one.index), -1))


def _score(request: Request, journal: Journal, own: tuple[QuestionTask, OwnQuestion] | None) -> Scored:
    """Score an answer. Right answers of the user's are the file's of now: they may have been mended since it was asked."""
    answer = read_answer(journal, request)
    if own:
        answer = dataclasses.replace(answer, expected=own[1].answers)
        score = METRICS[own[0].metric].score
    else:
        book = next((task for task in infinitebench.BOOK_TASKS if task.name == request.task), None)
        score = book.score if book else ruler.score_of(request.task)
    return Scored(
        task=request.task,
        length=request.length,
        index=request.index,
        answer=answer,
        score=score(answer.answer, answer.expected),
        question=own[1] if own else None,
    )


def _summarise(plan: Plan, scored: Sequence[Scored], short: ShortResult | None) -> dict[str, Any]:
    generated = [one for one in scored if one.task in ruler.NAMES]
    books = [one for one in scored if one.task in infinitebench.NAMES]
    summary: dict[str, Any] = {}
    if generated:
        summary["ruler"] = summarise_ruler(generated)
    if books:
        summary["infinitebench"] = summarise_books(books)
    if short:
        summary["short"] = short.summary
    if plan.questions:
        summary["questions"] = {task.file.name: summarise_questions(task, scored) for task in plan.questions}
    return summary


def _write_samples(path: Path, scored: Sequence[Scored], short: ShortResult | None) -> None:
    """Write each sample with its answer and score, one JSON object a line."""
    with whole_file(path) as file:
        for row in itertools.chain(map(_row, scored), short.samples if short else ()):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _row(scored: Scored) -> dict[str, Any]:
    if scored.question is None:
        place: dict[str, Any] = {"task": scored.task, "length": scored.length, "index": scored.index}
    else:
        place = {"task": scored.task, "group": scored.question.group, "index": scored.index, "id": scored.question.id}
    return {**place, "score": scored.score, **dataclasses.asdict(scored.answer)}


def _write_prompts(path: Path, requests: Sequence[Request], journal: Journal, short: ShortResult | None) -> None:
    """Make every prompt again and write it, one JSON object a line.

    Raises:
        UserError: a prompt is not the one that was answered.
    """
    with whole_file(path) as file:
        for request in requests:
            message = request.make().message
            if hash_message(message) != read_answer(journal, request).prompt_sha256:
                raise UserError(
                    f"{request.key}: its prompt is not made as when it was answered; use another --output for this version"
                )
            row = {"task": request.task, "length": request.length, "index": request.index, "message": message}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        for row in short.prompts if short else ():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
