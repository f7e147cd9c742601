"""The fifteen common corruptions of images, in five severities, made for pictures of about 32 x 32 pixels.

Reference: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
arXiv 1903.12261. Kinds and severities are those of CIFAR-10-C. Corrupted pictures are made here from any data set, by
counter-based random numbers, so that they are the same on every machine and nothing has to be stored; they are not
the published files, from whose random draws they differ. Frost alone is of another make: the benchmark blends in
photographs of frozen windows, for which a generated pattern of ridges stands here.
"""

from limbeck.data.corruptions.base import Corruption, corrupt, corruptions, families

__all__ = ["Corruption", "corrupt", "corruptions", "families"]
