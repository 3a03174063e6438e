import math

import pytest
import torch
from diffusions import exact
from small import TINY
from torch import nn

from components.backbones import Stochastic
from components.bottlenecks import VQ
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator
from components.distributions import Delta, Normal
from components.samplers import Sampler
from components.schedules import LogSNRLinearSchedule, VariancePreservingSchedule
from hybrids import (
    GAN,
    VAE,
    AdversarialDiffusion,
    Autoencoder,
    Critic,
    HierarchicalVAE,
    LatentModel,
    StandardNormal,
)
from hybrids.data import Data
from hybrids.evaluation.latents import (
    active_units,
    decode,
    encode,
    evenness,
    flat,
    interpolate,
    interpolations,
    invert,
    latents_of,
    linear_probe,
    shaped,
    smoothness,
    spherical,
)
from hybrids.experiment import load_recipe, parse
from hybrids.models import NotOffered

DIGITS, POINTS = Data("digits", (1, 8, 8), classes=10, grey_levels=17), Data("25-gaussians", (2,))
IMPLICIT = {"gan", "adversarial_diffusion"}


def model_of(name, data=DIGITS):
    """The model of a tiny recipe."""
    module, words = load_recipe(name), TINY[name]
    if not data.is_image:
        words = [w for i, w in enumerate(words) if not {"--resolution", "--critic"} & {w, words[i - 1]}]
    torch.manual_seed(0)
    return module.build(parse(module.Settings, words, name), data)[-1].model


def reconstruct(model, x, **search):
    with torch.no_grad():
        return decode(model, latents_of(model, x, **search))


def reconstruction_error(model, x, **search):
    """Root mean square."""
    return (reconstruct(model, x, **search) - x).square().mean().sqrt().item()


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Linear(nn.Module):
    """A distribution around W x: an encoder or a decoder."""

    def __init__(self, weight, std=None, latent=None):
        super().__init__()
        self.weight, self.std = nn.Parameter(weight), std
        if latent is not None:
            self.latent = latent

    def forward(self, x, cond=None):
        mean = x @ self.weight.T
        return Delta(mean) if self.std is None else Normal(mean, torch.full_like(mean, self.std))


def linear_gan(weight):
    return GAN(Linear(weight), Critic(MLPDiscriminator(len(weight), 8)), weight.shape[1])


def gaussian_diffusion(d=3, schedule=None, steps=None, **settings):
    """The exact diffusion of N(0, ½² I)."""
    schedule = schedule or LogSNRLinearSchedule(8.0, -8.0)
    return exact(schedule, "sample", shape=d, sampler=Sampler("ddim", steps=steps), **settings)


@pytest.mark.parametrize("data", [DIGITS, POINTS], ids=["images", "points"])
@pytest.mark.parametrize("name", sorted(TINY))
def test_every_recipe_has_latents_and_pictures(name, data):
    """What has no encoder is searched; pictures have the data's shape; modes and random numbers stay."""
    model = model_of(name, data)
    model.train()
    x = normal(3, *data.shape).clamp(-1, 1)
    state = torch.get_rng_state()
    if name in IMPLICIT:
        with pytest.raises(NotOffered, match="offers no encode"):
            encode(model, x)
    z = latents_of(model, x, steps=2, restarts=2) if name in IMPLICIT else encode(model, x)
    numbers = flat(z)
    assert len(numbers) == 3 and numbers.isfinite().all()
    assert decode(model, z).shape == x.shape
    first, last = shaped(numbers[:2], z), shaped(numbers[1:], z)
    between = interpolations(model, first, last, 4)
    assert between.shape == (2, 4, *data.shape)
    # Not to the bit: another number of rows at once is another order of sums.
    assert torch.allclose(between[:, 0], decode(model, first).detach(), atol=1e-3)
    assert torch.allclose(between[:, -1], decode(model, last).detach(), atol=1e-3)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    for wrong in (numbers[:, 1:], torch.cat([numbers, numbers], 1), numbers[0]):
        with pytest.raises(ValueError, match="z must be"):
            shaped(wrong, z)
    if isinstance(z, tuple):
        with pytest.raises(ValueError, match="z must have"):
            decode(model, z[1:])


