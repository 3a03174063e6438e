"""Runs that learn p(x|label): batches carry labels, pictures have a column a class, samples are drawn by label."""

from pathlib import Path

import pytest
import torch
from answers import generator
from PIL import Image
from small import TINY, tiny

import hybrids
from hybrids import Diffusion, experiment
from hybrids.data import load_data
from hybrids.experiment import load_recipe
from hybrids.pictures import labels_shown


def run(out: Path, *argv) -> None:
    recipe = load_recipe("ddpm")
    common = ["--device", "cpu", "--batch-size", "8", "--steps", "2", *TINY["ddpm"], "--out", str(out)]
    experiment.main(recipe.Settings, recipe.build, [*common, *map(str, argv)])


@pytest.mark.slow
def test_a_conditional_run_learns_and_samples_by_label(tmp_path, few_digits, monkeypatch):
    """What the loss is given are the labels of its examples; the picture and the evaluation ask for each label."""
    asked, seen = [], []
    loss, sample = Diffusion.loss, Diffusion.sample

    def spied_loss(self, x, cond=None):
        seen.append((x, cond))
        return loss(self, x, cond)

    def spied_sample(self, n, cond=None, *args, **options):
        asked.append(cond)
        return sample(self, n, cond, *args, **options)

    monkeypatch.setattr(Diffusion, "loss", spied_loss)
    monkeypatch.setattr(Diffusion, "sample", spied_sample)
    run(tmp_path / "run", "--conditional", "--guidance-scale", 2, "--label-dropout", 0.25, "--evaluate-every", 2)
    data = load_data("digits", 8)
    whole = data.decode(data.x)
    dropped = 0
    for x, cond in seen:
        true = data.labels[[int((whole == one).flatten(1).all(1).nonzero()[0]) for one in x]]
        assert (cond == true)[cond != 10].all()
        dropped += int((cond == 10).sum())
    assert 0 < dropped < 16
    assert asked[0].tolist() == list(range(10)) * 8 and asked[1].bincount().tolist() == [30] * 10
    # Eight rows of ten: 64 pixels each, and a frame of two.
    assert Image.open(tmp_path / "run/samples/step-2.png").size == (10 * 66 + 2, 8 * 66 + 2)


@pytest.mark.parametrize("label_dropout, row", [(0.0, 7), (1 - 1e-9, 10)])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["vae", "gan", "ddpm", "adversarial_diffusion"])
def test_labels_reach_every_player(name, flat, label_dropout, row):
    """Of a batch of sevens each table of classes that a player moves learns that row alone; dropped, the null one."""
    data = load_data("digits", 8)
    batch = {"x": data.decode(data.x[:8]), "cond": torch.full((8,), 7)}
    for player in tiny(load_recipe(name), data, conditional=True, label_dropout=label_dropout, flat=flat):
        tables = [m.weight for move in player.moves for m in move.modules() if isinstance(m, torch.nn.Embedding)]
        assert tables
        for p in player.parameters_moved():
            # What starts at zero lets no gradient through.
            torch.nn.init.normal_(p, std=0.1)
        terms = player.loss(batch, step=0) if player.takes_step else player.loss(batch)
        for gradient in torch.autograd.grad(terms.total.sum(), tables):
            assert gradient.abs().sum(1).nonzero().flatten().tolist() == [row], f"{player.name}: {gradient}"


def test_the_scale_of_a_run_is_that_of_its_samples(tmp_path, few_digits):
    """`load` brings --guidance-scale back with the sampler; one given to `sample` replaces it, and 1 is no guidance."""
    run(tmp_path / "run", "--conditional", "--guidance-scale", 3)
    model = hybrids.load(tmp_path / "run")
    # At the start a network answers zero, whatever the label.
    torch.nn.init.normal_(model.denoiser.backbone.last.weight, std=0.1)
    cond = labels_shown(10, rows=1)

    def draw(scale=None):
        sampler = None if scale is None else model.sampler.but(guidance_scale=scale)
        return model.sample(10, cond, generator(), sampler)

    assert torch.equal(draw(), draw(3.0)) and not torch.equal(draw(), draw(1.0))


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--guidance-scale", "2"], "--guidance-scale 2.0: there is nothing to guide by without --conditional"),
        (
            ["--conditional", "--guidance-scale", "2", "--label-dropout", "0"],
            "--guidance-scale 2.0: nothing to guide from with --label-dropout 0",
        ),
        (["--conditional", "--data", "25-gaussians"], "--conditional needs labels; --data 25-gaussians has none"),
    ],
)
def test_what_cannot_be_conditional_is_refused(argv, message, tmp_path, capsys):
    if "25-gaussians" in argv:
        argv = [*argv, "--resolution", "none"]
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "run", *argv)
    assert message in capsys.readouterr().err
