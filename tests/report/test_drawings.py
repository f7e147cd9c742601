"""Drawings: colours of the page, texts that stay texts, and words that say the same as the picture."""

from __future__ import annotations

import builtins
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from limbeck.errors import MissingExtraError
from limbeck.evaluate import Measure, Predictions
from limbeck.report.arms import ACCURACY, Arm, arms_of
from limbeck.report.figures.canvas import INK, Drawing, series
from limbeck.report.figures.classes import class_accuracies, confusion_change
from limbeck.report.figures.cost import cost_accuracy
from limbeck.report.figures.palette import palette
from limbeck.report.figures.ranking import ranking
from limbeck.report.figures.reliability import reliability
from limbeck.report.figures.training import accuracy_curves, contribution_curves, gradient_curves, loss_curves
from limbeck.report.page import render
from limbeck.report.runs import read_run
from limbeck.report.sections import Figure, Figures
from tests.report.conftest import MakeRun
from tests.report.pages import HOSTILE, read_page

STYLESHEET = Path(__file__).parents[2] / "limbeck" / "report" / "templates" / "style.css"
PARAMETERS = Measure("cost.parameters", "Parameters", "count", "lower")


@pytest.fixture
def arms(make_run: MakeRun) -> list[Arm]:
    runs = [("none", 0, 1.0), ("none", 1, 1.1), ("kd", 0, 1.6), ("kd", 1, 1.7), ("dkd", 0, 2.0)]
    return arms_of([read_run(make_run(method, seed, strength=strength)) for method, seed, strength in runs])


def every_figure(arms: list[Arm], names: list[str]) -> list[Figure]:
    looks = palette(arms)
    by_name = {arm.name: arm for arm in arms}
    distilled = [arm for arm in arms if arm.kind == "distilled"]
    figures = [
        accuracy_curves(arms, looks),
        loss_curves(distilled[0]),
        reliability(arms, looks),
        cost_accuracy(arms, looks, PARAMETERS),
        ranking(arms, looks, ACCURACY),
        class_accuracies(arms, looks, names),
        confusion_change(by_name["alone"], distilled[0], names),
    ]
    assert all(figure is not None for figure in figures)
    return [figure for figure in figures if figure is not None]


def test_drawings_are_valid_and_use_only_colours_of_the_page(arms: list[Arm]) -> None:
    figures = every_figure(arms, [f"class {n}" for n in range(10)])
    defined = set(re.findall(r"--([\w-]+):", STYLESHEET.read_text()))
    for figure in figures:
        root = ElementTree.fromstring(figure.svg)
        assert root.tag == "svg"
        assert root.get("aria-hidden") == "true"
        assert not re.search(r"(?:fill|stroke): #", figure.svg)
        assert "http" not in figure.svg
        assert set(re.findall(r"var\(--([\w-]+)\)", figure.svg)) <= defined
        assert len(figure.alt) > 40
    page = read_page(render("x", [Figures("Drawings", tuple(figures))]))
    assert len(page.all("figure")) == len(figures)


