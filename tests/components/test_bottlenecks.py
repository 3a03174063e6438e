import copy
import math

import pytest
import torch
from torch import nn

from components import bottlenecks
from components.bottlenecks import FSQ, VQ


def started(codes=5, features=2, **options):
    """A VQ whose codes have all been counted, so that the next forward revives none."""
    vq = VQ(codes, features, **options)
    vq.counts.fill_(10.0)
    return vq


def jacobian(network, z):
    return torch.autograd.functional.jacobian(lambda z: network(z).z, z).reshape(z.numel(), z.numel())


def preimage(fsq):
    """Every code of an FSQ, and a z that goes to it: the formula solved for z."""
    codes, half = fsq.lookup(torch.arange(fsq.codes)), (fsq.levels - 1) * 1.001 / 2
    offset = (fsq.levels % 2 == 0) / 2
    return codes, torch.atanh((codes * (fsq.levels // 2) + offset) / half) - torch.atanh(offset / half)


KINDS = pytest.mark.parametrize("decay", [0.99, None], ids=["moving", "learned"])
EVENTS = pytest.mark.parametrize("event", [(), (3, 4)], ids=["vector", "map"])


@EVENTS
@KINDS
def test_vq_shapes(decay, event):
    vq, z = VQ(7, 5, decay=decay), torch.randn(6, 5, *event).bfloat16()
    out = vq(z)
    assert out.z.shape == z.shape and out.indices.shape == (6, *event) and out.perplexity.shape == ()
    assert out.z.dtype == torch.float32 and out.indices.dtype == torch.int64
    assert set(out.losses) == ({"commitment"} if decay else {"commitment", "codebook"})
    for weight, values in out.losses.values():
        assert isinstance(weight, float) and values.shape == (6,) and values.dtype == torch.float32
    assert torch.equal(vq.eval()(out.z).z, vq.lookup(vq(out.z).indices))


@EVENTS
def test_nearest_code_is_the_argmin(event):
    vq = started(50, 3).eval()
    # far from the origin, where squares cancel
    vq.codebook.add_(1000)
    z = torch.randn(20, 3, *event) + 1000
    out = vq(z)
    rows = z.double().movedim(1, -1)
    distances = (rows[..., None, :] - vq.codebook.double()).norm(dim=-1)
    assert torch.equal(out.indices, distances.argmin(-1))
    assert torch.equal(out.z.movedim(1, -1), vq.codebook[out.indices])


@KINDS
@pytest.mark.parametrize("training", [True, False])
def test_vq_straight_through_jacobian_is_the_identity(decay, training):
    vq = started(decay=decay).train(training)
    torch.testing.assert_close(jacobian(vq, torch.randn(2, 2, 2, 2)), torch.eye(16), atol=0, rtol=0)


def test_losses_are_of_z_before_the_straight_through_estimator_and_beta_weighs_commitment():
    vq, z = started(commitment=0.3, decay=None), torch.randn(4, 2, 3, 3, requires_grad=True)
    out = vq(z)
    beta, commitment = out.losses["commitment"]
    one, codebook = out.losses["codebook"]
    assert (beta, one) == (0.3, 1.0)
    e = vq.lookup(out.indices)
    expected = (z - e).square().flatten(1).sum(1)
    assert (expected > 0).all()
    torch.testing.assert_close(commitment, expected)
    torch.testing.assert_close(codebook, expected)
    # commitment moves the encoder only, codebook the codes only
    of_z, of_codes = torch.autograd.grad(commitment.sum(), [z, vq.codebook], allow_unused=True, retain_graph=True)
    torch.testing.assert_close(of_z, 2 * (z - e).detach())
    assert of_codes is None
    of_z, of_codes = torch.autograd.grad(codebook.sum(), [z, vq.codebook], allow_unused=True)
    assert of_z is None and of_codes.isfinite().all() and of_codes.any()


def test_moving_codes_have_one_loss_and_no_parameters():
    vq, z = started(), torch.randn(4, 2, requires_grad=True)
    weight, values = vq(z).losses["commitment"]
    assert weight == 0.25 and not list(vq.parameters())
    values.sum().backward()
    assert z.grad.isfinite().all() and z.grad.any()


@pytest.mark.parametrize("used", [1, 3, 8])
def test_perplexity_of_equally_used_codes_is_their_number(used):
    vq = started(8, 2).eval()
    z = vq.codebook[torch.arange(24) % used]
    assert vq(z).perplexity.item() == pytest.approx(used, rel=1e-5)
    fsq = FSQ((3, 5))
    assert fsq(preimage(fsq)[1][torch.arange(24) % used]).perplexity.item() == pytest.approx(used, rel=1e-5)


def test_perplexity_is_exp_entropy():
    vq = started(3, 2).eval()
    shares = torch.tensor([0.5, 0.25, 0.25])
    z = vq.codebook[torch.tensor([0, 0, 1, 2])]
    assert vq(z).perplexity.item() == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_codes_converge_to_the_means_of_their_clusters(decay):
    centres = 10 * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    label = torch.arange(40) % 4
    z = centres[label] + torch.randn(40, 2)
    vq = VQ(4, 2, decay=decay, revive=0.0)
    vq.codebook.copy_(centres + 2 * torch.rand(4, 2))
    vq.counts.fill_(3.0)
    for _ in range(1 if decay == 0 else 100):
        assert torch.equal(vq(z).indices, label)
    means = torch.stack([z[label == k].mean(0) for k in range(4)])
    torch.testing.assert_close(vq.codebook, means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vq.counts, torch.full((4,), 10.0), atol=1e-3, rtol=0)


def test_moving_codes_are_the_ratio_of_moving_averages():
    vq, decay = started(decay=0.7, revive=0.0), 0.7
    counts, sums = vq.counts.clone().double(), (vq.counts[:, None] * vq.codebook).double()
    for _ in range(5):
        z = torch.randn(30, 2)
        chosen = nn.functional.one_hot(vq(z).indices, 5).double()
        counts = decay * counts + (1 - decay) * chosen.sum(0)
        sums = decay * sums + (1 - decay) * chosen.T @ z.double()
    torch.testing.assert_close(vq.counts.double(), counts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vq.codebook.double(), sums / counts[:, None], atol=1e-5, rtol=1e-5)


@KINDS
def test_codes_start_from_the_first_batch(decay):
    vq, z = VQ(16, 3, decay=decay), 5 + torch.randn(64, 3)
    out = vq(z)
    assert out.perplexity > 8
    nearest = torch.cdist(vq.codebook.detach(), z).min(1).values
    assert nearest.max() < 0.2  # moved at most a hundredth of the way to their means


@KINDS
def test_dead_codes_revive_and_living_ones_stay(decay):
    vq = started(3, 2, decay=decay)
    with torch.no_grad():
        vq.codebook.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1000.0, 0.0]]))
        vq.counts[2] = 0.5  # below a tenth of the mean
    z = torch.tensor([[1.1, 0.0], [-1.1, 0.0]]).repeat(20, 1)
    vq(z)
    assert vq.codebook[2].abs().max() <= 1.1 + 1e-5 and vq.counts[2] > 5
    torch.testing.assert_close(vq.codebook[:2, 0], torch.tensor([1.0, -1.0]), atol=0.05, rtol=0)


