"""Hidden features of every network: named by `layers`, returned by the same forward, with gradients."""

import pytest
import torch
from answers import randomized
from torch import nn

from components.backbones import MLP, DiT, SequenceTransformer, Stochastic, UNet
from components.discriminators import (
    FeatureDiscriminator,
    MLPDiscriminator,
    MultiScaleDiscriminator,
    NoiseOfPair,
    PatchDiscriminator,
    ResidualDiscriminator,
)
from components.encoders import MLPEncoder, ResidualEncoder, TimmEncoder, TimmFeatures, ViTEncoder
from components.schedules import CosineSchedule
from hybrids.critic import Critic

B, T, IMAGES, PAIRS = 4, torch.tensor([0.25, 0.5, 0.75, 0.5]), torch.randn(4, 2, 8, 8), torch.randn(4, 2, 8, 8)
BLOCKS = ("block_0", "block_1")
DOWN_UP = (*(f"down_{i}" for i in range(4)), "middle", *(f"up_{i}" for i in range(4)))

# The network, its inputs, the names of its hidden layers, and the shape of each feature but for the batch.
BACKBONES = {
    "unet": (lambda: UNet((2, 8, 8), 8), (IMAGES, T), DOWN_UP,
             [(8, 8, 8)] * 2 + [(16, 4, 4)] * 5 + [(8, 8, 8)] * 2),
    "unet of sequences": (lambda: UNet((2, 8), 8, context=6), (IMAGES[:, :, 0], T), DOWN_UP,
                          [(8, 8)] * 2 + [(16, 4)] * 5 + [(8, 8)] * 2),
    "mlp": (lambda: MLP((2, 8, 8), 8, 2), (IMAGES, T), BLOCKS, [(8,)] * 2),
    "dit": (lambda: DiT((2, 8, 8), 4, 8, 2, 2), (IMAGES, T), BLOCKS, [(4, 8)] * 2),
    "sequence": (lambda: SequenceTransformer((2, 8), 2, 8, 2, 2), (IMAGES[:, :, 0], T), BLOCKS, [(4, 8)] * 2),
    "stochastic": (lambda: Stochastic(MLP((2, 8, 8), 8, 2), 3), (IMAGES, T, None, torch.randn(4, 3)), BLOCKS,
                   [(8,)] * 2),
}  # fmt: skip
ENCODERS = {
    "residual encoder": (lambda: ResidualEncoder((2, 8, 8), 3, 8), (IMAGES,), ("level_0", "level_1"),
                         [(8, 8, 8), (16, 4, 4)]),
    "mlp encoder": (lambda: MLPEncoder((2, 8, 8), 3, 8, 2), (IMAGES,), BLOCKS, [(8,)] * 2),
    "vit": (lambda: ViTEncoder((2, 8, 8), 3, 4, 8, 2, 2), (IMAGES,), BLOCKS, [(5, 8)] * 2),
    "timm": (lambda: TimmEncoder("test_resnet", 3, channels=2).eval(), (torch.randn(4, 2, 32, 32),),
             ("act1", "layer1", "layer2", "layer3", "layer4"), None),
}  # fmt: skip
DISCRIMINATORS = {
    "residual": (lambda: ResidualDiscriminator((2, 8, 8), 8, timed=True, minibatch_std=True), (IMAGES, T),
                 ("block_0", "conv", "dense"), [(16, 4, 4)] * 2 + [(16,)]),
    "residual, spectral": (lambda: ResidualDiscriminator((2, 8, 8), 8, spectral_norm=True).eval(), (IMAGES,),
                           ("block_0", "conv", "dense"), [(16, 4, 4)] * 2 + [(16,)]),
    "mlp discriminator": (lambda: MLPDiscriminator((2, 8, 8), 8, 2), (IMAGES,), BLOCKS, [(8,)] * 2),
    "patch": (lambda: PatchDiscriminator(2, 8), (IMAGES,), ("conv_0", "conv_1", "conv_2"),
              [(8, 4, 4), (16, 2, 2), (32, 2, 2)]),
    "multi": (lambda: MultiScaleDiscriminator(2, 2, 8, 1), (IMAGES,),
              tuple(f"scale_{i}.conv_{j}" for i in range(2) for j in range(2)),
              [(8, 4, 4), (16, 4, 4), (8, 2, 2), (16, 2, 2)]),
    "feature": (lambda: FeatureDiscriminator(TimmFeatures("test_resnet", (1, 2), channels=2), (2, 32, 32), 8).eval(),
                (torch.randn(4, 2, 32, 32),), ("map_1", "head_1", "map_0", "head_0"),
                [(8, 4, 4), (8, 4, 4), (8, 8, 8), (8, 4, 4)]),
    "pairs": (lambda: NoiseOfPair(MLPDiscriminator((2, 8, 8), 8, 2, timed=True, given_features=(2, 8, 8)),
                                  CosineSchedule(), 4), (IMAGES, T, None, PAIRS), BLOCKS, [(8,)] * 2),
}  # fmt: skip


