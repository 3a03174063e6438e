"""What training adds: rows 38 to 40."""

import torch
from answers import F64
from torch import nn

from components.backbones import UNet
from components.decoders import NormalHead, ResidualDecoder
from components.denoisers import Denoiser
from components.discriminators import PatchDiscriminator
from components.encoders import ResidualEncoder
from components.losses import Perceptual, hinge
from components.schedules import FlowSchedule
from hybrids import Autoencoder, Critic, Diffusion, LatentModel
from hybrids.data import Data, load_data
from hybrids.ema import EMA
from hybrids.models.cache import draw_latents

IMAGE, MAP = (1, 8, 8), (2, 4, 4)


def autoencoder(**options):
    encoder = ResidualEncoder(IMAGE, MAP, 8, (1, 1))
    return Autoencoder(encoder, ResidualDecoder(MAP, IMAGE, NormalHead(0.5), 8, (1, 1)), **options)


def test_the_weighted_adversarial_gradient_is_as_long_as_the_reconstruction_s(row):
    """At the last layer it has length d_w ‖∇rec‖ ‖∇adv‖/(‖∇adv‖ + 1e-4). Esser 2021, 2012.09841, eq. 7."""
    x = torch.rand(8, *IMAGE, dtype=F64) * 2 - 1
    for scale in (1.0, 0.1, 1e-3):

        class Quiet(PatchDiscriminator):
            def forward(self, *args, scale=scale, **given):
                return scale * super().forward(*args, **given)

        parts = {"critic": Critic(Quiet(1, 8, 1), hinge), "critic_weight": 0.8, "perceptual": Perceptual.random(1)}
        model = autoencoder(**parts).double()
        terms = model.loss(x)
        layer = model.decoder.last.weight

        def norm(*names, weigh=True):
            loss = sum((terms[n][0] if weigh else 1.0) * terms[n][1].mean() for n in names)  # noqa: B023
            return torch.autograd.grad(loss, layer, retain_graph=True)[0].norm()  # noqa: B023

        rec, adv = norm("reconstruction", "perceptual"), norm("adversarial", weigh=False)
        expected = 0.8 * adv * (rec / (adv + 1e-4)).clamp(max=1e4)
        row(
            38,
            norm("adversarial"),
            expected,
            relative=1e-6,
            words=f"d_w = .8, logits × {scale:g}{', clamped' if scale < 0.1 else ''}",
        )


def test_scaled_latents_have_unit_variance_on_the_training_set(row):
    """Encoded, shifted and scaled, the training set has variance 1 in each channel. Rombach 2021, 2112.10752."""
    whole = load_data("digits", 8, 1)
    data = Data(whole.name, whole.shape, 10, whole.grey_levels, whole.x[:512], whole.labels[:512])
    for per_channel in (True, False):
        second = Diffusion(Denoiser(UNet(MAP, 8, (1,), 1), FlowSchedule(), "flow"), MAP)
        model = LatentModel(autoencoder(), second, per_channel=per_channel)
        with torch.no_grad():
            # Far from the standard normal, and each channel otherwise.
            model.first.encoder.last.bias[:2] = torch.tensor([3.0, -1.0])
            model.first.encoder.last.weight[:2] *= torch.tensor([4.0, 0.5])[:, None, None, None]
        stored = model.cache(data)
        w = model.normalized(torch.cat([draw_latents(stored.x) for _ in range(8)]))
        over = (0, 2, 3) if per_channel else (0, 1, 2, 3)
        words = "by channel" if per_channel else "all channels together"
        row(39, w.var(over), 1.0, 0.01, words=f"variance, {words}")
        row(39, w.mean(over), 0.0, 0.02, words=f"mean, {words}")


class Weight(nn.Module):
    """One parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=F64))


def test_the_average_of_a_constant(row):
    """From 0, after n steps at 1 the average is 1 - dⁿ; with warm-up 1 - Π min(d, (1 + i)/(10 + i)). Ho 2020."""
    for decay, warmup, n in ((0.999, False, 50), (0.9, False, 2), (0.99, True, 5), (0.2, True, 5)):
        model = Weight()
        average = EMA(model, decay, warmup)
        model.weight.data.fill_(1.0)
        kept = 1.0
        for i in range(1, n + 1):
            average.update_parameters(model)
            kept *= min(decay, (1 + i) / (10 + i)) if warmup else decay
        words = f"d = {decay}, n = {n}{', warm-up' if warmup else ''}"
        row(40, average.module.weight, 1 - kept, 1e-12, words=words)
