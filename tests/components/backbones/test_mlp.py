import torch
from answers import twins

from components.backbones import MLP

SHAPE, B = (2, 3, 4), 5


def test_of_images_it_is_that_of_flattened_ones():
    images, vectors = twins(lambda shape: MLP(shape, 8, 1, fourier=range(2), num_classes=3), SHAPE)
    x, t, cond = torch.randn(B, *SHAPE), torch.rand(B), torch.arange(B) % 3
    out = images(x, t, cond)
    assert out.shape == x.shape
    torch.testing.assert_close(out.flatten(1), vectors(x.flatten(1), t, cond), rtol=0, atol=0)


def test_more_outputs_are_more_channels():
    assert MLP(SHAPE, 8, 1, out_features=4)(torch.randn(B, *SHAPE), torch.rand(B)).shape == (B, 4, 3, 4)