def each(*shelves):
    cases = {name: case for shelf in shelves for name, case in shelf.items()}
    return pytest.mark.parametrize("make, inputs, layers, shapes", cases.values(), ids=cases)


def point(output):
    """The tensor of an output: itself, or a distribution's mean."""
    return output if isinstance(output, torch.Tensor) else output.mean


def made(make):
    """A network whose zero layers have values, so that every layer counts."""
    network = make()
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.any() for p in own):
            randomized(module)
    return network


@each(BACKBONES, ENCODERS, DISCRIMINATORS)
def test_features_come_in_order_beside_the_same_output(make, inputs, layers, shapes):
    network = made(make)
    assert network.layers == layers
    alone = point(network(*inputs))
    output, features = network(*inputs, hidden=layers)
    assert torch.equal(point(output), alone)
    assert tuple(features) == layers
    if shapes is not None:
        assert [tuple(h.shape) for h in features.values()] == [(B, *shape) for shape in shapes]
    # whatever the order in which they are named, and only those
    output, few = network(*inputs, hidden=layers[1::-1])
    assert torch.equal(point(output), alone) and tuple(few) == layers[:2]
    assert all(torch.equal(few[name], features[name]) for name in few)


@each(BACKBONES, ENCODERS, DISCRIMINATORS)
def test_each_feature_is_on_the_way_to_the_output(make, inputs, layers, shapes):
    """The output depends on every feature, and every feature on the input."""
    x, *rest = inputs
    x = x.clone().requires_grad_()
    output, features = made(make)(x, *rest, hidden=layers)
    for name, slope in zip(layers, torch.autograd.grad(point(output).sum(), features.values(), retain_graph=True)):
        assert slope.any(), name
    for name, h in features.items():
        (slope,) = torch.autograd.grad(h.square().sum(), x, retain_graph=True)
        assert slope.isfinite().all() and slope.flatten(1).any(1).all(), name


@each(DISCRIMINATORS)
def test_features_of_discriminators_differentiate_twice(make, inputs, layers, shapes):
    x, *rest = inputs
    x = x.clone().requires_grad_()
    network = made(make)
    features = network(x, *rest, hidden=layers)[1]
    (slope,) = torch.autograd.grad(sum(h.square().sum() for h in features.values()), x, create_graph=True)
    slope.square().sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)


@each(DISCRIMINATORS)
def test_a_critic_passes_them_on_of_the_augmented_image(make, inputs, layers, shapes):
    x, *rest = inputs
    network = made(make)
    given = {name: value for name, value in zip(("t", "cond", "given"), rest) if value is not None}
    logits, features = Critic(network, augment=torch.tanh)(x, hidden=layers, **given)
    expected, of_network = network(x.tanh(), hidden=layers, **given)
    assert torch.equal(logits, expected) and tuple(features) == layers
    assert all(torch.equal(features[name], of_network[name]) for name in layers)


@pytest.mark.parametrize("hidden", [("block_9",), "middle"], ids=["a name", "a string"])
@each(BACKBONES, ENCODERS, DISCRIMINATORS)
def test_an_unknown_name_is_refused_with_those_there_are(make, inputs, layers, shapes, hidden):
    with pytest.raises(ValueError) as refused:
        make()(*inputs, hidden=hidden)
    assert str(refused.value) == f"hidden must be a sequence of names out of {layers}; got {hidden!r}"


def test_a_wrapped_network_without_hidden_layers_has_none():
    class Plain(nn.Module):
        def forward(self, x, given):
            return (x * given).flatten(1).sum(1)

    assert NoiseOfPair(Plain(), CosineSchedule(), 1).layers == ()


@pytest.mark.parametrize("name", ["dit", "multi"])
def test_features_of_a_compiled_network(name):
    make, inputs, layers, _ = {**BACKBONES, **DISCRIMINATORS}[name]
    network = made(make).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs, hidden=layers[:2]), network(*inputs, hidden=layers[:2]))
