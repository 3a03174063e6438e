"""What the pictures of samples hold, pixel by pixel."""

import pytest
import torch
from safetensors.torch import save_file

from hybrids.comparison.page.panels import _cloud, even, render_panels


def panels_of(out, shape, **tensors):
    """The panels of a recipe whose second run left these tensors."""
    save_file(tensors, out / "seed-4.safetensors")
    runs = [{"seed": 3}, {"seed": 4, "samples": "seed-4.safetensors"}]
    return render_panels({"shape": shape, "recipes": [{"title": "VAE", "runs": runs}]}, out)


def test_originals_are_above_their_reconstructions(tmp_path):
    """Black above white: rows of cells of 64 pixels, two apart."""
    black = torch.full((3, 1, 8, 8), -1.0)
    (panel,) = panels_of(tmp_path, [1, 8, 8], originals=black, reconstructions=-black)
    assert (panel.kind, panel.title, panel.note) == ("reconstructions", "VAE", "seed 4")
    assert panel.pixels.shape == (3, 2 + 2 * 66, 2 + 3 * 66)
    assert (panel.pixels[:, 2:66, 2:66] == 0).all() and (panel.pixels[:, 68:132, 2:66] == 1).all()


def test_an_interpolation_is_a_row_from_left_to_right(tmp_path):
    shades = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, 1, 8, 8).contiguous()
    (panel,) = panels_of(tmp_path, [1, 8, 8], interpolations=shades)
    assert panel.kind == "interpolations"
    assert [panel.pixels[0, 30, 30 + 66 * i].item() for i in range(3)] == [0, 0.5, 1]
    assert panel.pixels[0, 96, 30] == 0


def test_what_diverged_is_grey_and_counted(tmp_path):
    x = torch.ones(4, 1, 8, 8)
    x[1, 0, 3, 3] = torch.nan
    (panel,) = panels_of(tmp_path, [1, 8, 8], samples=x)
    assert panel.note == "seed 4, 1 of 4 diverged" and panel.alt == "4 images: VAE, seed 4, 1 of 4 diverged"
    grey = (panel.pixels[0] == 0.5).nonzero()
    # Row 3, column 3 of the second cell, each pixel eight wide.
    assert (grey.amin(0).tolist(), grey.amax(0).tolist()) == ([2 + 24, 68 + 24], [2 + 31, 68 + 31])


def test_points_lie_where_they_are():
    """(2, 0.5) of a plane to ±2.5: nine tenths to the right, six tenths up."""
    ink = (_cloud(torch.tensor([[2.0, 0.5]]), 2.5) < 0.99).any(0).nonzero().float().mean(0)
    height, width = _cloud(torch.zeros(1, 2), 2.5).shape[1:]
    assert ink[1] / width == pytest.approx(0.9, abs=0.01) and ink[0] / height == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "samples"),
    [
        ([1, 8, 8], (4, 3, 8, 8)),
        ([1, 8, 8], (0, 1, 8, 8)),
        ([2], (4, 3)),
        ([3], (4, 3)),
        ([4, 1, 8, 8], (2, 4, 1, 8, 8)),
    ],
)
def test_what_is_no_image_or_point_of_the_data_has_no_panel(shape, samples, tmp_path):
    assert panels_of(tmp_path, shape, samples=torch.zeros(samples)) == []


def test_panels_are_dealt_to_rows_of_about_one_length():
    assert [even(n) for n in (0, 1, 4, 5, 6, 7, 8, 11, 15)] == [0, 1, 4, 5, 3, 4, 4, 4, 5]
