"""Counter-based random streams: the same (seed, purpose, epoch, sample, draw) gives the same number, always.

Nothing here has state. Data order, augmentation and sampled negatives are therefore the same for every number of
workers, ranks and
micro-batches, can be replayed years later without having stored a seed for each sample, and survive a kill at any
moment.
The generator is SplitMix64's output function (Steele, Lea and Flood, 2014), applied to a counter.
"""

from __future__ import annotations

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, a bijection of 64-bit words."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key(seed: int, purpose: str, epoch: int = 0) -> np.uint64:
    """Returns the 64-bit key of a stream; different purposes never share one."""
    text = f"{seed}/{purpose}/{epoch}".encode()
    return np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), dtype=np.uint64)[0]


def words(seed: int, purpose: str, epoch: int, index: np.ndarray, draws: int) -> np.ndarray:
    """Returns random 64-bit words of shape ``[len(index), draws]``, row ``i`` depending on ``index[i]`` only."""
    rows = np.asarray(index, dtype=np.uint64)[:, None]
    columns = np.arange(1, draws + 1, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        start = _mix((rows + np.uint64(1)) * _GOLDEN ^ key(seed, purpose, epoch))
        return _mix(start + columns * _GOLDEN)


def uniform(seed: int, purpose: str, epoch: int, index: np.ndarray, draws: int) -> np.ndarray:
    """Returns float64 numbers in [0, 1) of shape ``[len(index), draws]``."""
    return (words(seed, purpose, epoch, index, draws) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(seed: int, purpose: str, epoch: int, index: np.ndarray, draws: int, high: int) -> np.ndarray:
    """Returns int64 numbers in [0, high) of shape ``[len(index), draws]``; the bias is below ``high / 2**53``."""
    return np.minimum((uniform(seed, purpose, epoch, index, draws) * high).astype(np.int64), high - 1)


def normal(seed: int, purpose: str, epoch: int, index: np.ndarray, draws: int) -> np.ndarray:
    """Returns float64 numbers from the standard normal distribution of shape ``[len(index), draws]`` (Box-Muller)."""
    pairs = uniform(seed, purpose, epoch, index, 2 * draws)
    radius = np.sqrt(-2.0 * np.log1p(-pairs[:, :draws]))
    return radius * np.cos(2.0 * np.pi * pairs[:, draws:])


def permutation(seed: int, purpose: str, epoch: int, n: int) -> np.ndarray:
    """Returns a permutation of ``range(n)`` that depends on (seed, purpose, epoch) only."""
    return np.argsort(words(seed, purpose, epoch, np.arange(n), 1)[:, 0], kind="stable")


def torch_seed(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> int:
    """Returns a non-negative 63-bit seed for a library generator (``torch.manual_seed`` and its like)."""
    return int(words(seed, purpose, epoch, np.asarray([index]), 1)[0, 0] >> np.uint64(1))
