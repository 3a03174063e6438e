import math

import pytest
import torch
from torch import nn

from hybrids.terms import Terms

X, Y = torch.arange(4.0), torch.arange(4.0) ** 2


def test_a_tensor_alone_has_weight_1():
    terms = Terms(rate=X, distortion=(2.0, Y))
    assert terms["rate"][0] == 1.0 and terms["distortion"][0] == 2.0 and torch.equal(terms["distortion"][1], Y)
    assert list(terms) == ["rate", "distortion"] and len(terms) == 2


def test_total_is_the_weighted_sum_of_means():
    terms = Terms(rate=X, distortion=(2.0, Y))
    assert terms.total.shape == () and terms.total.item() == pytest.approx(1.5 + 2 * 3.5)


def test_per_example_is_the_weighted_sum_and_its_mean_the_total():
    terms = Terms(rate=X, distortion=(2.0, Y))
    assert torch.equal(terms.per_example, X + 2 * Y)
    assert terms.per_example.mean().item() == pytest.approx(terms.total.item())


def test_means_are_unweighted_and_detached():
    x = X.clone().requires_grad_()
    means = Terms(rate=(0.1, x), distortion=(2.0, Y)).means()
    assert {name: value.item() for name, value in means.items()} == {"rate": 1.5, "distortion": 3.5}
    assert not any(value.requires_grad for value in means.values())


def test_terms_add():
    both = Terms(rate=X) + Terms(distortion=(2.0, Y))
    assert list(both) == ["rate", "distortion"] and torch.equal(both.per_example, X + 2 * Y)


def test_sum_adds_them():
    parts = [Terms({f"level {i}": X + i}) for i in range(3)]
    assert torch.equal(sum(parts).per_example, 3 * X + 3)


def test_equal_names_clash():
    with pytest.raises(ValueError, match=r"both sides have a term \['rate'\]: rename one side with .under\(name\)"):
        Terms(rate=X, a=Y) + Terms(rate=Y, b=X)


def test_under_scopes_names_and_lets_them_add():
    both = Terms(rate=X) + Terms(rate=(3.0, Y)).under("prior").under("vae")
    assert list(both) == ["rate", "vae.prior.rate"] and both["vae.prior.rate"][0] == 3.0


@pytest.mark.parametrize("factor", [0.1, 3, torch.tensor(0.5)])
def test_scaling_scales_every_weight(factor):
    terms = Terms(rate=X, distortion=(2.0, Y))
    for scaled in (factor * terms, terms * factor):
        assert scaled.total.item() == pytest.approx(float(factor) * terms.total.item())
        assert scaled.means() == terms.means()


def test_what_adds_or_scales_terms_is_terms_or_a_number():
    for wrong in (lambda: Terms(a=X) + 1.0, lambda: Terms(a=X) * "2", lambda: 1 + Terms(a=X), lambda: Terms(a=X) + X):
        with pytest.raises(TypeError):
            wrong()


def test_a_weight_that_is_a_tensor_may_be_learned():
    weight = nn.Parameter(torch.tensor(2.0))
    Terms(rate=(weight, X)).total.backward()
    assert weight.grad.item() == 1.5


def test_a_batch_level_value_is_expanded():
    terms = Terms(entropy=torch.tensor(3.0), rate=X)
    assert terms["entropy"][1].tolist() == [3.0] * 4 and terms.per_example.tolist() == [3.0, 4.0, 5.0, 6.0]


def test_a_batch_level_value_joins_a_batch():
    both = Terms(penalty=torch.tensor(3.0)) + Terms(rate=X)
    assert both["penalty"][1].shape == (4,) and both.total.item() == 4.5
    assert Terms(penalty=(0.5, torch.tensor(3.0))).total.item() == 1.5


def test_a_term_of_weight_0_is_reported_and_never_differentiated():
    x = X.clone().requires_grad_()
    terms = Terms(rate=x, seen=(0.0, x * math.inf))
    terms.total.backward()
    assert x.grad.tolist() == [0.25] * 4
    assert not terms["seen"][1].requires_grad and "seen" in terms.means()
    assert torch.equal(terms.per_example, X)


def test_scaling_by_0_stops_the_gradient():
    x = X.clone().requires_grad_()
    terms = 0.0 * Terms(adversarial=x) + Terms(rate=Y)
    assert not terms.total.requires_grad


def test_half_precision_is_widened_before_the_mean():
    values = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    terms = Terms(rate=values)
    assert terms["rate"][1].dtype == terms.total.dtype == torch.float32
    assert Terms(rate=values.double()).total.dtype == torch.float64


@pytest.mark.parametrize("make, error, message", [
    (lambda: Terms(rate=X[:, None]), ValueError, r"'rate' must be \(B,\), one value an example; got shape \(4, 1\)"),
    (lambda: Terms(rate=3.0), TypeError, r"term 'rate' must be a tensor \(B,\) or \(weight, tensor\); got float"),
    (lambda: Terms(rate=(X, Y)), ValueError, r"the weight of term 'rate' must be a number or \(\); got shape \(4,\)"),
    (lambda: Terms(rate=X, b=X[:3]), ValueError, r"all terms must have one batch size; got {'rate': 4, 'b': 3}"),
    (lambda: Terms(rate=X) + Terms(b=X[:3]), ValueError, "all terms must have one batch size"),
    (lambda: Terms().per_example, ValueError, "an empty Terms has no total"),
    (lambda: Terms().total, ValueError, r"nothing to minimize: no term has a weight other than 0; got \[\]"),
    (lambda: Terms(seen=(0.0, X)).total, ValueError, r"nothing to minimize.*; got \['seen'\]"),
])  # fmt: skip
def test_what_is_no_objective_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_it_prints_names_and_weights():
    assert repr(Terms(rate=(0.5, X), seen=(0.0, torch.tensor(1.0)))) == "Terms(rate=0.5 × (4,), seen=0 × (4,))"
