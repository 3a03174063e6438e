"""Files of arrays as data: what they hold is what models see, and anything else is refused by name."""

import json
import re

import numpy
import pytest
import torch
from safetensors.torch import save_file
from small import TINY

from hybrids import experiment
from hybrids.batch import check_scale
from hybrids.data import Data, arrays, load_data
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
    vectors = load_data(str(written(tmp_path / "b.npz", x=numpy.full((20, 5), 7.0, ">f8"))))
    assert vectors.shape == (5,) and (vectors.x == 0).all() and (vectors.to_data(vectors.x) == 7).all()


def test_vectors_of_any_scale_are_standardized_and_mapped_back(tmp_path, capsys):
    """Dimensions of scales 1e-3 to 1e3, one far from 0 and one constant: x has unit scale, to_data is its inverse."""
    scale, mean = torch.tensor([1e-3, 1.0, 1e3, 1.0, 0.0]), torch.tensor([0.0, 1e9, 5e3, 0.0, 7.0])
    values = torch.randn(400, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale + mean
    data = arrays(written(tmp_path / "a.npy", x=values))
    assert "standardized; samples are mapped back" in capsys.readouterr().out
    assert data.x.dtype == torch.float32 and data.x.mean(0).abs().max() < 1e-5
    torch.testing.assert_close(data.x.std(0, correction=0), torch.tensor([1.0, 1, 1, 1, 0]), rtol=0, atol=1e-5)
    held = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:40].sort().values
    back = data.to_data(data.held_out.double())
    assert ((back - values[held]).abs() <= 1e-6 * scale).all()
    # -log p of the values exceeds that of x by the log-determinant, here of a Gaussian.
    at, std = torch.tensor(data.mean, dtype=torch.float64), torch.tensor(data.scale, dtype=torch.float64)
    wide = torch.distributions.Normal(at, std).log_prob(back).sum(1)
    unit = torch.distributions.Normal(0.0, 1.0).log_prob(data.held_out.double()).sum(1)
    torch.testing.assert_close(wide, unit - data.log_scale, rtol=1e-9, atol=1e-6)
    again = Data.from_card(json.loads(json.dumps(data.card())))
    assert torch.equal(again.to_data(data.held_out), data.to_data(data.held_out))


