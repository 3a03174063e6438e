import pytest
import torch

from components.decoders import MLPDecoder
from components.encoders import MLPEncoder
from components.flat import Flattened, ShapedHead, flat_pair
from components.heads import CategoricalHead, LogisticHead, NormalHead


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("head", [NormalHead(0.3), NormalHead("learned"), LogisticHead(17), CategoricalHead(17)])
def test_a_flat_pair_is_a_pair_of_mlps_on_images(head):
    """q(z|x) of the flattened x, and p(x|z) with as many nats as the same head gives each pixel by itself."""
    shape = (3, 4, 2)
    encoder, decoder = flat_pair(shape, 5, head, 16, 1)
    x = (torch.randint(17, (6, *shape)) * 2 / 16) - 1
    assert isinstance(encoder, Flattened) and isinstance(encoder.encoder, MLPEncoder) and encoder.latent == 5
    assert torch.equal(encoder(x).mean, encoder.encoder(x.flatten(1)).mean)
    assert isinstance(decoder, MLPDecoder)
    p = decoder(encoder(x).mean)
    raw = decoder.last(torch.nn.functional.silu(decoder.norm(decoder.blocks[0](decoder.first(encoder(x).mean), None))))
    direct = head(raw.unflatten(1, (head.factor * 3, 4, 2)))
    assert p.mean.shape == x.shape and torch.equal(p.mean, direct.mean)
    torch.testing.assert_close(p.log_prob(x), direct.log_prob(x))
    assert getattr(decoder.head, "levels", None) == getattr(head, "levels", None)


def test_raw_features_of_another_number():
    with pytest.raises(ValueError, match=r"raw must be \(B, 12\) for 2 × \(1, 2, 3\); got \(4, 6\)"):
        ShapedHead(NormalHead("learned"), (1, 2, 3))(torch.zeros(4, 6))
