import pytest
import torch
from answers import F64
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hybrids.ema import EMA


class Thing(nn.Module):
    """One parameter, one buffer of numbers, one of counts, a dropout."""

    def __init__(self, value=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), value, dtype=F64))
        self.register_buffer("scale", torch.tensor(0.5, dtype=F64))
        self.register_buffer("count", torch.tensor(0))
        self.dropout = nn.Dropout()

    def set(self, value):
        self.weight.data.fill_(value)


def test_the_warm_up_formula():
    ema = EMA(Thing(), 0.99)
    assert [ema.decay_at(n) for n in (1, 2, 10**6)] == [2 / 11, 3 / 12, 0.99]
    assert EMA(Thing(), 0.99, warmup=False).decay_at(1) == 0.99


def test_it_starts_as_a_copy_that_is_its_own():
    model = Thing(2.0)
    ema = EMA(model)
    model.set(7.0)
    assert ema.module.weight.tolist() == [2.0] * 3


def test_trap_21_buffers_are_copied_not_averaged():
    model = Thing()
    ema = EMA(model, 0.999, warmup=False)
    model.scale.fill_(0.2)
    model.count.fill_(7)
    ema.update_parameters(model)
    assert ema.module.scale == model.scale and ema.module.count == 7


def test_it_stays_in_eval_and_frozen():
    ema = EMA(Thing().train())
    nn.ModuleList([ema]).train()
    assert not ema.train().training and not ema.module.training and not ema.module.dropout.training
    assert not any(p.requires_grad for p in ema.parameters())


def test_the_model_keeps_its_own_mode_and_weights():
    model = Thing(1.0).train()
    ema = EMA(model)
    ema.update_parameters(model)
    assert model.training and model.weight.requires_grad and model.weight.tolist() == [1.0] * 3


def test_it_averages_once_an_update():
    model = Thing()
    ema = EMA(model, 0.5, warmup=False)
    for value, expected in ((1.0, 0.5), (1.0, 0.75), (0.0, 0.375)):
        model.set(value)
        ema.update_parameters(model)
        assert ema.module.weight[0].item() == expected


def test_the_average_of_half_precision_weights_is_float32_and_moves():
    """(1 - d) θ = 0.001 is rounded away from 1 in bf16, whose next number is 1.0078."""
    model = Thing(1.0).to(torch.bfloat16)
    model.register_parameter("other", nn.Parameter(torch.ones((), dtype=F64)))
    ema = EMA(model, 0.999, warmup=False)
    model.set(2.0)
    for _ in range(100):
        ema.update_parameters(model)
    assert ema.module.weight.dtype == ema.module.scale.dtype == torch.float32 and ema.module.other.dtype == F64
    assert ema.module.weight[0].item() == pytest.approx(2 - 0.999**100, rel=1e-5)
    assert model.weight.dtype == torch.bfloat16


def test_an_update_is_one_operation_on_all_parameters_and_a_copy_of_each_buffer():
    """And none of the counter, whose copy to a device would wait for that (trap 39)."""

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), settings=None):
            names.append(function.overloadpacket.__name__)
            return function(*arguments, **(settings or {}))

    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)], nn.BatchNorm1d(3))
    ema, names = EMA(model), []
    with Names():
        ema.update_parameters(model)
    names = [name for name in names if name not in ("detach", "_local_scalar_dense")]
    assert names == ["_foreach_lerp_", "copy_", "copy_", "copy_", "add_"]


def test_what_is_saved_has_the_names_of_the_model_and_its_counter():
    model = nn.Linear(2, 2)
    state = EMA(model).state_dict()
    assert list(state) == ["n_averaged", "module.weight", "module.bias"] and state["n_averaged"] == 1
    assert torch.equal(EMA(model)(torch.ones(1, 2)), model(torch.ones(1, 2)))


def test_the_counter_stays_on_the_cpu():
    """Trap 39: to read it from a device would wait for the device in every step."""
    ema = EMA(nn.Linear(2, 1), 0.9).to("meta")
    assert ema.n_averaged.device.type == "cpu" and ema.module.weight.device.type == "meta"


def test_a_saved_average_goes_on_where_it_was():
    def run(model, ema, values):
        for value in values:
            model.set(value)
            ema.update_parameters(model)
        return ema

    straight = run(model := Thing(), EMA(model, 0.99), range(20))
    first = run(model := Thing(), EMA(model, 0.99), range(10))
    second = EMA(model, 0.99)
    second.load_state_dict(first.state_dict())
    run(model, second, range(10, 20))
    assert torch.equal(second.module.weight, straight.module.weight)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\); got {decay}"):
        EMA(Thing(), decay)
