import math
import re

import pytest
import torch
from torch import nn

from components.backbones import MLP, Stochastic
from components.conditions import drop
from components.denoisers import Denoiser, Guided
from components.samplers import ancestral, ddim, time_grid
from components.schedules import CosineSchedule, EDMSchedule, FlowSchedule, LogSNRLinearSchedule, over

F64 = torch.float64
EACH = pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow", "edm"])
MEANS = torch.tensor([[1.0, -0.5], [-2.0, 0.3], [0.4, 0.9]], dtype=F64)  # of two classes, then of the null one
S = 0.6


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Dropping


def test_labels_are_dropped_one_by_one_at_the_rate_asked_for():
    labels = torch.arange(10).repeat(20_000)
    dropped = drop(labels, 0.15, num_classes=10)
    null = dropped == 10
    assert (dropped[~null] == labels[~null]).all() and dropped.dtype == labels.dtype and labels.max() == 9
    assert abs(null.double().mean() - 0.15) < 4 * math.sqrt(0.15 * 0.85 / 200_000)
    both = (null[::2] & null[1::2]).double().mean()  # independently of the neighbour
    assert abs(both - 0.15**2) < 4 * math.sqrt(0.15**2 / 100_000)


def test_tokens_are_dropped_by_their_mask_all_of_an_example_or_none():
    tokens, mask = torch.randn(20_000, 3, 2), torch.rand(20_000, 3) < 0.8
    mask[:, 0] = True
    same, dropped = drop((tokens, mask), 0.2)
    assert same is tokens and dropped.dtype == torch.bool
    gone = ~dropped.any(1)
    assert torch.equal(dropped[~gone], mask[~gone])
    assert abs(gone.double().mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 20_000)


def test_tokens_without_a_mask_are_dropped_as_under_a_mask_of_true_only():
    tokens, mask = torch.randn(1000, 3, 2), torch.ones(1000, 3, dtype=torch.bool)
    torch.manual_seed(1)
    same, dropped = drop((tokens, None), 0.4)
    torch.manual_seed(1)
    assert same is tokens and torch.equal(dropped, drop((tokens, mask), 0.4)[1])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_none_or_all_are_dropped_for_certain(p):
    assert (drop(torch.zeros(1000, dtype=torch.long), p, 7) == (7 if p else 0)).all()
    assert (drop((torch.zeros(1000, 2, 1), torch.ones(1000, 2, dtype=torch.bool)), p)[1] == (p == 0)).all()


@pytest.mark.parametrize("cond, settings, message", [
    (torch.zeros(3, dtype=torch.long), {"p": 0.1}, "labels need num_classes, the null label; got None"),
    (torch.zeros(3, dtype=torch.long), {"p": 1.1, "num_classes": 2}, r"p must be in \[0, 1\]; got 1.1"),
    (torch.zeros(3, dtype=torch.long), {"p": math.nan, "num_classes": 2}, r"p must be in \[0, 1\]; got nan"),
    ((torch.zeros(3, 4, 2), torch.ones(3, 5, dtype=torch.bool)), {"p": 0.1}, r"mask must be \(B, L\) = \(3, 4\); got"),
])  # fmt: skip
def test_what_cannot_be_dropped_is_refused(cond, settings, message):
    with pytest.raises(ValueError, match=message):
        drop(cond, **settings)


# Guidance on Gaussians of equal covariance


