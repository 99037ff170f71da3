"""The objective and its metrics, against formulas written out and others' code."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from megatron_longpo.config.schema import ObjectiveConfig
from megatron_longpo.losses.metrics import metric_means, metric_names, metric_sums
from megatron_longpo.losses.objective import PairTables, PolicySums, longpo_objective
from megatron_longpo.losses.preference import sigmoid_loss

# two documents: two turns and one
ANSWERS = [[[-10.0, -12.0], [-20.0, -18.0]], [[-5.0, -4.0], [0.0, 0.0]]]
REFERENCE = [[[-8.0, -13.0], [-21.0, -18.5]], [[-6.0, -4.5], [math.nan, math.nan]]]
MASK = [[1.0, 1.0], [1.0, 0.0]]
TOKENS = [[[4.0, 5.0], [6.0, 5.0]], [[3.0, 2.0], [0.0, 0.0]]]


def tensors(*values: list) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def problem() -> tuple[PolicySums, PairTables]:
    nll, answers, reference, mask, tokens = tensors([-30.0, -8.0], ANSWERS, REFERENCE, MASK, TOKENS)
    nll_tokens = torch.tensor([10.0, 4.0], dtype=torch.float64)
    unread = torch.zeros_like(tokens)
    tables = PairTables(nll_tokens, mask, tokens, unread, reference, torch.full_like(reference, math.nan))
    return PolicySums(nll, answers.requires_grad_(), unread), tables


def test_one_sigmoid_a_document_over_the_sum_of_its_turns() -> None:
    sums, tables = problem()
    config = ObjectiveConfig(beta=0.5, preference_weight=0.25, nll_weight=2.0)
    output = longpo_objective(sums, tables, config)
    # document 1: chosen ratios -2 and +1, rejected ratios +1 and +0.5; document 2: +1 and +0.5
    margins = [0.5 * ((-2 + 1) - (1 + 0.5)), 0.5 * (1 - 0.5)]
    for index, margin in enumerate(margins):
        preference = math.log1p(math.exp(-margin))
        assert output.preference[index].item() == pytest.approx(preference, rel=1e-12)
        assert output.loss[index].item() == pytest.approx(2.0 * [3.0, 2.0][index] + 0.25 * preference, rel=1e-12)


def test_per_turn_is_the_mean_of_a_sigmoid_a_turn() -> None:
    sums, tables = problem()
    output = longpo_objective(sums, tables, ObjectiveConfig(beta=0.5, turn_aggregation="per-turn"))
    first = [math.log1p(math.exp(-0.5 * margin)) for margin in (-2 - 1, 1 - 0.5)]
    assert output.preference[0].item() == pytest.approx(sum(first) / 2, rel=1e-12)
    assert output.preference[1].item() == pytest.approx(math.log1p(math.exp(-0.25)), rel=1e-12)


def test_gradients_push_chosen_up_and_rejected_down_and_leave_absent_turns_alone() -> None:
    sums, tables = problem()
    config = ObjectiveConfig(beta=0.5, preference_weight=1.0, nll_weight=0.0)
    longpo_objective(sums, tables, config).loss.sum().backward()
    gradient = sums.answers.grad
    assert gradient is not None
    weight = 0.5 / (1 + math.exp(0.5 * (-1 - 1.5)))
    assert torch.allclose(gradient[0], torch.tensor([[-weight, weight]] * 2, dtype=torch.float64))
    assert gradient[1, 1].tolist() == [0.0, 0.0]


def test_without_a_preference_weight_no_reference_is_needed() -> None:
    sums, tables = problem()
    tables.reference_logps.fill_(math.nan)
    output = longpo_objective(sums, tables, ObjectiveConfig(preference_weight=0.0))
    assert output.loss.tolist() == [3.0, 2.0]
    tables.answer_tokens[..., 1] = 0  # the rejected side was not read
    means = metric_means(metric_sums(output, sums, tables, 2), 2)
    assert "logps/rejected" not in means
    assert "rewards/chosen" not in means
    assert "kl/short_to_long" not in means
    assert "preference_loss" not in means
    assert means["nll_loss"] == 2.5


def test_a_missing_reference_shows_as_a_loss_that_is_not_finite() -> None:
    sums, tables = problem()
    tables.reference_logps[0, 1, 0] = math.nan
    output = longpo_objective(sums, tables, ObjectiveConfig())
    assert output.loss.isfinite().tolist() == [False, True]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_the_sigmoid_loss_is_liger_s(smoothing: float) -> None:
    from liger_kernel.chunked_loss.dpo_loss import LigerFusedLinearDPOFunction

    chosen, rejected, ref_chosen, ref_rejected = tensors([-3.0, -9.0], [-4.0, -7.0], [-3.5, -8.0], [-3.0, -7.5])
    margin = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
    if smoothing == 0.0:
        loss = LigerFusedLinearDPOFunction.preference_loss_fn(
            chosen, rejected, torch.zeros(4, 1), ref_chosen_logps=ref_chosen, ref_rejected_logps=ref_rejected, beta=0.3
        )[0]
        assert sigmoid_loss(margin).sum().item() / 2 == pytest.approx(loss.item(), rel=1e-6)
    expected = [-(1 - smoothing) * math.log(1 / (1 + math.exp(-m))) - smoothing * math.log(1 / (1 + math.exp(m))) for m in margin]
    assert sigmoid_loss(margin, smoothing).tolist() == pytest.approx(expected, rel=1e-12)


def test_metrics_are_means_over_pairs_and_over_chosen_answer_tokens() -> None:
    sums, tables = problem()
    config = ObjectiveConfig(beta=0.5, preference_weight=0.25)
    output = longpo_objective(sums, tables, config)
    means = metric_means(metric_sums(output, sums, tables, 3), 3)
    of_others = {"alignment_loss", "logps/short_chosen", "logps/short_rejected", "kl/long_to_short"}
    assert set(means) == set(metric_names(3)) - of_others - {"rewards/margins/turn_3"}
    assert means["rewards/chosen"] == pytest.approx(0.5 * ((-2 + 1) + 1) / 2)
    assert means["rewards/rejected"] == pytest.approx(0.5 * ((1 + 0.5) + 0.5) / 2)
    assert means["rewards/margins"] == pytest.approx(means["rewards/chosen"] - means["rewards/rejected"])
    assert means["rewards/accuracies"] == 0.5
    assert means["logps/chosen"] == pytest.approx((-30 - 5) / 2)
    # reference minus policy over 4 + 6 + 3 chosen tokens: (+2, -1, -1)
    assert means["kl/short_to_long"] == pytest.approx((2 - 1 - 1) / 13)
    assert means["rewards/margins/turn_1"] == pytest.approx(0.5 * ((-2 - 1) + (1 - 0.5)) / 2)
    assert means["rewards/margins/turn_2"] == pytest.approx(0.5 * (1 - 0.5))


def test_metrics_of_parts_add_up_to_those_of_the_whole() -> None:
    sums, tables = problem()
    config = ObjectiveConfig()
    whole_output = longpo_objective(sums, tables, config)
    whole = metric_sums(whole_output, sums, tables, 2)
    parts = torch.zeros_like(whole)
    for index in range(2):
        one = slice(index, index + 1)
        part = PolicySums(sums.nll[one], sums.answers[one], sums.short_answers[one])
        its = PairTables(*(getattr(tables, field.name)[one] for field in dataclasses.fields(tables)))
        parts += metric_sums(longpo_objective(part, its, config), part, its, 2)
    assert torch.allclose(whole, parts, atol=1e-12)
