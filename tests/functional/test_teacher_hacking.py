from __future__ import annotations

import itertools

import pytest
import torch

from limbeck.functional.teacher_hacking import power_law, sequence_divergence, sequence_log_ratio, teacher_hacking

STATES, LENGTH = 3, 4


@pytest.fixture
def chains() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(STATES, STATES, generator=generator, dtype=torch.float64) for _ in range(2))


def everything(chain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every sequence that a first-order Markov chain can write after state 0: states before, tokens, probability."""
    tokens = torch.tensor(list(itertools.product(range(STATES), repeat=LENGTH)))
    before = torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), tokens[:, :-1]], dim=1)
    return before, tokens, chain.log_softmax(-1)[before, tokens].sum(1).exp()


def test_both_estimates_are_the_divergence_of_the_distributions_over_sequences(chains):
    p, q = chains
    before, tokens, chance = everything(p)
    other = everything(q)[2]
    exact = (chance * (chance / other).log()).sum()
    assert float(chance.sum()) == pytest.approx(1.0)
    token_sums = sequence_divergence(p[before], q[before])
    ratios = sequence_log_ratio(p[before], q[before], tokens)
    torch.testing.assert_close((chance * token_sums).sum(), exact)
    torch.testing.assert_close((chance * ratios).sum(), exact)
    # Summing over the next token instead of drawing it is what makes the first estimate the steadier one.
    spread = [(chance * (x - exact).square()).sum() for x in (token_sums, ratios)]
    assert spread[0] < spread[1]


def test_equal_models_are_at_distance_zero_and_masked_places_do_not_count(chains):
    p, q = chains
    before, tokens, _ = everything(p)
    assert sequence_divergence(p[before], p[before]).abs().max() < 1e-12
    mask = torch.arange(LENGTH).expand_as(tokens) < 2
    short = sequence_divergence(p[before[:, :2]], q[before[:, :2]])
    torch.testing.assert_close(sequence_divergence(p[before], q[before], mask=mask), short)
    ignored = tokens.masked_fill(~mask, -100)
    torch.testing.assert_close(
        sequence_log_ratio(p[before], q[before], ignored, mask=mask),
        sequence_log_ratio(p[before[:, :2]], q[before[:, :2]], tokens[:, :2]),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_logits_and_excluded_tokens_stay_finite(dtype):
    p = torch.tensor([[[3e4, -3e4, -torch.inf]]], dtype=dtype)
    q = torch.tensor([[[1.0, 2.0, -torch.inf]]], dtype=dtype)
    assert sequence_divergence(p, q).isfinite().all()
    assert float(sequence_divergence(p, q)) == pytest.approx(float(torch.tensor([1.0, 2.0]).logsumexp(0)) - 1, rel=1e-3)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        sequence_divergence(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="same shape"):
        sequence_log_ratio(torch.zeros(1, 2, 3), torch.zeros(1, 1, 3), torch.zeros(1, 2, dtype=torch.long))


def test_a_power_law_is_found_and_a_departure_is_measured():
    epochs = torch.arange(1, 11, dtype=torch.float64)
    law = power_law(3.0 * epochs**-0.7)
    assert law.exponent == pytest.approx(-0.7)
    assert torch.tensor(law.intercept).exp().item() == pytest.approx(3.0)
    assert law.deviations.abs().max() < 1e-12
    bent = 3.0 * epochs**-0.7
    bent[7] *= 2.0
    assert power_law(bent, fit_points=5).deviations[7].item() == pytest.approx(0.6931, abs=1e-4)
    scaled = power_law(17.0 * bent, fit_points=5)
    torch.testing.assert_close(scaled.deviations, power_law(bent, fit_points=5).deviations)


def test_values_that_have_no_logarithm_are_left_out_of_the_law():
    law = power_law(torch.tensor([4.0, 0.0, 4 / 9, 0.25]), fit_points=3)
    assert law.exponent == pytest.approx(-2.0)
    assert law.deviations.isnan().tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="two positive"):
        power_law(torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("proxy", "golden", "hacking"),
    [
        ([5.0, 4.0, 3.0, 2.0], [5.0, 3.0, 3.5, 4.0], True),
        ([5.0, 4.0, 3.0, 2.0], [5.0, 4.0, 3.0, 2.0], False),
        ([5.0, 4.0, 3.0, 2.0], [5.0, 3.0, 3.0, 3.02], False),
        ([5.0, 2.0, 3.0, 4.0], [5.0, 3.0, 3.5, 4.0], False),
        ([2.0], [3.0], False),
    ],
    ids=["turned", "both fall", "within the tolerance", "the proxy turned as well", "one point"],
)
def test_hacking_is_a_golden_curve_that_turns_while_the_proxy_falls(proxy, golden, hacking):
    curves = torch.tensor(proxy), torch.tensor(golden)
    assert teacher_hacking(*curves).hacking is hacking
    assert teacher_hacking(100 * curves[0], 0.01 * curves[1]).hacking is hacking


def test_the_turning_point_and_its_rise_are_told():
    turn = teacher_hacking(torch.tensor([3.0, 2.0, 1.0, 0.5]), torch.tensor([3.0, 2.0, 2.2, 2.5]))
    assert (turn.best, turn.rise) == (1, pytest.approx(0.25))
    with pytest.raises(ValueError, match="finite"):
        teacher_hacking(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="same shape"):
        teacher_hacking(torch.tensor([1.0]), torch.tensor([1.0, 2.0]))
