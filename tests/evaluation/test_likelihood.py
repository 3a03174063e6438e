import json
import math

import pytest
import torch
from answers import F64, Constant
from diffusions import S, Shrunk, exact
from torch import nn

from components.denoisers import Denoiser, GaussianMean, GreyLevels, MixtureMean, log_marginals
from components.distributions import DiscretizedNormal, Normal, grid
from components.schedules import FlowSchedule, LogSNRLinearSchedule
from hybrids import GAN, VAE, AdversarialDiffusion, Critic, Diffusion, StandardNormal, Terms
from hybrids.data import Data, gaussians_8
from hybrids.evaluation import Scorer, likelihood
from hybrids.models import LatentModel


def gaussian(schedule=None, s=S, shape=2, **settings):
    return exact(schedule or LogSNRLinearSchedule(13.3, -12.0), "sample", s, shape, **settings)


class Encoder(nn.Module):
    def forward(self, x, cond=None):
        return Normal(0.5 * x, 0.6)


class Decoder(nn.Module):
    def forward(self, z, cond=None):
        return Normal(z, 0.4)


def rounded(n, grey_levels, s=0.3, shape=(2,)):
    steps = (grey_levels - 1) / 2
    return (((s * torch.randn(n, *shape, dtype=F64)).clamp(-1, 1) + 1) * steps).round() / steps - 1


# What it says


def test_it_states_grid_dequantization_examples_and_draws_and_is_json():
    model = Diffusion(gaussian().denoiser, 2, grey_levels=17)
    found = likelihood(model, rounded(100, 17), draws=250, importance_samples=0)
    assert found["grey_levels"] == 17 and found["grid"] == "x = 2v/(K-1) - 1, K = 17"
    assert found["dequantization"] == "none: the bound is on the probability of grey levels"
    assert (found["examples"], found["dimensions"], found["draws"]) == (100, 2, 3)
    assert found["bits_per_dim"] == pytest.approx(found["nats"] / 2 / math.log(2), rel=1e-12)
    error = found["nats_per_dim_standard_error"]
    assert error > 0 and found["bits_per_dim_standard_error"] == pytest.approx(error / math.log(2), rel=1e-12)
    assert json.loads(json.dumps(found)) == found
    parts = [found[f"nats_{name}"] for name in ("prior", "diffusion", "reconstruction")]
    assert sum(parts) == pytest.approx(found["nats"], rel=1e-9)


def test_a_density_has_no_grid():
    found = likelihood(gaussian(), torch.randn(20, 2, dtype=F64), draws=20)
    assert found["grid"] == "none" and found["dequantization"] == "none: the bound is on a density of x"
    assert not [name for name in found if "bits" in name or name == "grey_levels"]


def test_bound_importance_and_flow_stand_in_order():
    """-ELBO >= -IWAE >= -log p = that of the flow, on a Gaussian that the denoiser knows; with their errors."""
    schedule, x = LogSNRLinearSchedule(9.0, -6.0), S * torch.randn(200, 2, dtype=F64)
    chain = gaussian(schedule, timesteps=8)
    one = likelihood(chain, x, every_level=True, importance_samples=200)
    assert one["importance_samples"] == 200 and 1 <= one["importance_effective_samples"] <= 200
    assert one["importance_nats"] < one["nats"] - 0.5
    exact = -Normal(torch.zeros_like(x), math.hypot(S, math.exp(-4.5))).log_prob(x)
    flowing = likelihood(gaussian(LogSNRLinearSchedule(9.0, -14.0)), x, draws=2000, flow={"rtol": 1e-6, "atol": 1e-6})
    assert flowing["ode_nats"] == pytest.approx(exact.mean().item(), abs=2e-3)
    assert flowing["ode_nats"] < one["importance_nats"] < one["nats"]
    deviation = exact.std().item() / math.sqrt(200)
    assert flowing["ode_nats_per_dim_standard_error"] == pytest.approx(deviation / 2, rel=1e-2)
    assert flowing["ode_method"] == "dopri5" and flowing["ode_rtol"] == flowing["ode_atol"] == 1e-6
    assert flowing["ode_divergence"] == "exact" and flowing["ode_evaluations"] > 50
    assert flowing["ode_first_time"] == 0 and flowing["ode_dequantization"].startswith("none")


def test_the_flow_s_fixed_steps_and_probes_are_stated():
    settings = {"method": "rk4", "steps": 30, "divergence": "rademacher", "probes": 3}
    found = likelihood(gaussian(), S * torch.randn(10, 2, dtype=F64), draws=10, flow=settings)
    assert found["ode_method"] == "rk4" and found["ode_steps"] == 30 and found["ode_evaluations"] == 120
    assert found["ode_divergence"] == "Hutchinson, 3 rademacher probe(s)" and "ode_rtol" not in found


