"""Metrics of samples: row 41."""

import pytest
import torch
from answers import F64
from scipy.linalg import sqrtm

from hybrids.evaluation.samples.distances import frechet, gaussian_frechet, kernel
from hybrids.evaluation.samples.neighbours import neighbours


def spread(d):
    a = torch.randn(d, d, dtype=F64)
    return a @ a.T / d + 0.1 * torch.eye(d, dtype=F64)


def test_frechet_distance_of_gaussians(row):
    """The Fréchet distance of two Gaussians is |m₁ - m₂|² + Tr(C₁ + C₂ - 2 (C₁ C₂)^½). Dowson & Landau 1982."""
    one = torch.ones(1, dtype=F64)
    row(41, gaussian_frechet(0 * one, one[None], 0 * one, 4 * one[None]), 1.0, 1e-8, words="N(0, 1), N(0, 4)")
    m, n, c, e = torch.randn(5, dtype=F64), torch.randn(5, dtype=F64), spread(5), spread(5)
    by_root = (m - n).square().sum() + (c + e).trace() - 2 * sqrtm((c @ e).numpy()).trace().real
    row(41, gaussian_frechet(m, c, n, e), by_root, 1e-8, words="five dimensions, by the matrix root")
    a, b = torch.randn(64, 5, dtype=F64), torch.randn(80, 5, dtype=F64)
    moments = a.mean(0), a.T.cov(), b.mean(0), b.T.cov()
    row(41, frechet(a, b), gaussian_frechet(*moments), 1e-8, words="of samples, by their moments")


@pytest.mark.parametrize("mean, expected", [(0.0, 0.0), (1.0, 22.0)])
def test_kernel_distance_is_unbiased(row, mean, expected):
    """The estimate of MMD² under (ab + 1)³ is unbiased: 0 for equal distributions. Bińkowski 2018, 1801.01401.

    Of N(0, 1) and N(m, 1) it is 4 + (m³ + 3m)² + 3 (m² + 1)² + 3 m² + 1 - 2 (3 (m² + 1) + 1), 22 for m = 1.
    """
    found = [kernel(torch.randn(40, 1, dtype=F64), torch.randn(50, 1, dtype=F64) + mean, 1)[0] for _ in range(2000)]
    each = torch.tensor(found, dtype=F64)
    row(41, each.mean(), expected, standard_error=each.std() / len(each) ** 0.5, words=f"N(0, 1), N({mean:g}, 1)")


def test_precision_and_recall_of_a_copy_are_1(row):
    """Precision and recall of a set against itself are 1. Kynkäänniemi 2019, 1904.06991."""
    x = torch.randn(300, 4, dtype=F64)
    found = neighbours(x, x)
    for name in ("precision", "recall"):
        row(41, found[name], 1.0, 1e-8, words=name)
