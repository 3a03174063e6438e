import pytest
import torch
from answers import randomized
from torch import nn

from components.backbones import MLP, DiT, MappingNetwork, SequenceTransformer, Stochastic, UNet
from components.denoisers import Denoiser
from components.schedules import VariancePreservingSchedule

BACKBONES = {
    "unet": lambda **options: UNet((1, 8, 8), 8, (1, 2), blocks=1, **options),
    "mlp": lambda **options: MLP(6, 8, 1, **options),
    "dit": lambda **options: DiT((1, 8, 8), 4, 8, 1, 2, **options),
    "sequence": lambda **options: SequenceTransformer((2, 8), 2, 8, 1, 2, **options),
}
every_backbone = pytest.mark.parametrize("name", BACKBONES)
SHAPES = {"unet": (1, 8, 8), "mlp": (6,), "dit": (1, 8, 8), "sequence": (2, 8)}
Z, B = 3, 4


def shaken(module):
    """The module with no weight at zero, as after some training."""
    return randomized(module, 0.2)


def inputs(name):
    return torch.randn(B, *SHAPES[name]), torch.rand(B), torch.randn(B, Z)


@every_backbone
def test_z_changes_its_own_example_and_no_other(name):
    network, (x_t, t, z) = shaken(Stochastic(BACKBONES[name](), Z)), inputs(name)
    one = network(x_t, t, z=z)
    assert one.shape == x_t.shape
    other = network(x_t, t, z=torch.cat([-z[:1], z[1:]]))
    assert (one[0] - other[0]).abs().max() > 1e-3
    torch.testing.assert_close(one[1:], other[1:])


@every_backbone
def test_a_style_of_zero_leaves_the_backbone_as_it_is(name):
    backbone, (x_t, t, z) = shaken(BACKBONES[name]()), inputs(name)
    network = Stochastic(backbone, Z)
    nn.init.zeros_(network.mapping.linears[-1].weight)
    torch.testing.assert_close(network(x_t, t, z=z), backbone(x_t, t), rtol=0, atol=0)


@every_backbone
def test_labels_are_passed_on(name):
    network, (x_t, t, z) = shaken(Stochastic(BACKBONES[name](num_classes=5), Z)), inputs(name)
    cond = torch.arange(B)
    assert not torch.allclose(network(x_t, t, cond, z=z), network(x_t, t, z=z))


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_tokens_are_passed_on(name):
    network, (x_t, t, z) = shaken(Stochastic(BACKBONES[name](context=2), Z)), inputs(name)
    cond = torch.randn(B, 3, 2), torch.ones(B, 3, dtype=torch.bool)
    one = network(x_t, t, cond, z=z)
    assert not torch.allclose(one, network(x_t, t, z=z)) and not torch.allclose(one, network(x_t, t, cond, z=-z))


def test_what_else_the_backbone_takes_is_passed_on():
    network, (x_t, t, z) = shaken(Stochastic(UNet((1, 8, 8), 8, self_condition=True), Z)), inputs("unet")
    assert not torch.allclose(network(x_t, t, z=z, estimate=x_t), network(x_t, t, z=z))


@every_backbone
def test_a_denoiser_passes_z_on_and_it_has_a_gradient(name):
    schedule = VariancePreservingSchedule()
    denoiser, (x_t, _, z) = Denoiser(shaken(Stochastic(BACKBONES[name](), Z)), schedule, "sample"), inputs(name)
    z.requires_grad_()
    denoiser.reverse(x_t, 0.25, 0.5, z=z).mean.square().sum().backward()
    assert z.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad.any() for p in denoiser.backbone.mapping.parameters())


def test_the_style_is_of_the_direction_of_z_and_of_unit_variance():
    """z / rms(z): its length says nothing. He's initialization: within 20% of 1 over 2000 draws and 256 features."""
    mapping, z = MappingNetwork(32, 256), torch.randn(2000, 32)
    style = mapping(z)
    assert style.shape == (2000, 256) and style.square().mean().item() == pytest.approx(1, rel=0.2)
    torch.testing.assert_close(mapping(7 * z), style, rtol=1e-3, atol=1e-4)
    assert mapping(torch.zeros(2, 32)).isfinite().all()


@pytest.mark.parametrize("make, message", [
    (lambda: MappingNetwork(0, 4), "latent and depth must be at least 1; got 0 and 3"),
    (lambda: Stochastic(MLP(6, 8, 1), 3, depth=0), "latent and depth must be at least 1; got 3 and 0"),
    (lambda: Stochastic(nn.Linear(2, 2), 3), "must hold one TimeAndLabel.*; a Linear holds 0"),
    (lambda: Stochastic(nn.ModuleList([MLP(6, 8, 1), MLP(6, 8, 1)]), 3), "a ModuleList holds 2"),
    (lambda: MappingNetwork(3, 4)(torch.zeros(2, 4)), r"z must be \(B, 3\); got shape \(2, 4\)"),
    (lambda: Stochastic(MLP(6, 8, 1), 3)(torch.zeros(2, 6), torch.tensor(0.5)), r"z must be \(B, 3\).*got None"),
    (lambda: Stochastic(MLP(6, 8, 1), 3)(torch.zeros(2, 6), torch.tensor(0.5), z=torch.zeros(1, 3)),
     r"z must be \(2, 3\), as many as x_t; got shape \(1, 3\)"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_self_condition_is_the_backbone_s():
    for wanted in (False, True):
        assert Stochastic(UNet((1, 8, 8), 8, self_condition=wanted), Z).self_condition is wanted