class Classes(nn.Module):
    """The best answer for N(MEANS[c], S² I), the last being the null class, in any parameterization."""

    num_classes = 2

    def __init__(self, schedule, prediction, learned=False):
        super().__init__()
        self.schedule, self.prediction, self.learned, self.calls = schedule, prediction, learned, []

    def forward(self, shown, t, cond=None):
        self.calls.append((len(shown), t, cond))
        alpha, sigma = (over(c, shown) for c in self.schedule.alpha_sigma(t))
        mean = MEANS[-1] if cond is None else MEANS[cond]
        # edm shows the network c_in x_t/α, and exploding variance x_t/√(1 + σ²)
        scale = (sigma**2 + alpha**2 * (0.25 if self.prediction == "edm" else 1)).sqrt()
        x_t = shown * scale if self.prediction == "edm" or self.schedule.exploding else shown
        x = mean + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x_t - alpha * mean)
        epsilon, noise = (x_t - alpha * x) / sigma, sigma / alpha
        skip, out = 0.25 / (noise**2 + 0.25), noise * 0.5 / (noise**2 + 0.25).sqrt()
        output = {
            "sample": x, "epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * x, "flow": epsilon - x,
            "edm": (x - skip * x_t / alpha) / out,
        }[self.prediction]  # fmt: skip
        if not self.learned:
            return output
        v = torch.zeros(len(shown), 1, dtype=F64) if cond is None else cond[:, None] / 2
        return torch.cat([output, v.expand_as(output)], dim=1)


def build(prediction="epsilon", schedule=None, learned=False, **settings):
    schedule = schedule or LogSNRLinearSchedule(6.0, -5.0)
    return Denoiser(Classes(schedule, prediction, learned), schedule, prediction, **settings)


X_T, T, COND = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-0.7, 0.8]], dtype=F64), (0.2, 0.5, 0.9), torch.tensor([0, 1, 1])


@EACH
@pytest.mark.parametrize("schedule", [LogSNRLinearSchedule(6.0, -5.0), EDMSchedule(), FlowSchedule()])
@pytest.mark.parametrize("w", [-1.0, -0.4, 0.0, 0.5, 3.3])
def test_row_32_the_guided_score_is_that_of_a_gaussian_with_an_extrapolated_mean(prediction, schedule, w):
    if isinstance(schedule, FlowSchedule) and prediction in ("epsilon", "edm"):
        schedule = LogSNRLinearSchedule(9.0, -2.0)  # with a flow they are refused
    t = torch.tensor(T, dtype=F64)
    found = Guided(build(prediction, schedule), 1 + w)(X_T, t, COND)
    alpha, sigma = (c[:, None] for c in schedule.alpha_sigma(t))
    mean = MEANS[COND] + w * (MEANS[COND] - MEANS[-1])
    expected = -(X_T - alpha * mean) / (alpha**2 * S**2 + sigma**2)
    torch.testing.assert_close(found.score, expected, rtol=1e-8, atol=1e-10)
    x = mean + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (X_T - alpha * mean)
    torch.testing.assert_close(found.mean, x, rtol=1e-8, atol=1e-8)


@EACH
def test_row_32_scale_1_is_the_conditional_model_and_0_the_unconditional(prediction):
    model, t = build(prediction), torch.tensor(T, dtype=F64)
    torch.testing.assert_close(Guided(model, 1.0)(X_T, t, COND).mean, model(X_T, t, COND).mean, rtol=0, atol=0)
    torch.testing.assert_close(Guided(model, 0.0)(X_T, t, COND).mean, model(X_T, t).mean, rtol=1e-10, atol=1e-10)
    null = torch.full_like(COND, 2)
    torch.testing.assert_close(Guided(model, 0.0)(X_T, t, COND).mean, model(X_T, t, null).mean, rtol=1e-10, atol=1e-10)


def test_without_a_condition_it_is_the_unconditional_model():
    model = build()
    assert torch.equal(Guided(model, 3.0)(X_T, 0.4).mean, model(X_T, 0.4).mean)
    assert [n for n, *_ in model.backbone.calls] == [3, 3]


def test_both_predictions_come_from_one_forward_of_twice_the_batch():
    model = build()
    Guided(model, 3.0)(X_T, torch.tensor(T, dtype=F64), COND)
    ((n, t, cond),) = model.backbone.calls
    assert n == 6 and t.tolist() == [*T, *T] and cond.tolist() == [0, 1, 1, 2, 2, 2]


