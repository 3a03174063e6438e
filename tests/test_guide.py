"""Every snippet of docs/guide.md, docs/samplers.md and docs/checkpoints.md runs, in order."""

import re
from pathlib import Path

import torch
from accelerate import Accelerator

import hybrids
from components.backbones import UNet
from components.decoders import LogisticHead, MLPDecoder
from components.denoisers import Denoiser
from components.encoders import MLPEncoder
from components.samplers import Sampler
from components.schedules import EDMSchedule
from hybrids import EMA, VAE, Diffusion, Player, StandardNormal, train
from hybrids.data import load_data

DOCS = Path(__file__).parents[1] / "docs"


def run(page, **names):
    """The names that a page's snippets leave, of those that they are given."""
    snippets = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    names["__name__"] = page
    for i, snippet in enumerate(snippets):
        exec(compile(snippet, f"{page}, snippet {i}", "exec"), names)
    return len(snippets), names


def test_the_guide_s_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets, names = run("guide.md")
    assert snippets >= 10
    # Each part of the page made what it says.
    for name in ("images", "few", "many", "samples", "between", "again", "edited", "sample"):
        assert names[name].shape[1:] == (1, 8, 8) and names[name].isfinite().all(), name
    assert (names["sample"][..., :4, :] == names["x"][..., :4, :]).all()


def test_the_samplers_snippets_run():
    """The method of one's own is DDIM."""
    shape, labels = (1, 8, 8), torch.arange(64) % 10
    model = Diffusion(Denoiser(UNet(shape, width=8, blocks=1, num_classes=10), EDMSchedule()), shape)
    snippets, names = run("samplers.md", model=model, labels=labels)
    own, ddim = (
        model.sample(4, generator=torch.Generator().manual_seed(0), sampler=Sampler(method, 3))
        for method in (names["Straight"](), "ddim")
    )
    assert snippets == 2 and own.shape == (4, *shape)
    torch.testing.assert_close(own, ddim)


def test_the_checkpoints_snippet_saves_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, counts = load_data("digits", resolution=8), []
    shape = data.shape

    def some(players, loader, accelerator, steps, start):
        counts.append(start)
        return train(players, loader, accelerator, 100, max(start, 98))  # the last two steps to 100

    for _ in range(2):
        model = VAE(MLPEncoder(shape, 2, 8), MLPDecoder(2, shape, LogisticHead(data.grey_levels), 8), StandardNormal(2))
        players, ema = [Player(model.loss, moves=[model], per=data.dimensions, name="vae")], EMA(model, 0.99)
        given = {"data": data, "players": players, "ema": ema, "model": model, "Accelerator": Accelerator}
        run("checkpoints.md", **given, hybrids=hybrids, train=some)
    assert counts == [0, 100]
