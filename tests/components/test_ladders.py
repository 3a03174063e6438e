"""The learned levels of a hierarchical VAE."""

import re

import pytest
import torch
from answers import assert_gradients, randomized

from components.distributions import kl
from components.ladders import BottomUp, DenseBottomUp, convolutional_ladder, dense_ladder


def build(kind, levels=3, **options):
    """A ladder with weights that are anything, and an x for it."""
    ladder = dense_ladder(5, levels, 2, 8, **options) if kind == "dense" else convolutional_ladder(
        (1, 8, 8), levels, 2, 8, **options)  # fmt: skip
    for module in (ladder.encoder, *ladder.levels):
        randomized(module, 0.2)
    return ladder, torch.randn(4, 5) if kind == "dense" else torch.randn(4, 1, 8, 8)


def descend(ladder, x, cond=None):
    """Posteriors, priors and the lowest state, with each z at its posterior's mean."""
    features, above, pairs = ladder.encoder(x, cond), None, []
    for level in ladder.levels:
        q, p = level.posterior(above, features, cond), level.prior(above, cond)
        pairs.append((q, p))
        above = level.below(above, q.mean, cond)
    return pairs, above


KINDS = pytest.mark.parametrize("kind", ["dense", "convolutional"])


@pytest.mark.parametrize("shape, levels, resolutions", [
    ((1, 8, 8), 2, [4, 8]), ((1, 8, 8), 3, [2, 4, 8]), ((1, 8, 8), 1, [4]), ((3, 16, 16), 2, [4, 8]),
    ((3, 16, 16), 3, [4, 8, 16]),
])  # fmt: skip
def test_each_level_has_twice_the_resolution_of_the_one_above(shape, levels, resolutions):
    ladder = convolutional_ladder(shape, levels, 3, 8)
    pairs, state = descend(ladder, torch.randn(2, *shape))
    assert [q.mean.shape for q, _ in pairs] == [(2, 3, side, side) for side in resolutions]
    assert state.shape == (2, *ladder.state) and ladder.state[1:] == (resolutions[-1],) * 2


def test_a_vector_s_levels_are_vectors():
    ladder, x = build("dense")
    pairs, state = descend(ladder, x)
    assert all(q.mean.shape == (4, 2) for q, _ in pairs) and state.shape == (4, *ladder.state) == (4, 8)


def test_the_top_s_prior_is_one_for_all():
    for kind in ("dense", "convolutional"):
        ladder, _ = build(kind)
        assert len(ladder.levels[0].prior(None).mean) == 1


@pytest.mark.parametrize("ladder", [dense_ladder(5, 3, 2, 8), convolutional_ladder((1, 8, 8), 3, 2, 8)])
def test_every_prior_starts_as_the_standard_normal(ladder):
    """Up to what the soft limits of log std do to 0."""
    x = torch.randn(4, 5) if ladder.state == (8,) else torch.randn(4, 1, 8, 8)
    for _, p in descend(ladder, x)[0]:
        assert (p.mean == 0).all() and (p.std - 1).abs().max() < 0.01


@KINDS
def test_a_posterior_depends_on_x_and_the_state_above_and_a_prior_on_the_state_alone(kind):
    ladder, x = build(kind)
    features, other = ladder.encoder(x), ladder.encoder(x + 1)
    top = ladder.levels[0]
    above = top.below(None, top.posterior(None, features).mean)
    level, shifted = ladder.levels[1], above + torch.randn_like(above)
    for changed in (level.posterior(shifted, features), level.posterior(above, other)):
        assert (changed.mean - level.posterior(above, features).mean).abs().max() > 1e-3
    assert (level.prior(shifted).mean - level.prior(above).mean).abs().max() > 1e-3


@KINDS
def test_every_parameter_has_a_gradient(kind):
    ladder, x = build(kind, num_classes=3)
    pairs, state = descend(ladder, x, torch.tensor([0, 1, 2, 3]))
    (state.square().sum() + sum(kl(q, p).sum() for q, p in pairs)).backward()
    for module in (ladder.encoder, *ladder.levels):
        assert_gradients(module)


@KINDS
def test_every_level_depends_on_the_label(kind):
    """And none at all means the null class."""
    ladder, x = build(kind, num_classes=3)
    null = torch.full((4,), 3)
    one, other = (descend(ladder, x, torch.full((4,), c))[0] for c in (0, 1))
    for (_, p), (_, changed) in zip(one, other):
        assert (p.mean - changed.mean).abs().max() > 1e-4
    for (q, p), (same_q, same_p) in zip(descend(ladder, x)[0], descend(ladder, x, null)[0]):
        torch.testing.assert_close(q.mean, same_q.mean)
        torch.testing.assert_close(p.mean.expand_as(same_p.mean), same_p.mean)


@KINDS
def test_features_of_another_level_or_none_at_all_are_refused(kind):
    """Such as x itself, where the model has no encoder, of which place 0 is an example."""
    ladder, x = build(kind)
    top, sides = ladder.levels[0], "" if kind == "dense" else ", 2, 2"
    message = f"x[0] must be the encoder's features of this level, (B, C{sides}) as its state is; got shape "
    wrong = [x] if kind == "dense" else [x, ladder.encoder(x)[::-1]]
    for features in wrong:
        with pytest.raises(ValueError, match=re.escape(message + str(tuple(features[0].shape)))):
            top.posterior(None, features)


X = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("make, message", [
    (lambda: convolutional_ladder((1, 8, 8), 5),
     r"levels must be from 1 to 4 for images of shape \(1, 8, 8\).*; got 5: .*--resolution"),
    (lambda: dense_ladder(5, 0), "levels must be at least 1; got 0"),
    (lambda: convolutional_ladder((1, 8, 8), 0), "levels must be from 1 to 4 .*; got 0"),
    (lambda: convolutional_ladder((2,)), r"shape must be \(C, H, W\); got \(2,\): for points use dense_ladder"),
    (lambda: BottomUp((2,), 8, (1, 2)), r"shape must be \(C, H, W\); got \(2,\): for points use DenseBottomUp"),
    (lambda: build("convolutional")[0].levels[1].prior(None),
     "above must be the state of the level above, since this level has no start"),
    (lambda: build("convolutional")[0].levels[0].prior(None, torch.tensor([0])),
     "cond must be None for a network built with num_classes=None"),
    (lambda: BottomUp((1, 8, 8), 8, (1, 2))(X), r"x must be \(B, 1, 8, 8\); got shape \(2, 3, 8, 8\)"),
    (lambda: DenseBottomUp(5, 8, 2)(X), r"x must be \(B, 5\); got shape \(2, 3, 8, 8\)"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