def test_times_may_be_floats_and_keep_their_digits():
    model = build()
    guided = Guided(model, 3.3)
    for t in (0.1, torch.tensor(0.1, dtype=F64), torch.full((3,), 0.1, dtype=F64)):
        found = guided(X_T, t, COND)
        torch.testing.assert_close(found.mean, guided(X_T, 0.1, COND).mean, rtol=1e-12, atol=1e-12)
        assert (model.backbone.calls[-1][1] == 0.1).all()  # float32 would be 1.5e-9 off


def test_each_example_is_guided_by_its_own_time():
    guided, t = Guided(build(), 2.5, interval=(0.3, 0.7)), torch.tensor(T, dtype=F64)
    together = guided(X_T, t, COND).mean
    for i in range(3):
        alone = guided(X_T[i : i + 1], t[i], COND[i : i + 1]).mean
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_outside_of_its_interval_it_does_not_guide():
    model, t = build(), torch.tensor(T, dtype=F64)
    found, plain, full = (m(X_T, t, COND).mean for m in (Guided(model, 2.5, (0.3, 0.5)), model, Guided(model, 2.5)))
    torch.testing.assert_close(found[[0, 2]], plain[[0, 2]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], full[1], rtol=1e-12, atol=1e-12)  # an interval holds its ends
    assert (found[1] - plain[1]).abs().max() > 0.1


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescaling_brings_back_the_conditional_spread(rescale):
    """x̂ (r std_c/std_x̂ + 1 - r): at r = 1 it has the conditional x̂'s standard deviation (Lin 2023, eq. 15, 16)."""
    model, t = build(), torch.tensor(T, dtype=F64)
    plain, full = model(X_T, t, COND).mean, Guided(model, 4.0)(X_T, t, COND).mean
    found = Guided(model, 4.0, rescale=rescale)(X_T, t, COND)
    torch.testing.assert_close(found.mean, full * (rescale * plain.std(1) / full.std(1) + 1 - rescale)[:, None])
    if rescale == 1:
        torch.testing.assert_close(found.mean.std(1), plain.std(1))
    alpha, sigma = (c[:, None] for c in model.schedule.alpha_sigma(t))
    torch.testing.assert_close(alpha * found.mean + sigma * found.epsilon, X_T)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_learned_variance_is_the_conditional_model_s(rescale):
    model, t = build(learned=True, variance="learned_range"), torch.tensor(T, dtype=F64)
    s = t - 0.1
    guided, plain = (m.reverse(X_T, s, t, COND) for m in (Guided(model, 4.0, rescale=rescale), model))
    torch.testing.assert_close(guided.std, plain.std, rtol=1e-12, atol=0)
    large = build(variance="large").reverse(X_T, s, t, COND)
    assert (guided.std < large.std).all()


def test_a_clip_is_of_the_guided_x():
    guided = Guided(build(clip=(-1.0, 1.0)), 9.0)
    assert guided(X_T, 0.5, COND).mean.abs().max() > 1 and guided.clipped(X_T, 0.5, COND).mean.abs().max() == 1


@pytest.mark.parametrize("sampler", [ancestral, ddim])
def test_row_32_samples_are_of_the_extrapolated_gaussian(sampler):
    """100 steps leave the spread a few per cent off."""
    model = build("v_prediction", LogSNRLinearSchedule(9.0, -9.0))
    cond = torch.zeros(4000, dtype=torch.long)
    x = sampler(Guided(model, 2.0), torch.randn(4000, 2, dtype=F64), time_grid(100), cond)
    assert (x.mean(0) - (2 * MEANS[0] - MEANS[-1])).abs().max() < 4 * S / math.sqrt(4000) + 0.02
    assert x.std(0).tolist() == pytest.approx([S, S], rel=4 / math.sqrt(8000) + 0.05)


