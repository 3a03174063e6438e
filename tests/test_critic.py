import cmath

import pytest
import torch
from answers import F64
from torch import nn

from components import losses
from components.losses import non_saturating, relativistic, wasserstein
from hybrids.critic import Critic


class Linear(nn.Module):
    """D(x) = w·x."""

    def __init__(self, d=5, dtype=F64):
        super().__init__()
        self.w = nn.Parameter(torch.randn(d, dtype=dtype))

    def forward(self, x):
        return x @ self.w


class Patches(nn.Module):
    """(B, 1, h, w) logits of an image."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 1, 3))

    def forward(self, x, t=None):
        return self.net(x if t is None else x * t[:, None, None, None])


def images(n=4):
    return torch.randn(2, n, 1, 8, 8)


# The objectives of both sides


def test_tell_returns_the_pair_s_loss_and_the_logits_as_measurements():
    critic = Critic(Linear())
    real, fake = torch.randn(2, 6, 5, dtype=F64)
    terms = critic.tell(real, fake)
    assert list(terms) == ["adversarial", "logits/real", "logits/fake"]
    assert [weight for weight, _ in terms.values()] == [1.0, 0.0, 0.0]
    torch.testing.assert_close(terms["adversarial"][1], non_saturating.discriminator(critic(real), critic(fake)))
    torch.testing.assert_close(terms["logits/real"][1], critic(real).detach())
    torch.testing.assert_close(terms["logits/fake"][1], critic(fake).detach())


@pytest.mark.parametrize("r1, r2", [(0.0, 0.0), (1.0, 1.0)])
def test_trap_5_tell_detaches_both_sides(r1, r2):
    critic = Critic(Linear(), r1=r1, r2=r2)
    real, fake = (torch.randn(6, 5, dtype=F64, requires_grad=True) for _ in range(2))
    critic.tell(real, fake).total.backward()
    assert real.grad is None and fake.grad is None and critic.discriminator.w.grad.any()
    assert real.requires_grad and fake.requires_grad  # the caller's own tensors are left as they were


def test_tell_leaves_tensors_without_gradient_as_they_were():
    real, fake = torch.randn(2, 6, 5, dtype=F64)
    Critic(Linear(), r1=1.0, r2=1.0).tell(real, fake)
    assert not real.requires_grad and not fake.requires_grad


def test_fool_reaches_the_fake_and_not_the_real():
    real, fake = (torch.randn(6, 5, dtype=F64, requires_grad=True) for _ in range(2))
    Critic(Linear(), relativistic).fool(fake, real).total.backward()
    assert fake.grad.any() and real.grad is None


def test_patches_are_averaged():
    critic = Critic(Patches())
    real, fake = images()
    terms = critic.tell(real, fake)
    on_real, on_fake = critic(real).flatten(1), critic(fake).flatten(1)
    expected = non_saturating.of_discriminator(on_real, on_fake).mean(1)
    torch.testing.assert_close(terms["adversarial"][1], expected)
    torch.testing.assert_close(terms["logits/real"][1], on_real.mean(1).detach())
    torch.testing.assert_close(critic.fool(fake)["adversarial"][1], non_saturating.of_generator(on_fake, None).mean(1))


def test_hidden_features_come_beside_the_logits_and_are_differentiable():
    class Two(nn.Module):
        layers = ("half",)

        def forward(self, x, t=None, hidden=()):
            h = x / 2
            out = h.sum(1) if t is None else t * h.sum(1)
            return (out, {name: h for name in hidden}) if hidden else out

    critic, x, t = (
        Critic(Two(), augment=lambda x: 3 * x),
        torch.randn(6, 5, dtype=F64, requires_grad=True),
        torch.rand(6),
    )
    logits, features = critic(x, hidden=("half",), t=t)
    assert torch.equal(logits, critic(x, t=t)) and features.keys() == {"half"}
    assert torch.equal(features["half"], 3 * x / 2)
    (slope,) = torch.autograd.grad(features["half"].sum(), x)
    assert (slope == 1.5).all()
    # a discriminator without hidden features is called without them
    assert Critic(Linear())(x.detach()).shape == (6,)


def test_what_is_given_reaches_the_discriminator():
    critic = Critic(Patches())
    real, fake = images()
    t = torch.rand(4)
    torch.testing.assert_close(
        critic.tell(real, fake, t=t)["logits/real"][1], critic(real, t=t).flatten(1).mean(1).detach()
    )
    assert not torch.equal(critic.fool(fake, t=t).total, critic.fool(fake).total)


# Penalties


def test_r1_is_of_real_and_r2_of_fake():
    class Cubic(nn.Module):
        def forward(self, x):
            return x.pow(3).sum(1) / 3

    real, fake = torch.randn(2, 6, 5, dtype=F64)
    terms = Critic(Cubic(), r1=1.0, r2=1.0).tell(real, fake)
    torch.testing.assert_close(terms["r1"][1], real.pow(4).sum(1), rtol=1e-10, atol=0)
    torch.testing.assert_close(terms["r2"][1], fake.pow(4).sum(1), rtol=1e-10, atol=0)


def test_the_number_of_r1_on_a_quadratic_critic():
    class Quadratic(nn.Module):
        def forward(self, x):
            return 0.5 * 1.7 * x.square().sum(1)

    real = torch.randn(6, 5, dtype=F64)
    weight, values = Critic(Quadratic(), r1=2.0).tell(real, real)["r1"]
    assert weight * values.mean().item() == pytest.approx(
        2.0 / 2 * 1.7**2 * real.square().sum(1).mean().item(), rel=1e-10
    )


def test_a_gradient_penalty_reaches_the_parameters_through_augmentation_and_what_is_given():
    critic = Critic(Patches(), wasserstein, gp=10.0, augment=lambda x: 0.5 * x)
    real, fake = images()
    weight, values = critic.tell(real, fake, t=torch.rand(4))["gp"]
    gradients = torch.autograd.grad(values.mean(), list(critic.parameters()), allow_unused=True)
    assert weight == 10.0 and gradients[0].abs().sum() > 0
    with torch.no_grad():
        assert "gp" not in critic.tell(real, fake)


def test_lazy_penalties_appear_at_every_kth_step():
    critic = Critic(Linear(), r1=3.0, lazy=4)
    has = ["r1" in critic.tell(*torch.randn(2, 6, 5, dtype=F64), step=step) for step in range(9)]
    assert [step for step, yes in enumerate(has) if yes] == [0, 4, 8]


def test_measuring_without_gradients_leaves_penalties_out():
    with torch.no_grad():
        assert "r1" not in Critic(Linear(), r1=1.0).tell(*torch.randn(2, 6, 5, dtype=F64))


def test_traps_18_and_32_penalties_under_bf16_autocast_are_those_without():
    critic = Critic(Patches(), relativistic, r1=1.0, r2=1.0)
    real, fake = images()

    def judged(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = critic.tell(real, fake)
        gradients = torch.autograd.grad(terms.total, list(critic.parameters()), allow_unused=True)
        return [values.mean() for _, values in terms.values()] + [g for g in gradients if g is not None]

    for inside, outside in zip(judged(True), judged(False)):
        assert inside.dtype == torch.float32
        torch.testing.assert_close(inside, outside, rtol=1e-6, atol=1e-6)


class Attention(nn.Module):
    """Attention among the rows of x, then a sum: by the fused function, or by its formula."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(8, 24, dtype=F64)

    def forward(self, x):
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(q, k, v).sum((1, 2, 3))
        return (torch.softmax(q @ k.mT / 8**0.5, -1) @ v).sum((1, 2, 3))


