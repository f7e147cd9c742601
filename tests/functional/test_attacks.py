"""Attacks against hand-derived optima, against an independent float64 implementation, and their invariants."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limbeck.functional.attacks import dlr, fgsm, into_box, margin, pgd, targeted_dlr
from limbeck.functional.auto_attack import apgd, checkpoints, random_start
from limbeck.functional.classification import cross_entropy

B, D, C = 7, 12, 5
EPS = 0.2


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(D, 9), nn.Tanh(), nn.Linear(9, C)).double()


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(B, 1, 3, 4, dtype=torch.float64), torch.arange(B) % C


def entropy(labels: Tensor):
    return partial(cross_entropy, labels=labels, reduction="none")


def test_a_linear_model_is_attacked_at_the_corner_of_the_box(samples) -> None:
    inputs, _ = samples
    weight = torch.randn(D, dtype=torch.float64)
    score = lambda x: x.flatten(1) @ weight.unsqueeze(1)  # noqa: E731
    corner = (inputs + EPS * weight.sign().view(1, 3, 4)).clamp(0, 1)
    grow = lambda logits: logits[:, 0]  # noqa: E731
    torch.testing.assert_close(fgsm(score, grow, inputs, eps=EPS), corner)
    torch.testing.assert_close(pgd(score, grow, inputs, eps=EPS, step_size=0.03, steps=8), corner)
    found = apgd(score, lambda z, y: z[:, 0], inputs, torch.zeros(B, dtype=torch.long), eps=EPS, steps=3)
    torch.testing.assert_close(found.best, corner)


def test_one_pgd_step_of_eps_is_fgsm(network, samples) -> None:
    inputs, labels = samples
    step = pgd(network, entropy(labels), inputs, eps=EPS, step_size=EPS, steps=1)
    assert torch.equal(step, fgsm(network, entropy(labels), inputs, eps=EPS))


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd"])
def test_what_is_found_lies_in_the_box_and_no_parameter_collects_a_gradient(network, samples, attack) -> None:
    inputs, labels = samples
    bounds = (torch.full((1, 1, 1, 1), 0.1, dtype=torch.float64), 0.9)
    common = {"eps": EPS, "bounds": bounds}
    with torch.no_grad():
        found = {
            "fgsm": lambda: fgsm(network, entropy(labels), inputs, **common),
            "pgd": lambda: pgd(network, entropy(labels), inputs, step_size=0.1, steps=5, **common),
            "apgd": lambda: (
                apgd(
                    network, lambda z, y: cross_entropy(z, y, reduction="none"), inputs, labels, steps=9, **common
                ).best
            ),
        }[attack]()
    inside = inputs.clamp(0.1, 0.9)
    assert ((found - inside).abs() <= EPS + 1e-12).all()
    assert found.min() >= 0.1
    assert found.max() <= 0.9
    assert not found.requires_grad
    assert all(p.grad is None for p in network.parameters())


def test_normalised_inputs_are_attacked_as_their_pixels_are(network, samples) -> None:
    inputs, labels = samples
    mean, std = 0.4, 0.25
    normalised = lambda z: network(z * std + mean)  # noqa: E731
    plain = pgd(network, entropy(labels), inputs, eps=EPS, step_size=0.05, steps=6)
    scaled = pgd(
        normalised, entropy(labels), (inputs - mean) / std, eps=EPS / std, step_size=0.05 / std, steps=6,
        bounds=((0 - mean) / std, (1 - mean) / std),
    )  # fmt: skip
    torch.testing.assert_close(scaled * std + mean, plain)


def test_losses_of_attacks_against_their_definitions(samples) -> None:
    torch.manual_seed(3)
    logits, labels = torch.randn(B, C, dtype=torch.float64), samples[1]
    targets = (labels + 2) % C
    for row, y, t in zip(range(B), labels.tolist(), targets.tolist()):
        z = logits[row].tolist()
        first, _, third, fourth = sorted(z, reverse=True)[:4]
        best = max(v for c, v in enumerate(z) if c != y)
        one = logits[row : row + 1], labels[row : row + 1]
        assert margin(*one).item() == pytest.approx(best - z[y], rel=1e-12)
        assert dlr(*one).item() == pytest.approx((best - z[y]) / (first - third), rel=1e-12)
        expected = (z[t] - z[y]) / (first - (third + fourth) / 2)
        assert targeted_dlr(*one, targets[row : row + 1]).item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(margin(logits, labels, reduction="none") > 0, logits.argmax(1) != labels)
    torch.testing.assert_close(dlr(1e3 * logits + 7, labels), dlr(logits, labels))
    with pytest.raises(ValueError, match="at least 3 classes"):
        dlr(logits[:, :2], labels.clamp(max=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 2e4])
def test_losses_of_attacks_are_finite(dtype, size) -> None:
    logits = (size * torch.eye(C)[[0, 1, 1]]).to(dtype).requires_grad_()
    labels, targets = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])
    for loss in (margin(logits, labels), dlr(logits, labels), targeted_dlr(logits, labels, targets)):
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert gradient.isfinite().all()


def test_progress_is_judged_at_shrinking_intervals() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]


def reference_apgd(network: nn.Module, x0: np.ndarray, y: int, eps: float, steps: int) -> tuple[np.ndarray, float]:
    """APGD on the cross-entropy for one sample, step by step in NumPy, as the paper's algorithm reads."""
    w1, b1, w2, b2 = (p.detach().numpy() for p in network.parameters())

    def look(x: np.ndarray) -> tuple[float, np.ndarray]:
        h = np.tanh(w1 @ x + b1)
        z = w2 @ h + b2
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        return -np.log(p[y]), w1.T @ ((w2.T @ (p - np.eye(len(p))[y])) * (1 - h**2))

    project = lambda x: np.clip(np.clip(x, x0 - eps, x0 + eps), 0, 1)  # noqa: E731
    x, step = x0.copy(), 2 * eps
    value, gradient = look(x)
    values, best, best_gradient, best_value = [value], x, gradient, value
    previous, halved, value_then = x, True, value
    length, next_check, last_check = max(int(0.22 * steps), 1), max(int(0.22 * steps), 1), 0
    for k in range(1, steps + 1):
        z = project(x + step * np.sign(gradient))
        moved = z if k == 1 else project(x + 0.75 * (z - x) + 0.25 * (x - previous))
        previous, x = x, moved
        value, gradient = look(x)
        values.append(value)
        if value > best_value:
            best, best_gradient, best_value = x, gradient, value
        if k == next_check:
            grew = sum(values[i + 1] > values[i] for i in range(last_check, k))
            halve = grew <= 0.75 * (k - last_check) or (not halved and value_then >= best_value)
            if halve:
                step, x, gradient = step / 2, best, best_gradient
            halved, value_then, last_check = halve, best_value, k
            length = max(length - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
            next_check += length
    return best, best_value


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_apgd_against_an_independent_implementation(network, samples, steps) -> None:
    inputs, labels = samples
    found = apgd(network, lambda z, y: cross_entropy(z, y, reduction="none"), inputs, labels, eps=EPS, steps=steps)
    for row in range(B):
        point, value = reference_apgd(network, inputs[row].flatten().numpy(), int(labels[row]), EPS, steps)
        np.testing.assert_allclose(found.best[row].flatten().numpy(), point, atol=1e-9)
        assert found.objective[row].item() == pytest.approx(value, rel=1e-9)


def test_apgd_says_who_resists(network, samples) -> None:
    inputs, _ = samples
    labels = network(inputs).argmax(1)
    found = apgd(network, lambda z, y: dlr(z, y, reduction="none"), inputs, labels, eps=0.6, steps=20)
    fooled = network(found.adversarial).argmax(1) != labels
    assert torch.equal(fooled, ~found.robust)
    assert fooled.any()
    alone = [
        apgd(network, lambda z, y: dlr(z, y, reduction="none"), inputs[i : i + 1], labels[i : i + 1], eps=0.6, steps=20)
        for i in range(B)
    ]
    torch.testing.assert_close(torch.cat([a.best for a in alone]), found.best)


def test_a_random_start_touches_the_box(samples) -> None:
    inputs, _ = samples
    noise = 2 * torch.rand_like(inputs) - 1
    moved = (random_start(inputs, noise, EPS) - inputs).flatten(1).abs().amax(1)
    torch.testing.assert_close(moved, torch.full_like(moved, EPS))
    assert torch.equal(into_box(inputs, inputs, EPS), inputs)
