import math

import pytest
import torch
from torch import nn

from hybrids import Player, Terms
from hybrids.probe import probe


def linear(*weights):
    layer = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    return layer


def test_norms_and_cosines_of_linear_terms_are_those_of_their_directions():
    """∇ w·a = a: norms and cosines are those of the vectors, scaled by the weights."""
    layer = linear(1.0, 2.0)
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, -3.0]])
    terms = Terms(a=(2.0, layer(a)[:, 0]), b=layer(b)[:, 0], c=(-1.0, layer(a + b)[:, 0]), seen=(0.0, layer(a)[:, 0]))
    found = probe(terms, Player(lambda x: terms, moves=[layer], name="one"))["one"]
    assert found.norms == pytest.approx({"a": 10.0, "b": 5.0, "c": math.sqrt(50)})
    assert found.cosines["a", "b"] == pytest.approx(0.0, abs=1e-7)
    assert found.cosines["a", "a"] == pytest.approx(1.0)
    assert found.cosines["a", "c"] == pytest.approx(-1 / math.sqrt(2))
    assert "seen" not in str(found) and "one: gradient norm" in str(found)


def test_each_player_sees_its_own_parameters_and_the_graph_survives():
    first, second = linear(1.0, 0.0), linear(0.0, 1.0)
    x = torch.tensor([[1.0, 2.0]])
    terms = Terms(first=first(x)[:, 0], both=(first(x) + second(x))[:, 0])
    players = [Player(lambda x: terms, moves=[layer], name=n) for n, layer in (("p", first), ("q", second))]
    found = probe(terms, players)
    assert found["q"].norms["first"] == 0 and found["q"].cosines["first", "both"] == 0
    assert found["p"].norms["first"] == pytest.approx(math.sqrt(5))
    assert str(found) == f"{found['p']}\n{found['q']}" and "\n  both   " in str(found)
    assert first.weight.grad is None
    terms.total.backward()
    assert torch.allclose(first.weight.grad, 2 * x) and torch.allclose(second.weight.grad, x)


def test_the_norms_add_up_to_the_total_s_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(16, 3)
    terms = Terms(up=(0.3, net(x)[:, 0]), down=(1.7, net(x)[:, 0].square()))
    found = probe(terms, Player(lambda x: terms, moves=[net]))["player"]
    squared = sum(found.cosines[a, b] * found.norms[a] * found.norms[b] for a in terms for b in terms)
    gradient = torch.autograd.grad(terms.total, list(net.parameters()))
    assert squared == pytest.approx(sum(g.square().sum().item() for g in gradient), rel=1e-5)
