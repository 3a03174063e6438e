"""Feature spaces: shapes, what the classifier knows, the cache, and weights that are not at hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hybrids.data import Data, digits, load_data, shapes, stacked_digits
from hybrids.evaluation.samples import features as module
from hybrids.evaluation.samples.features import Classifier, Pixels, features_for, fingerprint, timm_features
from hybrids.evaluation.samples.recognition import _classifier


@pytest.fixture
def untrained(monkeypatch):
    """As a new process has it: no classifier in memory."""
    monkeypatch.setattr(module, "_TRAINED", {})


def blobs(n=400, d=3, seed=0):
    """Points about four corners, labelled by them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    corners = torch.tensor([[2.0, 2, 0], [2, -2, 0], [-2, 2, 0], [-2, -2, 0]])[:, :d]
    return Data("blobs", (d,), 4, x=corners[labels] + 0.5 * torch.randn(n, d, generator=generator), labels=labels)


def test_pixels_are_the_numbers_themselves_and_points_too():
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(Pixels((3, 4, 4))(x), x.flatten(1)) and Pixels((3, 4, 4)).name == "pixels"
    assert torch.equal(Pixels((2,))(x[:, 0, 0, :2]), x[:, 0, 0, :2]) and Pixels((2,)).name == "points"
    with pytest.raises(ValueError, match=r"x must be \('B', 3, 4, 4\); got shape \(5, 3, 4, 5\)"):
        Pixels((3, 4, 4))(torch.zeros(5, 3, 4, 5))


def test_many_pixels_are_projected_and_keep_their_distances():
    pixels, x = Pixels((3, 32, 32)), torch.randn(100, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    z = pixels(x)
    ratio = (z[:50] - z[50:]).square().sum(1) / (x[:50] - x[50:]).flatten(1).square().sum(1)
    assert z.shape == (100, 512) and torch.equal(z, Pixels((3, 32, 32))(x))
    # Each deviates by √(2/512) = .0625, all having one projection in common.
    assert ratio.mean() == pytest.approx(1, abs=0.06) and ratio.std() == pytest.approx(0.0625, rel=0.4)


def test_the_classifier_of_digits_is_the_one_that_agreement_asks():
    data = digits(8)
    features, x = Classifier(data), data.decode(data.held_out)
    network, accuracy = _classifier(8)
    z = features(x)
    assert features.accuracy == accuracy > 0.95 and z.shape == (297, 128) and (z >= 0).all()
    assert torch.equal(features.read(x), torch.as_tensor(network.predict(x.flatten(1).double().numpy())))


def test_stacked_digits_are_read_channel_by_channel():
    data = stacked_digits(100)
    features, x = Classifier(data), data.decode(data.x)
    z, one = features(x), Classifier(digits(8))
    assert z.shape == (100, 384)
    assert torch.allclose(z[:, 128:256], one(x[:, 1:2]), atol=1e-6)
    labels = (features.read(x) * torch.tensor([100, 10, 1])).sum(1)
    assert (labels == data.labels).double().mean() > 0.95


def test_any_labels_train_one(untrained):
    data, before = blobs(), torch.get_rng_state()
    features = Classifier(data)
    assert torch.equal(before, torch.get_rng_state())
    assert features.accuracy > 0.95 and features(data.x).shape == (400, 128)
    assert features.name == "classifier of blobs"


@pytest.mark.slow
def test_shapes_are_told_by_their_kind(untrained):
    data = shapes(16, examples=3000, held_out=300)
    features = Classifier(data)
    x = data.decode(data.held_out)
    assert features.accuracy > 0.75 and features(x).shape == (300, 128)
    assert (features.read(x) == data.held_out_labels).double().mean() == pytest.approx(features.accuracy, abs=1e-9)


def test_it_is_kept_in_a_folder(untrained, monkeypatch, tmp_path):
    first = Classifier(blobs(), tmp_path / "deep")
    (file,) = (tmp_path / "deep").iterdir()
    module._TRAINED.clear()
    monkeypatch.setattr(module, "_fit", lambda *given: pytest.fail("trained again"))
    again = Classifier(blobs(), tmp_path / "deep")
    assert again.accuracy == first.accuracy and torch.equal(again(blobs().x), first(blobs().x))
    module._TRAINED.clear()
    monkeypatch.undo()
    monkeypatch.setattr(module, "_TRAINED", {})
    # What a crash or another program left there is no classifier.
    file.write_bytes(file.read_bytes()[:100])
    assert Classifier(blobs(), tmp_path / "deep").accuracy == first.accuracy and file.stat().st_size > 100


def test_other_data_have_another_fingerprint():
    data = blobs()
    other = replace(data, x=data.x.clone().index_fill_(0, torch.tensor(7), 0.0))
    assert fingerprint(data) == fingerprint(blobs()) != fingerprint(other)
    assert fingerprint(data) != fingerprint(replace(data, labels=data.labels.flip(0)))


def test_auto_picks_the_classifier_where_there_are_labels():
    assert isinstance(features_for(digits(8)), Classifier)
    assert isinstance(features_for(digits(8), "pixels"), Pixels)
    assert features_for(load_data("25-gaussians")).name == "points"
    assert isinstance(features_for(Data.from_tensor(torch.zeros(4, 1, 8, 8))), Pixels)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="labelled examples in memory; tensor has none: use pixels"):
        features_for(Data.from_tensor(torch.zeros(4, 1, 8, 8)), "classifier")
    with pytest.raises(ValueError, match="features must be one of auto, classifier, pixels, dinov2.*got 'dino'"):
        features_for(digits(8), "dino")


@pytest.mark.parametrize("name", ["dinov2", "inception"])
def test_weights_that_are_not_at_hand_are_said_so(monkeypatch, name):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setattr("timm.create_model", no_weights)
    with pytest.raises(
        ValueError, match=f"features '{name}' cannot be loaded: no pretrained weights.*a file on this machine.*'auto'"
    ):
        timm_features(name)


def no_weights(*given, **options):
    raise OSError("no network")


@pytest.mark.parametrize(("name", "size", "options"), [("dinov2", 224, {"img_size": 224}), ("inception", 299, {})])
def test_timm_sees_images_in_its_own_size_and_range(monkeypatch, name, size, options):
    """A bicubic edge overshoots, and is cut off at ±1."""
    given, seen = {}, []

    def encoder(model, features, pretrained, frozen, **more):
        given.update(more)
        return SimpleNamespace(backbone=Seeing())

    class Seeing(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :4]

    monkeypatch.setattr(module, "TimmEncoder", encoder)
    x = torch.ones(40, 1, 8, 8).index_fill(3, torch.arange(4), -1.0)
    assert timm_features(name)(x).shape == (40, 4) and given == options
    assert [part.shape for part in seen] == [(32, 3, size, size), (8, 3, size, size)]
    assert seen[0].min() == -1 and seen[0].max() == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "d"), [("dinov2", 384), ("inception", 2048)])
def test_the_mechanics_of_timm_without_its_weights(name, d):
    torch.manual_seed(0)
    features = timm_features(name, pretrained=False, size=98)
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    assert features(x).shape == (3, d) and torch.equal(features(x), features(x.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match=r"\(B, 1 or 3, H, W\).*got shape \(3, 2\)"):
        features(torch.zeros(3, 2))
