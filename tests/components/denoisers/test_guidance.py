"""Classifier-free guidance, mostly of Gaussians of one covariance, whose guided score is known."""

import math
import re
from typing import NamedTuple

import pytest
import torch
from answers import F64, NAMES, ends_in_noise, generator, network_output, randomized, unscaled
from torch import nn

from components.backbones import MLP, Stochastic
from components.denoisers import Denoiser, Guided, Thresholded
from components.samplers import DDIM, Ancestral, Sampler
from components.schedules import CosineSchedule, EDMSchedule, FlowSchedule, LogSNRLinearSchedule, over

EACH = pytest.mark.parametrize("prediction", NAMES)
MEANS = torch.tensor([[1.0, -0.5], [-2.0, 0.3], [0.4, 0.9]], dtype=F64)  # of two classes, then of the null one
S = 0.6
X_T, T, COND = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-0.7, 0.8]], dtype=F64), (0.2, 0.5, 0.9), torch.tensor([0, 1, 1])


class Call(NamedTuple):
    examples: int
    t: torch.Tensor
    cond: torch.Tensor | None


class Classes(nn.Module):
    """The best answer for N(MEANS[c], S² I), the last being the null class, in any prediction."""

    num_classes = 2

    def __init__(self, schedule, prediction, learned=False):
        super().__init__()
        self.schedule, self.prediction, self.learned, self.calls = schedule, prediction, learned, []

    def forward(self, shown, t, cond=None):
        self.calls.append(Call(len(shown), t, cond))
        alpha, sigma = (over(c, shown) for c in self.schedule.alpha_sigma(t))
        mean = MEANS[-1] if cond is None else MEANS[cond]
        x_t = unscaled(self.prediction, shown, alpha, sigma, self.schedule.exploding)
        x = mean + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x_t - alpha * mean)
        output = network_output(self.prediction, x, x_t, alpha, sigma)
        if not self.learned:
            return output
        v = torch.zeros(len(shown), 1, dtype=F64) if cond is None else cond[:, None] / 2
        return torch.cat([output, v.expand_as(output)], dim=1)


def build(prediction="epsilon", schedule=None, learned=False, **settings):
    schedule = schedule or LogSNRLinearSchedule(6.0, -5.0)
    return Denoiser(Classes(schedule, prediction, learned), schedule, prediction, **settings)


def at_three_times():
    return torch.tensor(T, dtype=F64)


# What it is


@EACH
@pytest.mark.parametrize("schedule", [LogSNRLinearSchedule(6.0, -5.0), EDMSchedule(), FlowSchedule()])
@pytest.mark.parametrize("w", [-1.0, -0.4, 0.0, 0.5, 3.3])
def test_row_32_the_guided_score_is_that_of_a_gaussian_with_an_extrapolated_mean(prediction, schedule, w):
    if prediction == "epsilon" and ends_in_noise(schedule):
        schedule = LogSNRLinearSchedule(9.0, -2.0)  # with a flow it is refused
    t = at_three_times()
    estimate = Guided(build(prediction, schedule), 1 + w)(X_T, t, COND)
    alpha, sigma = (c[:, None] for c in schedule.alpha_sigma(t))
    mean = MEANS[COND] + w * (MEANS[COND] - MEANS[-1])
    expected = -(X_T - alpha * mean) / (alpha**2 * S**2 + sigma**2)
    torch.testing.assert_close(estimate.score, expected, rtol=1e-8, atol=1e-10)
    x = mean + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (X_T - alpha * mean)
    torch.testing.assert_close(estimate.mean, x, rtol=1e-8, atol=1e-8)


@EACH
def test_row_32_scale_1_is_the_conditional_model_and_0_the_unconditional(prediction):
    model, t = build(prediction), at_three_times()
    torch.testing.assert_close(Guided(model, 1.0)(X_T, t, COND).mean, model(X_T, t, COND).mean, rtol=0, atol=0)
    for cond in (None, torch.full_like(COND, 2)):
        expected = model(X_T, t, cond).mean
        torch.testing.assert_close(Guided(model, 0.0)(X_T, t, COND).mean, expected, rtol=1e-10, atol=1e-10)


