import io
import os
import re
import sys

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
datasets = pytest.importorskip("datasets")

from PIL import Image  # noqa: E402

from hybrids.data import Data, load_data  # noqa: E402

R = 8
NAMES = ["ant", "bee", "cat"]


def picture(i, mode="RGB"):
    pixels = np.full((R, R, 3), 50 * (i % 3), np.uint8)
    pixels[0, 0] = i
    return Image.fromarray(pixels).convert(mode)


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write(folder, split, rows, labels=True, image="picture"):
    """A parquet file as hubs keep it: encoded images, class labels, and a column that is neither."""
    features = {"id": datasets.Value("int64"), image: datasets.Image()}
    columns = {"id": list(range(len(rows))), image: rows}
    if labels:
        features["kind"] = datasets.ClassLabel(names=NAMES)
        columns["kind"] = [i % 3 for i in range(len(rows))] if labels is True else labels
    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that `datasets` loads by the name owner/name, as it would load the hub's."""
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: load(str(local) if (local := tmp_path / name).exists() else name)
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "owner" / "name" / "data"


def test_images_labels_and_splits_are_found(place, capsys):
    write(place, "train", [png(picture(i)) for i in range(20)])
    write(place, "test", [png(picture(i)) for i in range(6)])
    data = load_data("hub:owner/name")
    assert data.name == "hub:owner/name" and data.shape == (3, R, R) and data.grey_levels == 256
    assert data.classes == 3 and data.class_names == tuple(NAMES)
    assert data.x[:, 0, 1, 1].tolist() == [50 * (i % 3) for i in range(20)]
    assert data.x[:, 0, 0, 0].tolist() == list(range(20)) and data.held_out[:, 0, 0, 0].tolist() == list(range(6))
    assert data.labels.tolist() == [i % 3 for i in range(20)] and data.held_out_labels.tolist() == [0, 1, 2] * 2
    assert "images of column picture, labels of kind, splits train and test" in capsys.readouterr().out
    assert Data.from_card(data.card()).classes == 3
    batch = next(iter(data.batches(4, labels=True)))
    assert (batch["x"][:, 0, 1, 1] * 127.5 + 127.5).round().tolist() == (50 * batch["cond"]).tolist()


def test_without_a_test_split_every_tenth_image_is_held_out(place):
    write(place, "train", [png(picture(i)) for i in range(20)], labels=False)
    data = load_data("hub:owner/name")
    assert data.labels is None and data.classes == 0 and len(data) == 18
    assert data.held_out[:, 0, 0, 0].tolist() == [9, 19]


def test_classes_without_a_training_image_are_trained_on_or_named(place, capsys):
    """The tenth image of a class of its own is trained on; an image of a test split is not, and the class is named."""
    write(place, "train", [png(picture(i)) for i in range(12)], labels=[0] * 9 + [2] + [0] * 2)
    assert load_data("hub:owner/name").labels.tolist() == [0] * 9 + [2] + [0] * 2
    assert "1 of its 3 classes have no training image: bee" in capsys.readouterr().out
    write(place, "test", [png(picture(i)) for i in range(2)], labels=[0, 1])
    data = load_data("hub:owner/name")
    assert len(data) == 12 and data.held_out_labels.tolist() == [0, 1]
    assert "1 of its 3 classes have no training image: bee" in capsys.readouterr().out


def test_a_split_without_the_name_train_is_trained_on(place):
    write(place, "validation", [png(picture(i)) for i in range(20)])
    assert len(load_data("hub:owner/name")) == 18


def test_resolution_and_channels_hold_for_the_hub_too(place):
    write(place, "train", [png(picture(i, "RGBA" if i % 2 else "L")) for i in range(10)])
    data = load_data("hub:owner/name", 4, 1)
    assert data.shape == (1, 4, 4) and data.x.shape == (9, 1, 4, 4)


def test_bad_images_are_refused_by_split_and_row_or_skipped(place):
    rows = [png(picture(i)) for i in range(10)]
    rows[3]["bytes"] = rows[3]["bytes"][:-20]
    rows[7]["bytes"] = b""
    write(place, "train", rows)
    with pytest.raises(ValueError) as caught:
        load_data("hub:owner/name")
    assert "1 image(s) cannot be read: train[7]: it is empty (0 bytes)" in str(caught.value)
    with pytest.raises(ValueError, match=re.escape("2 image(s) cannot be read: train[7]")) as caught:
        load_data("hub:owner/name", skip_bad_images=1)
    assert "train[3]: it cannot be decoded" in str(caught.value)
    data = load_data("hub:owner/name", skip_bad_images=2)
    assert data.x[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 8] and data.labels.tolist() == [0, 1, 2, 1, 2, 0, 2]


