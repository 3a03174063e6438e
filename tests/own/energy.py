"""An energy-based model p(x) ∝ exp(-E(x)), trained on real x and on samples of short Langevin chains.

Training raises E on samples and lowers it on data (Du & Mordatch 2019, 1903.08689, eq. 5); the chains start from noise,
and samples are their ends (Nijkamp 2019, 1904.09770).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybrids import Player, Terms, experiment
from hybrids.batch import unpack
from hybrids.data import Data
from hybrids.experiment import Stage, setting


class EnergyModel(nn.Module):
    """A model that is none of hybrids.models: it offers loss, sample, encode (its hidden layer) and networks."""

    def __init__(self, shape: tuple[int, ...], width: int, chain: int) -> None:
        super().__init__()
        self.shape, self.chain = shape, chain
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), width), nn.SiLU())
        self.energy = nn.Sequential(self.hidden, nn.Linear(width, 1))

    def loss(self, x: Tensor, generator: torch.Generator | None = None) -> Terms:
        fake = self.sample(len(x), generator)
        real, made = self.energy(x).flatten(), self.energy(fake).flatten()
        return Terms(contrast=real - made) + 0.1 * Terms(size=real.square() + made.square())

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        device = next(self.parameters()).device
        x = torch.rand(n, *self.shape, generator=generator, device=device) * 2 - 1
        for _ in range(self.chain):
            with torch.enable_grad():
                x.requires_grad_()
                (slope,) = torch.autograd.grad(self.energy(x).sum(), x)
            noise = torch.randn(x.shape, generator=generator, device=device)
            x = (x.detach() - 0.5 * slope + 0.02 * noise).clamp(-1, 1)
        return x

    def encode(self, x: Tensor) -> Tensor:
        return self.hidden(x)

    def networks(self) -> dict[str, nn.Module]:
        return {"energy": self.energy}


@dataclass
class Settings(experiment.Settings):
    width: int = setting(64, "Hidden units.", at_least=1)
    chain: int = setting(10, "Langevin steps of a sample.", at_least=1)


def build(settings: Settings, data: Data) -> list[Stage]:
    model = EnergyModel(data.shape, settings.width, settings.chain)
    player = Player(lambda batch: model.loss(unpack(batch)[0]), moves=[model], name="energy")
    return [Stage("energy", model, [player])]


if __name__ == "__main__":
    experiment.main(Settings, build)
