"""Image networks at any size, square or oblong: the output keeps it, every pixel counts, sides that divide stay."""

import pytest
import torch
import torch.nn.functional as F
from answers import assert_gradients, randomized
from torch import nn

from components import ladders
from components.backbones import DiT, SequenceTransformer, UNet, multipliers_to, transformers, unet
from components.decoders import DeltaHead, ResidualDecoder, ResidualGenerator, StyleGenerator, generators
from components.discriminators import (
    FeatureDiscriminator,
    MultiScaleDiscriminator,
    NoiseOfPair,
    PatchDiscriminator,
    ResidualDiscriminator,
    single,
)
from components.distributions import Delta, Normal
from components.encoders import ResidualEncoder, ViTEncoder, latent_shape, residual, vision
from components.layers import Upsample, cropped, halved, padded
from components.losses.perceptual import RandomFeatures
from components.schedules import CosineSchedule

SIZES = [(8, 8), (9, 9), (12, 20), (28, 28), (33, 17)]
T = torch.tensor([0.2, 0.7])


class HierarchicalVAE(nn.Module):
    """A ladder and its decoder, x to the mean of p(x|z) at the mean of each q, with each p's own parameters added."""

    def __init__(self, shape, levels):
        super().__init__()
        ladder = ladders.convolutional_ladder(shape, levels, 2, 8)
        self.encoder, self.levels = ladder.encoder, nn.ModuleList(ladder.levels)
        self.decoder = ResidualDecoder(ladder.state, shape, DeltaHead(), 8)

    def forward(self, x):
        features, above, extra = self.encoder(x), None, 0.0
        for level in self.levels:
            q, p = level.posterior(above, features), level.prior(above)
            extra = extra + p.mean.mean() + p.std.mean() + q.std.mean()
            above = level.below(above, q.mean)
        return self.decoder(above).mean + extra


def pair(shape):
    discriminator = ResidualDiscriminator(shape, 8, timed=True, given_channels=shape[0])
    return NoiseOfPair(discriminator, CosineSchedule(), 4)


# The network of a shape, and its inputs after x, for B = 2; its output is like x, logits, or a posterior.
LIKE_X = {
    "unet": (lambda shape: UNet(shape, 8, multipliers_to(4, shape), 1), lambda shape: (T,)),
    "unet, five resolutions or fewer": (
        lambda shape: UNet(shape, 8, [1] * min(5, min(shape[1:]).bit_length()), 1, self_condition=True),
        lambda shape: (T, None, torch.randn(2, *shape)),
    ),
    "dit": (lambda shape: DiT(shape, 2, 8, 1, 2), lambda shape: (T,)),
    "dit, patches of 8": (lambda shape: DiT(shape, 8, 8, 1, 2), lambda shape: (T,)),
    "hierarchical vae": (lambda shape: HierarchicalVAE(shape, 2), lambda shape: ()),
    "hierarchical vae, four levels": (lambda shape: HierarchicalVAE(shape, 4), lambda shape: ()),
}
TO_OTHERS = {
    "residual encoder": (lambda shape: ResidualEncoder(shape, 3, 8), lambda shape: ()),
    "residual encoder, maps": (lambda shape: ResidualEncoder(shape, latent_shape(3, shape), 8), lambda shape: ()),
    "vit": (lambda shape: ViTEncoder(shape, 3, 4, 8, 1, 2), lambda shape: ()),
    "residual discriminator": (lambda shape: ResidualDiscriminator(shape, 8, minibatch_std=True), lambda shape: ()),
    "patch discriminator": (lambda shape: PatchDiscriminator(shape[0], 8), lambda shape: ()),
    "multi-scale discriminator": (lambda shape: MultiScaleDiscriminator(shape[0], 2, 8), lambda shape: ()),
    "discriminator of pairs": (pair, lambda shape: (T, None, torch.randn(2, *shape))),
    "projected discriminator": (
        lambda shape: FeatureDiscriminator(RandomFeatures(shape[0]), shape, 8), lambda shape: (),
    ),
}  # fmt: skip
FROM_Z = {
    "residual decoder": lambda shape: ResidualDecoder(3, shape, DeltaHead(), 8),
    "residual decoder, maps": lambda shape: ResidualDecoder(latent_shape(3, shape), shape, DeltaHead(), 8),
    "residual generator": lambda shape: ResidualGenerator(3, shape, width=8),
    "residual generator, nearest": lambda shape: ResidualGenerator(3, shape, width=8, resampling="nearest"),
    "style generator": lambda shape: StyleGenerator(3, shape, width=8),
}
MODULES = (unet, transformers, residual, vision, single, generators, ladders)


def called(name, sides, seed=0):
    """Return a network with weights that are anything, its input (B = 2) and its output, the mean of a distribution."""
    torch.manual_seed(seed)
    shape = (2, *sides)
    if name in FROM_Z:
        network, others = randomized(FROM_Z[name](shape)), ()
        latent = network.latent if isinstance(network.latent, tuple) else (network.latent,)
        x = torch.randn(2, *latent)
    else:
        make, inputs = {**LIKE_X, **TO_OTHERS}[name]
        network, x, others = randomized(make(shape)), torch.randn(2, *shape), inputs(shape)
    x.requires_grad_()
    output = network(x, *others)
    if isinstance(output, Normal):
        output = output.mean + output.std.mean()
    elif isinstance(output, Delta):
        output = output.mean
    return network, x, output