@pytest.mark.parametrize("name", ["vae", "hierarchical_vae", "latent_diffusion", "latent_adversarial_diffusion"])
def test_decoding_what_was_encoded_is_the_models_own_reconstruction(name):
    model = model_of(name).eval()
    x = normal(5, 1, 8, 8).clamp(-1, 1)
    own = model.reconstruct(x)
    assert torch.allclose(decode(model, encode(model, x)), own, atol=1e-6)
    assert torch.allclose(reconstruct(model, x), own, atol=1e-6)
    assert reconstruction_error(model, x) == pytest.approx((own - x).square().mean().sqrt().item(), rel=1e-5)


def test_the_latents_of_a_linear_vae_are_its_means():
    weight = normal(2, 4)
    vae = VAE(Linear(weight, 0.3), Linear(weight.T, 1.0), StandardNormal(2))
    x = normal(7, 4)
    assert torch.allclose(encode(vae, x), x @ weight.T)
    assert torch.allclose(decode(vae, x @ weight.T), x @ weight.T @ weight, rtol=1e-5)


def test_many_go_in_parts():
    weight = normal(2, 4)
    vae = VAE(Linear(weight, 0.3), Linear(weight.T, 1.0), StandardNormal(2))
    x = normal(1100, 4)
    assert encode(vae, x).shape == (1100, 2) and torch.allclose(encode(vae, x)[1000:], encode(vae, x[1000:]))
    assert reconstruct(vae, x).shape == x.shape


def test_inversion_of_a_gaussian_diffusion():
    """Its noise is x_1 = x √(α_1² s² + σ_1²)/s (the flow of a Gaussian is a scaling), up to an error O(1/steps)."""
    model = gaussian_diffusion(steps=400)
    x = 0.5 * normal(50, 3, dtype=torch.float64)
    alpha, sigma = (float(c) for c in model.denoiser.schedule.alpha_sigma(1.0))
    alpha_0, sigma_0 = (float(c) for c in model.denoiser.schedule.alpha_sigma(0.0))
    wanted = alpha_0 * x * math.sqrt((alpha**2 * 0.25 + sigma**2) / (alpha_0**2 * 0.25 + sigma_0**2))
    rough, fine = (encode(model, x, steps=steps) for steps in (100, 400))
    assert (fine / wanted - 1).abs().max() < 0.03
    assert (rough / wanted - 1).abs().max() > 3 * (fine / wanted - 1).abs().max()


def test_inversion_with_iterations_undoes_ddim():
    """The mean at the end of noise at t = 0, too."""
    model = gaussian_diffusion(steps=50)
    x = 0.5 * normal(50, 3, dtype=torch.float64)
    once, often = (decode(model, encode(model, x, iterations=k)) for k in (1, 30))
    assert (often - x).abs().max() < 1e-6 < 1e-4 < (once - x).abs().max()
    assert reconstruction_error(model, x) == pytest.approx((once - x).square().mean().sqrt().item(), rel=1e-6)


def test_a_chain_that_starts_clean_is_inverted_too():
    """Its last step is x̂ itself; the noise of N(0, ½²) is N(0, 1), 150 of which have a relative error of √(2/150)."""
    model = gaussian_diffusion(schedule=VariancePreservingSchedule(), timesteps=100)
    assert model.starts_clean
    x = 0.5 * normal(50, 3, dtype=torch.float64)
    assert reconstruction_error(model, x) < 0.05
    assert abs(encode(model, x).var().item() - 1) < 4 * math.sqrt(2 / 150)


