"""Files of MNIST, Fashion-MNIST and CIFAR-10, made small here in the published formats, and the images that ship."""

import gzip
import sys
import time
import tomllib
from pathlib import Path

import numpy
import pytest
import torch

from hybrids.data import Data, arrays, load_data

module = sys.modules["hybrids.data.published"]  # hybrids.data.published is the function
SHIPPED = Path(module.__file__).parent / "fashion_10k"
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = module.IDX
N, HELD, H, W = 30, 20, 9, 8
RNG = numpy.random.default_rng(0)
X, X_HELD = (RNG.integers(0, 256, (n, H, W), dtype=numpy.uint8) for n in (N, HELD))
Y, Y_HELD = numpy.arange(N, dtype=numpy.uint8) % 10, numpy.arange(HELD, dtype=numpy.uint8) % 7
COLOURS = RNG.integers(0, 256, (6, 4, 3, 32, 32), dtype=numpy.uint8)
KINDS = RNG.integers(0, 10, (6, 4), dtype=numpy.uint8)


def idx(array, magic=None, sizes=None):
    """An IDX file's bytes: see yann.lecun.com/exdb/mnist, section FILE FORMATS."""
    magic, sizes = 0x800 + array.ndim if magic is None else magic, sizes or array.shape
    return b"".join(int(n).to_bytes(4, "big") for n in (magic, *sizes)) + array.tobytes()


def write(folder, name="{}", pack=bytes, **changed):
    """The four files of MNIST; changed: other bytes for `images`, `labels`, `test_images` or `test_labels`."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"images": idx(X), "labels": idx(Y), "test_images": idx(X_HELD), "test_labels": idx(Y_HELD), **changed}
    for stem, content in zip(module.IDX, contents.values()):
        if content is not None:
            (folder / name.format(stem)).write_bytes(pack(content))
    return folder


def write_cifar(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, x, y in zip(module.BATCHES, COLOURS, KINDS):
        (folder / name).write_bytes(b"".join(bytes([label]) + image.tobytes() for image, label in zip(x, y)))
    return folder


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with none of the sets: an empty home, current folder and Debian's folder, and no hub."""

    def none(name, *_):
        raise ValueError(f"--data {name} cannot be loaded")

    for place in ("home", "here", "debian"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(module, "hub", none)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "pack"), [("{}", bytes), ("{}.gz", gzip.compress), ("{}", gzip.compress), ("{}.gz", bytes)]
)
@pytest.mark.parametrize("dotted", [False, True])
def test_idx_files_are_read_gzipped_or_not_and_their_split_is_kept(name, pack, dotted, tmp_path, capsys):
    write(tmp_path, name, pack)
    if dotted:  # as some archives name them
        for file in tmp_path.iterdir():
            file.rename(tmp_path / file.name.replace("-idx", ".idx"))
    data = load_data(str(tmp_path))
    assert (data.name, data.shape, data.classes, data.grey_levels) == (str(tmp_path), (1, H, W), 10, 256)
    assert (data.x[:, 0].numpy() == X).all() and (data.held_out[:, 0].numpy() == X_HELD).all()
    assert data.labels.tolist() == Y.tolist() and data.held_out_labels.tolist() == Y_HELD.tolist()
    assert data.class_names == () and data.labels.dtype == torch.int64
    assert f"--data {tmp_path}: 30 training and 20 held-out images from IDX files" in capsys.readouterr().out


def test_cifar_10_is_read_in_planes_and_its_classes_have_names(tmp_path):
    data = load_data(str(write_cifar(tmp_path)))
    assert data.shape == (3, 32, 32) and (data.x.numpy() == COLOURS[:5].reshape(-1, 3, 32, 32)).all()
    assert data.labels.tolist() == KINDS[:5].reshape(-1).tolist() and data.held_out_labels.tolist() == KINDS[5].tolist()
    assert (data.held_out.numpy() == COLOURS[5]).all() and data.classes == 10 and data.label("frog") == 6