def test_without_revival_unused_codes_stay_for_good():
    vq = started(2, 2, decay=0.5, revive=0.0)
    vq.codebook.copy_(torch.tensor([[1.0, 0.0], [1000.0, 0.0]]))
    for _ in range(300):  # 0.5^300 underflows
        vq(torch.ones(4, 2))
    assert torch.equal(vq.codebook[1], torch.tensor([1000.0, 0.0]))
    torch.testing.assert_close(vq.codebook[0], torch.ones(2))


@KINDS
@pytest.mark.parametrize("how", ["eval", "no_grad"])
def test_eval_and_no_grad_change_nothing(decay, how):
    vq = VQ(5, 2, decay=decay)  # with every code dead
    before = copy.deepcopy(vq.state_dict())
    if how == "eval":
        vq.eval()(torch.randn(8, 2))
    else:
        with torch.no_grad():
            vq(torch.randn(8, 2))
    assert all(torch.equal(before[name], value) for name, value in vq.state_dict().items())


def test_trap_31_statistics_are_those_of_all_ranks(monkeypatch):
    """Trap 31: each rank's own counts. Guard: counts, sums and draws are all-reduced. Here the second rank is feigned:
    its batch is the first one's, so all sums double, and the codes are those of one process with the batch twice."""
    alone, z = started(decay=0.7), torch.randn(30, 2)
    feigned = copy.deepcopy(alone)
    alone(z.repeat(2, 1))
    calls = []
    monkeypatch.setattr(bottlenecks, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(bottlenecks, "sum_over_ranks", lambda x: calls.append(x.shape) or 2 * x)
    monkeypatch.setattr(bottlenecks, "shared", lambda x: calls.append("shared") or x)
    feigned(z)
    assert sorted(map(str, calls)) == sorted(["shared", "torch.Size([5])", "torch.Size([5, 2])"])
    torch.testing.assert_close(feigned.codebook, alone.codebook)
    torch.testing.assert_close(feigned.counts, alone.counts)
    calls.clear()
    feigned.eval()(z)
    assert not calls  # one rank alone may evaluate


@pytest.mark.parametrize("levels", [(8, 5, 5), (3, 4), (7,)])
def test_fsq_takes_exactly_the_product_of_its_levels(levels):
    fsq, total = FSQ(levels), math.prod(levels)
    z = torch.cartesian_prod(*[torch.linspace(-3, 3, 31)] * len(levels)).view(-1, len(levels))
    out = fsq(z)
    assert len(out.z.unique(dim=0)) == total == fsq.codes
    assert sorted(out.indices.unique().tolist()) == list(range(total))
    assert out.z.abs().max() <= 1 and not out.losses
    assert torch.equal(fsq.lookup(out.indices), out.z)
    for i, n in enumerate(levels):
        assert len(out.z[:, i].unique()) == n


def test_fsq_is_idempotent_on_its_grid():
    """The quantizer after the tanh leaves its own values alone: a code's preimage goes to the code."""
    fsq = FSQ((8, 5, 4, 3))
    codes, z = preimage(fsq)
    out = fsq(z)
    assert torch.equal(out.z, codes) and torch.equal(out.indices, torch.arange(fsq.codes))
    assert torch.equal(fsq(torch.zeros(1, 4)).z, torch.zeros(1, 4))


def test_fsq_is_monotone_and_its_gradient_is_that_of_the_tanh():
    fsq = FSQ((8,))
    z = torch.linspace(-4, 4, 101, requires_grad=True)
    out = fsq(z[:, None])
    assert (out.z.diff(dim=0) >= 0).all()
    assert out.z[:, 0].unique().tolist() == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]
    (slope,) = torch.autograd.grad(out.z.sum(), z)
    half = 3.5 * 1.001
    expected = half * (1 - torch.tanh(z + math.atanh(0.5 / half)).square()) / 4
    torch.testing.assert_close(slope, expected)