@pytest.mark.parametrize("schedule", [VariancePreservingSchedule(), LogSNRLinearSchedule(3.0, -8.0)])
def test_decoding_noise_is_ddims_sample_of_it(schedule):
    """Of a chain that starts clean and of one that does not, whose picture is x̂ of its end."""
    model = gaussian_diffusion(schedule=schedule, timesteps=10)
    generator = torch.Generator().manual_seed(3)
    wanted = model.sample(4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(decode(model, torch.randn(4, 3, generator=generator)), wanted)


def test_linear_inversion_recovers_x_and_z():
    """G(z) = W z with W of full column rank: the least squares solution, which is z itself."""
    weight = torch.tensor([[1.0, 0.2], [0.0, 1.0], [0.5, -0.5]])
    gan = linear_gan(weight)
    z = normal(20, 2, seed=3)
    x = z @ weight.T
    found = invert(gan, x, steps=300)
    assert torch.allclose(found, z, atol=5e-3) and reconstruction_error(gan, x, steps=300) < 5e-3
    torch.manual_seed(123)
    assert torch.equal(found, invert(gan, x, steps=300)), "a function of its own seed"
    # Out of the generator's range, the nearest that it makes.
    off = torch.linalg.cross(weight[:, 0], weight[:, 1])
    assert torch.allclose(invert(gan, x + off, steps=300), z, atol=5e-3)
    assert gan.generator.weight.grad is None


def test_inversion_stays_where_noise_is():
    """Far x would need far z: the ball of radius √d + 3 ends at it."""
    gan = linear_gan(torch.eye(2))
    found = invert(gan, torch.tensor([[100.0, 0.0]]), steps=200)
    assert torch.allclose(found, torch.tensor([[math.sqrt(2) + 3, 0.0]]), atol=0.02)


def test_the_rate_of_an_inversion_falls_to_nothing():
    """Far from x every step of Adam is as long as its rate: 0.1 (1 + ¾ + ½ + ¼) of four, and back to where it began."""
    gan, start = linear_gan(torch.eye(1)), torch.randn(1, 1, generator=torch.Generator().manual_seed(0))
    found = invert(gan, torch.tensor([[1000.0]]), steps=4, restarts=1, lr=0.1)
    assert (found - start).item() == pytest.approx(0.25, rel=1e-3)


class Valleys(nn.Module):
    """z → z of a positive number, -z/10 of a negative one: to look like 1.5 from there leads away from z = 1.5."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, z, cond=None):
        return Delta(torch.where(z < 0, -0.1 * z, z))


def test_the_best_restart_is_chosen_for_each():
    """Half of the starts are in the wrong valley: of eight together 1 in 256, 0.25 ± 0.5 of 64 examples."""
    gan = GAN(Valleys(), Critic(MLPDiscriminator(1, 8)), 1)
    x = torch.full((64, 1), 1.5)
    far = [((decode(gan, invert(gan, x, steps=60, restarts=k)) - x).abs() > 0.1).sum() for k in (1, 8)]
    # 64 halves have a standard error of 4.
    assert 16 < far[0] < 48 and far[1] <= 2


def denoising_gan(timesteps=2, d=3, latent=2):
    from components.backbones import MLP

    torch.manual_seed(1)
    schedule = VariancePreservingSchedule()
    backbone = MLP(d, 16, 1)
    nn.init.normal_(backbone.last.weight, std=0.3)
    denoiser = Denoiser(Stochastic(backbone, latent), schedule, "sample")
    critic = Critic(MLPDiscriminator(d, 8, given_features=d, timed=timesteps > 1))
    return AdversarialDiffusion(denoiser, critic, d, timesteps, latent).eval()


@pytest.mark.parametrize("timesteps", [1, 2, 4])
def test_noise_given_makes_what_noise_drawn_would(timesteps):
    """The sampler's own draws, in its order: the same sample, which is the chain of p(x_s|x_t) by hand."""
    model = denoising_gan(timesteps)
    generator = torch.Generator().manual_seed(5)
    z = model.noise(6, generator)
    assert [part.shape[1] for part in z] == [3, *[2, 3] * (timesteps - 1), 2]
    wanted = model.sample(6, generator=torch.Generator().manual_seed(5))
    assert torch.equal(decode(model, z), wanted)
    x = z[0]
    for i in reversed(range(timesteps)):
        p = model.denoiser.reverse(x, i / timesteps, (i + 1) / timesteps, z=z[2 * (timesteps - i) - 1])
        x = p.mean + p.std * z[2 * (timesteps - i)] if i else p.mean
    assert torch.allclose(x, wanted, atol=1e-6)


def test_a_sample_of_a_denoising_gan_is_found_again():
    model = denoising_gan()
    x = model.sample(4, generator=torch.Generator().manual_seed(2))
    start = decode(model, invert(model, x, steps=1, lr=1e-6)).detach()
    assert reconstruction_error(model, x, steps=200) < 0.2 * (start - x).square().mean().sqrt()


def test_who_cannot_be_inverted_or_encoded_is_refused():
    vae = model_of("vae")
    with pytest.raises(NotOffered, match=r"VAE offers no noise\(n\)"):
        invert(vae, torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="got 0, 4 and"):
        invert(linear_gan(torch.eye(2)), torch.zeros(1, 2), steps=0)
    for function in (encode, decode):
        with pytest.raises(NotOffered, match=f"Linear offers no {function.__name__}"):
            function(nn.Linear(2, 2), torch.zeros(1, 2))


def test_an_arc_keeps_the_length_and_turns_evenly():
    a, b = nn.functional.normalize(normal(2, 5, 7, dtype=torch.float64), dim=2) * 3
    path = spherical(a, b, torch.linspace(0, 1, 9))
    assert torch.allclose(path.norm(dim=2), torch.full((5, 9), 3.0, dtype=torch.float64))
    assert torch.allclose(path[:, 0], a) and torch.allclose(path[:, -1], b)
    assert torch.allclose(evenness(path), torch.ones(5, dtype=torch.float64), atol=1e-6)


def test_an_arc_of_no_or_of_a_half_turn_is_straight():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    path = spherical(a, torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), torch.tensor([0.5]))
    assert path.tolist() == [[[1.5, 0.0]], [[-0.5, 0.0]]]


