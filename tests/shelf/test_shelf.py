"""The whole shelf: every part trains inside a model, is saved and loaded, runs in bf16 and on two ranks."""

import importlib
import inspect
import json
import pkgutil
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from accelerate import Accelerator
from inside import condition
from parts import PARTS
from torch import nn

import components
from components.denoisers import PREDICTIONS, Denoiser, Variance
from components.losses import AdversarialLoss
from components.schedules import BETA_SCHEDULES
from hybrids import train
from hybrids.experiment.checkpoints.state import load_weights, weights
from hybrids.files import write_tensors

every_part = pytest.mark.parametrize("name", PARTS)

STEPS = 5
"""Of what a parameter may need to be moved: behind a zero last layer, zero gates, and zero residual branches."""

STILL = {
    # Within the margin, a constant that is added to D costs on real what it wins on fake.
    "loss-hinge": {"critic.0.discriminator.last.linear.bias"},
    # A constant cancels in D(fake) - D(real), whether or not R1 and R2 differentiate it away.
    "loss-wasserstein": {"critic.0.discriminator.last.linear.bias"},
    "loss-relativistic": {"critic.0.discriminator.last.linear.bias"},
}
"""What may stand still, by theorem."""

EXCEPTIONS = {
    "components.backbones.unet.multipliers_to": "sizes for recipes; tests/recipes/test_recipe_sizes.py has them",
    "components.encoders.residual.latent_shape": "sizes for recipes; tests/recipes/test_recipe_sizes.py has them",
    "components.distributions.continuous.Distribution": "a protocol",
    "components.denoisers.denoiser.Denoising": "abstract: its subclasses are what runs",
    "components.denoisers.reconstruction.Reconstruction": "abstract: its subclasses are what runs",
    "components.samplers.method.Method": "abstract: its subclasses are what runs",
    "components.samplers.method.option": "a field of a dataclass: it runs on import",
    "components.text.HuggingFaceText": "needs transformers; tests/components/test_text.py has a stand-in for it",
    "components.decoders.heads.Head": "abstract: its subclasses are what runs",
    "components.losses.times.TimeSampler": "abstract: its subclasses are what runs",
    **{
        f"components.distributions.dequantization.{name}": "scores; tests/components/distributions has their tests"
        for name in ("dequantized", "log_bin")
    },
    **{
        f"components.samplers.flow.{name}": "scores; tests/components/samplers/test_probability_flow.py"
        for name in ("ProbabilityFlow", "drift", "exact_divergence", "hutchinson")
    },
}
"""Public classes and functions that no entry needs to run."""


def build(name, seed=0):
    torch.manual_seed(seed)
    return PARTS[name]()


def moved(players):
    """{name: parameter} of what players move."""
    return {f"{player.name}.{name}": p
            for player in players for name, p in player.moves.named_parameters() if p.requires_grad}  # fmt: skip


def drawn(players, batch):
    """Everything that can be asked of the players under one seed: totals, terms, samples."""
    torch.manual_seed(5)
    found = []
    for player in players:
        total, means = player(batch, 0)
        found += [total.detach(), *means.values()]
        cond = condition(batch)
        found += [model.sample(len(batch["x"]), cond) for model in player.moves if hasattr(model, "sample")]
    return found


@every_part
def test_a_step_moves_every_parameter(name):
    """The first step gives every parameter a finite gradient; after a few, each of them has moved."""
    players, batch = build(name)
    before = {key: p.detach().clone() for key, p in moved(players).items()}
    for player in players:
        player.optimizer.register_step_pre_hook(finite)
    still = set(before)
    for _, logs in train(players, [batch], Accelerator(cpu=True), STEPS):
        assert all(value.isfinite().all() for value in logs.values()), logs
        still = {key for key in still if torch.equal(before[key], moved(players)[key])}
        if still <= STILL.get(name, set()):
            break
    assert still <= STILL.get(name, set())


def finite(optimizer, *_):
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert p.grad is not None and p.grad.isfinite().all()


@every_part
def test_weights_are_all_there_is_to_a_part(name, tmp_path):
    """A freshly built model with loaded weights has the loss and the samples of the saved one, to the bit."""
    from safetensors.torch import load_file

    players, batch = build(name)
    list(train(players, [batch], Accelerator(cpu=True), 2))
    write_tensors(tmp_path / "model.safetensors", weights(nn.ModuleList(players)))
    expected = drawn(players, batch)
    fresh, _ = build(name, seed=1)
    other = drawn(fresh, batch)
    assert not all(torch.equal(a, b) for a, b in zip(expected, other, strict=True)), "nothing to load"
    fresh, _ = build(name, seed=1)
    load_weights(nn.ModuleList(fresh), load_file(tmp_path / "model.safetensors"), "here")
    for a, b in zip(expected, drawn(fresh, batch), strict=True):
        assert torch.equal(a, b) and a.isfinite().all()