@EVENTS
def test_fsq_shapes(event):
    fsq, z = FSQ(), torch.randn(6, 4, *event).bfloat16()
    out = fsq(z)
    assert out.z.shape == z.shape and out.z.dtype == torch.float32 and out.indices.shape == (6, *event)
    assert fsq.codes == 1000
    assert torch.equal(fsq.lookup(out.indices), out.z)
    assert not fsq.state_dict()


@pytest.mark.parametrize("build", [lambda: started(5, 4), lambda: FSQ()], ids=["vq", "fsq"])
def test_autocast_is_exact(build):
    network, z = build().eval(), torch.randn(8, 4, 2, 2)
    exact = network(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(z)
    assert torch.equal(out.z, exact.z) and out.z.dtype == torch.float32
    for name, (_, values) in exact.losses.items():
        assert torch.equal(out.losses[name][1], values)


def test_codebook_survives_a_checkpoint():
    vq = VQ(5, 2)
    vq(torch.randn(20, 2))
    other = VQ(5, 2)
    other.load_state_dict(vq.state_dict())
    z = torch.randn(6, 2)
    assert torch.equal(other.eval()(z).z, vq.eval()(z).z)
    assert torch.equal(other.counts, vq.counts) and vq.counts.sum() > 0


@pytest.mark.parametrize("make, message", [
    (lambda: VQ(1, 2), "codes must be at least 2 and features at least 1; got 1 and 2"),
    (lambda: VQ(2, 0), "got 2 and 0"),
    (lambda: VQ(2, 2, commitment=-1.0), "commitment must not be negative; got -1.0"),
    (lambda: VQ(2, 2, decay=1.0), r"decay must be None or in \[0, 1\); got 1.0"),
    (lambda: VQ(2, 2, revive=1.0), r"revive must be in \[0, 1\), .* got 1.0"),
    (lambda: FSQ(()), r"levels must be one or more numbers of at least 3; got \(\)"),
    (lambda: FSQ((8, 2)), r"got \(8, 2\)"),
    (lambda: VQ(2, 3)(torch.zeros(4, 2)), r"z must be \(B, 3\) or \(B, 3, h, w\); got shape \(4, 2\)"),
    (lambda: VQ(2, 3)(torch.zeros(4, 3, 2)), r"got shape \(4, 3, 2\)"),
    (lambda: FSQ()(torch.zeros(4, 3)), r"z must be \(B, 4\) or \(B, 4, h, w\); got shape \(4, 3\)"),
    (lambda: VQ(2, 3).lookup(torch.zeros(4, 3)), r"indices must be \(B,\) or \(B, h, w\) of dtype int64; got shape"),
    (lambda: FSQ().lookup(torch.zeros(4)), "indices must be"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
