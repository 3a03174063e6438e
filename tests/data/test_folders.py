import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hybrids.data import Data, folder, load_data
from hybrids.data.folders import Folder
from hybrids.data.images import EXTENSIONS, BadImage, decode, header

R = 12


def picture(seed=0, height=R, width=R):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(root: Path, n=30, size=(R, R), suffix=".png"):
    root.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        picture(i, *size).save(root / f"{i:03d}{suffix}")
    return root


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def refused(path, *parts, **settings):
    """The message in which loading is refused."""
    with pytest.raises(ValueError) as caught:
        load_data(str(path), **settings)
    for part in parts:
        assert str(part) in str(caught.value)
    return str(caught.value)


# What is found


def test_images_are_kept_to_the_bit_in_memory(tmp_path):
    files = Folder(fill(tmp_path))
    data = load_data(str(tmp_path))
    assert data.shape == (3, R, R) and data.grey_levels == 256 and data.classes == 0 and data.labels is None
    assert data.x.dtype == torch.uint8 and data.stream is None and data.name == str(tmp_path.resolve())
    held = files.held_out()
    for images, indices in ((data.x, (~held).nonzero()), (data.held_out, held.nonzero())):
        assert len(images) == len(indices)
        for image, i in zip(images, indices.flatten().tolist()):
            assert (image.permute(1, 2, 0).numpy() == np.asarray(picture(i))).all()


def test_folders_are_searched_to_the_bottom_and_by_any_extension_stated(tmp_path):
    for i, extension in enumerate(EXTENSIONS):
        deep = tmp_path / "a" / "b" / str(i)
        deep.mkdir(parents=True)
        picture(i).save(deep / f"x{extension.upper()}")
    data = load_data(str(tmp_path))
    assert len(data) + (0 if data.held_out is None else len(data.held_out)) == len(EXTENSIONS)