def test_noise_goes_on_an_arc_and_means_in_a_line():
    """Of N(0, I) in many dimensions the middle of the arc has norm √d, of the line √(d/2)."""
    a, b = normal(2, 4, 1000)
    gan, diffusion = linear_gan(torch.eye(1000)), gaussian_diffusion(d=1000)
    vae = VAE(Linear(torch.eye(1000), 1.0), Linear(torch.eye(1000)), StandardNormal(1000))
    for model, square in ((gan, 1000), (diffusion, 1000), (vae, 500)):
        middle = interpolate(model, a, b, 3)[:, 1]
        # χ² of 1000 has a relative deviation of √(2/1000), and a·b one of √(1/1000): four of both.
        assert (middle.square().sum(1) / square - 1).abs().max() < 4 * math.sqrt(3 / 1000)
    with pytest.raises(ValueError, match="steps be at least 2"):
        interpolate(vae, a, b, 1)


def test_evenness_by_hand():
    """Steps of 1, 1, 4 have mean 2 and a longest of 4; a jump is S - 1, and so is standing still."""
    path = torch.tensor([[0.0, 1, 2, 6], [0, 0, 9, 9], [0, 3, 6, 9], [5, 5, 5, 5], [0, 0, 0, 0]])[..., None]
    assert evenness(path).tolist() == [2, 3, 1, 3, 3]
    assert torch.allclose(evenness(-7 * path + 1), evenness(path))
    with pytest.raises(ValueError, match="S at least 3"):
        evenness(path[:, :2])


