"""Every MLP takes an event of any shape: it is that MLP on flattened events, its output in the event's shape."""

import pytest
import torch

from components.backbones import MLP
from components.decoders import CategoricalHead, LogisticHead, MLPDecoder, NormalHead
from components.discriminators import MLPDiscriminator
from components.encoders import MLPEncoder

SHAPE, D, B = (2, 3, 4), 24, 5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def twins(make):
    """The same network for images and for vectors."""
    images, vectors = make(SHAPE), make(D)
    for p in vectors.parameters():
        torch.nn.init.normal_(p, std=0.3)
    images.load_state_dict(vectors.state_dict())
    return images, vectors


def test_a_backbone():
    images, vectors = twins(lambda shape: MLP(shape, 8, 1, fourier=range(2), num_classes=3))
    x, t, cond = torch.randn(B, *SHAPE), torch.rand(B), torch.arange(B) % 3
    found = images(x, t, cond)
    assert found.shape == x.shape
    torch.testing.assert_close(found.flatten(1), vectors(x.flatten(1), t, cond), rtol=0, atol=0)


def test_more_outputs_of_a_backbone_are_more_channels():
    assert MLP(SHAPE, 8, 1, out_features=4)(torch.randn(B, *SHAPE), torch.rand(B)).shape == (B, 4, 3, 4)


def test_an_encoder():
    images, vectors = twins(lambda shape: MLPEncoder(shape, 5, 16, 1))
    x = torch.randn(B, *SHAPE)
    assert torch.equal(images(x).mean, vectors(x.flatten(1)).mean)


def test_a_discriminator_of_pairs():
    images, vectors = twins(lambda shape: MLPDiscriminator(shape, 8, 1, timed=True, given_features=shape))
    (x, given), t = torch.randn(2, B, *SHAPE), torch.rand(B)
    expected = vectors(x.flatten(1), t, given=given.flatten(1))
    assert expected.shape == (B,)
    torch.testing.assert_close(images(x, t=t, given=given), expected, rtol=0, atol=0)


@pytest.mark.parametrize("head", [NormalHead(0.3), NormalHead("learned"), LogisticHead(17), CategoricalHead(17)])
def test_a_decoder_s_pixels_have_the_nats_that_the_head_gives_each(head):
    decoder = MLPDecoder(5, SHAPE, head, 16, 1)
    x, z = (torch.randint(17, (B, *SHAPE)) * 2 / 16) - 1, torch.randn(B, 5)
    raw = decoder.last(torch.nn.functional.silu(decoder.norm(decoder.blocks[0](decoder.first(z), None))))
    direct = head(raw.unflatten(1, (head.factor * SHAPE[0], *SHAPE[1:])))
    assert decoder(z).mean.shape == x.shape
    torch.testing.assert_close(decoder(z).log_prob(x), direct.log_prob(x))


def test_another_shape_is_refused():
    flat = torch.randn(B, D)
    for name, refused in {
        "x_t": lambda: MLP(SHAPE, 8)(flat, torch.rand(B)),
        "x": lambda: MLPEncoder(SHAPE, 5, 8)(flat),
        "given": lambda: MLPDiscriminator(SHAPE, 8, given_features=SHAPE)(torch.randn(B, *SHAPE), given=flat),
    }.items():
        with pytest.raises(ValueError, match=rf"{name} must be \(B, 2, 3, 4\); got shape \(5, 24\)"):
            refused()