def test_a_missing_image_is_a_bad_one(place):
    write(place, "train", [png(picture(0)), None, png(picture(2))])
    with pytest.raises(ValueError, match=re.escape("train[1]: it is empty")):
        load_data("hub:owner/name")


def test_labels_that_are_not_told_make_none(place):
    write(place, "train", [png(picture(i)) for i in range(10)])
    table = datasets.Dataset.from_parquet(str(place / "train-00000-of-00001.parquet"))
    features = table.features
    hidden = datasets.Dataset.from_dict({"id": [0], "picture": [png(picture(0))], "kind": [-1]}, features=features)
    hidden.to_parquet(str(place / "test-00000-of-00001.parquet"))
    data = load_data("hub:owner/name")
    assert data.labels is None and data.classes == 0 and len(data.held_out) == 1


def test_images_of_a_hub_stream_too(place, monkeypatch):
    from itertools import islice

    from hybrids.data import folders

    write(place, "train", [png(picture(i)) for i in range(20)])
    whole = load_data("hub:owner/name")
    monkeypatch.setattr(folders, "IN_MEMORY", 0)
    stream = load_data("hub:owner/name", workers=0)
    assert stream.x is None and len(stream) == len(whole) and torch.equal(stream.labels, whole.labels)
    for one, other in islice(zip(whole.batches(5, 1), stream.batches(5, 1)), 8):
        assert torch.equal(one, other)


# Refusals


def test_a_data_set_that_is_not_there_is_refused_in_one_line(place):
    with pytest.raises(ValueError) as caught:
        load_data("hub:owner/nothing")
    message = str(caught.value)
    assert message.startswith("--data hub:owner/nothing cannot be loaded: ") and "\n" not in message
    assert "Check its name and the network" in message and "HF_HUB_OFFLINE=1" in message


def test_a_folder_of_that_name_is_not_read_in_place_of_the_hub_s(place, monkeypatch):
    write(place, "train", [png(picture(i)) for i in range(10)])
    monkeypatch.chdir(place.parents[2])
    with pytest.raises(ValueError, match="owner/name would be read in place of the hub's"):
        load_data("hub:owner/name")


@pytest.mark.parametrize("error, offline", [("missing", False), ("network", True)])
def test_the_hub_is_asked_once(place, monkeypatch, error, offline):
    """What is missing is refused without another question; where the hub is out of reach only the cache is read."""
    import huggingface_hub

    calls = []

    def info(self, name, timeout):
        calls.append(name)
        if error == "network":
            raise OSError("Name or service not known")
        missing = huggingface_hub.errors.RepositoryNotFoundError
        raise missing.__new__(missing)  # made of an answer of a package that is not ours

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    loads = []

    def load(name):
        loads.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("not in the cache")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match="not in the cache" if offline else "there is no such data set, or none that"):
        load_data("hub:owner/nothing")
    assert calls == ["owner/nothing"] and loads == [True] * offline and not datasets.config.HF_HUB_OFFLINE


def test_a_data_set_without_images_is_refused_with_its_columns(place):
    place.mkdir(parents=True)
    datasets.Dataset.from_dict({"text": ["a"], "stars": [1]}).to_parquet(str(place / "train-00000-of-00001.parquet"))
    with pytest.raises(ValueError, match="--data hub:owner/name has no column of images; it has text, stars"):
        load_data("hub:owner/name")


@pytest.mark.parametrize(
    "name", ["hub:", "hub:mnist", "hub:a/b/c", "hub:/etc/passwd", "hub:../x/y", "hub:../..", "hub:./x", "hub:x/.."]
)
def test_names_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match=f"--data {name}: expected hub:OWNER/NAME"):
        load_data(name)


@pytest.mark.parametrize("module, data, command", [
    ("datasets", "hub:owner/name", "python -m pip install 'datasets>=4.0'"),
    ("sklearn", "digits", "python -m pip install 'scikit-learn>=1.5'"),
])  # fmt: skip
def test_fault_23_a_missing_package_is_named_with_the_command(monkeypatch, module, data, command):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError) as caught:
        load_data(data)
    assert str(caught.value).startswith(f"--data {data} needs a package that is not here")
    assert str(caught.value).endswith(f"install it: {command}") and "\n" not in str(caught.value)