@pytest.mark.parametrize("sides", SIZES, ids=lambda sides: "{}x{}".format(*sides))
@pytest.mark.parametrize("name", [*LIKE_X, *TO_OTHERS, *FROM_Z])
def test_every_network_takes_every_size(name, sides):
    """An image comes out with the input's size; every parameter and every pixel has a gradient."""
    network, x, output = called(name, sides)
    assert output.isfinite().all()
    if name not in TO_OTHERS:
        assert output.shape == (2, 2, *sides)
    (output * torch.randn_like(output)).sum().backward()
    assert_gradients(network)
    assert (x.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize("sides", [(8, 8), (16, 32)], ids=["8x8", "16x32"])
@pytest.mark.parametrize("name", [*LIKE_X, *TO_OTHERS, *FROM_Z])
def test_where_sides_divide_nothing_is_padded_or_cropped(name, sides, monkeypatch):
    """To the bit: with plain pooling by two, and without padding and cropping, the output is the same."""
    _, _, expected = called(name, sides)
    plain = {"halved": lambda x: F.avg_pool2d(x, 2), "padded": lambda x, _: x, "cropped": lambda x, _: x}
    for module in MODULES:
        for function in plain.keys() & vars(module).keys():
            monkeypatch.setattr(module, function, plain[function])
    monkeypatch.setattr(Upsample, "forward", lambda self, x: self.conv(F.interpolate(x, scale_factor=2.0)))
    assert torch.equal(called(name, sides)[2], expected)


@pytest.mark.parametrize("sides", [(9,), (8, 9), (9, 9), (1, 7)])
def test_halved_repeats_an_odd_end_and_doubling_leads_back(sides):
    """As pooling after replicate padding at the end; what is constant over each cell comes back."""
    x = torch.randn(2, 3, *sides)
    ends = [n for side in reversed(sides) for n in (0, side % 2)]
    pool = F.avg_pool1d if len(sides) == 1 else F.avg_pool2d
    torch.testing.assert_close(halved(x), pool(F.pad(x, ends, "replicate"), 2))
    constant = cropped(F.interpolate(halved(x), scale_factor=2.0), sides)
    assert constant.shape == x.shape
    torch.testing.assert_close(cropped(F.interpolate(halved(constant), scale_factor=2.0), sides), constant)


def test_padded_and_cropped_return_x_itself_where_patches_divide():
    x = torch.randn(2, 3, 8, 12)
    assert padded(x, 4) is x and cropped(x, (8, 12)).data_ptr() == x.data_ptr() and cropped(x, (8, 12)).shape == x.shape
    assert torch.equal(padded(x, 5), F.pad(x, (0, 3, 0, 2))) and torch.equal(cropped(padded(x, 5), (8, 12)), x)


@pytest.mark.parametrize("network, sides, multiple", [
    (lambda shape: DiT(shape, 4, 8, 2, 2), (9, 14), (12, 16)),
    (lambda shape: ViTEncoder(shape, 3, 4, 8, 2, 2), (9, 14), (12, 16)),
    (lambda shape: SequenceTransformer(shape, 4, 8, 2, 2), (9,), (12,)),
], ids=["dit", "vit", "sequence"])  # fmt: skip
def test_patches_at_the_end_are_those_of_the_image_with_zeros_around_it(network, sides, multiple):
    """The network of the multiple of the patch, with the same weights, gives the same, cropped."""
    network_of, large = network((2, *sides)), network((2, *multiple))
    large.load_state_dict(randomized(network_of).state_dict())
    x = torch.randn(2, 2, *sides)
    t = () if isinstance(network_of, ViTEncoder) else (T,)
    output, expected = network_of(x, *t), large(padded(x, 4), *t)
    if not t:
        assert torch.equal(output.mean, expected.mean)
    else:
        assert torch.equal(output, cropped(expected, sides))


@pytest.mark.parametrize("sides, latent", [
    ((8, 8), (4, 4)), ((9, 9), (5, 5)), ((12, 20), (6, 10)), ((16, 16), (4, 4)), ((28, 28), (7, 7)),
    ((32, 32), (8, 8)), ((33, 17), (9, 5)), ((64, 64), (16, 16)), ((4, 4), (4, 4)),
])  # fmt: skip
def test_latents_are_a_quarter_of_the_image_rounded_up_and_at_least_four(sides, latent):
    assert latent_shape(3, (1, *sides)) == (3, *latent)


@pytest.mark.parametrize("shape, multipliers", [
    ((1, 4, 4), (1,)), ((1, 8, 8), (1, 2)), ((1, 9, 9), (1, 2)), ((1, 12, 20), (1, 2)), ((1, 28, 28), (1, 2, 2)),
    ((3, 32, 32), (1, 2, 2, 2)), ((1, 33, 17), (1, 2, 2)), ((2, 64), (1, 2, 2, 2, 2)),
])  # fmt: skip
def test_a_u_net_s_multipliers_lead_its_smallest_side_to_four_or_more(shape, multipliers):
    assert multipliers_to(4, shape) == multipliers