@pytest.mark.parametrize("penalty", ["r1", "r2", "gp"])
def test_penalties_differentiate_fused_attention_twice(penalty):
    """Its flash kernel has no second derivative on a CPU; the penalty and its gradient are those of the formula."""
    real, fake = torch.randn(2, 4, 6, 8, dtype=F64)
    values, gradients = [], []
    for fused in (True, False):
        torch.manual_seed(1)
        critic = Critic(Attention(fused), **{penalty: 2.0})
        values.append(critic.tell(real, fake)[penalty][1])
        gradients.append(torch.autograd.grad(values[-1].mean(), critic.discriminator.qkv.weight)[0])
    torch.testing.assert_close(*values, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    assert gradients[0].abs().max() > 1e-3


def test_a_vision_transformer_of_timm_goes_with_r1():
    import timm

    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=4, num_classes=1, embed_dim=8, depth=1, num_heads=2, in_chans=1
    )
    critic = Critic(nn.Sequential(net, nn.Flatten(0)), r1=1.0)
    critic.tell(*images()).total.backward()
    assert net.blocks[0].attn.qkv.weight.grad.abs().max() > 0


def test_attention_keeps_its_fused_kernels_where_no_penalty_is_due():
    from torch.backends.cuda import flash_sdp_enabled

    class Asking(Linear):
        def forward(self, x):
            fused.append(flash_sdp_enabled())
            return super().forward(x)

    fused: list[bool] = []
    critic = Critic(Asking(), r1=1.0, lazy=2)
    for step in (0, 1):
        critic.tell(*torch.randn(2, 6, 5, dtype=F64), step=step)
    assert fused == [False, False, True, True] and flash_sdp_enabled()


def test_without_penalties_the_critic_runs_in_bf16():
    critic = Critic(Patches())
    dtypes = []
    critic.discriminator.net[-1].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        terms = critic.tell(*images())
    assert dtypes == [torch.bfloat16] * 2 and terms.total.dtype == torch.float32