class Tokens(nn.Module):
    """Means the mean of the tokens there are; 0 without any."""

    def forward(self, x_t, t, cond=None):
        tokens, mask = cond
        self.seen = cond
        return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def test_tokens_are_guided_against_an_empty_mask():
    model = Denoiser(Tokens(), LogSNRLinearSchedule(), "sample")
    tokens, mask = torch.randn(3, 4, 2, dtype=F64), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    found = Guided(model, 2.5)(X_T, 0.5, (tokens, mask))
    torch.testing.assert_close(found.mean, 2.5 * model(X_T, 0.5, (tokens, mask)).mean)
    whole = torch.ones_like(mask)
    assert torch.equal(
        Guided(model, 2.5)(X_T, 0.5, (tokens, None)).mean, Guided(model, 2.5)(X_T, 0.5, (tokens, whole)).mean
    )
    Guided(model, 2.5)(X_T, 0.5, (tokens, mask))
    twice, masks = model.backbone.seen
    assert torch.equal(twice, torch.cat([tokens, tokens])) and torch.equal(masks[:3], mask) and not masks[3:].any()


def test_it_is_a_denoiser_with_the_settings_of_the_one_it_guides():
    model = build(clip=(-1.0, 1.0), variance="large", sigma_data=0.3)
    guided = Guided(model, 2.0)
    for name in ("schedule", "prediction", "variance", "clip", "sigma_data"):
        assert getattr(guided, name) is getattr(model, name), name
    assert isinstance(guided, Denoiser) and "epsilon" in repr(guided)


@pytest.mark.parametrize("settings, message", [
    ({"interval": (0.5, 0.5)}, r"interval must be \(low, high\) with 0 <= low < high <= 1; got \(0.5, 0.5\)"),
    ({"interval": (-0.1, 0.5)}, r"got \(-0.1, 0.5\)"),
    ({"rescale": 1.5}, r"rescale must be in \[0, 1\]; got 1.5"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Guided(build(), 2.0, **settings)


def test_rescaling_events_of_one_element_is_refused_at_the_call():
    """The spread over one element is no number; without rescale such events are guided as any."""

    class Shift(nn.Module):
        num_classes = 2

        def forward(self, x_t, t, cond=None):
            return x_t + (0 if cond is None else cond.view(-1, *[1] * (x_t.ndim - 1)))

    model = Denoiser(Shift(), LogSNRLinearSchedule(), "sample")
    guided = Guided(model, 2.0, rescale=0.5)
    for x in (torch.zeros(3, 1), torch.zeros(3, 1, 1, 1)):
        shape = re.escape(str(tuple(x.shape)))
        with pytest.raises(ValueError, match=rf"rescale must be 0 for events of one element.* x_t of shape {shape}"):
            guided(x, 0.5, COND)
        assert Guided(model, 2.0)(x, 0.5, COND).mean.isfinite().all()
    assert guided(torch.randn(3, 2), 0.5, COND).mean.isfinite().all()


def test_labels_for_a_network_that_takes_none_are_refused():
    model = Denoiser(nn.Identity(), LogSNRLinearSchedule())
    with pytest.raises(ValueError, match="Identity has no num_classes: it takes no labels to guide by"):
        Guided(model, 2.0)(X_T, 0.5, COND)


def test_guidance_finds_the_labels_of_a_wrapped_backbone():
    """The null label is that of the table inside, whatever is around it."""
    backbone = Stochastic(MLP(2, 8, 1, num_classes=3), 4)
    torch.nn.init.normal_(backbone.backbone.last.weight)
    x, cond, z = torch.randn(4, 2), torch.arange(4) % 3, torch.randn(4, 4)
    denoiser = Denoiser(backbone, CosineSchedule(9.0, -9.0))
    told, null = (denoiser(x, 0.5, c, z=z).mean for c in (cond, torch.full((4,), 3)))
    torch.testing.assert_close(Guided(denoiser, 3.0)(x, 0.5, cond, z=z).mean, null + 3 * (told - null))


def test_no_condition_is_left_alone_by_drop():
    assert drop(None, 0.5) is None
