import math

import pytest
import torch
from answers import F64
from torch import nn

from hybrids.evaluation import importance_weighted


class Given(nn.Module):
    """Weights that are known: of its n-th row, log w = f(x, cond, n)."""

    def __init__(self):
        super().__init__()
        self.rows, self.seen, self.drawn = [], [], []

    def log_weight(self, x, cond=None):
        self.rows.append(len(x))
        self.seen.append((x.flatten(1)[:, 0], cond))
        w = 30 * torch.randn(len(x)) - 800  # far below what exp can hold
        self.drawn.append(w)
        return w


@pytest.mark.parametrize("n, samples, rows", [(1, 1, 512), (3, 10, 512), (3, 10, 7), (10, 5, 4), (4, 1000, 64)])
def test_it_is_the_log_mean_of_the_weights_with_bounded_rows(n, samples, rows):
    model, x = Given(), torch.arange(float(n)).view(n, 1).expand(n, 2)
    found, effective = importance_weighted(model, x, samples, rows=rows)
    assert max(model.rows) <= rows and sum(model.rows) == n * samples
    weights = [[] for _ in range(n)]
    for (which, _), w in zip(model.seen, model.drawn):
        for i, value in zip(which.long().tolist(), w.tolist()):
            weights[i].append(value)
    w = torch.tensor(weights, dtype=F64)
    torch.testing.assert_close(found, w.logsumexp(1) - math.log(samples), rtol=1e-6, atol=1e-5)
    share = w.softmax(1)
    torch.testing.assert_close(effective, 1 / share.square().sum(1), rtol=1e-5, atol=1e-5)
    assert found.dtype == F64 and found.isfinite().all()


@pytest.mark.parametrize("rows", [4, 17])
@pytest.mark.parametrize("pair", [False, True])
def test_conditions_stay_with_their_examples(pair, rows):
    model, labels = Given(), torch.arange(5)
    x = labels.float().view(5, 1)
    cond = (labels.view(5, 1, 1).float(), labels.view(5, 1) > 1) if pair else labels
    importance_weighted(model, x, 6, cond, rows=rows)
    for which, given in model.seen:
        tokens, mask = given if pair else (given, given > 1)
        assert torch.equal(tokens.flatten().float(), which) and torch.equal(mask.flatten(), which > 1)
