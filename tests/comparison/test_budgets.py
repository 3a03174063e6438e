import pytest
import torch
from torch import nn

from hybrids import Player, Terms
from hybrids.comparison.budgets import few, flops_of_stages, lengths, matched, seconds_of_stages, trained_parameters
from hybrids.data import Data, load_data
from hybrids.experiment import Settings, Stage, load_recipe, parse


def test_matched_is_the_nearest_of_all_widths():
    """Against a search of every width, targets below, between and above all counts included."""

    def count(width):
        return 3 * width * width + 7 * width + 100

    for target in (1, 300, 5_000, 77_777, 1_000_000):
        best = min(range(8, 700), key=lambda width: abs(count(width) - target))
        assert matched(count, target, 8) == (best, count(best))


def test_matched_passes_over_widths_that_cannot_be():
    """Networks of heads want multiples of four."""

    def count(width):
        if width % 4:
            raise ValueError("of heads")
        return 10 * width

    # 10 × 48 = 480, and 10 × 52 = 520 is farther from 490.
    assert matched(count, 490, 8) == (48, 480)
    with pytest.raises(ValueError, match="never"):
        matched(lambda width: (_ for _ in ()).throw(ValueError("never")), 100)


def test_matched_widths_of_recipes_are_nearest():
    data = Data.from_card(load_data("8-gaussians").card())
    for recipe in ("vae", "gan"):
        module = load_recipe(recipe)

        def count(width, module=module, recipe=recipe):
            return trained_parameters(module.build(parse(module.Settings, ["--width", str(width)], recipe), data))

        width, found = matched(count, 60_000, 8)
        assert count(width) == found
        assert all(abs(found - 60_000) <= abs(count(other) - 60_000) for other in (width - 1, width + 1) if other >= 8)


def test_trained_parameters_are_those_of_all_players_once():
    """A shared module counts once, a frozen one not at all, a critic does."""
    shared, own, critic, frozen = nn.Linear(3, 2), nn.Linear(2, 2, bias=False), nn.Linear(5, 1), nn.Linear(9, 9)
    frozen.requires_grad_(False)

    def player(name, *moves):
        return Player(lambda x: Terms(), list(moves), name=name)

    stages = [Stage("a", shared, [player("one", shared, own), player("two", critic, frozen)]),
              Stage("b", shared, [player("three", shared)])]  # fmt: skip
    assert trained_parameters(stages) == 8 + 4 + 6


def test_lengths_pay_the_budget_out_and_stages_share_it():
    assert lengths(3000, [64], split=False) == [46]
    assert lengths(3000, [64, 64], split=True) == [23, 23]
    # Half of 100 s each, at 0.5 s and 0.1 s a step; or as many steps of both.
    assert lengths(100, [0.5, 0.1], split=True) == [100, 500]
    assert lengths(120, [0.5, 0.1], split=False) == [200, 200]
    assert lengths(1, [64], split=False) == [1]


class _Slow(nn.Module):
    """A first step of 0.5 s, as of a kernel that is compiled, then steps of 0.02 s, by a clock of its own; steps that
    are `disturbed` take ten times as long."""

    def __init__(self, disturbed=()):
        super().__init__()
        self.disturbed = disturbed
        self.weight = nn.Parameter(torch.zeros(2))
        self.calls, self.now = 0, 0.0

    def perf_counter(self):
        return self.now

    def loss(self, x):
        self.calls += 1
        self.now += 0.5 if self.calls == 1 else 0.2 if self.calls in self.disturbed else 0.02
        return Terms(error=(x - self.weight).square().sum(1))


def piloted(model, seconds, monkeypatch):
    """What a pilot of so many seconds finds."""
    data = Data("points", (2,), x=torch.randn(64, 2))
    monkeypatch.setattr("hybrids.comparison.budgets.time", model)

    def build(settings, data):
        return [Stage("slow", model, [Player(model.loss, [model])])]

    return seconds_of_stages(Settings(device="cpu", batch_size=8, ema=0), build, data, seconds)


def test_a_pilot_measures_a_step_without_what_comes_before(monkeypatch):
    """With the first step in the mean it would be 0.044."""
    model = _Slow()
    assert piloted(model, 0.25, monkeypatch) == [pytest.approx(0.02)]
    # 5 steps before it counts, 13 to fill 0.25 s, and on to the next ten.
    assert model.calls == 20


def test_a_pilot_is_not_slowed_by_what_else_the_machine_does(monkeypatch):
    """Two of its five fifths are disturbed: the mean over all would be 0.09, and cost the recipe four steps of five."""
    model = _Slow(disturbed=range(21, 41))
    assert piloted(model, 5.0, monkeypatch) == [pytest.approx(0.02)]
    assert model.now > 5.0


def test_flops_count_all_players_and_micro_batches():
    """An MLP of one product, 2 B d k FLOPs forward; its backward needs that of the weights alone, as x wants none."""
    data = Data("points", (4,), x=torch.randn(64, 4))

    def build(settings, data):
        layers = [nn.Linear(4, 3, bias=False), nn.Linear(4, 5, bias=False)]
        players = [
            Player(lambda x, layer=layer: Terms(error=layer(x).square().sum(1)), [layer], name=f"p{i}")
            for i, layer in enumerate(layers)
        ]
        return [Stage("two", nn.ModuleList(layers), players)]

    (once,) = flops_of_stages(Settings(batch_size=8), build, data)
    assert once == 2 * (2 * 8 * 4 * 3 + 2 * 8 * 4 * 5)
    assert flops_of_stages(Settings(batch_size=8, accumulation=3), build, data) == [3 * once]


def test_a_few_examples_keep_their_labels_and_factors():
    data = Data("points", (2,), 3, x=torch.randn(20, 2), labels=torch.arange(20) % 3, factors=torch.randn(20, 4))
    first = few(data, 5)
    for name in ("x", "labels", "factors"):
        assert torch.equal(getattr(first, name), getattr(data, name)[:5])
    bare = Data("points", (2,))
    assert few(bare, 5) is bare