def test_class_folders_become_labels(tmp_path):
    for i, name in enumerate(("cat", "ant", "bee")):
        (tmp_path / name / "more").mkdir(parents=True)
        for j in range(20):
            Image.new("RGB", (R, R), (80 * i, 0, 0)).save(tmp_path / name / "more" / f"{j}.png")
    data = load_data(str(tmp_path))
    assert data.class_names == ("ant", "bee", "cat") and data.classes == 3
    for images, labels in ((data.x, data.labels), (data.held_out, data.held_out_labels)):
        assert (images[:, 0, 0, 0] // 80).tolist() == [{0: 1, 1: 2, 2: 0}[label] for label in labels.tolist()]
    card = Data.from_card(data.card())
    assert card.classes == 3 and card.shape == (3, R, R) and card.grey_levels == 256


def test_hidden_folders_are_ignored_and_counted(tmp_path, capsys):
    for name in ("cat", "dog", ".ipynb_checkpoints", "__MACOSX", ".Trash", "cat/@eaDir", "$RECYCLE.BIN"):
        fill(tmp_path / name, 4)
    data = load_data(str(tmp_path))
    assert data.class_names == ("cat", "dog") and len(data) + len(data.held_out) == 8
    assert "8 images; ignored 5 other file(s), 5 hidden folder(s) among them" in capsys.readouterr().out
    assert len(Folder(tmp_path / ".Trash")) == 4  # which is named itself


@pytest.mark.parametrize("names, remedy", [
    (("train/cat", "train/dog", "val/cat", "val/dog"), "holds train and val: parts of a data set, not classes"),
    (("Training", "Test", "."), "--data {root}/Training"),
    (("test/a", "held-out/b"), "--data {root}/held-out"),
    (("train/a", "train/b"), "--data {root}/train"),
    (("archive/train/cat", "archive/val/cat"), "{root}/archive holds train and val"),
    (("a/b/test/cat", "a/b/train/cat"), "--data {root}/a/b/train"),
])  # fmt: skip
def test_train_and_validation_folders_are_no_classes(tmp_path, names, remedy):
    for name in names:
        fill(tmp_path / name, 2)
    refused(tmp_path, "parts of a data set, not classes", remedy.format(root=tmp_path.resolve()))


def test_a_class_may_have_the_name_of_a_split_and_that_is_printed(tmp_path, capsys):
    for name in ("train", "plane", "bus"):
        fill(tmp_path / name, 4)
    assert load_data(str(tmp_path)).class_names == ("bus", "plane", "train")
    assert "train is trained on as a class, whatever its name" in capsys.readouterr().out


@pytest.mark.parametrize("names", [
    [str(i) for i in range(1, 12)], ["class_2", "class_10", "class_11"], ["a", "b10", "c2"], ["007", "08", "8", "x"],
])  # fmt: skip
def test_numbers_in_names_sort_as_numbers(tmp_path, names):
    for name in reversed(names):
        fill(tmp_path / name, 1)
    data = load_data(str(tmp_path))
    assert data.class_names == tuple(names)
    for i, name in enumerate(data.class_names):
        assert data.label(name) == i
    # A number that is no name is a label.
    assert data.label("0") == 0


@pytest.mark.parametrize("places", [("one",), ("one", "two", ".")])
def test_one_class_folder_or_images_beside_them_make_no_labels(tmp_path, places):
    for place in places:
        fill(tmp_path / place, 4)
    assert load_data(str(tmp_path)).labels is None and load_data(str(tmp_path)).classes == 0


def test_classes_in_the_only_folder_are_named(tmp_path, capsys):
    for name in ("archive/cat", "archive/dog"):
        fill(tmp_path / name, 2)
    assert load_data(str(tmp_path)).classes == 0
    assert f"holds one folder, so no classes; to train on classes: --data {tmp_path.resolve()}/archive" in (
        capsys.readouterr().out
    )


def test_every_class_has_a_training_image(tmp_path):
    """Single images whose path is held out by its hash are trained on; a class of bad ones is refused."""
    for i in range(40):
        fill(tmp_path / f"class{i}", 1)
    assert Folder(tmp_path).held_out().sum() > 1
    data = load_data(str(tmp_path))
    assert torch.equal(torch.bincount(data.labels), torch.ones(40, dtype=torch.long)) and data.held_out is None
    for how in ("truncated", "empty"):
        spoil(tmp_path / "class7" / "000.png", how)
        refused(tmp_path, "no image of class7 is left to train on, since", skip_bad_images=1)


def test_about_a_tenth_is_held_out_whatever_else_is_added_or_moved(tmp_path):
    root = tmp_path / "a"
    root.mkdir()
    for i in range(600):
        (root / f"{i}.png").touch()
    files = Folder(root)
    before = dict(zip(files.paths, files.held_out().tolist()))
    assert 30 < sum(before.values()) < 90
    for i in range(600, 700):
        (root / f"{i}.png").touch()
    moved = Folder(root.rename(tmp_path / "b"))
    after = dict(zip(moved.paths, moved.held_out().tolist()))
    assert {path: after[path] for path in before} == before


def test_a_home_is_expanded_and_the_name_resolved(tmp_path, monkeypatch):
    fill(tmp_path / "pictures", 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = {load_data(path).name for path in ("~/pictures", "pictures", "./pictures", "pictures/../pictures")}
    assert names == {str((tmp_path / "pictures").resolve())}


def test_two_of_the_same_name_are_two_images(tmp_path):
    for i in range(2):
        fill(tmp_path / str(i), 1)
    assert len(Folder(tmp_path)) == 2


# Fault 1, 2, 5, 13: what is no folder of images


def test_fault_1_a_missing_folder_is_refused_by_its_resolved_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("./a/../none", f"--data {tmp_path.resolve()}/none is not there", ", ".join(EXTENSIONS))
    (tmp_path / "file").touch()
    refused("./file", "file is not a folder", ", ".join(EXTENSIONS))


def test_unknown_names_list_the_known_and_the_folder_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused("two-moon", "--data 'two-moon' is not known; did you mean two-moons?", "hub:OWNER/NAME")
    for name in (
        "digits",
        "stacked-digits",
        "25-gaussians",
        "swiss-roll",
        "checkerboard",
        "shapes",
        "fashion-10k",
        "cifar10",
    ):
        assert name in message
    assert f"{tmp_path.resolve()}/two-moon is not there" in message


def test_fault_2_an_empty_folder_is_refused_with_what_is_accepted(tmp_path):
    refused(tmp_path, f"--data {tmp_path.resolve()} holds no images, and 0 other", ", ".join(EXTENSIONS))
    (tmp_path / "notes.txt").touch()
    refused(tmp_path, "holds no images, and 1 other file(s)")


def test_fault_5_other_files_are_ignored_and_counted(tmp_path, capsys):
    fill(tmp_path, 3)
    for name in ("notes.txt", "a.svg", "._000.png", ".DS_Store"):
        (tmp_path / name).write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    load_data(str(tmp_path))
    assert f"--data {tmp_path.resolve()}: 3 images; ignored 5 other file(s)" in capsys.readouterr().out


@pytest.mark.parametrize("to", [".", "..", "../.."])
def test_fault_13_a_link_to_a_folder_above_is_refused_with_its_path(tmp_path, to):
    root = fill(tmp_path / "a" / "b", 3)
    (root / "loop").symlink_to(to)
    top = root if to == "." else root.parent if to == ".." else tmp_path
    refused(top, "loop links to a folder that it lies in; remove the link", root / "loop")


def test_fault_13_a_link_to_itself_is_refused_with_its_path(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "x.png").symlink_to("y.png")
    (tmp_path / "y.png").symlink_to("x.png")
    message = refused(tmp_path, "a link that leads to itself; remove it")
    assert f"{tmp_path.resolve()}/x.png" in message or f"{tmp_path.resolve()}/y.png" in message


def test_links_to_folders_elsewhere_are_followed(tmp_path):
    fill(tmp_path / "elsewhere", 3)
    fill(tmp_path / "root", 1)
    (tmp_path / "root" / "more").symlink_to(tmp_path / "elsewhere")
    assert len(Folder(tmp_path / "root")) == 4


def test_fault_13_a_folder_without_permission_is_refused_with_its_path(tmp_path, monkeypatch):
    """The system's answer is imitated: tests may run as root, to whom nothing is denied."""
    closed = fill(tmp_path / "closed", 1)
    scandir = os.scandir

    def denied(path):
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    refused(tmp_path, f"{closed}: permission denied; make it readable or remove it")


def test_fault_13_a_file_without_permission_is_refused_and_never_skipped(tmp_path, monkeypatch):
    fill(tmp_path, 3)
    whole = Folder.open

    def denied(self, index):
        if index == 1:
            raise PermissionError(13, "Permission denied", self.name(index))
        return whole(self, index)

    monkeypatch.setattr(Folder, "open", denied)
    refused(tmp_path, f"{tmp_path.resolve()}/001.png: permission denied", skip_bad_images=3)


# Fault 3, 4, 9: what is no image


def spoil(path: Path, how: str):
    whole = path.read_bytes()
    path.write_bytes({
        "truncated": whole[: len(whole) // 2],
        "header only": whole[:20],
        "empty": b"",
        "text": b"no image at all" * 10,
        "flipped": whole[:60] + bytes(b ^ 255 for b in whole[60:]),
    }[how])  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tif"])
@pytest.mark.parametrize("how, why", [("truncated", "it "), ("empty", "it is empty (0 bytes)"),
                                      ("text", "it is no image that can be read")])  # fmt: skip
def test_faults_3_and_4_bad_images_are_refused_by_name(tmp_path, suffix, how, why):
    spoil(fill(tmp_path, 4, suffix=suffix) / f"002{suffix}", how)
    refused(
        tmp_path, f"1 image(s) cannot be read: {tmp_path.resolve()}/002{suffix}: {why}", "--skip-bad-images N (now 0)"
    )


@pytest.mark.parametrize("how", ["header only", "flipped"])
def test_fault_3_damaged_images_are_refused_by_name(tmp_path, how):
    spoil(fill(tmp_path, 4) / "002.png", how)
    refused(tmp_path, f"1 image(s) cannot be read: {tmp_path.resolve()}/002.png: it ")


def test_fault_3_a_broken_link_is_a_bad_image(tmp_path):
    fill(tmp_path, 4)
    (tmp_path / "x.png").symlink_to("gone")
    refused(tmp_path, "1 image(s) cannot be read", "x.png")


def test_bad_images_are_skipped_up_to_the_cap_and_counted(tmp_path, capsys):
    fill(tmp_path, 30)
    spoil(tmp_path / "002.png", "truncated")
    spoil(tmp_path / "007.png", "empty")
    whole = Folder(tmp_path).held_out()
    refused(tmp_path, "2 image(s) cannot be read", "002.png", "007.png", "(now 1)", skip_bad_images=1)
    data = load_data(str(tmp_path), skip_bad_images=2)
    assert "skipped 2 bad image(s)" in capsys.readouterr().out and len(data) == int((~whole).sum()) - 2
    assert whole[2] == whole[7] == 0
    for image in data.x:
        good = (i for i in range(30) if i not in (2, 7))
        assert any((image.permute(1, 2, 0).numpy() == np.asarray(picture(i))).all() for i in good)


def test_labels_stay_right_where_images_are_skipped(tmp_path):
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        for j in range(10):
            Image.new("RGB", (R, R), (100 * i, 0, 0)).save(tmp_path / str(i) / f"{j}.png")
    spoil(tmp_path / "0" / "3.png", "truncated")
    spoil(tmp_path / "1" / "5.png", "empty")
    data = load_data(str(tmp_path), skip_bad_images=2)
    assert (data.x[:, 0, 0, 0] // 100).tolist() == data.labels.tolist() and len(data) == len(data.labels)


def test_many_bad_images_are_counted_and_five_named(tmp_path):
    for file in fill(tmp_path, 9).iterdir():
        file.write_bytes(b"")
    assert refused(tmp_path, "9 image(s) cannot be read", "; and 4 more").count("it is empty") == 5
    refused(tmp_path, "no image", skip_bad_images=9)


@pytest.mark.parametrize("side, got", [(9600, "it has 9600 × 9600 pixels; expected at most 89478485"),
                                       (14000, "expected at most 89478485 pixels")])  # fmt: skip
def test_fault_9_decompression_bombs_are_refused_and_never_skipped(tmp_path, side, got, recwarn):
    import struct
    import zlib

    fill(tmp_path, 2)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    # The header alone claims the pixels: nothing shall be decoded before it is read.
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(start + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))
    refused(tmp_path, f"{tmp_path.resolve()}/bomb.png is refused: ", got, "decompression bomb", skip_bad_images=9)
    assert not [w for w in recwarn if "DecompressionBomb" in w.category.__name__]


# Fault 6: sizes


def test_fault_6_mixed_sizes_ask_for_a_resolution(tmp_path):
    fill(tmp_path, 3)
    picture(9, 20, 30).save(tmp_path / "x.png")
    refused(tmp_path, f"its images are of 2 sizes, {R} × {R} to 20 × 30 (height × width): give --resolution N")


def test_fault_6_oblong_images_ask_for_a_resolution(tmp_path):
    refused(fill(tmp_path, 3, (10, 14)), "its images are of 10 × 14 (height × width): give --resolution N")


def test_fault_6_the_shorter_side_is_resized_and_the_middle_kept(tmp_path, capsys):
    """Blue, a grey square and red, side by side: only the square is left."""
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, :30, 2], pixels[:, 30:70], pixels[:, 70:, 0] = 255, 128, 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "high.png")
    data = load_data(str(tmp_path), resolution=10)
    assert data.shape == (3, 10, 10) and data.x[..., 2:-2, 2:-2].unique().tolist() == [128]
    assert "2 image(s): the middle square resized to 10 × 10 (bicubic)" in capsys.readouterr().out


@pytest.mark.parametrize("height, width", [(48, 36), (36, 60), (7, 9), (24, 24)])
def test_resizing_is_pillow_s_antialiased_bicubic(height, width):
    image = picture(0, height, width)
    side = min(height, width)
    scale = R / side
    if (round(width * scale), round(height * scale)) == (width * scale, height * scale):
        large = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        left, top = (large.width - R) // 2, (large.height - R) // 2
        expected = np.asarray(large.crop((left, top, left + R, top + R))).transpose(2, 0, 1).astype(int)
        assert np.abs(decode(encoded(image), R, 3).astype(int) - expected).max() <= 1
    assert decode(encoded(image), R, 3).shape == (3, R, R)


def test_a_fine_pattern_becomes_grey_and_no_moire():
    board = Image.fromarray(((np.indices((96, 96)).sum(0) % 2) * 255).astype(np.uint8))
    assert np.abs(decode(encoded(board), R, 1).astype(int) - 127).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation, kind):
    from PIL import ImageOps

    image = picture(0, 8, 14)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    image.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(image)
    assert (header(file).height, header(file).width) == (upright.height, upright.width)
    assert (decode(file, R, 3) == decode(encoded(upright), R, 3)).all()