def test_fashion_mnist_is_recognized_by_its_test_labels(tmp_path):
    labels = gzip.decompress((SHIPPED / f"{TEST_LABELS}.gz").read_bytes())
    images = idx(numpy.zeros((10_000, H, W), numpy.uint8))
    write(tmp_path, test_images=images, test_labels=labels)
    assert load_data(str(tmp_path)).class_names == module.FASHION
    write(tmp_path, test_images=images, test_labels=labels[:-1] + b"\0")
    assert load_data(str(tmp_path)).class_names == ()


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar10"])
def test_a_name_is_looked_for_with_debian_then_here_then_at_home(name, bare, capsys):
    known = module.PUBLISHED[name]
    make = write_cifar if name == "cifar10" else write
    for place in ("home/data", "here/data", "debian"):
        folder = make(bare / place / (name if place == "debian" else known.folder))
        data = load_data(name)
        assert data.name == name and data.class_names == known.class_names and data.classes == 10
        assert f"held-out images from {'the' if name == 'cifar10' else 'IDX'}" in (printed := capsys.readouterr().out)
        assert printed.strip().endswith(f" in {folder}")


def test_a_name_without_files_is_loaded_from_the_hub_under_its_own_name(bare, monkeypatch):
    def hub(*arguments):
        requests.append(arguments)
        names = tuple("abcdefghij")
        return Data("hub:x/y", (1, 4, 4), 10, 256, torch.zeros(9, 1, 4, 4, dtype=torch.uint8), class_names=names)

    requests = []
    monkeypatch.setattr(module, "hub", hub)
    data = load_data("fashion-mnist", 4, 1, skip_bad_images=2, workers=0)
    assert requests == [("hub:zalando-datasets/fashion_mnist", 4, 1, 2, 0)]
    assert data.name == "fashion-mnist" and data.label("Ankle boot") == 9


def test_a_name_that_is_nowhere_is_refused_with_the_places_and_the_download(bare):
    with pytest.raises(ValueError) as refusal:
        load_data("cifar10")
    places = [bare / "debian" / "cifar10", *(bare / at / "data/cifar-10-batches-bin" for at in ("here", "home"))]
    for part in (
        *map(str, places),
        "hub:uoft-cs/cifar10 cannot be",
        "curl -L https://",
        "--data FOLDER",
        "fashion-10k",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize(("changed", "message"), [
    ({"labels": None}, f"lacks {LABELS}; expected {IMAGES}, {LABELS}, {TEST_IMAGES}, {TEST_LABELS}"),
    ({"images": idx(X, 0xD03)}, f"{IMAGES}: starts with 0x00000d03; expected 0x00000803, an IDX file of uint8 in 3"),
    ({"test_labels": b""}, f"{TEST_LABELS}: starts with 0x00000000; expected 0x00000801"),
    ({"images": idx(X)[:9]}, f"{IMAGES}: holds 0 bytes after its header, which states 30 × 0 × 0"),
    ({"images": idx(X)[:-1]}, f"{IMAGES}: holds 2159 bytes after its header, which states 30 × 9 × 8"),
    ({"images": idx(X) + b"1"}, "holds 2161 bytes after its header"),
    ({"images": idx(X, sizes=[2**32 - 1] * 3)}, "which states 4294967295 × 4294967295 × 4294967295"),
    ({"images": idx(X[:0])}, "holds 0 bytes after its header, which states 0 × 9 × 8"),
    ({"images": gzip.compress(idx(X))[:-20]}, f"{IMAGES}: cannot be read (Compressed file ended before"),
    ({"images": gzip.compress(idx(X))[:-8] + bytes(8)}, f"{IMAGES}: cannot be read (CRC check failed"),
    ({"images": b"\x1f\x8b" + bytes(50)}, f"{IMAGES}: cannot be read (Unknown compression method"),
    ({"labels": idx(Y[1:])}, f"{LABELS}: holds 29 labels; {IMAGES} has 30 images"),
    ({"labels": idx(Y + 1)}, f"{LABELS}: labels must be 0 … 9; got 10"),
    ({"test_images": idx(X_HELD[:, 1:])}, f"{TEST_IMAGES}: its images are 8 × 8; those of {IMAGES} are 9 × 8"),
])  # fmt: skip
def test_malformed_idx_files_are_refused_by_name(changed, message, tmp_path):
    write(tmp_path, **changed)
    with pytest.raises(ValueError) as refusal:
        load_data(str(tmp_path))
    assert str(refusal.value).startswith(f"--data {tmp_path}: ") and message in str(refusal.value)


@pytest.mark.parametrize(("file", "change", "message"), [
    ("data_batch_3.bin", None, "lacks data_batch_3.bin; expected data_batch_1.bin, "),
    ("data_batch_2.bin", lambda content: content[:-1], "data_batch_2.bin: holds 12291 bytes; expected records of 3073"),
    ("test_batch.bin", lambda content: b"", "test_batch.bin: holds 0 bytes"),
    ("test_batch.bin", lambda content: b"\x0a" + content[1:], "test_batch.bin: labels must be 0 … 9; got 10"),
])  # fmt: skip
def test_malformed_cifar_files_are_refused_by_name(file, change, message, tmp_path):
    path = write_cifar(tmp_path) / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=r"^--data ") as refusal:
        load_data(str(tmp_path))
    assert message in str(refusal.value)


