import pytest
import timm
import torch
from answers import assert_gradients

from components.discriminators import FeatureDiscriminator
from components.distributions import Normal
from components.encoders import TimmEncoder, TimmFeatures, ViTEncoder
from components.encoders.vision import _named_layers
from components.losses import squared_gradient

SMALL = "test_resnet"  # timm's own for tests: a third of a million parameters


def vit(**options):
    return ViTEncoder((2, 8, 4), 5, patch=2, width=16, depth=2, heads=4, **options), torch.randn(4, 2, 8, 4)


@pytest.mark.parametrize("shape, patch", [((1, 8, 8), 4), ((3, 32, 32), 8), ((1, 28, 28), 7), ((4, 4, 8), 1)])
def test_vit_shapes(shape, patch):
    q = ViTEncoder(shape, 5, patch, width=16, depth=1, heads=2)(torch.randn(2, *shape))
    assert isinstance(q, Normal) and q.mean.shape == q.std.shape == (2, 5) and (q.std > 0).all()


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}], ids=["plain", "labels"])
def test_vit_gradients_and_autocast(options):
    network, x = vit(**options)
    q = network(x)
    (q.mean.square() + q.std).sum().backward()
    assert_gradients(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x)
    assert rough.mean.dtype == torch.float32
    torch.testing.assert_close(rough.mean, q.mean, atol=0.1, rtol=0.1)


def test_vit_labels_and_places():
    network, x = vit(num_classes=3)
    null = network(x).mean
    assert torch.equal(null, network(x, torch.full((4,), 3)).mean)
    assert not torch.allclose(null, network(x, torch.zeros(4, dtype=torch.long)).mean)
    moved = x.roll(2, dims=2)
    assert not torch.allclose(network(moved).mean, null, atol=1e-4)
    network.position_embedding.zero_()
    torch.testing.assert_close(network(moved).mean, network(x).mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_timm_encoder(channels):
    network, x = TimmEncoder(SMALL, 5, channels=channels), torch.randn(4, channels, 32, 32)
    q = network(x)
    assert isinstance(q, Normal) and q.mean.shape == q.std.shape == (4, 5)
    (q.mean.square() + q.std).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x)
    assert rough.mean.dtype == torch.float32 and rough.mean.isfinite().all()


@pytest.mark.parametrize("name, options", [("test_vit", {"img_size": 32}), ("test_convnext", {})])
def test_timm_encoder_of_other_families(name, options):
    assert TimmEncoder(name, 5, **options)(torch.randn(2, 3, 32, 32)).mean.shape == (2, 5)


@pytest.mark.parametrize("name, first, shapes", [
    (SMALL, "act1", {"act1": (2, 32, 16, 16), "layer1": (2, 32, 8, 8), "layer4": (2, 96, 1, 1)}),
    ("test_vit", "blocks.0", {"blocks.0": (2, 5, 64), "blocks.5": (2, 5, 64)}),
    ("test_convnext", "stages.0", {"stages.0": (2, 24, 8, 8), "stages.3": (2, 64, 1, 1)}),
    ("test_byobnet", "stem", {"stem": (2, 24, 16, 16)}),
    ("test_efficientnet", "blocks.0", {"blocks.0": (2, 16, 16, 16)}),
])  # fmt: skip
def test_hidden_layers_of_timm_are_its_modules(name, first, shapes):
    network = TimmEncoder(name, 5, **({"img_size": 32} if "vit" in name else {})).eval()
    assert network.layers[0] == first
    x = torch.randn(2, 3, 32, 32)
    for hidden in (tuple(shapes), network.layers):
        q, features = network(x, hidden=hidden)
        assert torch.equal(q.mean, network(x).mean) and tuple(features) == hidden
    assert {layer: tuple(features[layer].shape) for layer in shapes} == shapes
    assert not any(module._forward_hooks for module in network.modules())


def test_hidden_layers_of_a_model_without_a_list_are_its_parts():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    assert _named_layers(model) == ("0", "1")


