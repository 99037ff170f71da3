import concurrent.futures
import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest

from megatron_longpo.inference.asking import Asker, Request, Step
from megatron_longpo.inference.engine import Completion
from megatron_longpo.inference.journal import Journal
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.utils.errors import UserError
from tests.support.scripted_generation import ScriptedEngine, answer

SAMPLING = Sampling(temperature=0.0, max_new_tokens=8)
REQUESTS = [Request(Step("d", place, "chosen"), f"text {place}\n\nWhat?", place) for place in range(6)]
EXPECTED = [answer(request.message, request.seed) for request in REQUESTS]


@dataclasses.dataclass
class BatchEngine(ScriptedEngine):
    """Answers in batches of two; breaks down before a batch."""

    breaks_at: int = 100

    def complete(
        self, messages: Sequence[str], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[dict[int, Completion]]:
        for start in range(0, len(messages), 2):
            batch = [place for place in (start, start + 1) if place < len(messages)]
            if all(place in done for place in batch):
                continue
            if start >= self.breaks_at:
                raise UserError("broken")
            self.asked += [messages[place] for place in batch]
            yield {place: self.reply(messages[place], seeds[place]) for place in batch}


def test_what_arrived_before_a_breakdown_is_not_asked_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        asker = Asker(journal)
        with pytest.raises(UserError, match="broken"):
            asker.complete(BatchEngine(breaks_at=4), REQUESTS, SAMPLING)
    with Journal(tmp_path / "journal") as journal:
        engine, asker = BatchEngine(), Asker(journal)
        assert asker.complete(engine, REQUESTS, SAMPLING) == EXPECTED
        assert engine.asked == [request.message for request in REQUESTS[4:]]
        assert (asker.usage.known, asker.usage.requests) == (4, 2)
        assert asker.complete(engine, REQUESTS, SAMPLING) == EXPECTED
        assert len(engine.asked) == 2


def test_anything_that_an_answer_depends_on_makes_another_request(tmp_path: Path) -> None:
    request = REQUESTS[0]
    others = [
        (dataclasses.replace(request, message="another"), SAMPLING, ScriptedEngine()),
        (dataclasses.replace(request, seed=9), SAMPLING, ScriptedEngine()),
        (dataclasses.replace(request, step=Step("e", 0, "chosen")), SAMPLING, ScriptedEngine()),
        (dataclasses.replace(request, step=Step("d", 0, "rejected")), SAMPLING, ScriptedEngine()),
        (request, dataclasses.replace(SAMPLING, temperature=1.0), ScriptedEngine()),
    ]

    class OtherEngine(ScriptedEngine):
        def describe(self) -> dict[str, object]:
            return {"engine": "other"}

    others.append((request, SAMPLING, OtherEngine()))
    with Journal(tmp_path / "journal") as journal:
        asker = Asker(journal)
        asker.complete(ScriptedEngine(), [request], SAMPLING)
        for other, sampling, engine in others:
            asker.complete(engine, [other], sampling)
            assert engine.asked == [other.message]


def test_a_failed_request_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    class Failing(ScriptedEngine):
        def reply(self, message: str, seed: int) -> Completion:
            return Completion("", "failed", 0, "HTTP 500") if "text 2" in message else super().reply(message, seed)

    with Journal(tmp_path / "journal") as journal:
        asker = Asker(journal)
        found = asker.complete(Failing(), REQUESTS, SAMPLING)
        assert [place for place, made in enumerate(found) if made.finish_reason == "failed"] == [2]
        assert (asker.failures["d"], asker.usage.failed) == (1, 1)
        assert asker.first_error == "chosen of chunk 2 of 'd': HTTP 500"
        engine = ScriptedEngine()
        assert asker.complete(engine, REQUESTS, SAMPLING) == EXPECTED
        assert engine.asked == [REQUESTS[2].message]


def test_scores_are_kept_too(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    with Journal(tmp_path / "journal") as journal:
        asker = Asker(journal)
        for _ in range(2):
            assert [asker.score(engine, REQUESTS[place], text) for place, text in enumerate(("four", "seven77"))] == [-4.0, -7.0]
        assert len(engine.asked) == 2
        assert asker.score(engine, REQUESTS[0], "other") == -5.0
        assert asker.score(engine, REQUESTS[0], "fails") is None
        assert asker.score(engine, REQUESTS[0], "infinite") is None
        assert asker.failures["d"] == 1  # an answer that cannot be weighed is no failure


def test_what_a_function_of_the_users_made_is_kept(tmp_path: Path) -> None:
    calls = []

    def make() -> list[str]:
        calls.append(None)
        return [f"Question {len(calls)}?"]

    for _ in range(2):
        with Journal(tmp_path / "journal") as journal:
            asker = Asker(journal)
            assert asker.once(REQUESTS[0], "mine", make) == ["Question 1?"]
    with Journal(tmp_path / "journal") as journal:
        assert Asker(journal).once(REQUESTS[0], "changed", make) == ["Question 2?"]


def test_a_function_of_the_users_is_called_in_one_thread_at_a_time(tmp_path: Path) -> None:
    inside, most = [], []

    def make() -> list[str]:
        inside.append(None)
        time.sleep(0.01)
        most.append(len(inside))
        inside.pop()
        return ["Question?"]

    with Journal(tmp_path / "journal") as journal, concurrent.futures.ThreadPoolExecutor(6) as pool:
        asker = Asker(journal)
        list(pool.map(lambda request: asker.once(request, "mine", make), REQUESTS))
    assert most == [1] * len(REQUESTS)


def test_a_known_answer_stays_when_its_batch_is_run_again(tmp_path: Path) -> None:
    class Drifting(BatchEngine):
        def reply(self, message: str, seed: int) -> Completion:
            return Completion(f"answer {len(self.asked)}", "stop", 3)

    with Journal(tmp_path / "journal") as journal:
        asker, engine = Asker(journal), Drifting()
        [first] = asker.complete(engine, REQUESTS[:1], SAMPLING)
        both = asker.complete(engine, REQUESTS[:2], SAMPLING)
        assert both[0] == first
        assert both[1] != first
        assert asker.complete(engine, REQUESTS[:2], SAMPLING) == both