def test_without_a_condition_it_is_the_unconditional_model():
    model = build()
    assert torch.equal(Guided(model, 3.0)(X_T, 0.4).mean, model(X_T, 0.4).mean)
    assert [call.examples for call in model.backbone.calls] == [3, 3]


def test_both_predictions_come_from_one_forward_of_twice_the_batch():
    model = build()
    Guided(model, 3.0)(X_T, at_three_times(), COND)
    (call,) = model.backbone.calls
    assert call.examples == 6 and call.t.tolist() == [*T, *T] and call.cond.tolist() == [0, 1, 1, 2, 2, 2]


def test_times_may_be_floats_and_levels_and_keep_their_digits():
    model = build()
    guided = Guided(model, 3.3)
    expected = guided(X_T, 0.1, COND).mean
    for t in (torch.tensor(0.1, dtype=F64), torch.full((3,), 0.1, dtype=F64)):
        for time in (t, model.schedule.level(t, X_T)):
            torch.testing.assert_close(guided(X_T, time, COND).mean, expected, rtol=1e-12, atol=1e-12)
    assert all((call.t == 0.1).all() for call in model.backbone.calls)  # float32 would be 1.5e-9 off


def test_each_example_is_guided_by_its_own_time():
    guided, t = Guided(build(), 2.5, interval=(0.3, 0.7)), at_three_times()
    together = guided(X_T, t, COND).mean
    for i in range(3):
        alone = guided(X_T[i : i + 1], t[i], COND[i : i + 1]).mean
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_outside_of_its_interval_it_does_not_guide():
    model, t = build(), at_three_times()
    within, plain, full = (m(X_T, t, COND).mean for m in (Guided(model, 2.5, (0.3, 0.5)), model, Guided(model, 2.5)))
    torch.testing.assert_close(within[[0, 2]], plain[[0, 2]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(within[1], full[1], rtol=1e-12, atol=1e-12)  # an interval holds its ends
    assert (within[1] - plain[1]).abs().max() > 0.1


def test_without_an_example_within_its_interval_the_network_is_evaluated_on_the_batch_alone():
    """A step guides by six examples, or is conditional by three; so a sampler's cost is that of its interval."""
    model, alone = build(), build()
    guided = Guided(model, 2.5, (0.35, 0.65))
    for t, examples in ((0.2, 3), (0.5, 6), (torch.tensor([0.9, 0.1, 0.8], dtype=F64), 3), (at_three_times(), 6)):
        estimate = guided(X_T, t, COND)
        assert model.backbone.calls[-1].examples == examples
        if examples == 3:
            assert torch.equal(estimate.mean, alone(X_T, t, COND).mean)
    model.backbone.calls.clear()
    Sampler("ddim", 10, guidance_scale=2.5, guidance_interval=(0.35, 0.65))(model, X_T, COND)
    assert [call.examples for call in model.backbone.calls].count(6) == 2 and len(model.backbone.calls) == 10


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_brings_back_the_conditional_spread(rescale):
    """x̂ (r std_c/std_x̂ + 1 - r): at r = 1 it has the conditional x̂'s standard deviation (Lin 2023, eq. 15, 16)."""
    model, t = build(), at_three_times()
    plain, full = model(X_T, t, COND).mean, Guided(model, 4.0)(X_T, t, COND).mean
    estimate = Guided(model, 4.0, rescale=rescale)(X_T, t, COND)
    torch.testing.assert_close(estimate.mean, full * (rescale * plain.std(1) / full.std(1) + 1 - rescale)[:, None])
    if rescale == 1:
        torch.testing.assert_close(estimate.mean.std(1), plain.std(1))
    alpha, sigma = (c[:, None] for c in model.schedule.alpha_sigma(t))
    torch.testing.assert_close(alpha * estimate.mean + sigma * estimate.epsilon, X_T)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_learned_variance_is_the_conditional_model_s(rescale):
    model, t = build(learned=True, variance="learned_range"), at_three_times()
    guided, plain = (m.reverse(X_T, t - 0.1, t, COND) for m in (Guided(model, 4.0, rescale=rescale), model))
    torch.testing.assert_close(guided.std, plain.std, rtol=1e-12, atol=0)
    large = build(variance="large").reverse(X_T, t - 0.1, t, COND)
    assert (guided.std < large.std).all()


def test_a_clip_is_of_the_guided_x():
    guided = Guided(build(clip=(-1.0, 1.0)), 9.0)
    assert guided(X_T, 0.5, COND).mean.abs().max() > 1 and guided.clipped(X_T, 0.5, COND).mean.abs().max() == 1


@pytest.mark.parametrize("method", [Ancestral(), DDIM()])
def test_row_32_samples_are_of_the_extrapolated_gaussian(method):
    """100 steps leave the spread a few per cent off."""
    model = build("v_prediction", LogSNRLinearSchedule(9.0, -9.0))
    cond, noise = torch.zeros(4000, dtype=torch.long), torch.randn(4000, 2, dtype=F64)
    x = Sampler(method, steps=100, guidance_scale=2.0)(model, noise, cond)
    assert (x.mean(0) - (2 * MEANS[0] - MEANS[-1])).abs().max() < 4 * S / math.sqrt(4000) + 0.02
    assert x.std(0).tolist() == pytest.approx([S, S], rel=4 / math.sqrt(8000) + 0.05)


# Conditions


class Tokens(nn.Module):
    """Its output is the mean of the tokens there are; 0 without any."""

    def forward(self, x_t, t, cond=None):
        tokens, mask = self.cond = cond
        return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def test_tokens_are_guided_against_an_empty_mask():
    model = Denoiser(Tokens(), LogSNRLinearSchedule(), "sample")
    guided = Guided(model, 2.5)
    tokens, mask = torch.randn(3, 4, 2, dtype=F64), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    conditional = model(X_T, 0.5, (tokens, mask)).mean
    torch.testing.assert_close(guided(X_T, 0.5, (tokens, mask)).mean, 2.5 * conditional)
    twice, masks = model.backbone.cond
    assert torch.equal(twice, torch.cat([tokens, tokens])) and torch.equal(masks[:3], mask) and not masks[3:].any()
    whole = guided(X_T, 0.5, (tokens, torch.ones_like(mask))).mean
    assert torch.equal(guided(X_T, 0.5, (tokens, None)).mean, whole)


def test_the_null_label_is_that_of_the_table_in_a_wrapped_backbone():
    backbone = Stochastic(MLP(2, 8, 1, num_classes=3), 4)
    nn.init.normal_(backbone.backbone.last.weight)
    x, cond, z = torch.randn(4, 2), torch.arange(4) % 3, torch.randn(4, 4)
    model = Denoiser(backbone, CosineSchedule(9.0, -9.0))
    conditional, null = (model(x, 0.5, c, z=z).mean for c in (cond, torch.full((4,), 3)))
    # what the backbone takes by name is given to both halves
    torch.testing.assert_close(Guided(model, 3.0)(x, 0.5, cond, z=z).mean, null + 3 * (conditional - null))


# Wrapping


class Shifted:
    """No module and no Denoiser: what samplers ask of one, around another."""

    self_condition = False

    def __init__(self, denoiser):
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.self_conditioning, self.posterior = denoiser.self_conditioning, denoiser.posterior

    def modules(self):
        return self.denoiser.modules()

    def __call__(self, x_t, t, cond=None, hidden=(), **given):
        estimate = self.denoiser(x_t, t, cond, hidden, **given)
        return estimate.with_mean(estimate.mean + 0.25)

    def bounded(self, estimate):
        return self.denoiser.bounded(estimate)


WRAPPERS = {
    "thresholded": Thresholded,
    "guided": lambda denoiser: Guided(denoiser, 1.0),
    "twice": lambda denoiser: Thresholded(Guided(denoiser, 1.0)),
    "no Denoiser": Shifted,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("rescale", [0.0, 0.5])
def test_whatever_answers_as_a_denoiser_does_is_guided(wrap, rescale):
    inner = wrap(build("v_prediction"))
    guided, t = Guided(inner, 2.5, rescale=rescale), at_three_times()
    conditional, null = (inner(X_T, t, cond) for cond in (COND, torch.full_like(COND, 2)))
    expected = null.mean + 2.5 * (conditional.mean - null.mean)
    spread = conditional.mean.std(1, keepdim=True) / expected.std(1, keepdim=True)
    expected = expected * (rescale * spread + 1 - rescale)
    torch.testing.assert_close(guided(X_T, t, COND).mean, expected, rtol=1e-9, atol=1e-9)
    p = guided.reverse(X_T, t - 0.1, t, COND)
    q = guided.schedule.posterior(X_T, guided.clipped(X_T, t, COND).mean, t - 0.1, t)
    torch.testing.assert_close(p.mean, q.mean)
    torch.testing.assert_close(p.std, q.std.expand_as(p.std))
    assert Sampler(steps=3)(guided, X_T, COND, generator()).isfinite().all()


def test_hidden_features_are_of_the_condition_alone():
    backbone = randomized(MLP(2, 8, 2, num_classes=3), 0.3)
    model, x, cond = Denoiser(backbone, CosineSchedule(), "v_prediction"), torch.randn(4, 2), torch.arange(4) % 3
    expected, null = (model(x, 0.4, c, hidden=("block_1",)).hidden["block_1"] for c in (cond, None))
    assert not torch.allclose(expected, null, rtol=1e-2)
    for wrapped in (Guided(model, 3.0), Guided(model, 3.0, rescale=0.5), Thresholded(Guided(model, 3.0))):
        features = wrapped(x, 0.4, cond, hidden=("block_1",)).hidden
        torch.testing.assert_close(features["block_1"], expected)
        assert list(wrapped.clipped(x, 0.4, cond, ("block_0",)).hidden) == ["block_0"]


# Refusals


class Shift(nn.Module):
    num_classes = 2

    def forward(self, x_t, t, cond=None):
        return x_t + (0 if cond is None else over(cond, x_t))


@pytest.mark.parametrize("call, message", [
    (lambda: Guided(build(), 2.0, interval=(0.5, 0.5)),
     "interval must be (low, high) with 0 <= low < high <= 1; got (0.5, 0.5)"),
    (lambda: Guided(build(), 2.0, interval=(-0.1, 0.5)), "got (-0.1, 0.5)"),
    (lambda: Guided(build(), 2.0, rescale=1.5), "rescale must be in [0, 1]; got 1.5"),
    (lambda: Guided(Denoiser(nn.Identity(), LogSNRLinearSchedule()), 2.0)(X_T, 0.5, COND),
     "Identity has no num_classes: it takes no labels to guide by"),
    *[(lambda shape=shape: Guided(Denoiser(Shift(), LogSNRLinearSchedule(), "sample"), 2.0, rescale=0.5)(
        torch.zeros(shape), 0.5, COND),
       f"rescale must be 0 for events of one element, which have no spread; got rescale 0.5 for x_t of shape {shape}")
      for shape in ((3, 1), (3, 1, 1, 1))],
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_events_of_one_element_are_guided_without_rescale():
    model = Denoiser(Shift(), LogSNRLinearSchedule(), "sample")
    for x in (torch.zeros(3, 1), torch.zeros(3, 1, 1, 1)):
        assert Guided(model, 2.0)(x, 0.5, COND).mean.isfinite().all()
    assert Guided(model, 2.0, rescale=0.5)(torch.randn(3, 2), 0.5, COND).mean.isfinite().all()