def test_legends_cover_no_data_and_stay_in_the_drawing(arms: list[Arm], monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn: dict[str, Any] = {}
    whole = Drawing.svg

    def svg(self: Drawing) -> str:
        drawn[self.name] = self._figure
        return whole(self)

    monkeypatch.setattr(Drawing, "svg", svg)
    terms = ("a_term_of_a_longer_name", "another_of_a_longer_name", "ce", "kd")
    # Both the falling loss of one term and the level one of another meet a legend in any corner of such axes.
    history = tuple(
        {"epoch": n, "loss": 4.0 - n, "terms": dict.fromkeys(terms[:3], 2.0 - 0.1 * n) | {"kd": 0.1 * n}}
        for n in range(4)
    )
    loss_curves(Arm("word_kd", "distilled", ({},), (history,)))
    every_figure(arms, [f"class {n}" for n in range(10)])
    with_legends = 0
    for name, figure in drawn.items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for axes in figure.axes:
            if (legend := axes.get_legend()) is None:
                continue
            with_legends += 1
            box, data = (part.get_window_extent(canvas.get_renderer()) for part in (legend, axes))
            assert box.y0 >= data.y1 - 1, f"the legend of {name} covers data"
            assert box.x1 <= figure.bbox.x1 + 1, f"the legend of {name} leaves the drawing"
    assert with_legends >= 4


def test_the_words_hold_the_numbers(arms: list[Arm]) -> None:
    looks = palette(arms)
    kd = next(arm for arm in arms if arm.name == "KD")
    ranked, cost = ranking(arms, looks, ACCURACY), cost_accuracy(arms, looks, PARAMETERS)
    assert ranked is not None
    assert cost is not None
    assert f"KD {ACCURACY.text(kd.accuracy)}" in ranked.alt
    assert ranked.alt.index("DKD") < ranked.alt.index("; KD") < ranked.alt.index("alone")
    assert f"KD {ACCURACY.text(kd.accuracy)} at 20 k" in cost.alt
    assert "The dotted line marks alone." in ranked.caption


def test_hostile_names_stay_texts_in_drawings(make_run: MakeRun) -> None:
    names = [f"{HOSTILE}{n}" for n in range(10)]
    arms = arms_of([read_run(make_run(m, strength=s)) for m, s in (("none", 1.0), ("kd", 2.0))])
    hostile = [Arm(**{**arm.__dict__, "name": arm.name if arm.name == "alone" else HOSTILE + arm.name}) for arm in arms]
    for figure in every_figure(hostile, names):
        root = ElementTree.fromstring(figure.svg)
        assert not [element for element in root.iter() if element.tag == "script"]
        assert "<script" not in figure.svg
    drawn = class_accuracies(hostile, palette(hostile), names)
    assert drawn is not None
    texts = [element.text or "" for element in ElementTree.fromstring(drawn.svg).iter("text")]
    assert any("<script>" in text for text in texts)


def test_texts_that_look_like_style_are_left_alone() -> None:
    drawing = Drawing("texts")
    with drawing.axes() as axes:
        axes.text(0, 0, f"{INK} 'DejaVu Sans' $x_1$ url(#a) id=\"b\"")
        drawing.tip(axes.scatter([0], [0], color=series(3)), "a <tip>")
    root = ElementTree.fromstring(drawing.svg())
    assert f"{INK} 'DejaVu Sans' $x_1$ url(#a) id=\"b\"" in [element.text for element in root.iter("text")]
    assert [element.text for element in root.iter("title")] == ["a <tip>"]


def test_equal_drawings_of_different_names_share_no_address() -> None:
    addresses: list[set[str]] = []
    for name in ("first", "second"):
        drawing = Drawing(name)
        with drawing.axes() as axes:
            axes.plot([0, 1], [0, 1])
        svg = drawing.svg()
        found = set(re.findall(r'id="([^"]*)"', svg))
        assert found
        assert set(re.findall(r"url\(#([^)]*)\)", svg)) <= found
        addresses.append(found)
    assert not addresses[0] & addresses[1]


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawing = Drawing("settings")
    with drawing.axes() as axes:
        axes.plot([0, 1], [0, 1])
    drawing.svg()
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or matplotlib.pyplot.get_fignums() == []


def test_the_reliability_diagram_pools_the_seeds() -> None:
    def results(samples: list[int], confidence: list[Any], accuracy: list[Any]) -> dict[str, Any]:
        curve = {"edges": [0, 0.5, 1], "samples": samples, "confidence": confidence, "accuracy": accuracy}
        return {"accuracy": {"top1": 0.5}, "calibration": {"ece": 0.1, "curve": curve}}

    from limbeck.report.figures.reliability import _pooled

    arm = Arm("A", "distilled", (results([0, 10], [None, 0.8], [None, 0.5]), results([10, 30], [0.4, 0.6], [0.1, 0.9])))
    assert _pooled(arm, "calibration") == [
        (pytest.approx(0.4), pytest.approx(0.1), 0.2),
        (pytest.approx((8 + 18) / 40), pytest.approx((5 + 27) / 40), 0.8),
    ]


def test_the_confusion_drawing_names_what_changed_most() -> None:
    labels = torch.tensor([0] * 10 + [1] * 10)

    def guesses(wrong: int) -> Predictions:
        said = labels.clone()
        said[:wrong] = 1
        return Predictions(torch.arange(20), labels, {"student": torch.nn.functional.one_hot(said, 2).float()})

    before = Arm("before", "baseline", ({},), predictions=guesses(6))
    after = Arm("after", "distilled", ({},), predictions=guesses(1))
    figure = confusion_change(before, after, ["cat", "dog"])
    assert figure is not None
    assert "cat is taken for dog 50.0 percentage points less often" in figure.alt
    texts = [element.text for element in ElementTree.fromstring(figure.svg).iter("text")]
    assert "+50.0" in texts
    assert "−50.0" in texts
    shifted = Predictions(torch.arange(20) + 1, labels, after.predictions.logits)  # type: ignore[union-attr]
    assert confusion_change(before, Arm("after", "distilled", ({},), predictions=shifted), []) is None
    assert confusion_change(before, Arm("after", "distilled", ({},)), []) is None


def test_of_many_classes_those_that_changed_most_are_shown() -> None:
    labels = torch.arange(40).repeat(3)
    said = labels.clone()
    said[7] = 8
    first = Predictions(torch.arange(120), labels, {"student": torch.nn.functional.one_hot(said, 40).float()})
    second = Predictions(torch.arange(120), labels, {"student": torch.nn.functional.one_hot(labels, 40).float()})
    arms = [Arm("a", "baseline", ({},), predictions=first), Arm("b", "distilled", ({},), predictions=second)]
    figure = confusion_change(arms[0], arms[1], [])
    assert figure is not None
    assert "The 12 classes that changed most" in figure.caption
    assert "class 7 is taken for class 8 33.3 percentage points less often" in figure.alt


def test_nothing_is_drawn_of_what_is_not_there() -> None:
    bare = [Arm("alone", "baseline", ({},)), Arm("KD", "distilled", ())]
    looks = palette(bare)
    assert accuracy_curves(bare, looks) is None
    assert loss_curves(bare[1]) is None
    assert reliability(bare, looks) is None
    assert cost_accuracy(bare, looks, PARAMETERS) is None
    assert ranking(bare, looks, ACCURACY) is None
    assert class_accuracies(bare, looks, []) is None


def test_records_with_gaps_are_drawn_as_far_as_they_go() -> None:
    history = (
        {"epoch": 0, "loss": 1.0, "terms": {"ce": 1.0}},
        {"epoch": 1, "loss": float("nan"), "terms": {"ce": float("nan"), "kd": 0.0}, "evaluation": {"accuracy": 0.4}},
        {"epoch": 2, "terms": None, "evaluation": {"accuracy": float("nan")}},
        {"event": "something else"},
    )
    arm = Arm("KD", "distilled", ({"accuracy": {"top1": 0.4}},), (history,))
    assert accuracy_curves([arm], palette([arm])) is None
    longer = Arm("KD", "distilled", arm.results, ((*history, {"epoch": 3, "evaluation": {"accuracy": 0.5}}),))
    curves = accuracy_curves([longer], palette([longer]))
    assert curves is not None
    assert "KD ends at 50.0%" in curves.alt
    losses = loss_curves(arm)
    assert losses is not None
    assert "ce ends at 1" in losses.alt


def test_contributions_and_gradients_of_terms() -> None:
    history = tuple(
        {
            "epoch": n,
            "loss": 1.0,
            "terms": {"ce": 1.0, "kd": 2.0},
            "contributions": {"ce": 0.25, "kd": 0.75 - 0.25 * n},
            "gradients": {"ce": {"norm": 1.0, "cosine": 0.5}, "kd": {"norm": 2.0, "cosine": -0.25 * n}},
        }
        for n in range(2)
    )
    arm = Arm("KD", "distilled", ({"accuracy": {"top1": 0.4}},), (history,))
    made_of, agree = contribution_curves(arm), gradient_curves(arm)
    assert made_of is not None
    assert agree is not None
    assert "ce ends at 0.333, kd ends at 0.667" in made_of.alt
    assert "ce ends at 0.5, kd ends at -0.25" in agree.alt
    plain = Arm("KD", "distilled", ({},), (({"epoch": 0, "loss": 1.0, "terms": {"ce": 1.0}},),))
    assert contribution_curves(plain) is None
    assert gradient_curves(plain) is None


def test_a_curve_of_one_epoch_has_a_mark_that_can_be_seen() -> None:
    records = [{"epoch": n, "loss": 1.0, "terms": {"ce": 0.5, "kd": 0.5}} for n in range(2)]
    one, two = (loss_curves(Arm("KD", "distilled", ({},), (tuple(records[:n]),))) for n in (1, 2))
    assert one is not None
    assert two is not None
    assert one.svg.count("<use ") > two.svg.count("<use ")
    assert "1.0" not in re.findall(r">([\d.]+)<", one.svg.partition(">epoch<")[0])


def test_ticks_of_a_logarithmic_axis_are_numbers() -> None:
    history = tuple({"epoch": n, "loss": 10.0**-n, "terms": {"ce": 10.0**-n}} for n in range(4))
    figure = loss_curves(Arm("KD", "distilled", ({},), (history,)))
    assert figure is not None
    assert "mathdefault" not in figure.svg
    assert ">0.01<" in figure.svg


def test_arms_keep_their_look_and_kinds_differ_in_more_than_colour() -> None:
    arms = [
        Arm("t", "teacher", ({"accuracy": {"top1": 0.99}},)),
        Arm("label smoothing", "baseline", ({"accuracy": {"top1": 0.9}},)),
        Arm("alone", "baseline", ({"accuracy": {"top1": 0.8}},)),
        *(Arm(f"m{n}", "distilled", ({"accuracy": {"top1": 0.5 + n / 100}},)) for n in range(20)),
    ]
    looks = palette(arms)
    assert looks["m19"].number == 0
    assert len({looks[f"m{n}"].number for n in range(19)}) == 1
    assert len({(looks[name].mark, str(looks[name].line)) for name in ("t", "alone", "m19")}) == 3
    assert looks["alone"].number != looks["label smoothing"].number


def test_without_matplotlib_the_extra_is_named(arms: list[Arm], monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    looks = palette(arms)
    for draw in (
        lambda: accuracy_curves(arms, looks),
        lambda: loss_curves(arms[-1]),
        lambda: reliability(arms, looks),
        lambda: cost_accuracy(arms, looks, PARAMETERS),
        lambda: ranking(arms, looks, ACCURACY),
        lambda: class_accuracies(arms, looks, []),
    ):
        with pytest.raises(MissingExtraError, match=r"limbeck\[report\]"):
            draw()
