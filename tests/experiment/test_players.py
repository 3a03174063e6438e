"""The table of players says who moves what; --dry-run prints it with what a step costs, and leaves nothing."""

import re
from functools import partial

import pytest
import torch
from small import TINY
from torch import nn
from torch.optim import SGD

from hybrids import Player, Terms, experiment
from hybrids.data import Data, load_data
from hybrids.data.source import few
from hybrids.experiment import Stage, load_recipe, parse
from hybrids.experiment.record.players import players_table


class Pair(nn.Module):
    """A model of two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 1)

    def sample(self, n, generator=None):
        return torch.zeros(n, 3)


def error(module):
    return lambda x: Terms(error=module(x).square().sum(1))


def row(table: str, player: str) -> list[str]:
    """The cells of a player's first line."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"  {player} ")]
    return re.split(r"  +", line.strip())


def test_a_player_moves_uses_and_freezes():
    """Modules by their names in the model, others by class; all that a player neither moves nor uses is frozen."""
    model, critic, teacher = Pair(), nn.Linear(3, 1), nn.Embedding(2, 5)
    optimizer = partial(SGD, lr=0.25)
    players = [
        Player(error(model.first), [model.first], uses=[teacher], optimizer=optimizer, clip=0.5, per=3, name="one"),
        Player(error(critic), [critic], optimizer=optimizer, every=2, lr=lambda step, steps: 1.0, name="two"),
    ]
    table = players_table(Stage("pair", model, players), 10)
    assert table.startswith("stage pair: 10 steps\n")
    assert row(table, "one") == ["one", "first 8", "Embedding 10", "second 3", "SGD 0.25", "0.5", "1", "3"]
    # Used by one, frozen in the turn of two; and Linear 4, the critic, the other way round.
    assert table.count("Embedding 10") == 2
    assert re.search(r"^ +Linear 4$", table, re.MULTILINE)
    assert row(table, "two")[:3] == ["two", "Linear 4", "–"] and row(table, "two")[-3:] == ["–", "2", "1"]
    assert "loss" not in table


def test_a_part_of_a_module():
    """A bias alone; and what stays frozen of its module."""
    model = Pair()
    model.second.weight.requires_grad = False
    player = Player(
        error(nn.Sequential(model.first, model.second)), [model.second], optimizer=partial(SGD, lr=1.0), name="last"
    )
    cells = row(players_table(Stage("pair", model, [player]), 10), "last")
    assert cells[1] == "second.bias 1" and cells[3] == "first 8"


def loss_of(loss, steps=10, **options) -> str:
    model = Pair()
    player = Player(lambda x, step: loss(model.first(x).square().sum(1), step), [model.first], **options)
    before = torch.get_rng_state()
    table = players_table(Stage("pair", model, [player]), steps, torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), before) and model.first.weight.grad is None
    assert all(p.requires_grad for p in model.parameters())
    return next((line.strip() for line in table.splitlines() if "loss =" in line), "")


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        (lambda e, step: Terms(error=e), {}, "loss = error"),
        (lambda e, step: Terms(a=e, b=(torch.tensor(0.5), e)), {"per": 4}, "loss = (a + 0.5 b) / 4"),
        (lambda e, step: Terms(a=e, b=(step / 9, e)), {}, "loss = a + (0 → 1) b"),
        (lambda e, step: Terms(a=e + torch.randn(2), b=(0.0, e)), {}, "loss = a; measures b"),
    ],
)
def test_the_loss_is_its_terms_with_weights(loss, options, expected):
    """Those of the first step, and of the last where they differ; nothing is drawn and nothing changes."""
    assert loss_of(loss, **options) == expected


def test_a_loss_that_fails_is_left_to_the_first_step():
    def fails(e, step):
        raise ValueError("not these")

    assert loss_of(fails) == ""


@pytest.mark.parametrize("name", TINY)
def test_the_table_of_each_recipe(name):
    """Every stage of every recipe fits 120 columns, and each parameter of a stage is moved by one of its players, used
    or frozen in each turn."""
    recipe = load_recipe(name)
    data = few(load_data("digits", 8), 8)
    for stage in recipe.build(parse(recipe.Settings, TINY[name], name), data):
        table = players_table(stage, 10)
        assert max(map(len, table.splitlines())) <= 120
        whole = sum(p.numel() for p in stage.root().parameters())
        rows = re.split("|".join(rf"\n  (?={player.name} )" for player in stage.players), table)[1:]
        assert len(rows) == len(stage.players)
        for each in rows:
            # What stands after a module's name; the optimizer's cell has a factor behind its number.
            sizes = re.findall(r"\w ([\d,]+)(?=  |$)", each.replace("\n", "  "))
            assert sum(int(size.replace(",", "")) for size in sizes) == whole


@pytest.mark.parametrize("name", TINY)
def test_dry_run(name, tmp_path, few_digits, capsys, monkeypatch):
    """Exit code 0, no file, and the table with the loss of every stage; the costs are positive."""
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    experiment.main(recipe.Settings, recipe.build, ["--dry-run", "--device", "cpu", "--batch-size", "8", *TINY[name]])
    assert not list(tmp_path.iterdir())
    printed = capsys.readouterr().out
    assert "effective batch 8 = 8 × 1 process(es) × 1 micro-batch(es)" in printed
    stages = recipe.build(parse(recipe.Settings, TINY[name], name), few(load_data("digits", 8), 8))
    assert printed.count("loss = ") == sum(len(stage.players) for stage in stages)
    for stage in stages:
        size = sum(p.numel() for p in stage.root().parameters())
        assert f"stage {stage.name}: " in printed and f"  parameters: {size:,}\n" in printed
    assert len(re.findall(r"FLOPs: [1-9]\S* a step of a process, [1-9]\S* a sample", printed)) == len(stages)


def test_a_few_examples_keep_their_labels_and_factors():
    data = Data("points", (2,), 3, x=torch.randn(20, 2), labels=torch.arange(20) % 3, factors=torch.randn(20, 4))
    first = few(data, 5)
    for name in ("x", "labels", "factors"):
        assert torch.equal(getattr(first, name), getattr(data, name)[:5])
    bare = Data("points", (2,))
    assert few(bare, 5).x is None and few(bare, 5).card() == bare.card()
