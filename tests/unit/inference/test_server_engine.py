"""The engine over HTTP against a server that misbehaves in every way that we could think of."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_longpo.inference.engine import Completion, PromptTokenizer
from megatron_longpo.inference.http_server import HttpServer, Limits
from megatron_longpo.inference.sampling import Sampling
from megatron_longpo.inference.server_engine import MOST_FAILURES, ServerEngine, ServerPool
from megatron_longpo.inference.threads import in_threads
from megatron_longpo.inference.transformers_engine import TransformersEngine
from megatron_longpo.utils.errors import UserError
from tests.support.launch import free_port
from tests.support.scripted_generation import FAULTS, OpenAIServer, answer, some_faults

SAMPLING = Sampling(temperature=0.5, top_p=0.9, max_new_tokens=40)
LIMITS = Limits(concurrency=4, timeout=30.0, max_retries=6)
IMPATIENT = dataclasses.replace(LIMITS, timeout=0.8)
ENDLESS = ("slow", "trickle")


@pytest.fixture(scope="module")
def tokenizer(random_model: Path) -> PromptTokenizer:
    return PromptTokenizer.load(random_model)


def connect(tokenizer: PromptTokenizer, *servers: OpenAIServer, limits: Limits = LIMITS, **options: Any) -> ServerEngine:
    wait = options.pop("wait", lambda seconds: None)
    return ServerEngine(
        ServerPool([HttpServer(server.url, limits) for server in servers], limits, wait=wait), tokenizer, **options
    )


def messages(number: int) -> list[str]:
    return [f"Text {place} {'x' * place}\n\nWhat is number {place}?" for place in range(number)]


def ask(engine: ServerEngine, asked: list[str], **options: Any) -> list[Completion]:
    found: dict[int, Completion] = {}
    for group in engine.complete(asked, SAMPLING, list(range(len(asked))), **options):
        found |= group
    return [found[place] for place in sorted(found)]


def expected(asked: list[str]) -> list[Completion]:
    return [answer(message, seed) for seed, message in enumerate(asked)]


def test_a_request_says_what_is_wanted_and_the_answer_is_read_as_it_is(tokenizer: PromptTokenizer) -> None:
    with OpenAIServer() as server:
        engine = connect(tokenizer, server, extra={"cache_prompt": False})
        asked = messages(3)
        assert ask(engine, asked) == expected(asked)
        assert sorted(server.asked, key=lambda payload: payload["seed"]) == [
            {
                "model": "scripted", "messages": [{"role": "user", "content": message}], "temperature": 0.5, "top_p": 0.9,
                "max_tokens": 40, "seed": seed, "cache_prompt": False,
            }
            for seed, message in enumerate(asked)
        ]  # fmt: skip
        assert ask(engine, asked, done={0, 2}) == [expected(asked)[1]]
        assert [server.answered[message] for message in asked] == [1, 2, 1]


@pytest.mark.parametrize("fault", ENDLESS)
def test_an_answer_that_does_not_end_is_given_up_and_asked_for_again(tokenizer: PromptTokenizer, fault: str) -> None:
    with OpenAIServer(faults=lambda message, tries: fault if tries < 1 else None) as server:
        asked = messages(2)
        assert ask(connect(tokenizer, server, limits=IMPATIENT), asked) == expected(asked)
        assert len(server.asked) >= 4


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ENDLESS])
def test_each_fault_is_mended_by_asking_again(tokenizer: PromptTokenizer, fault: str) -> None:
    with OpenAIServer(faults=lambda message, tries: fault if tries < 2 else None) as server:
        asked = messages(2)
        assert ask(connect(tokenizer, server), asked) == expected(asked)
        assert [server.answered[message] for message in asked] == [1, 1]
        assert len(server.asked) == 6


def test_many_requests_and_faults_lose_nothing_and_repeat_nothing(tokenizer: PromptTokenizer) -> None:
    kinds = [fault for fault in FAULTS if fault not in ENDLESS]
    servers = [OpenAIServer(faults=some_faults(seed, 0.4, kinds)) for seed in range(3)]
    asked = messages(120)
    assert ask(connect(tokenizer, *servers, limits=Limits(concurrency=4, max_retries=20)), asked) == expected(asked)
    assert [sum(server.answered[message] for server in servers) for message in asked] == [1] * 120
    for server in servers:
        server.close()


def test_no_more_requests_are_under_way_than_allowed(tokenizer: PromptTokenizer) -> None:
    with OpenAIServer(delay=0.03) as server:
        engine = connect(tokenizer, server, limits=Limits(concurrency=3))
        documents = [[f"{name} {message}" for message in messages(5)] for name in "abcd"]
        for asked, found in in_threads(lambda asked: ask(engine, asked), documents, 4):
            assert found == expected(asked)
        assert server.most_at_once == 3


@pytest.mark.slow
def test_waiting_for_a_turn_takes_nothing_from_a_requests_time(tokenizer: PromptTokenizer) -> None:
    with OpenAIServer(delay=0.1) as server:
        engine = connect(tokenizer, server, limits=Limits(concurrency=1, timeout=2.0, max_retries=0))
        asked = messages(30)  # three seconds in a row
        found = dict(in_threads(lambda message: ask(engine, [message])[0], asked, 30))
        assert [found[message] for message in asked] == [answer(message, 0) for message in asked]


def test_requests_about_one_text_go_to_one_server_and_texts_spread_over_all(tokenizer: PromptTokenizer) -> None:
    servers = [OpenAIServer(delay=0.01) for _ in range(3)]
    engine = connect(tokenizer, *servers)
    texts = [f"Document {number}: " + "words " * 1000 for number in range(9)]
    asked = [f"{text}\n\nQuestion {number}?" for number in range(4) for text in texts]
    ask(engine, asked)
    where = [{payload["messages"][0]["content"][:12] for payload in server.asked} for server in servers]
    assert sum(map(len, where)) == len(set().union(*where)) == 9
    assert all(where)
    for server in servers:
        server.close()


def test_a_server_that_dies_leaves_its_work_to_the_others(tokenizer: PromptTokenizer) -> None:
    good, dying = OpenAIServer(), OpenAIServer()
    engine = connect(tokenizer, dying, good)
    dying.close()
    asked = messages(12)
    assert ask(engine, asked) == expected(asked)
    assert good.answered + dying.answered == dict.fromkeys(asked, 1)
    assert sum(dying.answered.values()) <= 1  # by the connection over which it had told its models
    good.close()


def test_one_bad_request_does_not_hold_up_the_others(tokenizer: PromptTokenizer) -> None:
    pauses: dict[str, list[float]] = {}

    def wait(seconds: float) -> None:
        pauses.setdefault(threading.current_thread().name, []).append(seconds)

    asked = messages(12)
    with OpenAIServer(faults=lambda message, tries: "null" if message == asked[3] else None) as server:
        found = ask(connect(tokenizer, server, wait=wait), asked)
    assert [completion.finish_reason for completion in found].count("failed") == 1
    assert len(pauses) == 1  # the thread of the bad request


def test_servers_that_are_gone_for_good_end_the_run(tokenizer: PromptTokenizer) -> None:
    asked = messages(40)
    with OpenAIServer(faults=lambda message, tries: "503" if len(server.answered) >= 5 else None) as server:
        engine = connect(tokenizer, server, limits=Limits(concurrency=1, max_retries=1))
        groups, found = engine.complete(asked, SAMPLING, [0] * 40), {}
        with pytest.raises(UserError, match=rf"{MOST_FAILURES} requests in a row got no answer .*HTTP 503.*goes on"):
            found.update(answer for group in groups for answer in group.items())
    assert [completion.finish_reason for completion in found.values()].count("stop") == 5
    assert len(server.asked) == 5 + 2 * MOST_FAILURES


def test_the_first_request_about_a_text_goes_ahead_of_the_others(tokenizer: PromptTokenizer) -> None:
    texts = ["Document one. " * 400, "Document two. " * 400]
    asked = [f"{text}\n\nQuestion {number}?" for text in texts for number in range(4)]
    with OpenAIServer(delay=0.1) as server:
        assert ask(connect(tokenizer, server, limits=Limits(concurrency=8)), asked) == expected(asked)
        order = [payload["messages"][0]["content"] for payload in server.asked]
    assert set(order[:2]) == {asked[0], asked[4]}
    assert server.most_at_once == 6


def test_retry_after_is_obeyed_and_pauses_grow(tokenizer: PromptTokenizer) -> None:
    for fault, least in (("429", [3.0] * 4), ("500", [0.25, 0.5, 1.0, 2.0])):
        pauses: list[float] = []
        with OpenAIServer(faults=lambda message, tries, fault=fault: fault if tries < 4 else None) as server:
            [found] = ask(connect(tokenizer, server, wait=pauses.append), ["Text\n\nWhat?"])
        assert found == answer("Text\n\nWhat?", 0)
        pauses = [round(pause, 1) for pause in pauses]
        if fault == "429":
            assert all(2.5 < pause <= 3.0 for pause in pauses)  # as the server has asked for
        else:
            assert all(low <= pause + 0.1 and pause <= 2 * low + 0.1 for low, pause in zip(least, pauses, strict=True))


def test_a_request_that_stays_bad_fails_alone(tokenizer: PromptTokenizer) -> None:
    asked = messages(6)
    bad = {asked[2]: "400", asked[4]: "500"}
    with OpenAIServer(faults=lambda message, tries: bad.get(message)) as server:
        found = ask(connect(tokenizer, server, limits=Limits(concurrency=1, max_retries=2)), asked)
    assert [completion.finish_reason for completion in found] == ["stop", "stop", "failed", "stop", "failed", "stop"]
    assert "HTTP 400" in found[2].error
    assert "HTTP 500" in found[4].error
    assert sum(payload["messages"][0]["content"] == asked[2] for payload in server.asked) == 1
    assert sum(payload["messages"][0]["content"] == asked[4] for payload in server.asked) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [("400", "refuses the first request .*HTTP 400"), ("401", "HTTP 401.*API key"), ("500", "no server has answered anything")],
)
def test_a_server_that_is_wrong_for_all_requests_stops_the_run_in_one_line(
    tokenizer: PromptTokenizer, fault: str, message: str
) -> None:
    with OpenAIServer(faults=lambda text, tries: fault) as server, pytest.raises(UserError, match=message) as caught:
        ask(connect(tokenizer, server, limits=Limits(concurrency=1, max_retries=1)), messages(3))
    assert "\n" not in str(caught.value)


def test_answers_that_came_before_the_end_are_yielded(tokenizer: PromptTokenizer) -> None:
    asked = messages(10)
    found: dict[int, Completion] = {}
    with OpenAIServer(faults=lambda message, tries: "401" if message == asked[6] else None) as server:
        engine = connect(tokenizer, server, limits=Limits(concurrency=2))
        groups = engine.complete(asked, SAMPLING, [0] * 10)
        with pytest.raises(UserError, match="401"):
            found.update(answer for group in groups for answer in group.items())
        assert {asked[place] for place in found} == set(server.answered)
        assert 6 <= len(found) < 10


@pytest.mark.slow
def test_what_comes_back_is_bounded_in_size_and_time(tokenizer: PromptTokenizer) -> None:
    for fault in ("enormous", "trickle", "slow"):
        with OpenAIServer(faults=lambda message, tries, fault=fault: fault if "1?" in message else None) as server:
            started = time.monotonic()
            limits = dataclasses.replace(IMPATIENT, max_retries=1, concurrency=1)
            found = ask(connect(tokenizer, server, limits=limits), messages(2))
            assert [completion.finish_reason for completion in found] == ["stop", "failed"]
            assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "content",
    ["", "  \n ", "\u00fc \u4e2d\u6587 \U0001f600", "\\ud800 half", '"quoted" {"a": 1}', "x" * 10_000],
)
def test_any_text_is_an_answer(tokenizer: PromptTokenizer, content: str) -> None:
    with OpenAIServer(reply=lambda message, seed: Completion(content, "length", 3)) as server:
        assert ask(connect(tokenizer, server), ["What?"]) == [Completion(content.strip(), "length", 3)]


@pytest.mark.slow
def test_bodies_with_anything_in_them_never_break_the_reader(tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_longpo.inference.server_engine.MOST_FAILURES", 10_000)
    rng = random.Random(0)
    values: list[Any] = [None, 3, "text", [], {}, [None], [3], {"message": None}, True, "\ud800"]
    good = json.loads(OpenAIServer._body(Completion("fine", "stop", 1)))

    def mutate(value: Any) -> Any:
        if rng.random() < 0.2:
            return rng.choice(values)
        if isinstance(value, dict):
            return {key: mutate(child) for key, child in value.items() if rng.random() > 0.1}
        return [mutate(child) for child in value] if isinstance(value, list) else value

    class Mutating(OpenAIServer):
        @staticmethod
        def _body(completion: Completion) -> bytes:
            return json.dumps(mutate(good)).encode()

    with Mutating() as server:
        engine = connect(tokenizer, server, limits=Limits(concurrency=4, max_retries=1))
        engine._has_answered = True
        for completion in ask(engine, messages(150)):
            assert completion.finish_reason in ("stop", "length", "failed")
            completion.text.encode()


def test_the_model_is_found_or_asked_for(tokenizer: PromptTokenizer) -> None:
    with OpenAIServer(models=("one", "two")) as several, OpenAIServer(models=()) as none, OpenAIServer() as other:
        assert connect(tokenizer, several, model="two").describe()["model"] == "two"
        with pytest.raises(UserError, match="serves one, two; name one with --served-model"):
            connect(tokenizer, several)
        with pytest.raises(UserError, match="serves none"):
            connect(tokenizer, none)
        with pytest.raises(UserError, match="serves scripted; which is not 'two'"):
            connect(tokenizer, several, other, model="two")
    gone = HttpServer(f"http://127.0.0.1:{free_port()}/v1", LIMITS)
    with pytest.raises(UserError, match="no OpenAI-compatible server, or not ready"):
        ServerEngine(ServerPool([gone], LIMITS), tokenizer)
    with pytest.raises(UserError):
        ServerEngine(ServerPool([HttpServer("nonsense", LIMITS)], LIMITS), tokenizer)


def load(folder: Path, tokenizer: PromptTokenizer) -> TransformersEngine:
    return TransformersEngine.load(folder, tokenizer, dtype="float32", device=torch.device("cpu"))


def test_log_probs_are_those_of_the_model_in_the_process(random_model: Path, tokenizer: PromptTokenizer) -> None:
    local = load(random_model, tokenizer)
    pairs = [("What is it?", "A thing."), ("What is it?", "Nothing at all, and more"), ("Who?", "x")]
    scores = [local.score(*pair) for pair in pairs]

    def echo(payload: dict[str, Any]) -> dict[str, Any]:
        """Log-probs of every token of a prompt, with where it starts, as vLLM echoes them."""
        assert payload["echo"]
        assert not payload["add_special_tokens"]
        ids = tokenizer.encode(payload["prompt"])
        offsets = [len(tokenizer.tokenizer.decode(ids[:place])) for place in range(len(ids) + 1)]
        with torch.inference_mode():
            logps = torch.log_softmax(local.model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)
        values = [None, *(float(logps[place, token]) for place, token in enumerate(ids[1:]))]
        return {"choices": [{"logprobs": {"text_offset": offsets, "token_logprobs": [*values, -123.0]}}]}

    with OpenAIServer(complete_prompt=echo) as server:
        engine = connect(tokenizer, server, limits=Limits())
        remote = [engine.score(*pair) for pair in pairs]
    assert remote == pytest.approx(scores, abs=1e-6)
    with OpenAIServer() as mute, pytest.raises(UserError, match="gives no log-probs of a prompt"):
        connect(tokenizer, mute).score("What?", "That.")


def test_the_score_is_the_sum_of_what_sampling_would_have_drawn_from(random_model: Path, tokenizer: PromptTokenizer) -> None:
    local = load(random_model, tokenizer)
    score = local.score("What is it?", "A thing.")
    ids = tokenizer.encode_message("What is it?")
    total = 0.0
    for token in tokenizer.encode("A thing.<|im_end|>"):
        with torch.inference_mode():
            logits = local.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total += float(torch.log_softmax(logits, dim=-1)[token])
        ids.append(token)
    assert score == pytest.approx(total, abs=1e-4)
