"""The probability-flow ODE of any denoiser: exact log-densities, and the change of volume on the way.

Song 2020, 2011.13456, section 4.3 and eq. 39. The variable of integration is the log-SNR λ, in which one drift serves
every schedule and prediction, and whose even steps resolve the smallest noise as well as the largest.
"""

from collections.abc import Callable
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ..denoisers import Denoising
from ..distributions import Normal, per_example, randn_like
from ..precision import full_precision, wide, widest
from ..schedules import over

__all__ = ["Divergence", "FlowMethod", "ProbabilityFlow", "drift", "exact_divergence", "hutchinson"]

FlowMethod = Literal["dopri5", "euler", "midpoint", "heun2", "rk4"]
Divergence = Literal["exact", "rademacher", "gaussian"]
LOWEST = -20.0
"""λ where noise is taken for pure if the schedule's own end is -∞: there α = 4.5e-5."""


class _HasLogProb(Protocol):
    def log_prob(self, y: Tensor) -> Tensor: ...


def drift(denoiser: Denoising, x_t: Tensor, log_snr: Tensor, cond: Tensor | None = None) -> Tensor:
    """Return dx_t/dλ = (dα/dλ) x̂ + (dσ/dλ) ε̂ (B, *event), at log_snr = λ, ().

    Song 2020's f x - ½ g² score in this variable: on a variance-preserving schedule -½ α σ v̂, on a flow -½ α σ û, where
    variance explodes -½ σ ε̂. x̂ is never clipped: the flow would be no diffeomorphism.
    """
    schedule = denoiser.schedule
    with torch.enable_grad():
        at = log_snr.detach().requires_grad_()
        # 0 × λ: where variance explodes α is a constant, which has no gradient to ask for.
        alpha_rate, sigma_rate = (torch.autograd.grad(c + 0 * at, at)[0] for c in schedule.coefficients(at))
    estimate = denoiser(x_t, schedule.time(log_snr).clamp(0, 1), cond)
    return over(alpha_rate, estimate.mean) * estimate.mean + over(sigma_rate, estimate.mean) * estimate.epsilon


def exact_divergence(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) (B, *event) and Σ_i ∂f_i/∂x_i (B,), by one backward pass a dimension; f must not mix examples."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = f(x)
        flat = value.flatten(1)
        total = torch.zeros(len(x), dtype=value.dtype, device=x.device)
        for i in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=i + 1 < flat.shape[1])
            total = total + row.flatten(1)[:, i]
    return value.detach(), total.detach()


def hutchinson(f: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) (B, *event) and the mean over the probes of nᵀ (∂f/∂x) n (B,), unbiased where E n nᵀ = I.

    noise: the probes n (M, B, *event), one backward pass each. Hutchinson 1989; Grathwohl 2018, 1810.01367, eq. 7.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = f(x)
        total = torch.zeros(len(x), dtype=value.dtype, device=x.device)
        for i, n in enumerate(noise):
            (product,) = torch.autograd.grad((value * n).sum(), x, retain_graph=i + 1 < len(noise))
            total = total + per_example(product * n) / len(noise)
    return value.detach(), total.detach()


