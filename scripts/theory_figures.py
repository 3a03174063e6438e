"""Draw the figures of docs/theory.md from the framework's own classes; about half a minute on one core.

python scripts/theory_figures.py [--out docs/theory]
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from components.denoisers import Denoiser, GaussianMean, MixtureMean
from components.distributions import Normal
from components.samplers import Sampler
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LogSNRLinearSchedule,
    NoiseLevel,
    Time,
)
from hybrids import VAE, Critic, Diffusion, StandardNormal
from hybrids.data import Mixture, digits
from hybrids.evaluation import importance_weighted

F64 = torch.float64


def panels(many: int, width: float = 9.0, height: float = 3.2) -> tuple[Any, list[Any]]:
    """A figure, and its axes from left to right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=90)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, many, i + 1) for i in range(many)]


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    # Few colours make a small file.
    figure.savefig(path, pil_kwargs={"optimize": True})
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def schedules(path: Path) -> None:
    """Level and log-SNR of the schedules over t."""
    figure, (levels, ratios) = panels(2)
    t = torch.linspace(0, 1, 501, dtype=F64)
    kinds = {
        "DDPM's linear table": BetaSchedule(),
        "cosine": CosineSchedule(),
        "log-SNR linear (VDM)": LogSNRLinearSchedule(),
        "flow": FlowSchedule(),
        "EDM (σ explodes)": EDMSchedule(),
    }
    for name, schedule in kinds.items():
        alpha, sigma = schedule.alpha_sigma(t)
        levels.plot(t, alpha.square() / (alpha.square() + sigma.square()), label=name)
        ratios.plot(t, schedule.log_snr(t).clamp(-15, 15), label=name)
    levels.set(xlabel="t", title="share of x in x_t: α²/(α² + σ²)")
    ratios.set(xlabel="t", ylim=(-13, 14), title="log-SNR λ = log α²/σ²")
    levels.legend(fontsize=7)
    save(figure, path)


def forward(path: Path) -> None:
    """The density of x_t on a mixture, the paths of its probability flow, and single jumps against that density."""
    figure, (map_, slices) = panels(2, height=3.4)
    schedule, means, std = CosineSchedule(), torch.tensor([[-1.2], [0.4], [1.5]], dtype=F64), 0.12
    x, t = torch.linspace(-3, 3, 241, dtype=F64)[:, None], torch.linspace(0, 1, 161, dtype=F64)

    def density(time: float) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time)
        return Mixture(alpha * means, float(((std * alpha) ** 2 + sigma**2).sqrt())).log_prob(x).exp()

    image = torch.stack([density(time) for time in t.tolist()], 1)
    map_.imshow(
        image.clamp(max=1.0), extent=(0, 1, -3, 3), origin="lower", aspect="auto", cmap="Greys", interpolation="nearest"
    )
    denoiser = Denoiser(MixtureMean(schedule, means, std), schedule, "sample")
    paths = [torch.linspace(-2.2, 2.2, 12, dtype=F64)[:, None]]
    for start, end in zip(t.flip(0), t.flip(0)[1:]):
        paths.append(Sampler("ddim")(denoiser, paths[-1], times=torch.stack([start, end])))
    map_.plot(t.flip(0), torch.cat(paths, 1).T, color="C0", linewidth=0.8)
    map_.set(xlabel="t", ylabel="x_t", ylim=(-3, 3), title="q(x_t), and paths of the flow back from noise")
    data = Mixture(means, std).sample(50_000, generator=torch.Generator().manual_seed(0)).double()
    torch.manual_seed(0)
    for i, time in enumerate((0.1, 0.35, 1.0)):
        drawn = schedule.marginal(data, time).rsample()[:, 0]
        slices.hist(drawn.numpy(), bins=120, range=(-3, 3), density=True, color=f"C{i}", alpha=0.35)
        slices.plot(x[:, 0], density(time), color=f"C{i}", label=f"t = {time}")
    slices.set(xlabel="x_t", title="one jump from x (bars), density (lines)")
    slices.legend(fontsize=7)
    save(figure, path)


