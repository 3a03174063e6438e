import math

import pytest

from hybrids.comparison.families import DEFAULT, family, title
from hybrids.comparison.verdicts import USUAL, adjectives


def recipe(name, state="finished", **means):
    return {"recipe": name, "state": state, "summary": {key: {"mean": value} for key, value in means.items()}}


def said(axis, *recipes, of="vae", real=None):
    found = [one for one in adjectives(recipes, real or {}) if (one["axis"], one["recipe"]) == (axis, of)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("axis", "means", "real", "verdict"),
    [
        ("sharpness", {"high_frequency": 0.79}, {}, "confirmed"),
        ("sharpness", {"high_frequency": 0.8}, {}, "contradicted"),
        ("sharpness", {"frechet": 1.0}, {}, "not measured"),
        ("control", {"probe": 0.9}, {}, "confirmed"),
        ("control", {"probe": 0.89}, {}, "contradicted"),
        ("control", {"probe_factors": 0.95}, {}, "confirmed"),
        ("coverage", {"recall": 0.56}, {"recall": 0.8}, "confirmed"),
        ("coverage", {"recall": 0.55}, {"recall": 0.8}, "contradicted"),
        # Good is the least that was said of it.
        ("coverage", {"recall": 0.8}, {"recall": 0.8}, "confirmed"),
        ("coverage", {"kl": 0.1 - math.log(0.71), "recall": 0.0}, {"kl": 0.1}, "confirmed"),
        ("coverage", {"kl": 0.1 - math.log(0.69)}, {"kl": 0.1}, "contradicted"),
        ("likelihood", {"bits_per_dim": 2.0}, {}, "confirmed"),
        ("likelihood", {"frechet": 1.0}, {}, "not measured"),
        ("stability", {"diverged": 0.0, "spread": 0.19}, {}, "confirmed"),
        ("stability", {"diverged": 0.0, "spread": 0.21}, {}, "contradicted"),
        ("stability", {"diverged": 0.5, "spread": 0.01}, {}, "contradicted"),
        ("stability", {"diverged": 0.0, "spikes": 0.02, "spread": 0.01}, {}, "contradicted"),
        # One seed that went well says nothing of the next.
        ("stability", {"diverged": 0.0, "spikes": 0.0}, {}, "not measured"),
    ],
)
def test_what_is_said_of_a_vae_beside_its_number(axis, means, real, verdict):
    entry = said(axis, recipe("vae", **means), real=real)
    assert entry["verdict"] == verdict and entry["usual"] == USUAL[axis]["VAE"]
    if verdict != "not measured":
        assert entry["value"] == means[entry["metric"]]
        assert entry["because"].startswith("poor" if axis == "coverage" else "") or verdict == "confirmed"


def test_slow_is_below_a_tenth_of_the_fastest():
    others = [recipe("gan", samples_per_second=1000.0), recipe("vae", samples_per_second=99.0)]
    assert said("speed", *others, recipe("ddpm", samples_per_second=101.0), of="ddpm")["verdict"] == "contradicted"
    assert said("speed", *others, recipe("ddpm", samples_per_second=99.0), of="ddpm")["verdict"] == "confirmed"
    assert said("speed", *others)["verdict"] == "contradicted"


def test_a_gan_has_no_likelihood_where_another_has_one():
    vae, gan = recipe("vae", bits_per_dim=2.0), recipe("gan", frechet=1.0)
    assert said("likelihood", vae, gan, of="gan")["verdict"] == "confirmed"
    # A GAN that was not finished could have had anything.
    failed = recipe("gan", state="failed", diverged=1.0)
    assert said("likelihood", vae, failed, of="gan")["verdict"] == "not measured"
    assert said("stability", vae, failed, of="gan")["verdict"] == "confirmed"


def test_the_exact_likelihood_of_a_diffusion_is_not_confirmed_by_a_bound():
    entry = said("likelihood", recipe("ddpm", bits_per_dim=3.0), of="ddpm")
    assert entry["verdict"] == "not measured" and entry["value"] == 3.0


def test_hybrids_have_no_usual_words():
    recipes = [recipe("latent_diffusion", frechet=1.0), recipe("one_of_mine", frechet=1.0)]
    assert adjectives(recipes, {}) == []


@pytest.mark.parametrize(
    ("axis", "of", "means", "verdict", "word"),
    [
        ("sharpness", "gan", {"high_frequency": 1.25}, "confirmed", ""),
        ("sharpness", "gan", {"high_frequency": 1.26}, "contradicted", "noisy"),
        ("sharpness", "ddpm", {"high_frequency": 0.79}, "contradicted", "blurry"),
        ("control", "gan", {"probe": 0.59}, "confirmed", ""),
        ("control", "gan", {"probe": 0.6}, "contradicted", "moderate"),
        ("control", "ddpm", {"probe": 0.6}, "confirmed", ""),
        ("control", "ddpm", {"probe": 0.9}, "contradicted", "strong"),
        ("coverage", "ddpm", {"recall": 0.9}, "confirmed", ""),
        ("coverage", "ddpm", {"recall": 0.89}, "contradicted", "good"),
        ("likelihood", "ddpm", {"exact_nats": 1.0, "nats": 2.0}, "confirmed", ""),
    ],
)
def test_every_word_has_its_number(axis, of, means, verdict, word):
    entry = said(axis, recipe(of, **means), of=of)
    assert entry["verdict"] == verdict and entry["value"] == next(iter(means.values()))
    assert entry["because"].startswith(f"{word}, not {entry['usual']}: " if word else "")


def test_the_default_recipes_are_each_family_and_each_connection():
    families = {family(recipe) for recipe in DEFAULT}
    assert families == {"VAE", "GAN", "diffusion", "GAN + diffusion", "VAE + diffusion", "VAE + GAN + diffusion"}
    for name in DEFAULT:
        latent, adversarial = name.startswith("latent"), "adversarial" in name
        assert ("+" in family(name)) == (latent or adversarial)
        assert ("GAN" in family(name)) == (adversarial or name == "gan")
        assert ("VAE" in family(name)) == (latent or name == "vae")
    assert len({title(recipe) for recipe in DEFAULT}) == len(DEFAULT)
    assert (family("one_of_mine"), title("one_of_mine")) == ("other", "one of mine")
