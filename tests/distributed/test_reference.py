"""Reference log-probs: the same in every layout, cached or live, and refused when they are another model's."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_longpo.config.schema import ReferenceConfig, RunConfig
from megatron_longpo.data.dataset import PreferenceDataset
from megatron_longpo.reference.cache import ReferenceCache, cache_path
from megatron_longpo.training.pretrained import read_record, reference_fingerprint, with_rotary_base
from megatron_longpo.utils.errors import UserError
from tests.distributed.test_layout_parity import assert_same_metrics, config_for
from tests.support.layouts import Layout, train_and_dump
from tests.support.oracle import load_hf, side_logps
from tests.support.scenario import ROTARY_BASE, Scenario, fill_reference, make_scenario
from tests.support.workers import Workers

LAYOUTS = [Layout(tp=2), Layout(tp=2, sp=True), Layout(pp=2), Layout(cp=2), Layout(dp=2)]


def own_data(scenario: Scenario, folder: Path, *, with_caches: bool = False) -> Scenario:
    """The scenario with a copy of its dataset, so that a test can do with the caches what it likes."""
    for file in scenario.prefix.parent.iterdir():
        if file.is_file() and (with_caches or ".reference-" not in file.name):
            shutil.copy(file, folder / file.name)
    return dataclasses.replace(scenario, prefix=folder / scenario.prefix.name)


def cached(scenario: Scenario, context: str = "short") -> list[np.ndarray]:
    cache = ReferenceCache.read(cache_path(str(scenario.prefix), context))
    return [cache.pair_logps(index) for index in range(len(cache))]


@pytest.mark.parametrize("context", ["short", "long"])
def test_the_cache_equals_an_independent_computation_with_the_references_own_base(
    context: str, llama: Scenario, workers: Workers, tmp_path: Path
) -> None:
    scenario = own_data(llama, tmp_path)
    workers.run(1, fill_reference, scenario, context)
    reference, dataset = load_hf(scenario.hf), PreferenceDataset(str(scenario.prefix))
    raised = load_hf(scenario.hf, ROTARY_BASE)
    for index, found in enumerate(cached(scenario, context)):
        expected, with_policys_base = (
            [side.detach().numpy() for side in _both(model, dataset[index], context)] for model in (reference, raised)
        )
        np.testing.assert_allclose(found, np.stack(expected, axis=1), rtol=1e-5)
        # where the two bases agree to the tolerance, giving the reference the wrong one would pass
        assert not np.allclose(found, np.stack(with_policys_base, axis=1), rtol=1e-4)


def _both(model: Any, pair: Any, context: str) -> list[Any]:
    import torch

    if context == "long":
        return [side_logps(model, pair.chosen), side_logps(model, pair.rejected)]
    return [torch.stack([side_logps(model, side)[0] for side in sides]) for sides in (pair.short_chosen, pair.short_rejected)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_cache_does_not_depend_on_the_layout_that_fills_it(
    layout: Layout, llama: Scenario, workers: Workers, tmp_path: Path
) -> None:
    for context in ("short", "long"):
        scenario = own_data(llama, tmp_path)
        workers.run(1, fill_reference, scenario, context)
        expected = cached(scenario, context)
        cache_path(str(scenario.prefix), context).unlink()
        workers.run(layout.world_size, fill_reference, scenario, context, layout.parallel())
        for one, other in zip(expected, cached(scenario, context), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5)


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2), Layout(pp=2), Layout(cp=2), Layout(pp=2, vpp_layers=1)], ids=str)
def test_a_live_reference_gives_the_metrics_of_a_cached_one(
    layout: Layout, llama: Scenario, workers: Workers, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"global_batch_size": 2} if layout.vpp_layers else {"global_batch_size": 3}
    one, other = (
        workers.run(
            layout.world_size, train_and_dump, config_for(llama, layout, reference=source, **settings), str(tmp_path / source), 2
        )[0]
        for source in ("cache", "live")
    )
    assert_same_metrics(one["metrics"], other["metrics"])
    assert one["metrics"][0]["rewards/chosen"] != 0


@pytest.mark.parametrize("source", ["cache", "live"])
def test_rewards_are_zero_before_the_first_update_where_policy_and_reference_are_one(
    source: str, llama: Scenario, workers: Workers, tmp_path: Path
) -> None:
    """Same weights, same context, same RoPE base: nothing but the order of sums differs."""
    scenario = own_data(llama, tmp_path)
    workers.run(1, fill_reference, scenario, "long")
    config = config_for(scenario, Layout(), rotary_base=None, reference_context="long", reference=source)
    first, second = workers.run(1, train_and_dump, config, str(tmp_path / "run"), 2)[0]["metrics"]
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl/short_to_long"):
        assert abs(first[name]) < 1e-4, name
    assert first["preference_loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert abs(second["rewards/chosen"]) > 1e-2, "the update moved nothing"


def test_the_reference_reads_with_the_base_that_it_is_given(llama: Scenario, workers: Workers, tmp_path: Path) -> None:
    base = workers.run(1, train_and_dump, config_for(llama, Layout(), reference="live"), str(tmp_path), 1)[0]["metrics"]
    config = config_for(llama, Layout(), reference="live", reference_rotary_base=ROTARY_BASE)
    other = workers.run(1, train_and_dump, config, str(tmp_path), 1)[0]["metrics"]
    assert base[0]["nll_loss"] == other[0]["nll_loss"]
    assert base[0]["rewards/chosen"] != pytest.approx(other[0]["rewards/chosen"], abs=1e-3)


def fill_until_failure(scenario: Scenario, pairs: int) -> int:
    """Fill the cache with saves at every step and stop it after ``pairs`` pairs (runs inside a worker); return how many."""
    from megatron_longpo.training import precompute
    from megatron_longpo.training.precompute import reference_logps

    scored: list[Any] = []

    def interrupted(*arguments: Any) -> Any:
        if len(scored) == pairs:
            raise KeyboardInterrupt
        scored.append(reference_logps(*arguments))
        return scored[-1]

    usual = precompute._SECONDS_BETWEEN_SAVES, precompute._PAIRS_AT_ONCE
    precompute._SECONDS_BETWEEN_SAVES, precompute._PAIRS_AT_ONCE = 0.0, 1
    precompute.reference_logps = interrupted  # type: ignore[assignment]
    try:
        fill_reference(scenario)
    except KeyboardInterrupt:
        assert len(scored) == pairs
    finally:
        precompute._SECONDS_BETWEEN_SAVES, precompute._PAIRS_AT_ONCE = usual
        precompute.reference_logps = reference_logps
    return len(scored)


def test_an_interrupted_filling_goes_on_with_what_is_missing(llama: Scenario, workers: Workers, tmp_path: Path) -> None:
    scenario = own_data(llama, tmp_path)
    path = cache_path(str(scenario.prefix), "short")
    assert workers.run(1, fill_until_failure, scenario, 2) == [2]
    cache = ReferenceCache.read(path)
    assert cache.missing() == [2, 3, 4]
    with pytest.raises(UserError, match="incomplete, 3 of 5 pairs are missing"):
        ReferenceCache.load(str(scenario.prefix), cache.fingerprint)
    marked = cache.pair_logps(0) + 1.0  # computed pairs are taken as they are
    cache.store(0, marked, cache.tokens[:2])
    cache.save(path)
    assert workers.run(1, fill_until_failure, scenario, 9) == [3]
    np.testing.assert_array_equal(cached(scenario)[0], marked)
    for found, expected in zip(cached(scenario)[1:], cached(llama)[1:], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert workers.run(1, fill_until_failure, scenario, 9) == [0]


def expected_fingerprint(scenario: Scenario, config: RunConfig) -> Any:
    """What a run with ``config`` asks the cache of the scenario's dataset to be computed from."""
    checkpoint = config.reference.reference_checkpoint or str(scenario.native)
    record = read_record(checkpoint)
    architecture = with_rotary_base(record.architecture, config.reference.reference_rotary_base)
    dataset = PreferenceDataset(str(scenario.prefix))
    return reference_fingerprint(dataset, record, checkpoint, architecture, config.reference.reference_context, config.training)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Another model and other pairs."""
    return make_scenario(tmp_path_factory.mktemp("other"), "llama", num_documents=4, num_words=60, seed=1)


def refusal(scenario: Scenario, config: RunConfig) -> str:
    with pytest.raises(UserError) as refused:
        ReferenceCache.load(str(scenario.prefix), expected_fingerprint(scenario, config))
    return str(refused.value)


def test_a_cache_of_something_else_is_refused_by_the_part_that_differs(llama: Scenario, other: Scenario, tmp_path: Path) -> None:
    config = llama.config()
    ReferenceCache.load(str(llama.prefix), expected_fingerprint(llama, config))
    with_weights = dataclasses.replace(config, reference=ReferenceConfig(reference_checkpoint=str(other.native)))
    assert "computed from another weights (weights: cache has" in refusal(llama, with_weights)
    with_base = dataclasses.replace(config, reference=ReferenceConfig(reference_rotary_base=ROTARY_BASE))
    assert "computed from another rope (rope: cache has" in refusal(llama, with_base)
    precise = dataclasses.replace(config, training=dataclasses.replace(config.training, bf16=True))
    assert "computed from another precision (precision: cache has float32, this run needs bfloat16)" in refusal(llama, precise)
    scenario = dataclasses.replace(own_data(other, tmp_path), native=llama.native)
    shutil.copy(cache_path(str(llama.prefix), "short"), cache_path(str(scenario.prefix), "short"))
    message = refusal(scenario, config)
    assert "computed from another data (data: cache has" in message
    assert "\n" not in message


def test_a_cache_of_the_other_context_is_refused(llama: Scenario, tmp_path: Path) -> None:
    scenario = own_data(llama, tmp_path, with_caches=True)
    shutil.copy(cache_path(str(scenario.prefix), "short"), cache_path(str(scenario.prefix), "long"))
    config = dataclasses.replace(llama.config(), reference=ReferenceConfig(reference_context="long"))
    assert "computed from another context (context: cache has short, this run needs long)" in refusal(scenario, config)


def test_a_cache_that_cannot_be_used_is_refused(llama: Scenario, tmp_path: Path) -> None:
    scenario = own_data(llama, tmp_path, with_caches=True)
    config, path = llama.config(), cache_path(str(scenario.prefix), "short")
    whole = ReferenceCache.read(path)
    for value, reason in ((np.inf, "log-probs of pair 1 are not finite"), (np.nan, "incomplete, 1 of 5 pairs are missing")):
        cache = ReferenceCache.read(path)
        cache.store(1, np.full((2, 2), value), whole.tokens[2:4])
        cache.save(path)
        assert reason in refusal(scenario, config)
    path.write_bytes(path.read_bytes()[:200])
    assert "not a reference cache" in refusal(scenario, config)
    path.write_text("no archive at all")
    assert "not a reference cache" in refusal(scenario, config)
    path.unlink()
    assert "no reference log-probs for this dataset" in refusal(scenario, config)