# Fault 7 and 8: modes


def ramp(n=R):
    return np.arange(n * n, dtype=np.int64).reshape(n, n) * (255 // (n * n) + 1) % 256


DEEP = "16-bit, of which the high byte is kept"
MODES = {
    "grayscale": (lambda: Image.fromarray(ramp().astype(np.uint8)), "PNG", "grayscale"),
    "1 bit": (lambda: Image.fromarray(ramp().astype(np.uint8)).convert("1"), "PNG", "grayscale"),
    "palette": (lambda: picture().quantize(16), "PNG", "palette"),
    "CMYK": (lambda: picture().convert("CMYK"), "TIFF", "CMYK"),
    "RGBA": (lambda: picture().convert("RGBA"), "PNG", "with alpha, laid over white"),
    "grey and alpha": (lambda: picture().convert("LA"), "PNG", "with alpha, laid over white"),
    "16-bit": (lambda: Image.fromarray((ramp() * 257).astype(np.uint16)), "PNG", DEEP),
    "RGB": (lambda: picture(), "PNG", None),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_faults_7_and_8_modes_are_converted_and_that_is_said_once(tmp_path, capsys, mode, channels):
    make, kind, said = MODES[mode]
    for i in range(4):
        make().save(tmp_path / f"{i}.{kind.lower()[:3].replace('tif', 'tiff')}", kind)
    data = load_data(str(tmp_path), channels=channels)
    assert data.shape == (channels, R, R)
    out = capsys.readouterr().out
    expected = {("grayscale", 1): None, ("1 bit", 1): None, ("RGB", 1): "RGB"}.get((mode, channels), said)
    assert out.count(f"converted to {channels} channel(s): 4 {expected}\n") == (expected is not None)
    assert expected is not None or "converted" not in out
    if "alpha" not in mode:
        reference = make() if mode != "16-bit" else Image.fromarray(ramp().astype(np.uint8))
        reference = np.asarray(reference.convert("RGB").convert("L") if channels == 1 else reference.convert("RGB"))
        assert (data.x[0].numpy().reshape(channels, R, R)[0] == reference.reshape(R, R, -1)[..., 0]).all()


def test_fault_7_alpha_is_laid_over_white():
    pixels = np.zeros((R, R, 4), np.uint8)
    pixels[..., 0], pixels[: R // 2, :, 3] = 200, 255
    pixels[0, :, 3] = 127
    out = decode(encoded(Image.fromarray(pixels)), R, 3)
    assert out[:, 1, 0].tolist() == [200, 0, 0] and out[:, -1, 0].tolist() == [255, 255, 255]
    assert out[:, 0, 0].tolist() == pytest.approx([227, 128, 128], abs=1)


def test_fault_7_a_transparent_colour_of_a_palette_is_white():
    image = Image.new("P", (R, R), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(0, (0, 0, R, 3))
    out = decode(encoded(image, transparency=0), R, 3)
    assert out[:, 0, 0].tolist() == [255, 255, 255] and out[:, -1, 0].tolist() == [40, 50, 60]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_fault_8_sixteen_bits_keep_their_high_byte_and_are_not_clamped(kind):
    values = (np.arange(R * R).reshape(R, R) * (65535 // (R * R - 1))).astype(np.uint16)
    file = encoded(Image.fromarray(values), kind)
    out = decode(file, R, 1)[0]
    assert header(file).kind == "16-bit" and (out == values >> 8).all() and len(np.unique(out)) > 140
    assert (decode(file, R, 3) == out).all()


def test_fault_8_sixteen_bit_colours_are_named_and_not_clamped():
    """Pillow writes none, so the file is made by hand."""
    import struct
    import zlib

    values = np.random.default_rng(0).integers(0, 65536, (R, R, 3)).astype(">u2")

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", R, R, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
    assert header(file).kind == "16-bit" and (decode(file, R, 3) == (values >> 8).transpose(2, 0, 1)).all()


def test_12_bits_in_16_are_refused_and_not_nearly_black(tmp_path):
    values = (np.arange(R * R).reshape(R, R) * 28).astype(np.uint16)
    for i in range(3):
        Image.fromarray(values * 16).save(tmp_path / f"{i}.png")
    assert load_data(str(tmp_path)).x.max() == (values.max() * 16) >> 8
    for i in range(3):
        Image.fromarray(np.full((R, R), 4095, np.uint16)).save(tmp_path / f"{i}.png")
    refused(tmp_path, "its 3 16-bit images hold no value above 4095", "multiply the values (12 bits: by 16)")
    picture().save(tmp_path / "bright.png")
    refused(tmp_path, "its 3 16-bit images hold no value above 4095")


@pytest.mark.parametrize("dtype, what", [(np.int32, "32-bit integers"), (np.float32, "floats")])
def test_fault_8_other_depths_are_refused(tmp_path, dtype, what):
    for i in range(2):
        Image.fromarray(np.ones((R, R), dtype)).save(tmp_path / f"{i}.tif")
    refused(tmp_path, f"its pixels are {what}; expected 8 or 16 bits", "0.tif")


def test_channels_are_one_only_if_all_are_grey(tmp_path):
    for i in range(3):
        Image.fromarray(ramp().astype(np.uint8)).save(tmp_path / f"{i}.png")
    assert load_data(str(tmp_path)).shape == (1, R, R)
    picture().save(tmp_path / "colour.png")
    assert load_data(str(tmp_path)).shape == (3, R, R)
    refused(tmp_path, "can have --channels 1 or 3; got 4", channels=4)


# The rest of the faults of data, for folders


def test_fault_11_a_folder_smaller_than_the_world_is_refused(tmp_path):
    data = folder(fill(tmp_path, 3))
    message = f"--batch-size 1 on 4 processes needs 4 examples a step; {data.name} has {len(data)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        data.batches(1, rank=0, world_size=4)


def test_fault_12_uneven_shards_share_every_epoch_and_none_waits(tmp_path):
    """11 images on 2 ranks of 2: after 11 steps both have taken as often, and each image was seen 4 times."""
    from itertools import islice

    data = folder(fill(tmp_path, 11))
    n = len(data)
    assert n % 4
    seen = [image.numpy().tobytes() for rank in range(2) for batch in islice(iter(data.batches(2, 0, rank, 2)), n)
            for image in batch]  # fmt: skip
    assert len(seen) == 4 * n and all(seen.count(image) == 4 for image in set(seen)) and len(set(seen)) == n


def test_fault_16_pixels_read_are_always_finite_and_in_range(tmp_path):
    data = folder(fill(tmp_path, 3))
    x = next(iter(data.batches(2)))
    assert x.isfinite().all() and x.min() >= -1 and x.max() <= 1


def test_fault_16_a_tensor_with_nan_is_refused_with_the_sample():
    x = torch.zeros(4, 3, 2, 2)
    x[2, 1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="x must be finite; sample 2 of the batch has NaN or infinite values"):
        Data.from_tensor(x)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_damage_of_any_kind_is_a_bad_image_and_nothing_else():
    """Bytes flipped anywhere: an image comes out, or BadImage."""
    generator = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        whole = np.frombuffer(encoded(picture(), kind).getvalue(), np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[generator.integers(len(whole), size=3)] ^= generator.integers(1, 256, 3).astype(np.uint8)
            try:
                assert decode(io.BytesIO(damaged.tobytes()), R, 3).shape == (3, R, R)
            except BadImage as error:
                assert str(error).startswith("it")
            except ValueError as error:
                assert "89478485" in str(error)


def test_headers_are_read_without_the_pixels(monkeypatch):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM"):
        found = header(encoded(Image.new("RGB", (7, 5)), kind))
        assert (found.height, found.width) == (5, 7)


@pytest.mark.parametrize("place", [50, 100, 300, 440])
def test_fault_3_a_flipped_bit_of_a_png_is_found_by_its_checksum(place):
    """Without it Pillow makes other pixels of them."""
    content = bytearray(encoded(picture()).getvalue())
    content[place] ^= 1
    with pytest.raises(BadImage, match="it cannot be decoded: broken PNG file"):
        decode(io.BytesIO(bytes(content)), R, 3)
