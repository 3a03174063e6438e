"""A recipe of a user's own: a Gaussian of learned mean and standard deviation, and a metric of his own."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybrids import Player, Terms, experiment
from hybrids.batch import Batch, unpack
from hybrids.data import Data
from hybrids.experiment import Stage, setting


@dataclass
class Settings(experiment.Settings):
    lr: float = setting(1e-2, "Learning rate.", above=0)


class Gaussian(nn.Module):
    """p(x) = N(x; mean, std²), which offers loss and sample alone."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    def loss(self, batch: Batch) -> Terms:
        p = torch.distributions.Normal(self.mean, self.log_std.exp())
        return Terms(nll=-p.log_prob(unpack(batch)[0]).flatten(1).sum(1))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + self.log_std.exp() * torch.randn(n, *self.mean.shape, generator=generator)


def width(samples: Tensor, real: Tensor, features: object) -> Tensor:
    """Standard deviation of samples over that of real examples."""
    return samples.std() / real.std()


def build(settings: Settings, data: Data) -> list[Stage]:
    model = Gaussian(data.shape)
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=settings.lr)  # noqa: E731
    return [Stage("mine", model, [Player(model.loss, [model], optimizer=optimizer, name="mine")])]


if __name__ == "__main__":
    experiment.main(Settings, build)
