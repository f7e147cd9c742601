"""TRG on real digits: a student's tokens get the neighbours that they have in the teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck import distill
from limbeck.functional.token_graph import token_graph
from methods.handwriting import accuracy, digits


class Convolutions(nn.Module):
    """Maps of 4 x 4 places in ``places``, and a classifier of their mean."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.places = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits."""
        return self.head(self.places(self.stem(inputs)).relu().mean((2, 3)))


@torch.no_grad()
def overlap(student: Convolutions, teacher: Convolutions, images: Tensor) -> float:
    """Share of the neighbours of the teacher's tokens that are neighbours of the student's, too."""
    graphs = [
        token_graph(model.places(model.stem(images)).flatten(2).transpose(1, 2).flatten(0, 1), neighbours=8)
        for model in (student, teacher)
    ]
    ours, theirs = (graph.edges for graph in graphs)
    return ((ours & theirs).sum() / theirs.sum()).item()


def test_trg_gives_tokens_the_neighbours_that_they_have_in_the_teacher() -> None:
    train, test = digits("train", 400), digits("test", 60)
    settings = {"batch_size": 50, "optimizer": "adam", "lr": 0.01}
    teacher = Convolutions(0, 12)
    distill(None, teacher, train, method="none", epochs=20, **settings)
    assert accuracy(teacher, *test) > 0.8
    taps = {role: {"stages": ["places"]} for role in ("student", "teacher")}
    found = []
    for method in ("kd", "trg", {"name": "trg", "local": "neighbours"}):
        student = Convolutions(1, 4)
        distill(teacher, student, train, method=method, taps=taps, epochs=8, **settings)
        found.append(overlap(student, teacher, test[0]))
    assert min(found[1:]) > found[0] + 0.05