class ProbabilityFlow:
    """log p(x) = log p(x_1) + ∫ div f dλ from the first noise to the last, along dx_t/dλ = f.

    The density is that of x + (σ/α) ε at time `first`, which is p(x) as far as that noise is small: x_t starts at α x,
    so d log α is added. At the other end x_1 ~ `prior`.

    Arguments:
        denoiser: any prediction, any schedule, flows too; as trained, without its clip.
        first: the time where data stands; its log-SNR must be finite. Where a schedule starts clean 1e-5 costs 1e-4
            nats on Gaussians of σ = 0.07.
        method: dopri5, which adapts its steps to rtol and atol (torchdiffeq; one step for the batch, so an example's
            value depends on its batch, within the tolerance); or a fixed one, of `steps` even steps in λ.
        divergence: exact, d backward passes an evaluation, for few dimensions; rademacher or gaussian, Hutchinson's
            estimate with `probes` draws of that noise, which stay the same for a whole solve: unbiased for log p.
        prior: of x_1; N(0, I), or N(0, σ_1² I) where variance explodes, by default.
        limit: evaluations after which an adaptive solver is given up, so that no rank waits for ever.
    `evaluations` counts those of the network in the last solve. All is float64 but for the network, which sees the type
    of x. Raises ValueError for settings that do not go together, and by name where `limit` is passed.
    """

    def __init__(
        self,
        denoiser: Denoising,
        first: float = 0.0,
        method: FlowMethod = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        steps: int | None = None,
        divergence: Divergence = "exact",
        probes: int = 1,
        prior: _HasLogProb | None = None,
        limit: int = 20_000,
    ) -> None:
        if method not in get_args(FlowMethod):
            raise ValueError(f"method must be one of {', '.join(get_args(FlowMethod))}; got {method!r}")
        if divergence not in get_args(Divergence):
            raise ValueError(f"divergence must be one of {', '.join(get_args(Divergence))}; got {divergence!r}")
        if (steps is None) != (method == "dopri5") or (steps is not None and steps < 1):
            raise ValueError(f"steps must be at least 1 for a fixed method, None for dopri5; got {steps} for {method}")
        if not (rtol > 0 and atol > 0 and probes >= 1 and limit >= 1):
            raise ValueError(
                f"rtol and atol above 0, probes and limit at least 1; got {rtol}, {atol}, {probes} and {limit}"
            )
        self.denoiser, self.first, self.method = denoiser, first, method
        self.rtol, self.atol, self.steps, self.limit = rtol, atol, steps, limit
        self.divergence, self.probes, self.prior = divergence, probes, prior
        with torch.no_grad():
            start, end = (float(denoiser.schedule.log_snr(t)) for t in (first, 1.0))
        self.ends = (start, max(end, min(LOWEST, start - 1)))
        if not start < float("inf"):
            raise ValueError(
                f"first must be a time with noise; {type(denoiser.schedule).__name__} is noiseless at t = {first:g}: "
                "use a small one, such as 1e-5"
            )
        self.evaluations = 0

    @torch.no_grad()
    def log_prob(self, x: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x) (B,) nats, of x (B, *event)."""
        alpha = self.denoiser.schedule.coefficients(widest(self.ends[0], x.device))[0]
        return self.log_density(over(alpha, wide(x)) * wide(x), cond, generator) + x[0].numel() * alpha.log()

    @torch.no_grad()
    def log_density(self, x_t: Tensor, cond: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return log p(x_t) (B,) nats, of x_t (B, *event) at time `first`."""
        x_1, change = self.transport(x_t, *self.ends, cond, generator)
        std = torch.full_like(x_1[:1], self.denoiser.schedule.terminal_std)
        prior = Normal(torch.zeros_like(std), std) if self.prior is None else self.prior
        return prior.log_prob(x_1) + change

    @torch.no_grad()
    @full_precision()
    def transport(
        self,
        x_t: Tensor,
        start: float,
        end: float,
        cond: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return x_t carried from log-SNR start to end, up or down (B, *event), and ∫ div f dλ (B,); float64.

        Raises ValueError for ends beyond the schedule's own, where no time belongs to them.
        """
        from torchdiffeq import odeint

        self._check(start, end)
        network_dtype = wide(x_t).dtype
        noise = self._noise(x_t, generator)
        self.evaluations = 0

        def rate(log_snr: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            self.evaluations += 1
            if self.evaluations > self.limit:
                raise ValueError(
                    f"limit must be enough for the tolerance; rtol {self.rtol:g}, atol {self.atol:g} took more than "
                    f"{self.limit} evaluations: loosen them, or use a fixed method such as rk4 with steps"
                )

            def f(x: Tensor) -> Tensor:
                return widest(drift(self.denoiser, x.to(network_dtype), log_snr, cond))

            return exact_divergence(f, state[0]) if noise is None else hutchinson(f, state[0], noise)

        ends = torch.stack([widest(start, x_t.device), widest(end, x_t.device)])
        state = widest(x_t), widest(torch.zeros(len(x_t)), x_t.device)
        if self.steps is None:
            x, change = odeint(rate, state, ends, rtol=self.rtol, atol=self.atol, method=self.method)
        else:
            even = torch.linspace(0, 1, self.steps + 1, dtype=ends.dtype, device=ends.device)
            grid = torch.lerp(ends[0], ends[1], even)
            options = {"grid_constructor": lambda f, y, t: grid}
            x, change = odeint(rate, state, ends, method=self.method, options=options)
        return x[-1], change[-1]

    def _check(self, start: float, end: float) -> None:
        with torch.no_grad():
            highest, lowest = (float(self.denoiser.schedule.log_snr(t)) for t in (0.0, 1.0))
        for name, log_snr in (("start", start), ("end", end)):
            if not lowest - 1e-9 <= log_snr <= highest + 1e-9:
                kind = type(self.denoiser.schedule).__name__
                raise ValueError(f"{name} must be a log-SNR of {kind}, {lowest:g} to {highest:g}; got {log_snr:g}")

    def _noise(self, x: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Return the probes (M, B, *event) of a solve."""
        if self.divergence == "exact":
            return None
        like = widest(x).new_empty(self.probes, *x.shape)
        noise = randn_like(like, generator)
        return noise if self.divergence == "gaussian" else torch.where(noise < 0, -1.0, 1.0).to(noise)
