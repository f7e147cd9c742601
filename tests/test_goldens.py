from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from goldens.replay import Case, replay
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
