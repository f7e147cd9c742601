"""The fidelity study and its page, against scipy and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from limbeck.errors import RunFolderError
from limbeck.evaluate.fidelity_study import Observation, holm, study
from limbeck.report.fidelity import match, report_fidelity, sentences, show_fidelity
from limbeck.report.runs import read_run
from report.pages import Page


def observation(method="kd", cell="a", seed=0, gain=0.01, **quantities) -> Observation:
    return Observation(method, "fashion-mnist", cell, seed, 0.8 + gain, gain, quantities)


@pytest.fixture
def observations():
    numbers = np.random.default_rng(0)
    made = []
    for method, effect in (("kd", 0.02), ("dkd", 0.025)):
        for cell, parameters in (("small", 1e4), ("medium", 1e5), ("large", 1e6)):
            agreement = numbers.uniform(0.7, 0.9)
            for seed in range(3):
                gain = effect - 0.005 * np.log10(parameters / 1e4) + numbers.normal(0, 0.001)
                made.append(observation(method, cell, seed, gain, parameters=parameters, agreement=agreement))
    return made


def test_a_study_is_what_scipy_says_of_means_over_seeds(observations):
    found = study(observations)
    assert len(found.observations) == 6
    table = np.array([o.improvement for o in observations]).reshape(2, 3, 3).mean(-1)
    by_hand = stats.ttest_1samp(table[0], 0.0, alternative="greater")
    assert found.by_method["kd"] == pytest.approx((by_hand.statistic, by_hand.pvalue))
    assert found.by_task["fashion-mnist"].p == pytest.approx(
        stats.ttest_1samp(table.ravel(), 0.0, alternative="greater").pvalue
    )
    assert found.between_methods == pytest.approx(tuple(stats.f_oneway(*table)))
    sizes = np.tile([1e4, 1e5, 1e6], 2)
    (by_size,) = [c for c in found.correlations if c.quantity == "parameters"]
    assert (by_size.rho, by_size.p) == pytest.approx(tuple(stats.spearmanr(sizes, table.ravel())))
    assert by_size.rho < -0.8
    assert by_size.corrected == pytest.approx(2 * by_size.p)
    assert any("parameters of the student" in s for s in sentences(found)) == (by_size.corrected < 0.05)


def test_the_order_of_runs_and_monotone_maps_of_a_quantity_change_nothing(observations):
    shuffled = [observations[n] for n in np.random.default_rng(1).permutation(len(observations))]
    one, other = study(observations), study(shuffled)
    for c in one.correlations:
        (same,) = [d for d in other.correlations if d.quantity == c.quantity]
        assert same.rho == pytest.approx(c.rho)
    logged = [
        Observation(
            o.method, o.task, o.cell, o.seed, o.score, o.improvement,
            {**o.quantities, "parameters": float(np.log(o.quantities["parameters"]))},
        )
        for o in observations
    ]  # fmt: skip
    assert study(logged).correlations[0].rho == pytest.approx(one.correlations[0].rho)


def test_one_setting_is_tested_over_its_seeds_and_constants_are_left_out():
    found = study([observation(seed=n, gain=g, agreement=0.9) for n, g in enumerate((0.01, 0.02, 0.03))])
    expected = stats.ttest_1samp([0.01, 0.02, 0.03], 0.0, alternative="greater")
    assert found.by_method["kd"].p == pytest.approx(expected.pvalue)
    assert found.correlations == ()
    assert found.between_methods is None
    alike = study([observation(cell=c, gain=g, agreement=0.9) for c, g in zip("abcd", (0.1, 0.2, 0.3, 0.4))])
    assert alike.correlations == ()


def test_holm_corrects_the_smallest_most():
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_runs_are_paired_with_the_student_alone_of_their_seed(make_run):
    runs = [make_run("none", seed, strength=1.0 + 0.1 * seed, teacher=False) for seed in range(3)]
    runs += [make_run("kd", seed, strength=2.0) for seed in range(4)]
    records = [read_run(folder) for folder in runs]
    found = match(records)
    assert sorted(o.seed for o in found.observations) == [0, 1, 2]
    assert found.left_out == (f"{runs[-1].name} has no student trained alone with its data, model, settings, seed",)
    for o in found.observations:
        kd, none = (r.results for r in (records[3 + o.seed], records[o.seed]))
        assert o.improvement == pytest.approx(kd["accuracy"]["top1"] - none["accuracy"]["top1"])
        assert o.quantities["agreement"] == kd["agreement"]["top1"]
        assert o.quantities["teacher_score"] == kd["accuracy"]["teacher"]["top1"]
        assert o.quantities["parameters"] == 20_000


def test_the_page_shows_tests_correlations_and_drawings(make_run, tmp_path, capsys):
    runs = [make_run("none", seed, teacher=False) for seed in range(2)]
    for number in range(4):
        options = {"temperature": 1.0 + number}
        runs += [
            make_run("kd", seed, strength=1.6 + 0.2 * number, options=options, suffix=f"-{number}") for seed in range(2)
        ]
    page = report_fidelity(runs, tmp_path / "pages" / "fidelity.html").read_text()
    text = Page(page).text
    for part in ("kd gains", "Correlations of the gain", "Gain and agreement with the teacher", "Fidelity and score"):
        assert part in text
    show_fidelity(runs)
    assert "8 distilled students, 4 settings" in capsys.readouterr().out


def test_nothing_to_compare_is_an_error_that_says_why(make_run):
    with pytest.raises(RunFolderError, match="no student trained alone"):
        report_fidelity([make_run("kd")], "never.html")
    with pytest.raises(RunFolderError, match="none of the runs distils"):
        report_fidelity([make_run("none", teacher=False)], "never.html")


def test_language_runs_are_scored_by_their_tokens(make_run):
    folders = [make_run("sft", teacher=False), make_run("word_kd")]
    for folder, right in zip(folders, (0.3, 0.35)):
        results = json.loads((folder / "results.json").read_text())
        for name in ("accuracy", "agreement", "cost"):
            results.pop(name, None)
        results["token_loss"] = {"accuracy": right, "teacher": {"accuracy": 0.5}}
        results["token_agreement"] = {"top1": 0.6, "kl_teacher_student": 0.4}
        (folder / "results.json").write_text(json.dumps(results))
    (found,) = match([read_run(folder) for folder in folders]).observations
    assert found.improvement == pytest.approx(0.05)
    assert found.quantities == {"agreement": 0.6, "kl": 0.4, "baseline": 0.3, "teacher_score": 0.5}


def changed(folder, **values):
    """The run, some of its results replaced: ``agreement__top1`` for ``agreement.top1``."""
    results = json.loads((folder / "results.json").read_text())
    for key, value in values.items():
        section, _, name = key.partition("__")
        results[section][name] = value
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_a_student_that_is_its_teacher_is_at_the_limits_and_says_nothing_about_fidelity(make_run, tmp_path):
    runs = [make_run("none", seed, teacher=False) for seed in range(4)]
    for seed in range(4):
        kd = make_run("kd", seed, strength=1.5 + 0.1 * seed)
        results = json.loads((kd / "results.json").read_text())
        same = results["accuracy"]["top1"]
        results["accuracy"]["teacher"]["top1"] = same
        results["agreement"] |= {
            "top1": 1.0,
            "kl_teacher_student": 0.0,
            "total_variation": 0.0,
            "on_teacher_errors": None,
        }
        (kd / "results.json").write_text(json.dumps(results))
        runs.append(kd)
    found = match([read_run(folder) for folder in runs]).observations
    assert all(o.quantities["agreement"] == 1.0 and o.quantities["kl"] == 0.0 for o in found)
    assert all("on_teacher_errors" not in o.quantities for o in found)
    assert not {"agreement", "kl"} & {c.quantity for c in study(found).correlations}
    assert "kd gains" in Page(report_fidelity(runs, tmp_path / "same.html").read_text()).text


def test_students_that_all_gain_the_same_are_not_tested_as_if_they_were_sure():
    """Differences of rounding alone would give a t of ten to the fifteenth."""
    rounded = [0.3, 0.1 + 0.2, 0.3, 0.1 + 0.2]
    constant = study(
        [observation(cell=c, gain=g, agreement=a) for c, g, a in zip("abcd", rounded, (0.1, 0.2, 0.3, 0.4))]
    )
    assert constant.by_method == {}
    assert constant.correlations == ()
    methods = [observation(m, c, gain=g) for m, g in (("kd", 0.1), ("dkd", 0.2)) for c in "ab"]
    assert study(methods).between_methods is None
    assert sentences(constant)[0].startswith("Too few runs for any test")


def test_an_empty_set_of_runs_is_an_error_and_an_empty_study_says_nothing(tmp_path):
    with pytest.raises(RunFolderError, match="none of the runs distils"):
        report_fidelity([], tmp_path / "never.html")
    with pytest.raises(RunFolderError):
        show_fidelity([tmp_path])
    assert sentences(study([]))[0].startswith("Too few runs")


def test_numbers_that_are_none_are_left_out_and_told(make_run, tmp_path, capsys):
    runs = [make_run("none", seed, teacher=False) for seed in range(3)]
    distilled = [make_run("kd", seed, strength=1.5 + 0.1 * seed) for seed in range(3)]
    changed(distilled[0], accuracy__top1=float("nan"))
    changed(distilled[1], agreement__kl_teacher_student=float("inf"))
    found = match([read_run(folder) for folder in [*runs, *distilled]])
    assert sorted(o.seed for o in found.observations) == [1, 2]
    assert found.left_out[0].endswith("is nan, which is no finite number")
    assert found.left_out[1].startswith("kl to the teacher of")
    (one,) = [o for o in found.observations if o.seed == 1]
    assert "kl" not in one.quantities
    assert "nan" in Page(report_fidelity([*runs, *distilled], tmp_path / "some.html").read_text()).text
    changed(runs[1], accuracy__top1=float("nan"))
    (left,) = match([read_run(folder) for folder in [*runs, *distilled]]).observations
    assert left.seed == 2
    for folder in distilled:
        changed(folder, accuracy__top1=float("nan"))
    with pytest.raises(RunFolderError, match="no finite number"):
        show_fidelity([*runs, *distilled])
    with pytest.raises(ValueError, match="finite"):
        study([observation(gain=float("nan"))])


def test_a_run_that_is_named_twice_is_one_observation(make_run, tmp_path, capsys):
    runs = [make_run("none", teacher=False), make_run("kd", strength=1.7)]
    show_fidelity([*runs, runs[1], tmp_path / "." / runs[1]])
    assert "1 distilled students, 1 settings" in capsys.readouterr().out


def test_a_student_that_always_says_the_same_agrees_by_chance_alone():
    import torch

    from limbeck.functional import fidelity, metrics

    teacher = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    constant = torch.tensor([9.0, 0.0, 0.0, 0.0], dtype=torch.float64).expand(4000, 4)
    share = (teacher.argmax(1) == 0).double().mean()
    assert metrics.agreement(constant, teacher) == share
    mean = (constant.softmax(1) * teacher.softmax(1)).sum(1).mean()
    torch.testing.assert_close(fidelity.expected_agreement(constant, teacher), mean)
    assert 0 < fidelity.total_variation(constant, teacher) < 1
    labels = teacher.argmax(1)
    assert fidelity.agreement_on_errors(constant, teacher, labels).isnan()
    assert metrics.predictive_divergence(teacher, constant).isfinite()