@pytest.mark.parametrize("mean, scale, dtype", [
    (5e3, 1e3, torch.float32), (1.6e9, 2.0, torch.float64), (0.0, 1e100, torch.float64),
])  # fmt: skip
def test_values_come_back_in_float64_where_float32_is_too_short(mean, scale, dtype, tmp_path):
    """Timestamps of 1.6e9 ± 2 and values beyond 3.4e38 stay distinct and finite."""
    values = torch.randn(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale + mean
    data = arrays(written(tmp_path / "a.npy", x=values))
    back = data.to_data(torch.cat([data.x, data.held_out]))
    assert back.dtype == dtype and len(back.unique()) == 200 and back.isfinite().all()
    torch.testing.assert_close(back.double().sort(0).values, values.sort(0).values, rtol=1e-6, atol=1e-6 * scale)
    assert torch.allclose(data.to_unit(back).float(), torch.cat([data.x, data.held_out]), atol=1e-3)


def test_integer_vectors_are_counts(tmp_path):
    counts = torch.arange(60).reshape(20, 3)
    data = arrays(written(tmp_path / "a.npy", x=counts.to(torch.int32)))
    back = data.to_data(torch.cat([data.x, data.held_out])).sort(0).values
    assert data.grey_levels is None and torch.equal(back.round().long(), counts)
    assert data.to_unit(counts).is_floating_point() and data.to_unit(counts).std() > 0.5


@pytest.mark.parametrize("labels", [[0] * 12 + [1] * 7 + [2], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2])
def test_every_class_has_a_training_example(labels, tmp_path):
    """The last example of a class is trained on; a tenth is held out as before where none is missing."""
    x = torch.arange(20.0)[:, None]
    for shift in range(20):
        given = torch.tensor(labels).roll(shift)
        data = arrays(written(tmp_path / "a.npz", x=x, labels=given))
        assert torch.bincount(data.labels, minlength=data.classes).min() > 0
        where = data.to_data(torch.cat([data.x, data.held_out]))[:, 0].round().long()
        assert torch.equal(where.sort().values, torch.arange(20))
        assert torch.equal(torch.cat([data.labels, data.held_out_labels]), given[where])


def test_what_has_unit_scale_or_is_no_vector_is_left_alone():
    digits = load_data("digits")
    assert digits.to_data(digits.x) is digits.x and digits.log_scale == 0 and digits.card()["scale"] == []
    with pytest.raises(ValueError, match="only vectors whose examples are here can be standardized"):
        digits.standardized()
    data = Data.from_tensor(torch.full((3, 2), 5000.0) + torch.arange(3)[:, None])
    with pytest.warns(UserWarning, match=r"root mean square 5e\+03: use Data.standardized\(\)"):
        check_scale(data.x)
    check_scale(data.standardized().x)
    assert torch.equal(data.standardized().to_data(data.standardized().x), data.x) and data.scale == ()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_array_images_resize_as_image_files_do(dtype, tmp_path, capsys):
    """The middle square and the grey of Pillow's bicubic filter, which rounds twice, to two levels of 255."""
    from PIL import Image

    x = numpy.random.default_rng(0).integers(0, 256, (12, 3, 20, 28), dtype="uint8")
    file = written(tmp_path / "x.npy", x=x if dtype == "uint8" else x / 127.5 - 1)
    data, grey = load_data(str(file), resolution=10), load_data(str(file), channels=1)
    assert "brought to 3 channel(s), middle square of 10" in capsys.readouterr().out
    assert data.shape == (3, 10, 10) and grey.shape == (1, 20, 28)
    train = torch.randperm(12, generator=torch.Generator().manual_seed(0))[1:].sort().values
    for row, index in enumerate(train.tolist()):
        image = Image.fromarray(x[index].transpose(1, 2, 0))
        small = numpy.asarray(image.crop((4, 0, 24, 20)).resize((10, 10), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        for one, other in ((data, small), (grey, numpy.asarray(image.convert("L"))[None])):
            levels = (one.decode(one.x[row]) + 1) * 127.5
            assert (levels - torch.tensor(other.astype("float32"))).abs().max() < 2.1
    assert load_data(str(written(tmp_path / "g.npy", x=x[:, :1])), channels=3).shape == (3, 20, 28)


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
        ("a.npy", {"x": numpy.zeros((4, 2), "complex64")}, "x must be floating point"),
        (
            "a.npy",
            {"x": numpy.array([[0, 1e200], [0, -1e200]])},
            "standard deviation of dimension 1 must be finite; got inf, of values up to 1e+200: divide them",
        ),
        ("a.npy", {"x": numpy.full((4, 2), numpy.nan)}, "sample 0 of the batch has NaN"),
        ("a.npy", {"x": numpy.array([{}])}, "cannot be read (Array can't be memory-mapped"),
        ("a.npy", {"x": numpy.array(["a"])}, "cannot be read (x is of dtype <U1)"),
        (
            "a.npz",
            {"x": numpy.zeros((4, 2)), "labels": [0, 1]},
            "labels must be (4,), whole numbers from 0; got shape (2,)",
        ),
        (
            "a.npz",
            {"x": numpy.zeros((4, 2)), "labels": [0, 1, 2, -1]},
            "got 4 numbers from -1 to 2: store numpy.unique",
        ),
        ("a.npz", {"x": numpy.zeros((4, 2)), "labels": [1, 2, 2, 3]}, "got 3 numbers from 1 to 3: store numpy.unique"),
        ("a.npz", {"x": numpy.zeros((4, 2)), "labels": [0, 500, 0, 0]}, "got 2 numbers from 0 to 500: store numpy."),
        ("a.npy", {"x": numpy.full((4, 1, 8, 8), 1, "uint8")}, "got at most 1, nearly black: multiply by 255"),
        ("a.npy", {"x": numpy.full((4, 1, 8, 8), 4095, "uint16")}, "got torch.uint16: divide by the largest value"),
        ("a.npz", {"x": numpy.array([{}])}, "cannot be read (Object arrays cannot be loaded"),
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


def test_a_header_that_claims_more_than_memory_is_refused(tmp_path):
    """An array of 8 TB in a file of 200 bytes, alone or in an archive."""
    import io
    import zipfile

    header = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 1)})
    (tmp_path / "a.npy").write_bytes(header.getvalue())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        with pytest.raises(ValueError, match=f"--data {path}: cannot be read"):
            arrays(path)


def test_sizes_that_are_there_are_no_change(images, tmp_path):
    path = written(tmp_path / "mine.npy", x=images)
    assert torch.equal(load_data(str(path), resolution=8, channels=3).x, arrays(path).x)
    with pytest.raises(ValueError, match=r"images of 4 channel\(s\) cannot have --channels 3"):
        load_data(str(written(tmp_path / "four.npy", x=torch.cat([images, images[:, :1]], 1))), channels=3)
    with pytest.raises(ValueError, match=r"holds vectors of shape \(4, 2\): drop --resolution"):
        load_data(str(written(tmp_path / "v.npy", x=numpy.eye(4, 2))), resolution=8)
    with pytest.raises(ValueError, match="file of arrays .*missing.npz is not there"):
        load_data("missing.npz")
