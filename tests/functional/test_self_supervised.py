"""Rotations, joint labels and softened labels."""

from __future__ import annotations

import pytest
import torch

from limbeck.functional.self_supervised import (
    class_scores,
    hierarchical_self_supervised,
    joint_labels,
    rotations,
    softened_labels,
)


def test_images_are_turned_counter_clockwise_and_kept_together() -> None:
    images = torch.randn(3, 2, 5, 5)
    turned = rotations(images)
    assert turned.shape == (12, 2, 5, 5)
    assert torch.equal(turned[::4], images)
    assert torch.equal(turned[5, :, 0, 0], images[1, :, 0, -1])  # the right end of the top row comes to its left
    assert torch.equal(torch.rot90(turned[4 + 3], 1, (1, 2)), images[1])
    with pytest.raises(ValueError, match="square"):
        rotations(torch.zeros(1, 1, 4, 5))
    with pytest.raises(ValueError, match="not 5"):
        rotations(images, count=5)


def test_joint_labels_marginalise_to_classes() -> None:
    labels = torch.tensor([2, 0, 1])
    joint = joint_labels(labels, count=4)
    assert torch.equal(joint // 4, labels.repeat_interleave(4))
    assert torch.equal(joint % 4, torch.arange(4).repeat(3))
    one = torch.nn.functional.one_hot(joint, 12).double()
    assert torch.equal(class_scores(one).argmax(1), labels.repeat_interleave(4))


def test_labels_are_softened_by_their_share() -> None:
    labels, earlier = torch.tensor([1, 0]), torch.randn(2, 3, dtype=torch.float64)
    hard = torch.nn.functional.one_hot(labels, 3).double()
    assert torch.equal(softened_labels(labels, earlier, share=0.0), hard)
    torch.testing.assert_close(softened_labels(labels, earlier, share=1.0, temperature=2.0), (earlier / 2).softmax(1))
    each = softened_labels(labels, earlier, share=torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert torch.equal(each[0], hard[0])
    torch.testing.assert_close(each.sum(1), torch.ones(2, dtype=torch.float64))


def test_a_student_equal_to_its_teacher_has_the_cross_entropy_alone() -> None:
    final, heads, labels = torch.randn(8, 3), [torch.randn(8, 12) for _ in range(2)], torch.tensor([1, 2])
    loss = hierarchical_self_supervised(final, heads, final, heads, labels)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(final[::4], labels))
    with pytest.raises(ValueError, match="1 heads, the teacher 2"):
        hierarchical_self_supervised(final, heads[:1], final, heads, labels)
