"""The usual table of adjectives, each beside the number that confirms or contradicts it. All rules are here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .families import family

__all__ = ["USUAL", "adjectives"]

USUAL = {
    "stability": {"VAE": "stable", "GAN": "fragile", "diffusion": "stable"},
    "sharpness": {"VAE": "blurry", "GAN": "excellent", "diffusion": "excellent"},
    "control": {"VAE": "strong", "GAN": "weak", "diffusion": "moderate"},
    "speed": {"VAE": "fast", "GAN": "fast", "diffusion": "slow"},
    "coverage": {"VAE": "good", "GAN": "poor", "diffusion": "excellent"},
    "likelihood": {"VAE": "lower bound", "GAN": "none", "diffusion": "exact with effort"},
}
"""What texts say of the three pure families, axis by axis."""

# The limits below were chosen before anything was measured; a number beside one of them decides little.
BLURRY, OVERSHARP = 0.8, 1.25
SPREAD, SPIKES = 0.2, 0.01
STRONG, WEAK = 0.9, 0.6
SLOW = 0.1
POOR, EXCELLENT = 0.7, 0.9
EXACT = "; scripts/evaluate.py RUN --likelihood --ode has the probability flow's"

Said = tuple[str | None, float | None, str | None, str]
"""The metric, its value, the word that it deserves, and why."""


def _sharpness(mean: Mapping[str, float], _: Mapping[str, Any]) -> Said:
    value = mean.get("high_frequency")
    if value is None:
        return "high_frequency", None, None, "no high-frequency ratio was measured"
    if value < BLURRY:
        word = "blurry"
    else:
        word = "excellent" if value <= OVERSHARP else "noisy"
    return "high_frequency", value, word, (
        f"high-frequency ratio {value:.3g}: blurry below {BLURRY}, excellent up to {OVERSHARP}, noisy above"
    )  # fmt: skip


def _stability(mean: Mapping[str, float], _: Mapping[str, Any]) -> Said:
    diverged, spikes, spread = mean.get("diverged"), mean.get("spikes"), mean.get("spread")
    rule = (
        f"fragile if a run diverged, quality's std over seeds is above {SPREAD} of its mean, or spikes above {SPIKES}"
    )
    if diverged:
        return "diverged", diverged, "fragile", f"{diverged:.0%} of the runs diverged; {rule}"
    if spread is not None and spread > SPREAD:
        return "spread", spread, "fragile", f"std over seeds is {spread:.2g} of the mean; {rule}"
    if spikes is not None and spikes > SPIKES:
        return "spikes", spikes, "fragile", f"{spikes:.2%} of gradient norms are spikes; {rule}"
    if spread is not None:
        return "spread", spread, "stable", f"std over seeds is {spread:.2g} of the mean, no spikes; {rule}"
    if spikes is not None or diverged is not None:
        name = "spikes" if spikes is not None else "diverged"
        return name, mean[name], None, f"one seed, which did not diverge, tells nothing of others; {rule}"
    return "spikes", None, None, "no log was left"


def _control(mean: Mapping[str, float], _: Mapping[str, Any]) -> Said:
    name = "probe" if "probe" in mean else "probe_factors"
    value = mean.get(name)
    if value is None:
        return "probe", None, None, "no labels or factors of the data are probed, or the model has no latents"
    word = "strong" if value >= STRONG else "weak" if value < WEAK else "moderate"
    return name, value, word, (
        f"a linear probe of the latents reaches {value:.3g}: strong from {STRONG}, weak below {WEAK}, else moderate"
    )  # fmt: skip


def _speed(mean: Mapping[str, float], context: Mapping[str, Any]) -> Said:
    value, fastest = mean.get("samples_per_second"), context["fastest"]
    if value is None or not fastest:
        return "samples_per_second", None, None, "no sampling rate was measured"
    word = "slow" if value < SLOW * fastest else "fast"
    rate = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "samples_per_second", value, word, (
        f"{rate} samples a second, {value / fastest:.2g} of the fastest recipe's: slow below {SLOW}"
    )  # fmt: skip


def _coverage(mean: Mapping[str, float], context: Mapping[str, Any]) -> Said:
    real = context["real"]
    if "kl" in mean:
        name, share = "kl", math.exp(min(0.0, real.get("kl", 0.0) - mean["kl"]))
        told = f"KL to the true modes {mean['kl']:.3g} nats: as if {share:.2g} of the modes were covered evenly"
    elif "recall" in mean:
        name, most = "recall", real.get("recall") or 1.0
        share = mean["recall"] / most
        told = f"recall {mean['recall']:.3g}, {share:.2g} of what real examples have"
    else:
        return "recall", None, None, "no coverage was measured"
    word = "poor" if share < POOR else "excellent" if share >= EXCELLENT else "good"
    return name, mean[name], word, f"{told}; poor below {POOR}, excellent from {EXCELLENT}, else good"


def _likelihood(mean: Mapping[str, float], context: Mapping[str, Any]) -> Said:
    if not context["finished"] or not context["likelihoods"]:
        return "bits_per_dim", None, None, "no run was finished, or no likelihood of any recipe was measured"
    for name in ("exact_bits_per_dim", "exact_nats"):
        if name in mean:
            return name, mean[name], "exact with effort", "by the probability flow"
    for name in ("bits_per_dim", "nats"):
        if name in mean:
            flows = context["family"] == "diffusion"
            return name, mean[name], "lower bound", "a bound" + (EXACT if flows else "")
    return "bits_per_dim", None, "none", "the model gives no density, nor a bound of it"


_JUDGES = {
    "stability": _stability,
    "sharpness": _sharpness,
    "control": _control,
    "speed": _speed,
    "coverage": _coverage,
    "likelihood": _likelihood,
}


def _verdict(axis: str, usual: str, word: str | None) -> str:
    if word is None:
        return "not measured"
    if word == usual or (axis == "coverage" and usual == "good" and word == "excellent"):
        return "confirmed"
    if usual == "exact with effort" and word == "lower bound":
        return "not measured"
    return "contradicted"


def adjectives(recipes: Sequence[Mapping[str, Any]], real: Mapping[str, float]) -> list[dict[str, Any]]:
    """What the usual table says of each recipe of a pure family, the number, and the verdict.

    Arguments: recipes, of the report, with their summaries; real, the figures of real examples.
    """
    means = [
        {name: one["mean"] for name, one in recipe["summary"].items() if isinstance(one["mean"], float | int)}
        for recipe in recipes
    ]
    likelihoods = any(name in mean for mean in means for name in ("bits_per_dim", "nats"))
    fastest = max((mean.get("samples_per_second", 0.0) for mean in means), default=0.0)
    found = []
    for axis, usual in USUAL.items():
        for recipe, mean in zip(recipes, means):
            kind = family(recipe["recipe"])
            if kind not in usual or not mean:
                continue
            finished = recipe["state"] in ("finished", "partial")
            context = {
                "fastest": fastest,
                "real": real,
                "finished": finished,
                "likelihoods": likelihoods,
                "family": kind,
            }
            metric, value, word, because = _JUDGES[axis](mean, context)
            expected = usual[kind]
            verdict = _verdict(axis, expected, word)
            if verdict == "contradicted":
                because = f"{word}, not {expected}: {because}"
            found.append(
                {
                    "axis": axis,
                    "usual": expected,
                    "recipe": recipe["recipe"],
                    "metric": metric,
                    "value": value,
                    "verdict": verdict,
                    "because": because,
                }
            )
    return found
