"""Modulated signals and a radio channel, as complex baseband samples.

The stages follow the public generator of the RadioML sets: symbols are upsampled by zeros, shaped by a root raised
cosine, spread by a few complex taps, shifted in frequency and phase, and drowned in white noise.

Reference:
    O'Shea and West, Radio Machine Learning Dataset Generation with GNU Radio, GRCon 2016,
    https://github.com/radioML/dataset
"""

from __future__ import annotations

import numpy as np

from limbeck.errors import RecipeError, suggest

_QAM = {"QAM16": 4, "QAM64": 8}
_PSK = {"BPSK": (2, 0.0), "QPSK": (4, np.pi / 4), "8PSK": (8, 0.0)}
LINEAR = ("BPSK", "QPSK", "8PSK", "PAM4", "QAM16", "QAM64")
"""Modulations of symbols on a constellation."""
PHASE = ("CPFSK", "GFSK")
"""Digital modulations of constant envelope."""
ANALOG = ("WBFM", "AM-DSB", "AM-SSB")
"""Modulations of a continuous message."""


def constellation(name: str) -> np.ndarray:
    """Returns the complex points of a linear modulation, of mean energy 1.

    Raises:
        RecipeError: there is no such modulation.

    Example:
        >>> round(float(np.mean(np.abs(constellation("QAM64")) ** 2)), 12)
        1.0
    """
    if name in _PSK:
        count, offset = _PSK[name]
        return np.exp(1j * (2 * np.pi * np.arange(count) / count + offset))
    if name == "PAM4":
        points = np.arange(-3, 4, 2).astype(complex)
    elif name in _QAM:
        levels = np.arange(1 - _QAM[name], _QAM[name], 2)
        points = (levels[:, None] + 1j * levels[None, :]).reshape(-1)
    else:
        raise RecipeError(f"unknown linear modulation '{name}'. {suggest(name, LINEAR)}")
    return points / np.sqrt(np.mean(np.abs(points) ** 2))


def root_raised_cosine(*, samples: int, rolloff: float, span: int) -> np.ndarray:
    """Returns the taps of a root raised cosine filter of unit energy.

    Args:
        samples: samples a symbol.
        rolloff: excess bandwidth, in (0, 1].
        span: length in symbols.

    Returns:
        ``[span * samples + 1]``.
    """
    t = (np.arange(span * samples + 1) - span * samples / 2) / samples
    edge = np.abs(np.abs(4 * rolloff * t) - 1) < 1e-9
    centre = np.abs(t) < 1e-12
    safe = np.where(edge | centre, 0.123, t)
    numerator = np.sin(np.pi * safe * (1 - rolloff)) + 4 * rolloff * safe * np.cos(np.pi * safe * (1 + rolloff))
    taps = numerator / (np.pi * safe * (1 - (4 * rolloff * safe) ** 2))
    angle = np.pi / (4 * rolloff)
    at_edge = rolloff / np.sqrt(2) * ((1 + 2 / np.pi) * np.sin(angle) + (1 - 2 / np.pi) * np.cos(angle))
    taps = np.where(edge, at_edge, np.where(centre, 1 - rolloff + 4 * rolloff / np.pi, taps))
    return taps / np.linalg.norm(taps)


def shaped(symbols: np.ndarray, taps: np.ndarray, *, samples: int) -> np.ndarray:
    """Returns complex symbols ``[n]`` as a signal: upsampled by zeros, convolved in full with ``taps``."""
    upsampled = np.zeros(len(symbols) * samples, complex)
    upsampled[::samples] = symbols
    return np.convolve(upsampled, taps)


def frequency_shift_keyed(bits: np.ndarray, *, index: float, samples: int) -> np.ndarray:
    """Returns continuous-phase frequency shift keying of bits -1 and 1: each turns the phase by pi times ``index``."""
    return np.exp(1j * np.cumsum(np.repeat(bits * (np.pi * index / samples), samples)))


def received(
    signal: np.ndarray,
    taps: np.ndarray,
    noise: np.ndarray,
    *,
    offset: float,
    phase: float,
    snr_db: float,
    window: slice,
) -> np.ndarray:
    """Returns a window of a signal after the channel.

    Args:
        signal: ``[n]`` complex.
        taps: ``[m]`` complex, the multipath channel.
        noise: ``[n + m - 1]`` complex, of unit power.
        offset: carrier offset in cycles a sample.
        phase: carrier phase at the first sample, in radians.
        snr_db: power of the window over that of its noise, in decibels.
        window: which samples.

    Returns:
        Complex samples, not normalised.
    """
    spread = np.convolve(signal, taps)
    turned = spread * np.exp(1j * (2 * np.pi * offset * np.arange(len(spread)) + phase))
    power = np.mean(np.abs(turned[window]) ** 2)
    return turned[window] + np.sqrt(power / 10 ** (snr_db / 10)) * noise[window]


def as_iq(samples: np.ndarray, *, by_magnitude: bool = False) -> np.ndarray:
    """Returns complex samples as ``[2, n]`` of unit mean power.

    Args:
        samples: ``[n]`` complex.
        by_magnitude: divide by the sum of magnitudes instead, as the public generator does.
    """
    scale = np.abs(samples).sum() if by_magnitude else np.sqrt(np.mean(np.abs(samples) ** 2))
    return np.stack([samples.real, samples.imag]) / max(float(scale), np.finfo(float).tiny)
