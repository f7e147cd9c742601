from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from goldens.replay import Case, adapter_for, replay
from limbeck.errors import DataError, UnknownNameError

DATA = Path(__file__).parent / "goldens" / "data"
COMMAND = Path(__file__).parent / "replay_goldens.py"


@pytest.mark.parametrize("path", sorted(DATA.glob("*.npz")), ids=lambda path: path.stem)
def test_method_reproduces_reference(path: Path) -> None:
    comparisons = list(replay(path))
    assert comparisons
    assert [str(c) for c in comparisons if not c.ok] == []


def _altered(tmp_path: Path, source: str, **changes: object) -> Path:
    """A copy of a golden file in which some arrays are replaced or added, and ``meta`` entries are updated."""
    with np.load(DATA / source) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays["meta"][()])) | changes.pop("meta", {})  # type: ignore[operator]
    arrays.update({key: np.asarray(value) for key, value in changes.items()}, meta=np.asarray(json.dumps(meta)))
    path = tmp_path / "altered.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("source", ["kd.a.npz", "crd.a.npz", "mutual-ban.a.npz"])
def test_wrong_reference_value_fails(tmp_path: Path, source: str) -> None:
    with np.load(DATA / source) as file:
        outputs = {key: file[key] for key in file.files if key.startswith(("out.", "grad."))}
    for key, value in outputs.items():
        wrong = np.array(value, dtype=np.float64)
        wrong.flat[-1] += 1e-6 * max(abs(wrong.flat[-1]), 1.0)
        results = {c.name: c.ok for c in replay(_altered(tmp_path, source, **{key: wrong}))}
        assert [name for name, ok in results.items() if not ok] == [key]


def test_reference_of_another_shape_or_nan_fails(tmp_path: Path) -> None:
    path = _altered(tmp_path, "kd.a.npz", **{"out.loss_kd": np.zeros(3), "out.loss_ce": np.nan})
    assert {c.name for c in replay(path) if not c.ok} == {"out.loss_kd", "out.loss_ce"}


def test_uncovered_reference_fails(tmp_path: Path) -> None:
    lines = [str(c) for c in replay(_altered(tmp_path, "sp.a.npz", **{"out.something_new": 1.0}))]
    assert "out.something_new  uncovered  FAIL" in lines


def test_config_of_the_file_is_used(tmp_path: Path) -> None:
    config = {"temperature": 3.0, "ce_weight": 0.1, "kd_weight": 0.9}
    failed = {c.name for c in replay(_altered(tmp_path, "kd.a.npz", meta={"config": config})) if not c.ok}
    assert "out.loss_kd" in failed
    assert "out.loss_ce" not in failed


@pytest.mark.parametrize(
    ("source", "key", "config", "arrays"),
    [
        ("kdrl.a.npz", "out.loss.k2.none", {"clip_eps": 0.01}, {"in.old_logits": np.zeros((6, 4, 8))}),
        ("kdrl.a.npz", "out.beta", {"delta": 0.0}, {}),
        ("lm-distillm2.a.npz", "out.alpha2", {"base_alpha_2": 0.5}, {}),
        ("tsd-kd.a.npz", "out.loss_official_code", {"jsd_temperature": 2.0, "opener_fraction": 1.0}, {}),
    ],
)
def test_other_settings_of_a_method_are_computed(
    tmp_path: Path, source: str, key: str, config: dict[str, float], arrays: dict[str, np.ndarray]
) -> None:
    before, after = (
        Case(_altered(tmp_path, source, meta={"config": Case(DATA / source).config | changes}, **arrays))
        for changes in ({}, config)
    )
    adapter = adapter_for(before.name)
    assert not np.allclose(adapter(before)[key].detach(), adapter(after)[key].detach())


def test_anchors_are_read_in_double_precision(tmp_path: Path) -> None:
    source = "lm-distillm2.a.npz"
    config = Case(DATA / source).config | {"logp_logq": 0.1, "base_alpha_1": 0.999, "alpha_min": 0.0}
    case = Case(_altered(tmp_path, source, meta={"config": config}))
    found = adapter_for(case.name)(case)
    gap = found["out.avg_logp"].exp() - found["out.avg_logq"].exp() + 1e-5
    expected = (1 - 0.001 * 0.1 / gap).clamp(0.0, 0.999)
    assert ((expected > 0.0) & (expected < 0.999)).any()
    assert np.allclose(found["out.alpha1"].detach(), expected.detach(), rtol=1e-12)


def test_another_variant_of_a_known_method_has_its_adapter(tmp_path: Path) -> None:
    comparisons = list(replay(_altered(tmp_path, "lm-dskd.a.npz", meta={"method": "Dual-Space KD: one more"})))
    assert all(c.ok for c in comparisons)


