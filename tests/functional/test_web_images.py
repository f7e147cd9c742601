"""What KD^3 keeps of a pool and how it uses it, against its definitions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import cosine_similarity

from limbeck.functional.web_images import (
    confident_samples,
    disagreement_weights,
    mix_distributions,
    normalized_contrast,
    teacher_share,
)


def test_the_share_of_the_teacher_falls_and_ends() -> None:
    shares = [teacher_share(epoch) for epoch in range(160)]
    assert all(0 <= share <= 1 for share in shares)
    assert all(later <= earlier for earlier, later in itertools.pairwise(shares))
    assert shares[119] == pytest.approx(0.2684, abs=1e-3)
    assert shares[120:] == [0.0] * 40


def test_rare_classes_have_lower_thresholds_and_a_lower_cutoff_keeps_more() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 60, 5).double() + torch.tensor([3.0, 1.0, 0, 0, -9.0])
    found = confident_samples(student, teacher, share=0.7)
    counts = torch.bincount(found.predicted, minlength=5)
    assert float(found.thresholds[counts.argmax()]) == pytest.approx(0.95)
    assert float(found.thresholds[counts == 0].sum()) == 0
    for one, other in ((0, 1), (1, 2)):
        assert (found.thresholds[one] >= found.thresholds[other]) == (counts[one] >= counts[other])
    assert torch.equal(found.selected, found.confidence > found.thresholds[found.predicted])
    wider = confident_samples(student, teacher, share=0.7, cutoff=0.7)
    assert (wider.selected | ~found.selected).all()
    assert wider.selected.sum() > found.selected.sum()
    alone = confident_samples(student, 100 * teacher, share=0.0)
    torch.testing.assert_close(alone.confidence, student.softmax(1).amax(1))


def test_mixed_images_have_exactly_the_mixed_statistics() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 6, 5).double()
    partner, shares = torch.tensor([1, 2, 3, 0]), torch.tensor([0.0, 0.25, 0.5, 1.0]).double()
    found = mix_distributions(images, partner, shares, eps=0.0)
    mean, deviation = images.mean((2, 3)), images.std((2, 3))
    share = shares[:, None]
    torch.testing.assert_close(found.mean((2, 3)), share * mean + (1 - share) * mean[partner])
    torch.testing.assert_close(found.std((2, 3)), share * deviation + (1 - share) * deviation[partner])
    torch.testing.assert_close(found[3], images[3])
    torch.testing.assert_close(mix_distributions(images, torch.arange(4), shares, eps=0.0), images)
    flat = mix_distributions(torch.zeros(2, 1, 4, 4), torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    assert flat.isfinite().all()


def test_the_contrast_against_a_loop_and_its_minimum() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 7).double()
    views = torch.cat([first, second])
    expected = []
    for i in range(10):
        scores = torch.stack([cosine_similarity(views[i], views[j], dim=0) / 0.3 for j in range(10) if j != i])
        own = cosine_similarity(views[i], views[(i + 5) % 10], dim=0) / 0.3
        expected.append(scores.logsumexp(0) - own)
    found = normalized_contrast(first, second)
    torch.testing.assert_close(found, torch.stack(expected).mean())
    apart = torch.eye(5).double()
    assert normalized_contrast(apart, apart) < found
    assert torch.autograd.gradcheck(lambda x: normalized_contrast(x, second), first.clone().requires_grad_())
    for dtype in (torch.float16, torch.bfloat16):
        assert normalized_contrast((6e4 * apart).to(dtype), torch.zeros(5, 5, dtype=dtype)).isfinite()


def test_weights_grow_with_disagreement_and_are_constants() -> None:
    student, teacher = torch.zeros(3, 4, requires_grad=True), torch.tensor([0.0, 1.0, 5.0])[:, None].expand(3, 4)
    weights = disagreement_weights(student, teacher)
    assert weights[0] == 0.5
    assert weights[0] < weights[1] < weights[2] < 1
    assert not weights.requires_grad
