"""The adjectives that texts use for VAEs, GANs and diffusion models, each compared with a measured number.

All rules are in this file. An adjective is assigned only where the whole 95% interval of the number is within its
limits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.measurements import deviation_interval

__all__ = ["USUAL", "verdicts"]

USUAL = {
    "stability": {"VAE": "stable", "GAN": "fragile", "diffusion": "stable"},
    "sharpness": {"VAE": "blurry", "GAN": "excellent", "diffusion": "excellent"},
    "control": {"VAE": "strong", "GAN": "weak", "diffusion": "moderate"},
    "speed": {"VAE": "fast", "GAN": "fast", "diffusion": "slow"},
    "coverage": {"VAE": "good", "GAN": "poor", "diffusion": "excellent"},
    "likelihood": {"VAE": "lower bound", "GAN": "none", "diffusion": "exact with effort"},
}
"""The usual adjectives of the three families, by axis. Hybrids have none."""

# These limits were chosen before any measurement.
BLURRY, OVERSHARP = 0.8, 1.25
SPREAD, SPIKES = 0.2, 0.01
STRONG, WEAK = 0.9, 0.6
SLOW = 0.1
POOR, EXCELLENT = 0.7, 0.9
EXACT = "; scripts/evaluate.py RUN --likelihood --ode has the probability flow's"


@dataclass(frozen=True)
class Number:
    """A mean over seeds, and the ends of its 95% interval: the mean itself where no interval is known."""

    value: float
    low: float
    high: float
    floor: float | None = None

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} (95%: {self.low:.3g} to {self.high:.3g})"

    def map(self, function: Callable[[float], float]) -> "Number":
        """Return an increasing function of the number and of its interval."""
        return Number(function(self.value), function(self.low), function(self.high))

    def words(self, first: str, *limits: tuple[float, str]) -> set[str]:
        """Return all words that apply within the interval: `first` below all limits, then one from each limit on."""
        edges = [-math.inf, *(limit for limit, _ in limits), math.inf]
        words = [first, *(word for _, word in limits)]
        return {word for word, start, end in zip(words, edges, edges[1:]) if self.low < end and self.high >= start}


@dataclass(frozen=True)
class Judgement:
    """The result for a recipe on one axis: the metric, its value, the words that may apply, and the reason.

    The set of words is empty where the metric was not measured.
    """

    metric: str
    value: float | None
    words: set[str]
    because: str


@dataclass(frozen=True)
class Recipe:
    """The numbers of one recipe, and what the rules need to know of all recipes.

    Arguments:
        numbers: by metric.
        runs: number of runs behind `spread`.
        fastest: the most samples per second of all recipes.
        finished: whether a run has finished.
        likelihoods: whether any recipe has a likelihood.
        family: of the recipe.
    """

    numbers: Mapping[str, Number]
    runs: int
    fastest: float
    finished: bool
    likelihoods: bool
    family: str


def _numbers(recipe: Mapping[str, Any]) -> dict[str, Number]:
    """Return the means over seeds with Student's interval; for one seed with the measurement's own interval."""
    runs = [run.get("figures", {}) for run in recipe.get("runs", [])]
    numbers = {}
    for name, over_seeds in recipe["summary"].items():
        measurements = [run[name] for run in runs if name in run]
        ends = over_seeds if _finite(over_seeds.get("low")) or not measurements else measurements[0]
        value, low, high = over_seeds["mean"], ends.get("low"), ends.get("high")
        if not _finite(value):
            continue
        floors = [one["floor"] for one in measurements if _finite(one.get("floor"))]
        numbers[name] = Number(
            value,
            low if _finite(low) else value,
            high if _finite(high) else value,
            sum(floors) / len(floors) if floors else None,
        )
    return numbers


def _finite(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def _sharpness(recipe: Recipe) -> Judgement:
    names = [name for name in ("high_frequency", "laplacian") if name in recipe.numbers]
    if not names:
        return Judgement("high_frequency", None, set(), "sharpness was not measured")
    numbers = [recipe.numbers[name] for name in names]
    limits = (BLURRY, "excellent"), (math.nextafter(OVERSHARP, math.inf), "noisy")
    words = set().union(*(number.words("blurry", *limits) for number in numbers))
    evidence = " and ".join(f"{name} {number}" for name, number in zip(names, numbers))
    rule = f"of real images: blurry below {BLURRY}, excellent up to {OVERSHARP}, noisy above"
    return Judgement(names[0], numbers[0].value, words, f"{evidence} {rule}")


def _stability(recipe: Recipe) -> Judgement:
    diverged, spikes, spread = (recipe.numbers.get(name) for name in ("diverged", "spikes", "spread"))
    rule = (
        f"fragile if a run diverged, quality's std over seeds is above {SPREAD} of its mean, or more than {SPIKES:.0%} "
        "of gradient norms are spikes"
    )
    if diverged is not None and diverged.value > 0:
        return Judgement("diverged", diverged.value, {"fragile"}, f"{diverged.value:.0%} of the runs diverged; {rule}")
    above = math.nextafter(SPIKES, math.inf)
    of_spikes = {"stable"} if spikes is None else spikes.words("stable", (above, "fragile"))
    if spikes is not None and of_spikes == {"fragile"}:
        return Judgement("spikes", spikes.value, of_spikes, f"share of spikes {spikes}; {rule}")
    if spread is None:
        known = next((name for name in ("spikes", "diverged") if name in recipe.numbers), "spikes")
        value = recipe.numbers[known].value if known in recipe.numbers else None
        why = "there is no log" if value is None else f"only one seed, which did not diverge; {rule}"
        return Judgement(known, value, set(), why)
    evidence = f"std over {recipe.runs} seeds is {spread} of the mean"
    words = spread.words("stable", (math.nextafter(SPREAD, math.inf), "fragile"))
    if words == {"stable"} != of_spikes:
        value, because = spikes.value if spikes else None, f"{evidence}, share of spikes {spikes}; {rule}"
        return Judgement("spikes", value, of_spikes, because)
    return Judgement("spread", spread.value, words, f"{evidence}; {rule}")


def _control(recipe: Recipe) -> Judgement:
    name = "probe" if "probe" in recipe.numbers else "probe_factors"
    number = recipe.numbers.get(name)
    if number is None:
        why = "the data has no labels or factors for a probe, or the model has no latents"
        return Judgement("probe", None, set(), why)
    rule = f"strong from {STRONG}, weak below {WEAK}, else moderate"
    words = number.words("weak", (WEAK, "moderate"), (STRONG, "strong"))
    return Judgement(name, number.value, words, f"a linear probe of the latents reaches {number}: {rule}")


def _speed(recipe: Recipe) -> Judgement:
    number = recipe.numbers.get("samples_per_second")
    if number is None or not recipe.fastest:
        return Judgement("samples_per_second", None, set(), "the sampling speed was not measured")
    share = number.map(lambda per_second: per_second / recipe.fastest)
    text = f"{number.value:,.0f}" if number.value >= 100 else f"{number.value:.3g}"
    evidence = f"{text} samples per second, {share} of the fastest recipe's: slow below {SLOW}"
    return Judgement("samples_per_second", number.value, share.words("slow", (SLOW, "fast")), evidence)


def _coverage(recipe: Recipe) -> Judgement:
    name = "kl" if "kl" in recipe.numbers else "recall"
    number = recipe.numbers.get(name)
    if number is None:
        return Judgement("recall", None, set(), "coverage was not measured")
    floor = number.floor
    if name == "kl":
        # Decreasing in the KL: the ends of the interval are exchanged.
        excess = number.map(lambda nats: max(0.0, nats - (floor or 0.0)))
        share = Number(*(math.exp(-nats) for nats in (excess.value, excess.high, excess.low)))
        evidence = f"KL to the true modes {number} nats, as of a uniform distribution over {share} of the modes"
    else:
        share = number.map(lambda recall: recall / (floor or 1.0))
        evidence = f"recall {number}, {share} of that of as many real examples"
    words = share.words("poor", (POOR, "good"), (EXCELLENT, "excellent"))
    rule = f"poor below {POOR}, excellent from {EXCELLENT}, else good"
    return Judgement(name, number.value, words, f"{evidence}; {rule}")


def _likelihood(recipe: Recipe) -> Judgement:
    if not recipe.finished or not recipe.likelihoods:
        why = "no run has finished, or no recipe has a measured likelihood"
        return Judgement("bits_per_dim", None, set(), why)
    for name in ("bits_per_dim", "nats"):
        if name in recipe.numbers:
            why = "a bound" + (EXACT if recipe.family == "diffusion" else "")
            return Judgement(name, recipe.numbers[name].value, {"lower bound"}, why)
    return Judgement("bits_per_dim", None, {"none"}, "the model has neither a density nor a bound on it")


_RULES = {
    "stability": _stability,
    "sharpness": _sharpness,
    "control": _control,
    "speed": _speed,
    "coverage": _coverage,
    "likelihood": _likelihood,
}


def _verdict(axis: str, usual: str | None, words: set[str]) -> str:
    if not words or (usual == "exact with effort" and words == {"lower bound"}):
        return "not measured"
    if usual is None:
        return "no usual word"
    # "good" is a lower limit: excellent coverage confirms it.
    fitting = {"good", "excellent"} if (axis, usual) == ("coverage", "good") else {usual}
    if words <= fitting:
        return "confirmed"
    return "undecided" if words & fitting else "contradicted"


def verdicts(recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the measured word of each recipe on each axis, and whether the family's usual word agrees.

    Each entry has axis, recipe; usual, the family's word, or None for a hybrid; metric, value; word, None where it was
    not measured or the interval spans a limit; verdict, one of confirmed, contradicted, undecided (the 95% interval
    spans the limit), not measured, no usual word; because, the reason. The interval is Student's over seeds, or the
    measurement's own for one seed; that of the standard deviation over seeds is from χ². Coverage is relative to the
    floor at the same number of samples.
    Arguments:
        recipes: of the report, with family, runs and summary.
    """
    every = [_numbers(recipe) for recipe in recipes]
    likelihoods = any(name in numbers for numbers in every for name in ("bits_per_dim", "nats"))
    speeds = [numbers["samples_per_second"].value for numbers in every if "samples_per_second" in numbers]
    entries = []
    for axis, usual in USUAL.items():
        for recipe, numbers in zip(recipes, every):
            if not numbers:
                continue
            kind = str(recipe.get("family"))
            runs = 1
            if "spread" in numbers:
                runs = int(recipe["summary"]["spread"]["runs"])
                share = numbers["spread"].value
                numbers = {**numbers, "spread": Number(share, *deviation_interval(share, runs))}
            finished = recipe["state"] in ("finished", "partial")
            given = Recipe(numbers, runs, max(speeds, default=0.0), finished, likelihoods, kind)
            judgement, expected = _RULES[axis](given), usual.get(kind)
            verdict, because = _verdict(axis, expected, judgement.words), judgement.because
            words = " or ".join(sorted(judgement.words))
            if verdict == "contradicted":
                because = f"{words}, not {expected}: {because}"
            elif len(judgement.words) > 1:
                because = f"{words}, the interval spans a limit: {because}"
            entries.append(
                {
                    "axis": axis,
                    "usual": expected,
                    "recipe": recipe["recipe"],
                    "metric": judgement.metric,
                    "value": judgement.value,
                    "word": words if len(judgement.words) == 1 else None,
                    "verdict": verdict,
                    "because": because,
                }
            )
    return entries