def test_chunks_together_are_the_whole():
    scorer = Scorer(gaussian(timesteps=4), importance_samples=5, every_level=True)
    x = S * torch.randn(30, 2, dtype=F64)
    parts = [scorer(part) for part in x.split(11)]
    assert [len(part["nats"]) for part in parts] == [11, 11, 8]
    found = scorer.summary(parts, 2)
    whole = torch.cat([part["importance_nats"] for part in parts])
    assert found["importance_nats"] == whole.mean().item() and found["examples"] == 30
    assert all(values.dtype == F64 and values.device.type == "cpu" for values in parts[0].values())


def test_rows_are_not_mixed_and_labels_stay_with_their_examples():
    class Labelled(nn.Module):
        def nll(self, x, cond=None):
            return Terms(rate=x.flatten(1).sum(1), distortion=(2.0, cond.float()))

    x, cond = torch.arange(10.0).view(10, 1), torch.arange(10)
    values = Scorer(Labelled(), rows=3)(x, cond)
    torch.testing.assert_close(values["nats"], 3 * torch.arange(10.0, dtype=F64))
    torch.testing.assert_close(values["nats_distortion"], 2 * torch.arange(10.0, dtype=F64))


# Grey levels by the flow


@pytest.mark.parametrize("how", ["uniform", "encoder"])
def test_row_42_grey_levels_by_the_flow_are_bounded_and_near(how):
    """8-bit Gaussian pixels under a Gaussian: a bin is narrow beside σ = 0.3, so the uniform noise costs nothing.

    The encoder's Gaussian noise does not fill the bin: log Δ - ½ log 2πe σ_0² a dimension, if x_0 tells x.
    """
    x = rounded(300, 256)
    model = gaussian(LogSNRLinearSchedule(13.3, -14.0), s=0.3, grey_levels=256)
    exact = -DiscretizedNormal(torch.zeros_like(x), 0.3, 256).log_prob(x)
    flow = {"method": "rk4", "steps": 60}
    found = Scorer(model, flow=flow, dequantization=how, bound=False)(x)["ode_nats"]
    over_it = found - exact
    error = over_it.std().item() / math.sqrt(300)
    cost = 0.0 if how == "uniform" else 2 * (math.log(2 / 255) - 0.5 * (math.log(2 * math.pi * math.e) - 13.3))
    assert over_it.mean().item() == pytest.approx(cost, abs=0.02 + 4 * error) and error < 0.1
    stated = likelihood(model, x[:3], flow=flow, dequantization=how, draws=3)["ode_dequantization"]
    assert ("uniform over each level's bin" if how == "uniform" else "the diffusion's own") in stated


def test_few_levels_cost_less_by_the_encoder():
    """A denoiser of a grid is peaked at its levels, which the uniform noise leaves; the encoder's keeps near."""
    x = (torch.randint(5, (400, 2)) / 2 - 1).double()
    schedule = LogSNRLinearSchedule(6.0, -12.0)
    prediction = GreyLevels((2,), 5, log_marginals(x, 5))
    model = Diffusion(Denoiser(Constant(torch.zeros(1, 10, dtype=F64)), schedule, prediction), 2)
    flow = {"method": "rk4", "steps": 60}
    values = {how: Scorer(model, flow=flow, dequantization=how, bound=False)(x)["ode_nats"].mean().item()
              for how in ("encoder", "uniform")}  # fmt: skip
    exact = 2 * math.log(5)
    assert exact - 0.05 < values["encoder"] < exact + 0.1 and values["uniform"] > exact + 0.5


# A VAE over a flow


def test_a_latent_flow_is_scored_though_it_has_no_bound():
    """z ~ N(0, S²) by a rectified flow, x|z ~ N(z, .16): -E log p(x) within the gap of q, and no bound without it."""
    model = VAE(Encoder(), Decoder(), gaussian(FlowSchedule()))
    x = math.sqrt(S**2 + 0.16) * torch.randn(300, 2, dtype=F64)
    with pytest.raises(ValueError, match="in continuous time the bound is infinite"):
        likelihood(model, x)
    found = Scorer(model, flow={"method": "rk4", "steps": 80}, bound=False)
    values = found(x)["ode_nats"]
    exact = -Normal(torch.zeros_like(x), math.sqrt(S**2 + 0.16)).log_prob(x)
    # KL(q(z|x) ‖ p(z|x)) of each dimension, in closed form.
    v = 1 / (1 / S**2 + 1 / 0.16)
    gap = 0.5 * (0.36 / v - 1 - math.log(0.36 / v) + (0.5 * x - v / 0.16 * x).square() / v).sum(1)
    error = (values - exact - gap).std().item() / math.sqrt(300)
    assert (values - exact - gap).mean().item() == pytest.approx(0, abs=4 * error + 5e-3) and error < 0.2
    assert found.summary([found(x[:2])], 2)["ode_dequantization"].startswith("the flow is of z ~ q(z|x)")


# Importance-sampled times


def test_they_serve_discrete_levels_and_likelihood_too():
    schedule, x = LogSNRLinearSchedule(9.0, -6.0), S * torch.randn(4000, 2, dtype=F64)
    model = gaussian(schedule, timesteps=10)
    plain, quiet = (likelihood(model, x, draws=1, importance_times=on) for on in (False, True))
    every = likelihood(model, x, every_level=True)
    for found in (plain, quiet):
        error = 2 * math.hypot(found["nats_per_dim_standard_error"], every["nats_per_dim_standard_error"])
        assert found["nats"] == pytest.approx(every["nats"], abs=4 * error)
    with pytest.raises(TypeError, match="importance_times needs a Diffusion; got StandardNormal"):
        likelihood(StandardNormal(2), x, importance_times=True)


