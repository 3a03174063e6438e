"""`hybrids.save` and `hybrids.restore`: a script that was stopped and restored ends with the bits of a straight one."""

import random

import numpy
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

import hybrids
from components.backbones import UNet
from components.decoders import NormalHead, ResidualDecoder
from components.denoisers import Denoiser
from components.discriminators import PatchDiscriminator
from components.encoders import ResidualEncoder
from components.schedules import BetaSchedule, LearnedSchedule
from hybrids import EMA, VAE, Critic, Diffusion, Player, Terms, restore, save, train
from hybrids.data import load_data
from hybrids.finite import NotFinite
from hybrids.refusal import CANNOT_WRITE, Refusal

DATA = load_data("digits", resolution=8)


def hybrid():
    """The players of scripts/hybrid.py on tiny networks, with dropout; no moving average."""
    encoder = ResidualEncoder(DATA.shape, latent=(2, 2, 2), width=8, blocks=1)
    decoder = ResidualDecoder((2, 2, 2), DATA.shape, NormalHead("shared"), width=8, blocks=1)
    prior = Diffusion(
        Denoiser(UNet((2, 2, 2), 8, multipliers=(1,), blocks=1, dropout=0.1), LearnedSchedule()), (2, 2, 2)
    )
    vae, critic = VAE(encoder, decoder, prior), Critic(PatchDiscriminator(channels=1, width=8))

    def compress(x):
        q, z, p = vae(x)
        return vae.nelbo(x, q, z, p) + 0.1 * critic.fool(p.mean)

    def judge(x):
        with torch.no_grad():
            _, _, p = vae(x)
        return critic.tell(real=x, fake=p.mean)

    return [Player(compress, moves=[vae], name="vae"), Player(judge, moves=[critic], name="critic")], vae, None


def ddpm():
    """A DDPM with a moving average."""
    backbone = UNet((1, 8, 8), 8, multipliers=(1, 2), blocks=1, dropout=0.1)
    model = Diffusion(Denoiser(backbone, BetaSchedule()), (1, 8, 8))
    return [Player(model.loss, moves=[model], name="ddpm")], model, EMA(model, 0.9)


def script(make, folder, stop, seed=0):
    """A script around `train` that saves at step 3 and at its end; the losses of its steps."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(seed), random.seed(seed), numpy.random.seed(seed)
    players, model, ema = make()
    torch.manual_seed(seed + 100 * accelerator.process_index)
    loader = DATA.batches(8, rank=accelerator.process_index, world_size=accelerator.num_processes)
    start = restore(folder, players, loader, ema)
    losses = []
    for step, logs in train(players, loader, accelerator, 6, start):
        losses.append({name: value.item() for name, value in logs.items() if not name.startswith("grad_norm")})
        # What a script draws in between counts as well.
        random.random(), numpy.random.rand()
        if ema is not None:
            ema.update_parameters(model)
        if step in (3, 6):
            save(folder, step, players, loader, ema, keep=9)
        if step == stop:
            break
    return losses


@pytest.mark.parametrize("make", [hybrid, ddpm])
def test_a_restored_script_is_the_straight_one(make, tmp_path):
    """Weights, optimizers, average, position, the generators of torch, NumPy and Python, and losses: to the bit."""
    straight = script(make, tmp_path / "straight", 6)
    first = script(make, tmp_path / "stopped", 3)
    # Other first weights and random numbers, which the checkpoint replaces.
    rest = script(make, tmp_path / "stopped", 6, seed=1)
    assert len(first) == len(rest) == 3 and straight == first + rest
    folders = [tmp_path / name / "checkpoints" / "step-6" for name in ("straight", "stopped")]
    files = sorted(path.name for path in folders[0].iterdir() if path.name != "manifest.json")
    assert {"players.safetensors", "optimizers.safetensors", "rank-0.json", "batches.json"} <= set(files)
    assert ("ema.safetensors" in files) == (make is ddpm)
    for name in files:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    before, after = (load_file(tmp_path / f"straight/checkpoints/step-{n}/players.safetensors") for n in (3, 6))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def line(width=1, name="line"):
    layer = nn.Linear(64, width)
    return Player(lambda x: Terms(a=layer(x.flatten(1)).square().sum(1)), [layer], name=name)


def test_what_cannot_be_saved_or_restored_is_refused(tmp_path):
    player, loader = line(), DATA.batches(8)
    with pytest.raises(ValueError, match="make the Accelerator before"):
        save(tmp_path, 1, player, loader)
    Accelerator(cpu=True)
    for use in (lambda x: save(tmp_path, 1, player, x), lambda x: restore(tmp_path, player, x)):
        with pytest.raises(ValueError, match="loader must offer state_dict.* got a list: .*batches"):
            use([torch.zeros(4, 1, 8, 8)])
    with pytest.raises(ValueError, match=r"different names; got \['line', 'line'\]"):
        save(tmp_path, 1, [player, line()], loader)
    assert restore(tmp_path, player, loader) == 0
    path = save(tmp_path, 4, player, loader)
    assert path == tmp_path / "checkpoints" / "step-4" and restore(tmp_path, player, loader) == 4
    with pytest.raises(Refusal, match=r"another architecture: .* expected \(2, 64\), got \(1, 64\)"):
        restore(tmp_path, line(2), loader)
    with pytest.raises(Refusal, match="missing other.moves.0.weight"):
        restore(tmp_path, line(name="other"), loader)
    with pytest.raises(Refusal, match="was saved by a script, not by a recipe: hybrids.restore"):
        hybrids.load(tmp_path)
    (path / "rank-0.json").unlink()
    with pytest.raises(Refusal, match="none of its checkpoints is whole .*rank-0.json: is missing"):
        restore(tmp_path, player, loader)


def test_a_save_that_cannot_be_written_says_so(tmp_path):
    player, loader = line(), DATA.batches(8)
    Accelerator(cpu=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refusal, match="was not saved .*symbolic link") as caught:
        save(tmp_path / "run", 1, player, loader)
    assert caught.value.code == CANNOT_WRITE and not list((tmp_path / "elsewhere").iterdir())


def test_a_save_never_removes_what_it_has_not_restored(tmp_path):
    """A save removes later steps, of a history that the script went back from: so it must be the script's own."""
    Accelerator(cpu=True)
    player, loader = line(), DATA.batches(8)
    theirs = tmp_path / "theirs"
    save(theirs, 900, player, loader)
    mine = theirs.rename(tmp_path / "mine")  # as if by another process: this one knows it under another name
    with pytest.raises(Refusal, match="checkpoints that this script has not restored.*hybrids.restore before training"):
        save(mine, 100, player, loader)
    assert [path.name for path in (mine / "checkpoints").iterdir()] == ["step-900"]
    assert restore(mine, player, loader) == 900
    save(mine, 901, player, loader, keep=1)
    assert [path.name for path in (mine / "checkpoints").iterdir()] == ["step-901"]


def test_what_is_not_finite_is_not_saved(tmp_path):
    """Buffers too, such as BatchNorm's statistics, which no gradient shows."""
    Accelerator(cpu=True)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.BatchNorm1d(2))
    player = Player(lambda x: Terms(a=layer(x).square().sum(1)), [layer], name="norm")
    layer[2].running_mean.fill_(float("nan"))
    with pytest.raises(NotFinite, match="step 3: norm.moves.0.2.running_mean is not finite"):
        save(tmp_path, 3, player, DATA.batches(8))
    assert not (tmp_path / "checkpoints").exists()
