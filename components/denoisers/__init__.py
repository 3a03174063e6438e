"""Denoisers: a backbone, a schedule and a prediction make p(x|x_t), and from it p(x_s|x_t)."""

from .denoiser import Denoiser, Estimate, Prediction, Variance
from .exact import GaussianMean, MixtureMean
from .guidance import Guided
from .pixels import GridBayes, GridBayesLast, log_marginals
from .reconstruction import DenoisedLast, GaussianLast, GridLast
from .thresholding import Thresholded

__all__ = [
    "DenoisedLast",
    "Denoiser",
    "Estimate",
    "GaussianLast",
    "GaussianMean",
    "GridBayes",
    "GridBayesLast",
    "GridLast",
    "Guided",
    "MixtureMean",
    "Prediction",
    "Thresholded",
    "Variance",
    "log_marginals",
]
