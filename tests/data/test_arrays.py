"""Files of arrays as data: what they hold is what models see, and anything else is refused by name."""

import re

import numpy
import pytest
import torch
from safetensors.torch import save_file
from small import TINY

from hybrids import experiment
from hybrids.data import arrays, load_data
from hybrids.experiment import load_recipe
from hybrids.experiment.run.loading import checkpoint_of, data_of


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def written(path, **named):
    if path.suffix == ".safetensors":
        save_file({name: torch.as_tensor(value).contiguous() for name, value in named.items()}, path)
    elif path.suffix == ".npz":
        numpy.savez(path, **{name: numpy.asarray(value) for name, value in named.items()})
    else:
        numpy.save(path, numpy.asarray(named["x"]))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_every_example_is_trained_on_or_held_out(suffix, images, tmp_path):
    """Grey levels come back exactly, each with its label; a tenth is held out, the same at every call."""
    labels = torch.arange(40) % 3
    path = written(
        tmp_path / f"mine{suffix}", **({"x": images} if suffix == ".npy" else {"x": images, "labels": labels})
    )
    data = load_data(str(path))
    assert data.shape == (3, 8, 8) and data.grey_levels == 256 and (len(data.x), len(data.held_out)) == (36, 4)
    found = torch.cat([data.x, data.held_out])
    places = [int((images == one).flatten(1).all(1).nonzero()) for one in found]
    assert sorted(places) == list(range(40))
    assert torch.equal(arrays(path).held_out, data.held_out)
    if suffix == ".npy":
        assert data.classes == 0 and data.labels is None
    else:
        assert data.classes == 3 and torch.equal(torch.cat([data.labels, data.held_out_labels]), labels[places])


def test_floats_are_continuous(tmp_path):
    """Images in [-1, 1] without grey levels, and vectors of any size, of whatever precision and order of bytes."""
    image = load_data(str(written(tmp_path / "a.npy", x=numpy.linspace(-1, 1, 1280).reshape(20, 1, 8, 8))))
    assert image.grey_levels is None and image.x.dtype == torch.float32 and image.is_image
    vectors = load_data(str(written(tmp_path / "b.npz", x=numpy.full((20, 5), 7.0))))
    assert vectors.shape == (5,) and (vectors.decode(vectors.x) == 7).all()


def test_a_recipe_trains_on_a_file_and_finds_it_again(images, tmp_path, monkeypatch):
    """By a relative path, with labels, from another folder later."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "mine.npz", x=images, labels=torch.arange(40) % 3)
    recipe = load_recipe("vae")
    words = [
        "--data",
        "mine.npz",
        "--conditional",
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        *TINY["vae"],
    ]
    experiment.main(recipe.Settings, recipe.build, [*words, "--out", str(tmp_path / "run")])
    monkeypatch.chdir("/")
    assert torch.equal(data_of(checkpoint_of(tmp_path / "run")).x, arrays(tmp_path / "mine.npz").x)


@pytest.mark.parametrize(
    "name, named, message",
    [
        ("a.npz", {"y": [1]}, "holds y; expected x, images (N, C, H, W) or vectors (N, D), and labels (N,)"),
        ("a.npy", {"x": numpy.zeros((4, 8, 8), "uint8")}, "x must be images (N, C, H, W) or vectors (N, D); got shape"),
        ("a.npy", {"x": numpy.zeros((4, 8, 8, 3), "uint8")}, "channels seem to be last: transpose(0, 3, 1, 2)"),
        ("a.npy", {"x": numpy.full((4, 1, 8, 8), 255.0)}, "images must be in [-1, 1]; sample 0 of the batch spans"),
        ("a.npy", {"x": numpy.full((4, 6, 8, 8), 2.0)}, "images must be in [-1, 1]; got 2 to 2"),
        ("a.npy", {"x": numpy.zeros((4, 2), "int64")}, "x must be floating point"),
        ("a.npy", {"x": numpy.full((4, 2), numpy.nan)}, "sample 0 of the batch has NaN"),
        ("a.npy", {"x": numpy.array([{}])}, "cannot be read (Object arrays cannot be loaded"),
        ("a.npy", {"x": numpy.array(["a"])}, "cannot be read (x is of dtype <U1)"),
        (
            "a.npz",
            {"x": numpy.zeros((4, 2)), "labels": [0, 1]},
            "labels must be (4,), whole numbers from 0; got shape (2,)",
        ),
        ("a.npz", {"x": numpy.zeros((4, 2)), "labels": [0, 1, 2, -1]}, "dtype torch.int64, the least -1"),
        ("a.npz", {"x": numpy.zeros((4, 2)), "labels": [0.0, 1, 2, 3]}, "got shape (4,) of dtype torch.float64"),
    ],
)
def test_anything_else_is_refused_by_the_file_s_name(name, named, message, tmp_path):
    path = written(tmp_path / name, **named)
    with pytest.raises(ValueError, match=re.escape(f"--data {path}: ") + ".*" + re.escape(message)):
        arrays(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_a_damaged_file_is_refused_by_name(suffix, images, tmp_path):
    path = written(tmp_path / f"cut{suffix}", x=images)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"--data {path}: cannot be read"):
        arrays(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"--data {path}: cannot be read"):
        arrays(path)


def test_a_file_is_taken_as_it_is(images, tmp_path):
    path = written(tmp_path / "mine.npy", x=images)
    assert load_data(str(path), resolution=8, channels=3).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="taken as it is; got --resolution 16"):
        load_data(str(path), resolution=16)
    with pytest.raises(ValueError, match="taken as it is; got --channels 1"):
        load_data(str(path), channels=1)
    with pytest.raises(ValueError, match="file of arrays .*missing.npz is not there"):
        load_data("missing.npz")