def test_a_file_that_unpacks_to_more_than_any_published_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 1000)
    write(tmp_path, "{}.gz", gzip.compress)
    with pytest.raises(ValueError, match=f"{IMAGES}.gz: holds more than 1000 bytes"):
        load_data(str(tmp_path))


def test_published_images_resize_as_arrays_do(tmp_path):
    data = load_data(str(write(tmp_path / "idx")), resolution=12, channels=3)
    numpy.save(tmp_path / "x.npy", X[:, None])
    other = arrays(tmp_path / "x.npy", 12, 3)
    both = {image.numpy().tobytes() for image in (*other.x, *other.held_out)}
    assert data.shape == (3, 12, 12) and {image.numpy().tobytes() for image in data.x} == both
    with pytest.raises(ValueError, match=r"^--data .*: images of 1 channel\(s\) cannot have --channels 2"):
        load_data(str(tmp_path / "idx"), channels=2)


def test_fashion_10k_splits_the_test_set_evenly_by_class():
    start = time.process_time()
    data = load_data("fashion-10k")
    assert time.process_time() - start < 1
    images = gzip.decompress((SHIPPED / f"{TEST_IMAGES}.gz").read_bytes())[16:]
    labels = gzip.decompress((SHIPPED / f"{TEST_LABELS}.gz").read_bytes())[8:]
    whole = sorted((images[784 * i : 784 * (i + 1)], label) for i, label in enumerate(labels))
    parts = [(data.x, data.labels), (data.held_out, data.held_out_labels)]
    assert sorted((image.numpy().tobytes(), int(label)) for x, y in parts for image, label in zip(x, y)) == whole
    assert data.shape == (1, 28, 28) and data.grey_levels == 256 and data.class_names == module.FASHION
    assert torch.bincount(data.labels).tolist() == [900] * 10
    assert torch.bincount(data.held_out_labels).tolist() == [100] * 10
    # The split is fixed: another would mix what earlier runs trained on with what they held out.
    assert data.held_out.sum() == 57_401_706 and torch.equal(data.x, load_data("fashion-10k").x)
    assert load_data("fashion-10k", 32, 3).shape == (3, 32, 32)


def test_fashion_10k_is_installed_with_its_licence():
    """Every file of the folder is package data, and one of them is the licence."""
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["hybrids.data"]
    installed = {file for pattern in patterns for file in SHIPPED.parent.glob(pattern)}
    assert installed == set(SHIPPED.iterdir()) and "Copyright © 2017 Zalando SE" in (SHIPPED / "LICENSE").read_text()
