"""What selectors promise, on real images: fewer wrong answers, better cover, a pure and balanced pool."""

from __future__ import annotations

from statistics import mean

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from limbeck.data.load import load_data
from limbeck.functional.selection import uncertainty
from limbeck.selection import PoolSignals, build_selector
from methods.handwriting import accuracy, digits, perceptron, trained

SEEDS = (0, 1, 2, 3)


@torch.no_grad()
def says(model: nn.Module, inputs: Tensor) -> Tensor:
    return model.eval()(inputs)


def test_rad_asks_a_weak_teacher_about_fewer_samples_that_it_gets_wrong_than_the_margin_does() -> None:
    """And about more uncertain ones than chance."""
    inputs, labels = digits("train")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(7))
    teacher = trained(perceptron(9, 64, 64), inputs[order[:60]], labels[order[:60]], steps=60)
    pool = order[100:]
    wrong = says(teacher, inputs[pool]).argmax(1) != labels[pool]
    assert 0.05 < wrong.float().mean() < 0.3
    shares: dict[str, list[float]] = {"random": [], "rad": [], "uncertainty": []}
    gains: dict[str, list[float]] = {name: [] for name in shares}
    for seed in SEEDS:
        known = order[60:100]
        student = trained(perceptron(seed, 64, 16), inputs[known], labels[known], steps=60)
        logits = says(student, inputs[pool])
        right = (says(teacher, inputs[known]).argmax(1) == labels[known]).float().mean().item()
        signals = PoolSignals(index=torch.arange(len(pool)), logits=logits, teacher_accuracy=right, seed=seed)
        for name in shares:
            chosen = build_selector(name, counted=True)(signals, 150).chosen
            shares[name].append(wrong[chosen].float().mean().item())
            gains[name].append(uncertainty(logits[chosen], gain="margin").mean().item())
    assert mean(shares["random"]) + 0.02 < mean(shares["rad"]) < mean(shares["uncertainty"]) - 0.02
    assert mean(gains["random"]) + 0.05 < mean(gains["rad"]) < mean(gains["uncertainty"])


def bought_in_rounds(name: str, seed: int) -> tuple[float, float]:
    """Buys ten labels in each of four rounds; returns accuracy and the entropy of the classes bought, in bits."""
    inputs, labels = digits("train", 900)
    order = torch.randperm(900, generator=torch.Generator().manual_seed(seed))
    known = torch.stack([order[labels[order] == c][0] for c in range(10)])
    for number in range(1, 5):
        student = trained(perceptron(seed, 64, 24), inputs[known], labels[known], steps=60)
        rest = torch.tensor(sorted(set(range(900)) - set(known.tolist())))
        signals = PoolSignals(
            index=rest, logits=says(student, inputs[rest]), labelled=says(student, inputs[known]),
            labels=labels[known], round=number, seed=seed,
        )  # fmt: skip
        picked = build_selector(name, counted=True)(signals, 10).order
        assert picked is not None
        known = torch.cat([known, rest[picked]])
    student = trained(perceptron(seed, 64, 24), inputs[known], labels[known], steps=60)
    parts = torch.bincount(labels[known], minlength=10) / len(known)
    return accuracy(student, *digits("test")), -(parts * parts.log2()).sum().item()


def test_covering_and_balanced_selection_beat_chance() -> None:
    found = {
        name: tuple(mean(column) for column in zip(*(bought_in_rounds(name, seed) for seed in SEEDS)))
        for name in ("random", "pcoreset", "class_balanced")
    }
    assert found["pcoreset"][0] > found["random"][0] + 0.02
    assert found["class_balanced"][1] > found["random"][1] + 0.05


def test_the_confident_selector_finds_what_belongs_to_the_task() -> None:
    """Half of the pool are digits in other brightness and contrast, half are clothes."""
    inputs, labels = digits("train")
    torch.manual_seed(0)
    teacher = trained(perceptron(0, 64, 64), inputs, labels, steps=80)
    pixels = load_data("fashion-mnist-small", split="test").fetch(np.arange(300), 0)["inputs"] / 255
    clothes = (adaptive_avg_pool2d(pixels, 8) - inputs.mean()) / inputs.std()
    task, real = digits("test", 300)
    contrast = 0.6 + 0.6 * torch.rand(300, 1, 1, 1)
    brightness = 0.6 * torch.rand(300, 1, 1, 1) - 0.3
    pool = torch.cat([contrast * task + brightness, clothes])
    student = perceptron(1, 16)
    signals = PoolSignals(logits=says(student, pool), teacher_logits=says(teacher, pool))

    def found(chosen: Tensor) -> tuple[float, float]:
        """Share of digits among the chosen, and the share of its images that the worst digit keeps."""
        kept = torch.bincount(real[chosen[:300]], minlength=10) / torch.bincount(real, minlength=10)
        return (chosen[:300].sum() / chosen.sum()).item(), kept.min().item()

    loose, usual = (
        found(build_selector({"name": "confident", "cutoff": cutoff}, counted=False)(signals).chosen)
        for cutoff in (0.5, 0.95)
    )
    fixed = found(says(teacher, pool).softmax(1).amax(1) > 0.95)
    assert 0.5 < loose[0] < usual[0] - 0.1
    assert usual[1] > fixed[1] + 0.05  # thresholds by class give away purity for balance