def test_unknown_method_is_named_with_a_near_match(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'dkdd'.*'dkd'"):
        list(replay(_altered(tmp_path, "kd.a.npz", meta={"short_name": "dkdd"})))


def test_missing_hyperparameter_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="temperature"):
        list(replay(_altered(tmp_path, "kd.a.npz", meta={"config": {}})))


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04broken"])
def test_unreadable_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz"):
        list(replay(path))


def test_tolerance_is_loosened_only_where_the_notes_say_so(tmp_path: Path) -> None:
    notes = "Case b has equal rows, so compare loss with rtol 1e-5 there."
    assert Case(_altered(tmp_path, "kd.a.npz")).tolerance() == (1e-9, 1e-12)
    assert Case(_altered(tmp_path, "kd.a.npz", meta={"notes": notes})).tolerance() == (1e-9, 1e-12)
    assert Case(_altered(tmp_path, "kd.a.npz", meta={"notes": notes, "case": "b"})).tolerance() == (1e-5, 1e-12)
    assert Case(DATA / "dkd.a.npz").tolerance() == (1e-8, 1e-12)


def test_numbered_inputs_come_in_numeric_order(tmp_path: Path) -> None:
    extra = {f"in.map{n}": np.full(1, n) for n in (10, 2, 0)}
    case = Case(_altered(tmp_path, "kd.a.npz", **extra))
    assert {name: value.item() for name, value in case.numbered("map").items()} == {"map0": 0, "map2": 2, "map10": 10}
    assert list(case.numbered("map")) == ["map0", "map2", "map10"]


def test_command_prints_a_line_each_and_sets_the_exit_status(tmp_path: Path) -> None:
    bad = _altered(tmp_path, "kd.a.npz", **{"out.loss_kd": 0.0})

    def run(*paths: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, COMMAND, *paths], capture_output=True, text=True, cwd=tmp_path)

    good = run(DATA / "kd.a.npz")
    assert good.returncode == 0
    assert [line.split()[0] for line in good.stdout.splitlines()] == list(Case(DATA / "kd.a.npz").expected())
    assert {line.split()[2] for line in good.stdout.splitlines()} == {"OK"}
    failed = run(DATA / "kd.a.npz", bad, tmp_path / "absent.npz")
    assert failed.returncode == 1
    assert "FAIL" in failed.stdout
    assert "absent.npz" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "names",
    [
        "proj.dw1.weight proj.pw1.weight proj.bn1.weight proj.bn1.bias proj.dw2.weight proj.pw2.weight proj.bn2.weight"
        " proj.bn2.bias proj.fc.weight proj.fc.bias",
        "dw1 pw1 gamma1 beta1 dw2 pw2 gamma2 beta2 w_fc b_fc",
    ],
)
def test_the_arrays_of_an_exit_are_recognised_whatever_their_names(tmp_path: Path, names: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # As many samples as channels, so that kernels have the batch's length too.
    maps, shapes = (4, 4, 6, 6), ((4, 1, 3, 3), (4, 4, 1, 1), (4,), (4,)) * 2 + ((3, 4), (3,))
    leaves = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in zip(["student_logits", "stage_map", *names.split()], [(4, 3), maps, *shapes])
    }
    final, features, *weights = leaves.values()
    for stride, (deep, point, scale, shift) in zip((2, 1), (weights[:4], weights[4:8])):
        features = nnf.conv2d(nnf.conv2d(features, deep, stride=stride, padding=1, groups=4), point)
        features = nnf.relu(nnf.batch_norm(features, None, None, scale, shift, training=True))
    said = nnf.linear(features.mean((2, 3)), *weights[8:])
    theirs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1])
    soft = [-(theirs.softmax(1) * logits.log_softmax(1)).sum(1).mean() for logits in (final, said)]
    loss = nnf.cross_entropy(final, labels) + sum(soft)
    slopes = torch.autograd.grad(loss, list(leaves.values()))
    arrays = {f"in.{name}": leaf.detach().numpy() for name, leaf in leaves.items()}
    arrays |= {"in.teacher_logits": theirs.numpy(), "in.labels": labels.numpy()}
    arrays |= {"out.loss_total": loss.detach().numpy(), "out.loss_stage0": soft[1].detach().numpy()}
    arrays |= {f"grad.{name}": slope.numpy() for name, slope in zip(leaves, slopes)}
    meta = {"short_name": "ofa-kd", "config": {"eps": 1.0, "temperature": 1.0}}
    path = tmp_path / "exit.npz"
    np.savez(path, meta=np.asarray(json.dumps(meta)), **arrays)
    assert [str(c) for c in replay(path) if not c.ok] == []