@every_part
def test_a_step_in_bf16(name):
    """Under autocast terms are float32 and finite, and so is every gradient."""
    players, batch = build(name)
    seen = []
    for player in players:
        player.optimizer.register_step_pre_hook(finite)
        object.__setattr__(player, "loss", recorded(player.loss, seen))
    for _, logs in train(players, [batch], Accelerator(cpu=True, mixed_precision="bf16"), 1):
        assert all(value.isfinite().all() for value in logs.values()), logs
    assert len(seen) == len(players)
    for terms in seen:
        for term, (_, values) in terms.items():
            assert values.dtype == torch.float32 and values.isfinite().all(), term


def recorded(loss, seen):
    def inner(*batch, **step):
        assert torch.is_autocast_enabled("cpu")
        seen.append(loss(*batch, **step))
        return seen[-1]

    return inner


def shelf():
    """{qualified name: object} of every class, function and pair of losses that a module of `components` offers."""
    found = {}
    for info in pkgutil.walk_packages(components.__path__, "components."):
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if isinstance(thing, AdversarialLoss):
                found[f"{info.name}.{name}"] = thing
            elif inspect.isclass(thing) or inspect.isfunction(thing):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found | {f"components.schedules.tables.{name}": table for name, table in BETA_SCHEDULES.items()}


def codes(thing):
    """Groups of code objects, out of each of which one must have run: of a class its forward; of a distribution its
    log_prob or rsample; of others whatever they have of their own but their construction."""
    if isinstance(thing, AdversarialLoss):
        return [{thing.of_discriminator.__code__}, {thing.of_generator.__code__}]
    if inspect.isfunction(thing):
        return [{inspect.unwrap(thing).__code__}]
    if issubclass(thing, tuple):
        # All named tuples share the code of everything else.
        return [{thing.__new__.__code__}]
    own = {name: getattr(value, "fget", None) or getattr(value, "__func__", value)
           for name, value in vars(thing).items()}  # fmt: skip
    functions = {name: inspect.unwrap(f).__code__ for name, f in own.items() if inspect.isfunction(f)}
    if "forward" in functions:
        return [{functions["forward"]}]
    used = {code for name, code in functions.items() if name in ("log_prob", "rsample")}
    named = {code for name, code in functions.items() if not name.startswith("__")}
    return [used or named or set(functions.values())]


def test_every_part_is_on_the_shelf():
    """Whatever `components` makes public has run inside a model of PARTS, in a loss or a sample; it is measured."""
    ran, settings, before = set(), set(), sys.getprofile()
    sys.setprofile(lambda frame, event, _: ran.add(frame.f_code) if event == "call" else None)
    try:
        for name in PARTS:
            players, batch = build(name)
            drawn(players, batch)
            denoisers = [m for player in players for m in player.modules() if isinstance(m, Denoiser)]
            settings |= {value for m in denoisers for value in (m.prediction.name, m.variance)}
    finally:
        sys.setprofile(before)
    things = shelf()
    assert len(things) > 100
    missing = {name for name, thing in things.items() if not all(group & ran for group in codes(thing))}
    assert missing == set(EXCEPTIONS), "what is new on the shelf needs an entry in tests/shelf/parts.py"
    assert settings == {*PREDICTIONS, "grey_levels", *get_args(Variance)}


@pytest.fixture(scope="module")
def ranks(launch, tmp_path_factory):
    """What the two ranks wrote, in one launch for all parts."""
    out = tmp_path_factory.mktemp("shelf")
    launch(Path(__file__).with_name("rank_worker.py"), out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@every_part
def test_two_ranks_stay_equal(name, ranks):
    """After two steps on different data with different noise, parameters and buffers are equal to the bit."""
    a, b = (found[name] for found in ranks)
    assert "error" not in a and "error" not in b, a.get("error", b.get("error"))
    assert a["before"] == b["before"] != a["after"] == b["after"]
    assert a["buffers"] == b["buffers"]
    assert a["losses"] != b["losses"], "both ranks saw the same data and noise"