class Steep(nn.Module):
    """z → tanh(k z): nothing for a while, then all at once."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, z, cond=None):
        return Delta((self.k * z).tanh())


def test_smoothness_of_a_line_and_of_a_jump():
    """A linear decoder is even; a switch between two pictures is all in one of its 15 steps."""
    a, b = torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, -2.0]])
    encoder = Linear(torch.eye(2), 1.0)
    even = VAE(encoder, Linear(torch.eye(2)), StandardNormal(2))
    switch = VAE(encoder, Steep(1e6), StandardNormal(2))
    assert smoothness(even, a, b) == pytest.approx(1, rel=1e-5)
    assert smoothness(switch, a, b) == pytest.approx(15, rel=1e-5)
    # The mean over paths: one that stands still counts as 15.
    still = torch.tensor([[1.0, 1.0]])
    assert smoothness(even, torch.cat([a, still]), torch.cat([b, still])) == pytest.approx(8, rel=1e-5)
    # In the space of a feature that is x³, steps at the ends are the longest: 1 - (13/15)³ of 2 in 15.
    cubed = smoothness(even, a, b, features=lambda x: x[:, :1] ** 3)
    assert cubed == pytest.approx(15 * (1 - (13 / 15) ** 3) / 2, rel=1e-4)


def test_a_probe_of_labels_themselves():
    y = torch.arange(200) % 4
    z = nn.functional.one_hot(y, 4).float()
    assert linear_probe(z[:100], y[:100], z[100:], y[100:]) == 1
    # Standardized, so that neither units nor a shift matter.
    assert linear_probe(1e-6 * z[:100] + 3, y[:100], 1e-6 * z[100:] + 3, y[100:]) == 1


def test_a_probe_of_noise_is_at_chance():
    """Of four even classes ¼, with a standard error of √(¼ ¾/2000) of held-out ones."""
    z, y = normal(3000, 8), torch.arange(3000) % 4
    assert abs(linear_probe(z[:1000], y[:1000], z[1000:], y[1000:]) - 0.25) < 4 * math.sqrt(0.1875 / 2000)


def test_a_probe_of_factors():
    """y = W z + noise of the same variance has R² ½ in each factor; of noise about -d/N; of z itself 1."""
    z = normal(6000, 4, dtype=torch.float64)
    weight = torch.linalg.qr(normal(4, 4, seed=1, dtype=torch.float64)).Q[:2]
    clean = z @ weight.T
    y = clean + normal(6000, 2, seed=2, dtype=torch.float64)
    assert linear_probe(z[:3000], clean[:3000], z[3000:], clean[3000:]) > 0.9999
    # R² of n = 3000 has a standard error of about 2 √(R² (1 - R²)²/n) = .013.
    assert linear_probe(z[:3000], y[:3000], z[3000:], y[3000:]) == pytest.approx(0.5, abs=0.05)
    noise = normal(6000, seed=4)
    assert abs(linear_probe(z[:3000], noise[:3000], z[3000:], noise[3000:])) < 0.01


@pytest.mark.parametrize(
    "z,y,more,said",
    [
        (torch.zeros(4, 2), torch.arange(3), torch.zeros(4, 2), "got 3 for 4"),
        (torch.zeros(4, 2), torch.arange(4), torch.zeros(4, 3), r"\(4, 2\) and \(4, 3\)"),
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), torch.zeros(4, 2), "two classes"),
        (torch.full((4, 2), math.nan), torch.arange(4), torch.zeros(4, 2), "finite"),
        (torch.zeros(4, 2), torch.arange(8).view(4, 2), torch.zeros(4, 2), "at least two classes; got shape"),
    ],
)
def test_a_probe_of_what_does_not_fit_is_refused(z, y, more, said):
    with pytest.raises(ValueError, match=said):
        linear_probe(z, y, more, y)


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_active_units_of_a_linear_vae(dead):
    """Means W x of unit x have variance 1 where W has a unit row, and 0.09² < 0.01 < 0.11² where it is small."""
    scale = torch.ones(5)
    scale[:dead] = 0.0
    scale[3:] = torch.tensor([0.09, 0.11])
    vae = VAE(Linear(torch.diag(scale), 0.3), Linear(torch.eye(5), 1.0), StandardNormal(5))
    x = normal(4000, 5)
    x = (x - x.mean(0)) / x.std(0)
    assert active_units(vae, x) == 4 - dead
    assert active_units(vae, x, least=1e-4) == 5 - dead


def test_active_units_of_other_models():
    """Of a latent model those that its first stage made; none of what has no learned posterior."""
    x = normal(64, 5)
    first = Autoencoder(
        Linear(torch.diag(torch.tensor([1.0, 1, 0.01, 0, 0])), 0.3, 5), Linear(torch.eye(5), 1.0), beta=1.0
    )
    model = LatentModel(first, gaussian_diffusion(d=5))
    model.scale.copy_(torch.tensor([1.0, 1, 100, 1, 1]))
    assert active_units(first, x) == active_units(model, x) == 2
    ladder, images = model_of("hierarchical_vae"), normal(32, 1, 8, 8).clamp(-1, 1)
    assert active_units(ladder, images, least=-1.0) == flat(encode(ladder, images)).shape[1] > 2
    diffusion = gaussian_diffusion(d=5, timesteps=4)
    codes = Autoencoder(Linear(torch.eye(5), 0.3, (5, 1, 1)), Linear(torch.eye(5), 1.0), VQ(4, 5))
    for other in (diffusion, HierarchicalVAE.from_diffusion(diffusion), linear_gan(torch.eye(5)), codes):
        with pytest.raises(NotOffered, match="posterior"):
            active_units(other, x)
    with pytest.raises(ValueError, match="two examples"):
        active_units(first, x[:1])