class LogRatio(nn.Module):
    """D*'s logit log p/q of N(0, 1) and N(shift, 1)."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.real = Normal(torch.zeros(1, 1, dtype=F64), 1.0)
        self.fake = Normal(torch.full((1, 1), shift, dtype=F64), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.real.log_prob(x) - self.fake.log_prob(x)


def trained(shift: float, steps: int = 400) -> Critic:
    """A critic of an MLP, trained on N(0, 1) against N(shift, 1)."""
    torch.manual_seed(0)
    critic = Critic(nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0)).double())
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-2)
    for step in range(steps):
        loss = critic.tell(torch.randn(512, 1, dtype=F64), shift + torch.randn(512, 1, dtype=F64)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 2e-2 * (1 - step / steps)
    return critic


@torch.no_grad()
def value(critic: Critic, shift: float) -> float:
    """E_p log D + E_q log(1 - D), by the trapezoid rule."""
    z = torch.linspace(-9, 9, 2001, dtype=F64)[:, None]
    share = torch.exp(-0.5 * z[:, 0] ** 2)
    return -(share / share.sum() * critic.tell(z, z + shift)["adversarial"][1]).sum().item()


def discriminator(path: Path) -> None:
    """A trained discriminator beside p/(p + q), and the value of the game over the distance."""
    figure, (ratio, game) = panels(2)
    x = torch.linspace(-4, 6, 401, dtype=F64)[:, None]
    known, found = LogRatio(2.0), trained(2.0)
    best = Critic(known)
    for distribution, name in ((known.real, "p, real"), (known.fake, "q, fake")):
        ratio.fill_between(x[:, 0], distribution.log_prob(x).exp(), alpha=0.3, label=name)
    with torch.no_grad():
        ratio.plot(x, torch.sigmoid(best(x)), color="black", linestyle="--", label="p/(p + q)")
        ratio.plot(x, torch.sigmoid(found(x)), color="C3", label="trained D")
    ratio.set(xlabel="x", title="D* = p/(p + q)")
    ratio.legend(fontsize=7)
    shifts = torch.linspace(0, 5, 51).tolist()
    game.plot(shifts, [value(Critic(LogRatio(shift)), shift) for shift in shifts], color="black", label="at D*")
    few = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
    game.plot(few, [value(trained(shift), shift) for shift in few], "o", color="C3", label="at a trained D")
    game.axhline(-math.log(4), color="grey", linewidth=0.8, linestyle=":", label="-log 4")
    game.set(xlabel="distance of p and q", title="value of the game = 2 JSD - log 4")
    game.legend(fontsize=7)
    print(f"distance 2: value at D* {value(best, 2.0):.6f}, at the trained D {value(found, 2.0):.6f}")
    save(figure, path)


class Linear(nn.Module):
    """x → N(A x + b, diag std²)."""

    def __init__(self, weight: Tensor, bias: Tensor, std: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0])
        self.linear.weight.data, self.linear.bias.data = weight, bias
        self.log_std = nn.Parameter(std.log())

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Normal:
        return Normal(self.linear(x), self.log_std.exp().expand(len(x), self.linear.out_features))


def linear_vae(latent: int = 10, steps: int = 500) -> tuple[list[int], list[float], float]:
    """The ELBO of a linear VAE on the digits as it is trained, and the best log-likelihood: of probabilistic PCA."""
    data = digits(8)
    assert data.x is not None and data.held_out is not None
    x = torch.cat([data.x, data.held_out]).flatten(1).float() / 16
    mean, d = x.mean(0), x.shape[1]
    values, vectors = torch.linalg.eigh((x - mean).double().T @ (x - mean).double() / len(x))
    values = values.flip(0).clamp(min=0)
    noise = values[latent:].mean()
    best = -0.5 * (d * math.log(2 * math.pi) + values[:latent].log().sum() + (d - latent) * noise.log() + d).item()
    torch.manual_seed(0)
    third = torch.tensor([0.3])
    encoder = Linear(0.1 * torch.randn(latent, d), torch.zeros(latent), third.expand(latent).clone())
    vae = VAE(encoder, Linear(0.1 * torch.randn(d, latent), mean, third), StandardNormal(latent))
    optimizer = torch.optim.Adam(vae.parameters(), betas=(0.9, 0.95))
    at, elbos = [], []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.04 * (1 + math.cos(math.pi * step / steps))
        loss = vae.loss(x).total
        at.append(step)
        elbos.append(-loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return at, elbos, best


class Fixed(nn.Module):
    """q(z|x) = N(.75, .9²) of whatever x."""

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Normal:
        return Normal(torch.full_like(x, 0.75), 0.9)


class Same(nn.Module):
    """p(x|z) = N(z, 1)."""

    def forward(self, z: Tensor, cond: Tensor | None = None) -> Normal:
        return Normal(z, 1.0)


def importance(counts: tuple[int, ...]) -> tuple[list[float], float]:
    """The importance-weighted bound at x = 1.5 of p(z) = N(0, 1), p(x|z) = N(z, 1), for each K; and log p(x)."""
    torch.manual_seed(0)
    vae = VAE(Fixed(), Same(), StandardNormal(1).double())
    x = torch.full((1, 1), 1.5, dtype=F64)
    found = []
    for k in counts:
        repeated = x.expand(1_000_000 // k + 20_000, 1)
        found.append(importance_weighted(vae, repeated, k, rows=200_000)[0].mean().item())
    return found, Normal(torch.zeros(1, 1, dtype=F64), math.sqrt(2)).log_prob(x).item()


class FourPoints(LogSNRLinearSchedule):
    """A schedule whose noise is 1, -1, 1, -1 for the four examples of a batch."""

    def corrupt(
        self, x: Tensor, t: Time | NoiseLevel, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """(x_t, ε)."""
        epsilon = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=x.dtype)
        level = t if isinstance(t, NoiseLevel) else self.level(t, x)
        return level.alpha * x + level.sigma * epsilon, epsilon


@torch.no_grad()
def excess(steps: int, s: float = 0.5) -> float:
    """The bound of N(0, s²) with T steps and the exact denoiser, less the entropy, in nats.

    The bound is quadratic in (x, ε): its mean over four points with the right moments is exact.
    """
    schedule = FourPoints()
    mean = GaussianMean(schedule, torch.zeros(1), torch.tensor([[s**2]]))
    model = Diffusion(Denoiser(mean, schedule, "sample"), 1, timesteps=steps)
    x = s * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=F64)
    return model.bound(x).total.item() - Normal(torch.zeros(1, 1, dtype=F64), s).entropy().item()


def bounds(path: Path) -> None:
    """Three bounds and what they are bounds on."""
    figure, (vae, weighted, diffusion) = panels(3, width=10.5)
    at, elbos, best = linear_vae()
    vae.plot(at, elbos, label="ELBO in training")
    vae.axhline(best, color="black", linestyle="--", linewidth=0.8, label=f"log p, PCA: {best:.3f}")
    vae.set(xlabel="step", ylim=(-20, 20), title="linear VAE, digits, nats")
    vae.legend(fontsize=7)
    counts = (1, 2, 4, 8, 16, 32, 64, 128)
    found, log_p = importance(counts)
    weighted.plot(counts, found, "o-", label="bound of K samples")
    weighted.axhline(log_p, color="black", linestyle="--", linewidth=0.8, label=f"log p: {log_p:.4f}")
    weighted.set(xlabel="K", xscale="log", title="importance-weighted, nats")
    weighted.legend(fontsize=7)
    steps = (3, 10, 30, 100, 300, 1000)
    gaps = [excess(many) for many in steps]
    diffusion.plot(steps, gaps, "o-", label="bound less entropy")
    diffusion.plot(
        steps, [49.93 / many for many in steps], color="black", linestyle="--", linewidth=0.8, label="49.93/T"
    )
    diffusion.set(xlabel="T", xscale="log", yscale="log", title="diffusion of N(0, ½²), nats")
    diffusion.legend(fontsize=7)
    print(f"linear VAE: ELBO {sum(elbos[-20:]) / 20:.3f}, log p {best:.5f}")
    print(f"K: {', '.join(f'{k} {value:.5f}' for k, value in zip(counts, found))}, log p {log_p:.6f}")
    print(f"T: {', '.join(f'{many} {gap:.6f}' for many, gap in zip(steps, gaps))}")
    save(figure, path)


FIGURES: dict[str, Callable[[Path], None]] = {
    "schedules": schedules,
    "forward": forward,
    "discriminator": discriminator,
    "bounds": bounds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The figures of docs/theory.md.")
    parser.add_argument("--out", type=Path, default=Path("docs/theory"), help="the folder (docs/theory)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        draw(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