def test_penalties_differentiate_through_the_augmentation():
    critic = Critic(Linear(), r1=2.0, augment=lambda x: 3 * x)
    real, fake = torch.randn(2, 6, 5, dtype=F64)
    weight, values = critic.tell(real, fake)["r1"]
    assert weight * values.mean().item() == pytest.approx(9 * critic.discriminator.w.square().sum().item(), rel=1e-10)


def test_real_and_fake_are_augmented_alike_and_the_generator_s_gradient_passes_through():
    critic = Critic(Linear(), augment=lambda x: 3 * x)
    real, fake = torch.randn(6, 5, dtype=F64), torch.randn(6, 5, dtype=F64, requires_grad=True)
    terms = critic.tell(real, fake)
    torch.testing.assert_close(terms["logits/real"][1], critic.discriminator(3 * real).detach())
    torch.testing.assert_close(terms["logits/fake"][1], critic.discriminator(3 * fake).detach())
    critic.fool(fake).total.backward()
    expected = -3 / 6 * torch.sigmoid(-critic.discriminator(3 * fake.detach()))[:, None] * critic.discriminator.w
    torch.testing.assert_close(fake.grad, expected.detach(), rtol=1e-9, atol=1e-12)


# The Dirac-GAN (Mescheder 2018): real at 0, fake at θ, D(x) = ψ x


def dirac_eigenvalues(pair=non_saturating, **penalties):
    """Of the Jacobian at (θ, ψ) = 0 of the vector field in which both players descend."""
    critic = Critic(Linear(1), pair, **penalties)

    def field(theta, psi):
        critic.discriminator.w.data.fill_(psi)
        fake = torch.full((1, 1), theta, dtype=F64, requires_grad=True)
        real = torch.zeros(1, 1, dtype=F64)
        (g,) = torch.autograd.grad(critic.fool(fake, real).total, fake)
        (d,) = torch.autograd.grad(critic.tell(real, fake).total, critic.discriminator.w)
        return -g.item(), -d.item()

    h = 1e-4
    columns = [[(a - b) / (2 * h) for a, b in zip(field(*at), field(*(-p for p in at)))] for at in ((h, 0.0), (0.0, h))]
    (a, c), (b, d) = columns
    root = cmath.sqrt((a - d) ** 2 / 4 + b * c)
    return sorted([(a + d) / 2 - root, (a + d) / 2 + root], key=lambda z: (z.real, z.imag))


def expected_eigenvalues(gamma):
    root = cmath.sqrt(gamma**2 / 4 - 1 / 4)
    return sorted([-gamma / 2 - root, -gamma / 2 + root], key=lambda z: (z.real, z.imag))


@pytest.mark.parametrize("penalties, gamma", [
    ({}, 0.0), ({"r1": 0.4}, 0.4), ({"r2": 0.4}, 0.4), ({"r1": 0.4, "r2": 0.4}, 0.8), ({"r1": 3.0}, 3.0),
])  # fmt: skip
@pytest.mark.parametrize("pair", [non_saturating, relativistic], ids=lambda pair: pair.name)
def test_the_dirac_gan_turns_in_circles_and_penalties_damp_it(pair, penalties, gamma):
    for eigenvalue, expected in zip(dirac_eigenvalues(pair, **penalties), expected_eigenvalues(gamma)):
        assert abs(eigenvalue - expected) < 1e-6


def test_a_pair_may_be_named():
    for pair in (vars(losses)[name] for name in losses.__all__):
        if isinstance(pair, losses.AdversarialLoss):
            assert Critic(Linear(), pair.name).pair is pair


REAL, FAKE = torch.zeros(2, 6, 5, dtype=F64)


@pytest.mark.parametrize("make, message", [
    (lambda: Critic(Linear(), r1=-1.0), "r1 and r2 must not be negative; got -1.0 and 0.0"),
    (lambda: Critic(Linear(), r2=-1.0), "r1 and r2 must not be negative; got 0.0 and -1.0"),
    (lambda: Critic(Linear(), gp=-1.0), "gp must not be negative; got -1.0"),
    (lambda: Critic(Linear(), lazy=0), "lazy must be at least 1; got 0"),
    (lambda: Critic(Linear(), pair="bce"), "pair must be one of minimax, .*, hinge, relativistic; got 'bce'"),
    (lambda: Critic(Linear(), relativistic).fool(FAKE),
     r"a critic with the relativistic pair needs fool\(fake, real=x\)"),
    (lambda: Critic(Linear(), r1=1.0, lazy=4).tell(REAL, FAKE),
     r"a critic with lazy=4 penalties needs tell\(..., step=step\)"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
