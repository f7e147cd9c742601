from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.data.load import load_data
from limbeck.data.modulation import LINEAR, as_iq, constellation, frequency_shift_keyed, received, root_raised_cosine
from limbeck.data.radio import MODULATIONS, frame, transmitted
from limbeck.errors import RecipeError
from limbeck.students.loading import build_model


@pytest.mark.parametrize("name", LINEAR)
def test_constellations_have_mean_energy_one_and_no_two_equal_points(name: str) -> None:
    points = constellation(name)
    assert np.mean(np.abs(points) ** 2) == pytest.approx(1)
    assert len(np.unique(points.round(9))) == len(points)
    assert abs(points.mean()) < 1e-12


def test_matched_filters_do_not_interfere_at_multiples_of_a_symbol() -> None:
    taps = root_raised_cosine(samples=8, rolloff=0.35, span=30)
    response = np.convolve(taps, taps)[len(taps) - 1 :: 8]
    assert response[0] == pytest.approx(1)
    assert np.abs(response[1:25]).max() < 2e-3
    assert np.isfinite(root_raised_cosine(samples=8, rolloff=0.25, span=11)).all()


@pytest.mark.parametrize("snr", [-6.0, 10.0])
def test_noise_has_the_power_that_was_asked_for(snr: float) -> None:
    generator = np.random.default_rng(0)
    signal = transmitted("QPSK", generator, 40_000)
    noise = (generator.standard_normal(len(signal)) + 1j * generator.standard_normal(len(signal))) / np.sqrt(2)
    window, one = slice(100, 40_000), np.ones(1)
    options = {"offset": 1e-3, "phase": 1.0, "window": window}
    clean = received(signal, one, 0 * noise, snr_db=snr, **options)
    heard = received(signal, one, noise, snr_db=snr, **options)
    measured = 10 * np.log10(np.mean(np.abs(clean) ** 2) / np.mean(np.abs(heard - clean) ** 2))
    assert measured == pytest.approx(snr, abs=0.3)


def test_phase_modulations_have_a_constant_envelope() -> None:
    generator = np.random.default_rng(0)
    for name in ("CPFSK", "GFSK", "WBFM"):
        assert np.abs(transmitted(name, generator, 500)) == pytest.approx(1)
    turned = np.unwrap(np.angle(frequency_shift_keyed(np.ones(4), index=0.5, samples=8)))[7::8]
    assert turned[:2] == pytest.approx([np.pi / 2, np.pi])


def test_frames_have_unit_power_and_a_rotation_changes_no_magnitude() -> None:
    values = frame("8PSK", np.random.default_rng(1), length=128, snr_db=12)
    assert (values**2).sum(0).mean() == pytest.approx(1)
    signal = values[0] + 1j * values[1]
    turned = as_iq(signal * np.exp(0.7j))
    assert np.hypot(*turned) == pytest.approx(np.hypot(*values))
    assert np.abs(as_iq(signal, by_magnitude=True)).sum() <= np.sqrt(2)


def test_the_data_set_is_balanced_reproducible_and_its_splits_differ() -> None:
    spec = {"name": "radio", "frames": 2, "snr_db": [0, 12]}
    train, again, test = (load_data(spec, split=s) for s in ("train", "train", "test"))
    assert train.info.input_shape == (1, 2, 128)
    assert train.labels().bincount().tolist() == [4] * len(MODULATIONS)
    assert train.fingerprint() == again.fingerprint() != test.fingerprint()
    assert not set(train.content_hashes()) & set(test.content_hashes())
    with pytest.raises(RecipeError, match=r"QAM15.*QAM16"):
        load_data({"name": "radio", "modulations": ["QAM15"]})


@pytest.mark.parametrize(("name", "most"), [("clst", 300_000), ("kd_cnn", 10_000), ("kd_mobilenet", 15_000)])
def test_models_of_frames(name: str, most: int) -> None:
    model = build_model(name, num_classes=11, input_shape=(1, 2, 128))
    assert model(torch.randn(3, 1, 2, 128)).shape == (3, 11)
    assert sum(p.numel() for p in model.parameters()) < most


def test_heads_that_do_not_divide_are_named() -> None:
    with pytest.raises(RecipeError, match="heads = 5"):
        build_model({"name": "clst", "heads": 5}, num_classes=11, input_shape=(1, 2, 128))
