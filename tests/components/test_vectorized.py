import pytest
import torch

from components.backbones import MLP
from components.discriminators import MLPDiscriminator
from components.vectorized import Vectorized

SHAPE, D, B = (2, 3, 4), 24, 5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_backbone_answers_in_the_images_shape():
    backbone, x, t, cond = MLP(D, 8, 1, num_classes=3), torch.randn(B, *SHAPE), torch.rand(B), torch.arange(B) % 3
    torch.nn.init.normal_(backbone.last.weight)
    found = Vectorized(backbone, SHAPE)(x, t, cond)
    assert found.shape == x.shape
    torch.testing.assert_close(found.flatten(1), backbone(x.flatten(1), t, cond), rtol=0, atol=0)


def test_more_outputs_are_more_channels():
    assert Vectorized(MLP(D, 8, 1, out_features=2 * D), SHAPE)(torch.randn(B, *SHAPE), torch.rand(B)).shape == (
        B, 4, 3, 4
    )  # fmt: skip


def test_a_discriminator_sees_both_of_a_pair_flat():
    discriminator = MLPDiscriminator(D, 8, 1, timed=True, given_features=D)
    (x, given), t = torch.randn(2, B, *SHAPE), torch.rand(B)
    found = Vectorized(discriminator, SHAPE)(x, t=t, given=given)
    expected = discriminator(x.flatten(1), t, given=given.flatten(1))
    assert found.shape == (B,)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_none_is_handed_on():
    discriminator = Vectorized(MLPDiscriminator(D, 8, 1), SHAPE)
    assert discriminator(torch.randn(B, *SHAPE), given=None).shape == (B,)


def test_another_shape_is_refused():
    network = Vectorized(MLPDiscriminator(D, 8, 1, given_features=D), SHAPE)
    with pytest.raises(ValueError, match=r"x must be \(B, 2, 3, 4\); got shape \(5, 24\)"):
        network(torch.randn(B, D))
    with pytest.raises(ValueError, match=r"given must be \(B, 2, 3, 4\); got shape \(5, 24\)"):
        network(torch.randn(B, *SHAPE), given=torch.randn(B, D))
