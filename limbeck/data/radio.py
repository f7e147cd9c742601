"""Generated radio frames: which modulation is it, through a channel and noise?"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from limbeck import streams
from limbeck.data.arrays import ArraySource
from limbeck.data.modulation import (
    ANALOG,
    LINEAR,
    PHASE,
    as_iq,
    constellation,
    frequency_shift_keyed,
    received,
    root_raised_cosine,
    shaped,
)
from limbeck.data.source import DataInfo, dataset
from limbeck.errors import RecipeError, suggest
from limbeck.hyperparameters import Count, WholeNumber

MODULATIONS = (*LINEAR, *PHASE, *ANALOG)
_SAMPLES, _ROLLOFF, _SPAN = 8, 0.35, 11
_OFFSET = 1e-3  # standard deviation of the carrier offset, in cycles a sample
_DELAYS, _GAINS = (0.0, 0.9, 1.7), (1.0, 0.8, 0.3)
_TAPS = 4


def _message(generator: np.random.Generator, length: int) -> np.ndarray:
    """Returns low-pass noise, scaled to [-1, 1]."""
    kernel = np.sinc(0.06 * (np.arange(101) - 50)) * np.hamming(101)
    message = np.convolve(generator.standard_normal(length + 100), kernel, mode="valid")
    return message / np.abs(message).max()


def _analytic(message: np.ndarray) -> np.ndarray:
    spectrum = np.fft.fft(message)
    spectrum[1 : (len(message) + 1) // 2] *= 2
    spectrum[len(message) // 2 + 1 :] = 0
    return np.fft.ifft(spectrum)


def transmitted(name: str, generator: np.random.Generator, length: int) -> np.ndarray:
    """Returns at least ``length`` complex samples of a modulation, with random content.

    Raises:
        RecipeError: there is no such modulation.
    """
    symbols = length // _SAMPLES + 1
    if name in LINEAR:
        points = constellation(name)
        taps = root_raised_cosine(samples=_SAMPLES, rolloff=_ROLLOFF, span=_SPAN)
        return shaped(points[generator.integers(0, len(points), symbols)], taps, samples=_SAMPLES)
    if name in PHASE:
        bits = generator.choice([-1.0, 1.0], symbols)
        if name == "CPFSK":
            return frequency_shift_keyed(bits, index=0.5, samples=_SAMPLES)
        t = (np.arange(4 * _SAMPLES + 1) - 2 * _SAMPLES) / _SAMPLES
        gauss = np.exp(-2 * (np.pi * 0.35 * t) ** 2 / np.log(2))
        smooth = np.convolve(np.repeat(bits, _SAMPLES), gauss / gauss.sum(), mode="same")
        return np.exp(1j * np.cumsum(smooth) * np.pi * 0.35 / _SAMPLES)
    message = _message(generator, length)
    if name == "WBFM":
        return np.exp(2j * np.pi * 0.15 * np.cumsum(message))
    if name == "AM-DSB":
        return (1 + 0.5 * message).astype(complex)
    if name == "AM-SSB":
        return _analytic(message)
    raise RecipeError(f"unknown modulation '{name}'. {suggest(name, MODULATIONS)}")


def multipath(generator: np.random.Generator) -> np.ndarray:
    """Returns complex taps of three paths with Rayleigh gains, at fractions of a sample, of unit mean energy."""
    gains = np.asarray(_GAINS) * (generator.standard_normal(3) + 1j * generator.standard_normal(3)) / np.sqrt(2)
    places = np.sinc(np.arange(_TAPS)[:, None] - np.asarray(_DELAYS)[None, :])
    return places @ gains / np.linalg.norm(_GAINS)


def frame(name: str, generator: np.random.Generator, *, length: int, snr_db: float) -> np.ndarray:
    """Returns one frame ``[2, length]`` of unit mean power, from a random place of a fresh transmission."""
    start = _SPAN * _SAMPLES + int(generator.integers(0, _SAMPLES * 8))
    signal = transmitted(name, generator, start + length)
    count = len(signal) + _TAPS - 1
    noise = (generator.standard_normal(count) + 1j * generator.standard_normal(count)) / np.sqrt(2)
    heard = received(
        signal,
        multipath(generator),
        noise,
        offset=float(_OFFSET * generator.standard_normal()),
        phase=float(generator.uniform(0, 2 * np.pi)),
        snr_db=snr_db,
        window=slice(start, start + length),
    )
    return as_iq(heard)


@dataset("radio", title="generated radio frames, 2 x 128 I/Q samples, 11 modulations", licence="generated")
def radio(
    *,
    split: Literal["train", "test"],
    frames: Count = 40,
    length: Count = 128,
    snr_db: tuple[float, ...] = (0.0, 6.0, 12.0, 18.0),
    modulations: tuple[str, ...] = MODULATIONS,
    data_seed: WholeNumber = 0,
) -> ArraySource:
    """Returns frames as images of one channel, ``[1, 2, length]``, equally many of each modulation and noise level.

    Sample ``i`` has modulation ``i // (frames * levels)`` and noise level ``i // frames % levels``.

    Args:
        split: ``train`` or ``test``, of independent signals.
        frames: frames of each modulation and noise level.
        length: samples a frame.
        snr_db: signal-to-noise ratios, in decibels.
        modulations: the classes.
        data_seed: seed of the signals.

    Raises:
        RecipeError: there is no such modulation.
    """
    for name in modulations:
        if name not in MODULATIONS:
            raise RecipeError(f"data set 'radio': unknown modulation '{name}'. {suggest(name, MODULATIONS)}")
    made, labels = [], []
    for label, name in enumerate(modulations):
        for level in snr_db:
            for number in range(frames):
                key = streams.torch_seed(data_seed, f"radio/{split}/{name}/{level}/{length}", 0, number)
                made.append(frame(name, np.random.default_rng(key), length=length, snr_db=level))
                labels.append(label)
    inputs = torch.from_numpy(np.stack(made)[:, None].astype(np.float32))
    info = DataInfo("radio", len(modulations), (1, 2, length), class_names=tuple(modulations), licence="generated")
    levels = np.tile(np.repeat(np.asarray(snr_db), frames), len(modulations))
    return ArraySource(inputs, torch.tensor(labels), info, groups={"snr_db": levels})