def test_a_hidden_layer_that_returns_no_tensor_is_refused():
    network = TimmEncoder(SMALL, 5)
    network.layers = (*network.layers, "drop")
    network.backbone.model.drop = torch.nn.Identity()  # which its forward never calls
    with pytest.raises(ValueError, match="hidden must name modules that return a tensor; got drop"):
        network(torch.randn(2, 3, 32, 32), hidden=("layer1", "drop"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [SMALL, "test_byobnet"])
def test_normalization_is_the_backbones_own(name, channels):
    network = TimmEncoder(name, 5, channels=channels).backbone
    inputs = []
    network.model.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = torch.rand(2, channels, 32, 32) * 2 - 1
    network(x)
    config = network.model.pretrained_cfg
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    if channels == 1:
        mean, std = mean.mean()[None], std.mean()[None]
    pixels = (x + 1) / 2
    expected = torch.stack([(pixels[:, i] - mean[i]) / std[i] for i in range(channels)], dim=1)
    torch.testing.assert_close(inputs[0], expected)
    assert (mean[0] == 0.5) == (name == SMALL)  # one of each kind


def test_frozen_stays_in_eval_mode_and_gets_no_gradient():
    network, x = TimmEncoder(SMALL, 5, frozen=True), torch.randn(4, 3, 32, 32, requires_grad=True)
    network.train()
    assert network.training and not any(module.training for module in network.backbone.modules())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(x).mean.sum().backward()
    assert x.grad.any()
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["last.weight", "last.bias"]
    assert all(p.grad is None for p in network.backbone.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    # which BatchNorm in training mode would not
    free = TimmEncoder(SMALL, 5).train()
    assert any(module.training for module in free.backbone.modules())
    before = {name: value.clone() for name, value in free.state_dict().items()}
    free(x)
    assert not all(torch.equal(before[name], value) for name, value in free.state_dict().items())


@pytest.mark.parametrize("name, stages, size, expected", [
    (SMALL, (1, 2, 3), None, [(32, 8), (48, 4), (192, 2)]), (SMALL, (2,), 64, [(48, 8)]),
    ("test_convnext", None, None, [(24, 8), (32, 4), (48, 2), (64, 1)]),
])  # fmt: skip
def test_features(name, stages, size, expected):
    network = TimmFeatures(name, stages, size=size)
    maps = network(torch.randn(2, 3, 32, 32))
    assert [(h.shape[1], h.shape[2]) for h in maps] == expected and network.widths == tuple(c for c, _ in expected)
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.train().training and not any(module.training for module in network.modules())


@pytest.mark.parametrize(
    "name, options", [(SMALL, {"stages": (1, 2)}), ("test_vit", {"img_size": 32, "stages": (1, 2)})]
)
def test_trap_18_r1_through_frozen_features(name, options):
    """Trap 18: fused attention refuses double backward. Guard: it is switched off in TimmFeatures."""
    network = FeatureDiscriminator(TimmFeatures(name, **options), (3, 32, 32), width=8)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    logits = network(x)
    assert logits.shape == (2, 32)
    penalty = squared_gradient(logits, x)
    penalty.sum().backward()
    assert (penalty > 0).all()
    for head in network.heads:
        for conv in (*head.convs, head.last):
            assert conv.parametrizations.weight.original.grad.any()
    assert all(p.grad is None for p in network.features.parameters())


def test_local_weights(tmp_path):
    path = tmp_path / "weights.pth"
    theirs = timm.create_model(SMALL)
    torch.save(theirs.state_dict(), path)
    ours = TimmEncoder(SMALL, 5, pretrained=str(path))
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = theirs.eval().forward_head(theirs.forward_features(x), pre_logits=True)
    torch.testing.assert_close(ours.eval().backbone(x), expected)


@pytest.mark.parametrize("build", [
    lambda **options: TimmEncoder(SMALL, 5, **options), lambda **options: TimmFeatures(SMALL, **options),
])  # fmt: skip
def test_missing_weights_give_one_message(build, monkeypatch, tmp_path):
    with pytest.raises(
        RuntimeError, match="no pretrained weights for 'test_resnet' in '.*weights.pth': .*pretrained=False"
    ):
        build(pretrained=str(tmp_path / "weights.pth"))

    def offline(*args, **options):
        raise OSError("could not reach\nthe hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(RuntimeError) as refused:
        build(pretrained=True)
    assert str(refused.value) == (
        "no pretrained weights for 'test_resnet': OSError: could not reach the hub. Use pretrained=False for random "
        "weights, or pretrained='path/to/weights' for a file on this machine."
    )
    with pytest.raises(OSError, match="could not reach"):  # without weights, the error is another one
        build(pretrained=False)


@pytest.mark.parametrize("build, message", [
    (lambda: ViTEncoder((2,), 5), r"shape must be \(C, H, W\); got \(2,\): for points use MLPEncoder"),
    (lambda: ViTEncoder((1, 8, 3), 5, patch=4), r"at most the sides of shape \(1, 8, 3\); got 4"),
    (lambda: ViTEncoder((1, 8, 8), 5, width=18, heads=3), "width must be divisible by 4; got 18"),
    (lambda: ViTEncoder((1, 8, 8), 5, width=16), "heads must divide width 16; got 3"),
    (lambda: ViTEncoder((1, 8, 8), 5, depth=0), "depth must be at least 1; got 0"),
    (lambda: vit()[0](torch.zeros(4, 1, 8, 4)), r"x must be \(B, 2, 8, 4\); got shape \(4, 1, 8, 4\)"),
    (lambda: vit()[0](vit()[1], torch.zeros(4, dtype=torch.long)), "cond must be None for a network built with num_c"),
    (lambda: TimmEncoder("resnet_of_mine", 5), r"name must be a model of timm, such as \[.*resnet.*\]; got 'resnet_o"),
    (lambda: TimmEncoder(SMALL, 5)(torch.zeros(4, 1, 32, 32)), r"x must be \(B, 3, H, W\); got shape \(4, 1, 32, 32\)"),
    (lambda: TimmEncoder(SMALL, 5)(torch.zeros(4, 3, 32, 32), torch.zeros(4)), "cond must be None for a TimmEncoder"),
    (lambda: TimmFeatures(SMALL)(torch.zeros(4, 1, 32, 32)), r"x must be \(B, 3, H, W\); got shape \(4, 1, 32, 32\)"),
])  # fmt: skip
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()