# Refusals


def test_implicit_models_are_refused_and_told_what_to_use():
    gan = GAN(nn.Linear(2, 2), Critic(nn.Linear(2, 1), lambda *logits: None), 2)
    x = torch.zeros(2, 2)
    bare = nn.Module.__new__(AdversarialDiffusion)
    for model in (gan, bare):
        name = type(model).__name__
        with pytest.raises(
            TypeError, match=f"{name} is an implicit model: .*no likelihood.* measure its samples instead"
        ):
            likelihood(model, x)

    class Latent(LatentModel):
        def __init__(self):
            nn.Module.__init__(self)
            self.second = gan

    with pytest.raises(TypeError, match="Latent has no likelihood, .* GAN is an implicit model"):
        likelihood(Latent(), x)


@pytest.mark.parametrize("value, message", [
    (0.1, r"x must be on the grid 2v/\(K-1\) - 1 of K = 17 levels in \[-1, 1\]; example 1"),
    (1.5, r"x must be on the grid 2v/\(K-1\) - 1 of K = 17 levels in \[-1, 1\]; example 1"),
    (math.nan, "x must be finite; example 1 has NaN or infinite values"),
])  # fmt: skip
def test_x_that_a_discrete_likelihood_cannot_have_is_refused(value, message):
    x = torch.zeros(3, 2)
    x[1, 1] = value
    model = gaussian(grey_levels=17)
    for ask in (lambda: likelihood(model, x), lambda: model.log_prob(x)):
        with pytest.raises(ValueError, match=message):
            ask()


def test_what_is_not_finite_is_no_x_of_a_density():
    x = torch.zeros(3, 2)
    x[2, 0] = math.inf
    with pytest.raises(ValueError, match="x must be finite; example 2"):
        likelihood(gaussian(), x)


@pytest.mark.parametrize("settings, error, message", [
    ({"repeats": 0}, ValueError, "repeats and rows must be at least 1, .* at least 0; got 0, 512 and 0"),
    ({"importance_samples": -1}, ValueError, "importance_samples at least 0; got 1, 512 and -1"),
    ({"dequantization": "none"}, ValueError, "dequantization must be 'uniform' or 'encoder'; got 'none'"),
    ({"bound": False}, ValueError, "nothing to measure"),
    ({"per_level": True}, ValueError, "per_level needs every_level=True"),
    ({"flow": {}}, TypeError, "flow needs a Diffusion, or a VAE whose prior is one; got StandardNormal"),
])  # fmt: skip
def test_settings_are_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        Scorer(StandardNormal(2), **settings)


def test_an_importance_weighted_bound_of_what_has_none_is_refused():
    class Bare(nn.Module):
        def nll(self, x, cond=None):
            return Terms(nll=x.sum(1))

    with pytest.raises(TypeError, match="importance_samples needs a model with log_weight; Bare has none"):
        Scorer(Bare(), importance_samples=4)


@pytest.mark.slow
def test_mixtures_through_the_whole_interface():
    """|log p by the flow - log p| <= 0.01 nats/dim in 2 and in 64 dimensions, with the evaluations it took."""
    from hybrids.data import Mixture

    wide = Mixture(0.7 * torch.randn(5, 64, dtype=F64), 0.5)
    for density, n in ((gaussians_8(), 100), (wide, 32)):
        schedule = LogSNRLinearSchedule(16.0, -12.0)
        denoiser = Denoiser(MixtureMean(schedule, density.means, density.std), schedule, "sample")
        x = density.sample(n)
        values = Scorer(Diffusion(denoiser, x.shape[1]), flow={}, bound=False)(x)
        assert (-values["ode_nats"] - density.log_prob(x)).abs().mean().item() / x.shape[1] < 1e-2
        assert 50 < values["ode_evaluations"][0] < 400


def test_data_s_own_levels_are_on_its_grid():
    """What data sets decode is not refused, in float32, at every number of levels."""
    for grey_levels in (2, 17, 256):
        data = Data.from_tensor(grid(grey_levels, torch.zeros(1)).view(-1, 1, 1, 1), grey_levels=grey_levels)
        found = likelihood(gaussian(grey_levels=grey_levels, shape=(1, 1, 1)), data.decode(data.x), draws=1)
        assert math.isfinite(found["nats"]) and found["grey_levels"] == grey_levels


def test_a_gaussian_of_vectors_agrees_with_the_one_of_shapes():
    """The tests' own denoiser against the library's."""
    schedule, x = LogSNRLinearSchedule(), torch.randn(4, 2, dtype=F64)
    other = GaussianMean(schedule, torch.zeros(2, dtype=F64), S**2 * torch.eye(2, dtype=F64))
    torch.testing.assert_close(Shrunk(schedule)(x, 0.4), other(x, 0.4))
