"""Simulate the coverage of the 95% intervals of evaluation, where the true value is known.

    python scripts/studies/intervals.py [--trials 300] [--seed 0]

Real examples are N(0, I), samples another Gaussian. The true value of a metric is its mean over many independent draws
of n real examples and n samples; that of the kernel distance is a formula. A floor covers if the value of exact samples
is within t of its standard deviations. About eight minutes on one core.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrids.data import Data
from hybrids.evaluation.measurements import Measurement, mean_of, proportion_interval, quantile
from hybrids.evaluation.sample_metrics import SAMPLE_METRICS, SampleSet
from hybrids.evaluation.samples.distances import frechet
from hybrids.evaluation.samples.features import Pixels
from hybrids.evaluation.samples.neighbours import neighbours
from hybrids.evaluation.samples.reference import SPLITS

METRICS = ("frechet", "kernel", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Case:
    """Samples N(shift, scale² I) in d dimensions and real examples N(0, I); `half` takes |x| of the first dimension."""

    name: str
    d: int
    shift: float = 0.0
    scale: float = 1.0
    half: bool = False

    def real(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw real examples (n, d)."""
        return torch.randn(n, self.d, generator=generator)

    def fake(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw samples (n, d)."""
        x = self.scale * torch.randn(n, self.d, generator=generator) + self.shift
        if self.half:
            x[:, 0] = x[:, 0].abs()
        return x


EQUAL = Case("equal", 8)
CASES = (
    EQUAL,
    Case("shifted", 8, shift=0.3),
    Case("wide", 8, scale=1.3),
    Case("narrow", 4, scale=0.7),
    Case("half is missing", 2, half=True),
)


def mmd(case: Case) -> float:
    """Return MMD² of N(0, I) and N(shift, scale² I) under (a·b/d + 1)³, by the moments of a·b, a and b independent."""
    d = case.d

    def expected(mean_a: float, scale_a: float, mean_b: float, scale_b: float) -> float:
        # The means are equal in all dimensions: m_a·m_b is d times the product of two numbers.
        dot, of_a, of_b = d * mean_a * mean_b, d * mean_a**2, d * mean_b**2
        a, b = scale_a**2, scale_b**2
        second = dot**2 + a * of_b + b * of_a + d * a * b
        third = dot**3 + 3 * b * dot * of_a + 3 * a * dot * of_b + a * b * (3 * d + 6) * dot
        return 1 + 3 * dot / d + 3 * second / d**2 + third / d**3

    real, fake = (0.0, 1.0), (case.shift, case.scale)
    return expected(*real, *real) + expected(*fake, *fake) - 2 * expected(*real, *fake)


def truth(case: Case, n: int, draws: int, seed: int = 10**6) -> dict[str, float]:
    """Return the expectation of each metric at n real examples and n samples."""
    generator = torch.Generator().manual_seed(seed)
    every: dict[str, list[float]] = {}
    for _ in range(draws):
        real, fake = case.real(n, generator), case.fake(n, generator)
        for name, value in {"frechet": frechet(real, fake), **neighbours(real, fake)}.items():
            every.setdefault(name, []).append(value)
    means = {name: sum(values) / len(values) for name, values in every.items()}
    return means if case.half else means | {"kernel": mmd(case)}


def measured(case: Case, n: int, trials: int, seed: int = 0) -> Iterator[dict[str, Measurement]]:
    """Yield the measurements of independent trials, each with n samples and n of 2n real examples."""
    for trial in range(trials):
        generator = torch.Generator().manual_seed(1000 * seed + trial)
        data = Data("simulated", (case.d,), x=case.real(2 * n, generator))
        sample_set = SampleSet(case.fake(n, generator), data, lambda: Pixels((case.d,)), torch.device("cpu"))
        yield {name: SAMPLE_METRICS[name](sample_set) for name in METRICS}


def coverage(trials: list[dict[str, Measurement]], expected: dict[str, float]) -> dict[str, float]:
    """Return the share of trials in which each metric's interval contains its expectation."""
    shares = {}
    for name, value in expected.items():
        ends = [(trial[name].low, trial[name].high) for trial in trials]
        shares[name] = sum(low is not None and high is not None and low <= value <= high for low, high in ends)
    return {name: share / len(trials) for name, share in shares.items()}


def coverage_of_floors(trials: list[dict[str, Measurement]]) -> dict[str, float]:
    """Return the share of trials in which the value of exact samples is within t standard deviations of the floor."""
    t = quantile(SPLITS - 1)
    shares = {}
    for name in trials[0]:
        every = [trial[name] for trial in trials]
        shares[name] = sum(abs(one.value - (one.floor or 0.0)) <= t * (one.floor_spread or 0.0) for one in every)
    return {name: share / len(trials) for name, share in shares.items()}


def coverage_of_proportion(p: float, n: int) -> float:
    """Return the probability that Wilson's interval contains p, summed over all outcomes of n draws."""
    from scipy.stats import binom

    share = 0.0
    for k in range(n + 1):
        low, high = proportion_interval(k / n, n)
        share += float(binom.pmf(k, n, p)) * (low <= p <= high)
    return share


def coverage_of_mean(draw: Callable[[int, torch.Generator], Tensor], expected: float, n: int, trials: int) -> float:
    """Return the share of trials in which the interval of the mean of n draws contains its expectation."""
    generator, share = torch.Generator().manual_seed(0), 0
    for _ in range(trials):
        mean = mean_of(draw(n, generator))
        share += (mean.low or 0.0) <= expected <= (mean.high or 0.0)
    return share / trials


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the coverage of the 95% intervals.")
    parser.add_argument("--trials", type=int, default=300, help="trials of each case (300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trials (0)")
    arguments = parser.parse_args()
    if arguments.trials < 10:
        parser.error(f"--trials must be at least 10; got {arguments.trials}")
    torch.set_num_threads(1)
    print(f"{'case':<24}{'n':>6}" + "".join(f"{name:>11}" for name in METRICS))
    for n in (60, 300):
        for case in CASES:
            trials = list(measured(case, n, arguments.trials, arguments.seed))
            shares = coverage(trials, truth(case, n, 4 * arguments.trials))
            cells = (f"{shares[name]:>11.3f}" if name in shares else f"{'–':>11}" for name in METRICS)
            print(f"{case.name:<24}{n:>6}" + "".join(cells), flush=True)
            if case is EQUAL:
                floors = coverage_of_floors(trials)
                print(f"{'  its floors':<24}{n:>6}" + "".join(f"{floors[name]:>11.3f}" for name in METRICS), flush=True)
    for p in (0.0, 0.01, 0.5, 0.99, 1.0):
        print(
            f"proportion {p:<13g}" + "".join(f"  n = {n}: {coverage_of_proportion(p, n):.3f}" for n in (60, 300, 1000))
        )
    for name, draw, expected in (
        ("Gaussian", lambda n, generator: torch.randn(n, generator=generator), 0.0),
        ("exponential", lambda n, generator: -torch.rand(n, generator=generator).log(), 1.0),
    ):
        by_n = {n: coverage_of_mean(draw, expected, n, 10 * arguments.trials) for n in (3, 30, 300)}
        print(f"mean, {name:<18}" + "".join(f"  n = {n}: {share:.3f}" for n, share in by_n.items()))


if __name__ == "__main__":
    main()
