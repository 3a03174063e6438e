import math

import pytest
import torch
from answers import assert_gradients, randomized, twins
from torch import nn

from components.encoders import MLPEncoder, ResidualEncoder
from components.encoders.residual import LOG_STD


def build(kind, num_classes=None):
    if kind == "mlp":
        return MLPEncoder(5, 3, width=16, depth=2, num_classes=num_classes), torch.randn(4, 5)
    latent = 3 if kind == "vector" else (3, 4, 4)
    return ResidualEncoder((2, 8, 8), latent, width=8, num_classes=num_classes), torch.randn(4, 2, 8, 8)


KINDS = pytest.mark.parametrize("kind", ["mlp", "vector", "map"])


@pytest.mark.parametrize("shape, latent, options", [
    ((1, 8, 8), 7, {}), ((3, 32, 32), 7, {}), ((3, 64, 64), 7, {}), ((1, 28, 28), 7, {}), ((1, 8, 16), 7, {}),
    ((1, 6, 6), 7, {"multipliers": (1, 3)}), ((1, 8, 8), 7, {"blocks": 2}),
    ((1, 8, 8), 7, {"multipliers": (1, 1, 1, 2)}),
    ((3, 32, 32), (4, 8, 8), {}), ((1, 8, 8), (2, 8, 8), {}), ((1, 8, 16), (2, 4, 8), {"multipliers": (2, 1)}),
])  # fmt: skip
def test_shapes(shape, latent, options):
    q = ResidualEncoder(shape, latent, width=4, **options)(torch.randn(2, *shape))
    event = (latent,) if isinstance(latent, int) else latent
    assert q.mean.shape == q.std.shape == (2, *event)
    assert q.entropy().shape == (2,) and (q.std > 0).all()


def test_blocks_count():
    blocks = [len(level.blocks) for level in ResidualEncoder((1, 8, 8), 3, width=8, blocks=3).levels]
    assert blocks == [3, 3]


@KINDS
def test_every_parameter_has_a_gradient(kind):
    encoder, x = build(kind, num_classes=3)
    q = randomized(encoder)(x)
    (q.mean.square().sum() + q.std.square().sum()).backward()
    assert_gradients(encoder)


@KINDS
def test_autocast_returns_float32(kind):
    encoder, x = build(kind, num_classes=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = encoder(x)
    assert q.mean.dtype == q.std.dtype == q.log_prob(q.mean).dtype == torch.float32
    assert encoder.last is not None and q.mean.isfinite().all()


@KINDS
def test_raw_is_means_then_clamped_log_stds(kind):
    encoder, x = build(kind)
    last = encoder.last[-1] if isinstance(encoder.last, nn.Sequential) else encoder.last
    assert encoder(x).std.log().abs().max() < 4  # close to 1 at first
    nn.init.zeros_(last.weight)
    half = len(last.bias) // 2
    for log_std, expected in ((-1e4, LOG_STD[0]), (-1.0, -1.0), (1e4, LOG_STD[1])):
        with torch.no_grad():
            last.bias[:half], last.bias[half:] = 0.7, log_std
        q = encoder(x)
        torch.testing.assert_close(q.mean, torch.full_like(q.mean, 0.7))
        torch.testing.assert_close(q.std, torch.full_like(q.std, math.exp(expected)), atol=0, rtol=1e-2)


@KINDS
def test_labels(kind):
    encoder, x = build(kind, num_classes=3)
    randomized(encoder)
    null = encoder(x).mean
    assert torch.equal(null, encoder(x, torch.full((4,), 3)).mean)
    assert not torch.allclose(null, encoder(x, torch.zeros(4, dtype=torch.long)).mean)


def test_an_mlp_of_images_is_that_of_flattened_ones():
    images, vectors = twins(lambda shape: MLPEncoder(shape, 5, 16, 1))
    x = torch.randn(5, 2, 3, 4)
    assert torch.equal(images(x).mean, vectors(x.flatten(1)).mean)


LABELS = torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize("make, message", [
    (lambda: ResidualEncoder((2,), 4), r"shape must be \(C, H, W\); got \(2,\): for points use MLPEncoder"),
    (lambda: ResidualEncoder((1, 6, 3), 2, multipliers=(1, 2, 4)),
     r"at least 4, the down-sampling factor of 3 .*\(1, 6, 3\)"),
    (lambda: ResidualEncoder((1, 8, 8), (2, 3, 3)), r"latent must have .* got \(3, 3\) for shape \(1, 8, 8\)"),
    (lambda: ResidualEncoder((1, 8, 8), 2, width=4)(torch.zeros(2, 1, 8, 9)),
     r"x must be \(B, 1, 8, 8\); got shape \(2, 1, 8, 9\)"),
    (lambda: MLPEncoder(5, 2)(torch.zeros(2, 4)), r"x must be \(B, 5\); got shape \(2, 4\)"),
    (lambda: MLPEncoder((2, 3, 4), 5, 8)(torch.zeros(5, 24)), r"x must be \(B, 2, 3, 4\); got shape \(5, 24\)"),
    *((lambda kind=kind: build(kind, 3)[0](build(kind)[1], LABELS[:, None]), r"cond must be labels \(B,\)")
      for kind in ("mlp", "vector", "map")),
    *((lambda kind=kind: build(kind)[0](build(kind)[1], LABELS),
       "cond must be None for a network built with num_classes=None") for kind in ("mlp", "vector", "map")),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
