import torch
from torch import nn

from components.decoders import MLPDecoder
from components.discriminators import MLPDiscriminator
from components.heads import DeltaHead
from components.losses import non_saturating
from hybrids import GAN, Critic
from hybrids.comparison.measuring import Bench, evaluations_of, figures_of, quality_of
from hybrids.data import load_data


class Own(nn.Module):
    """A user's model, which samples exactly."""

    def sample(self, n, cond=None, generator=None):
        return load_data("8-gaussians").density.sample(n, generator)


def test_a_model_of_the_users_has_figures_but_no_curve_over_evaluations(tmp_path):
    """What a sample of it costs is not known, and must not fail what is."""
    bench = Bench(load_data("8-gaussians"), torch.device("cpu"), 0, tmp_path)
    assert evaluations_of(Own(), bench, 200) == []
    x = Own().sample(200)
    assert figures_of(Own(), bench, x, ["high_quality"])[0]["high_quality"]["value"] > 0.95


def test_quality_brings_the_floor_of_each_of_its_metrics(tmp_path):
    """Of exact samples as near as the floor; of a generator one point, of one evaluation."""
    bench = Bench(load_data("8-gaussians"), torch.device("cpu"), 0, tmp_path)
    values, _ = quality_of(Own(), bench, 500)
    assert values.keys() == {"high_quality", "high_quality_floor", "frechet", "frechet_floor"}
    assert abs(values["high_quality"] - values["high_quality_floor"]) < 0.02
    assert 0 < values["frechet_floor"] < 0.05 and values["high_quality_floor"] > 0.95
    gan = GAN(MLPDecoder(2, 2, DeltaHead(), 8), Critic(MLPDiscriminator(2, 8), non_saturating), 2)
    (point,) = evaluations_of(gan, bench, 200)
    assert point["evaluations"] == 1 and point["high_quality"] < 0.5 < point["high_quality_floor"]
