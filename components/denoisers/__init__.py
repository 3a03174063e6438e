"""Denoisers: a backbone, a schedule and a prediction make p(x|x_t), and from it p(x_s|x_t)."""

from .denoiser import Denoiser, DenoiserWrapper, Denoising, Variance
from .exact import GaussianMean, MixtureMean
from .guidance import Guided
from .pixels import GreyLevels, log_marginals
from .prediction import PREDICTIONS, Estimate, Prediction, edm_prediction
from .reconstruction import (
    DenoisedReconstruction,
    GaussianReconstruction,
    GreyLevelReconstruction,
    PosteriorReconstruction,
    Reconstruction,
)
from .thresholding import Thresholded

__all__ = [
    "PREDICTIONS",
    "DenoisedReconstruction",
    "Denoiser",
    "DenoiserWrapper",
    "Denoising",
    "Estimate",
    "GaussianMean",
    "GaussianReconstruction",
    "GreyLevelReconstruction",
    "GreyLevels",
    "Guided",
    "MixtureMean",
    "PosteriorReconstruction",
    "Prediction",
    "Reconstruction",
    "Thresholded",
    "Variance",
    "edm_prediction",
    "log_marginals",
]
