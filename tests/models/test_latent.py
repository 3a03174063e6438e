"""First and second stages: what they lose, the scale between them, conditions, resume of both."""

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from answers import generator
from safetensors.torch import load_file
from small import TINY
from torch import nn

import hybrids
from components.backbones import MLP, UNet
from components.bottlenecks import FSQ, VQ
from components.decoders import DeltaHead, MLPDecoder, NormalHead, ResidualDecoder
from components.denoisers import Denoiser
from components.discriminators import MLPDiscriminator, PatchDiscriminator
from components.distributions import Delta, Normal
from components.encoders import MLPEncoder, ResidualEncoder
from components.losses import Perceptual, hinge
from components.samplers import Sampler
from components.schedules import FlowSchedule, LogSNRLinearSchedule
from components.text import Captioned, CharacterEncoder, digit_names
from hybrids import GAN, Autoencoder, Critic, Diffusion, LatentModel, Player, StandardNormal, Terms, experiment, train
from hybrids.data import Data, load_data
from hybrids.experiment import Stage, load_recipe
from hybrids.models.cache import draw_latents, encode_data, mean_and_std

IMAGE, MAP = (1, 8, 8), (2, 4, 4)


def autoencoder(shape=IMAGE, latent=MAP, head=None, **options) -> Autoencoder:
    """A small one on images."""
    encoder = ResidualEncoder(shape, latent, 8, (1, 1))
    return Autoencoder(encoder, ResidualDecoder(latent, shape, head or NormalHead(0.5), 8, (1, 1)), **options)


def critic() -> Critic:
    return Critic(PatchDiscriminator(1, 8, 1), hinge)


def flow(latent=MAP, **options) -> Diffusion:
    """A small rectified flow of latents."""
    backbone = MLP(latent[0], 16, 1, **options) if len(latent) == 1 else UNet(latent, 8, (1,), 1, **options)
    return Diffusion(Denoiser(backbone, FlowSchedule(), "flow"), latent, sampler=Sampler("ddim", steps=3))


def images(n=8) -> torch.Tensor:
    return torch.rand(n, *IMAGE) * 2 - 1


def few(n=64, channels=1) -> Data:
    """Digits with a spread of their own."""
    whole = load_data("digits", 8, channels)
    return Data(whole.name, whole.shape, 10, whole.grey_levels, whole.x[:n], whole.labels[:n])


# The first stage's objective.


@pytest.mark.parametrize("reconstruction", ["likelihood", "l1", "l2"])
def test_the_reconstruction_is_a_sum_over_the_event(reconstruction):
    model, x = autoencoder(reconstruction=reconstruction, beta=0.3), images()
    q, _, p = model(x, generator=generator())
    terms = model.loss(x, generator=generator())
    d = 64
    expected = {
        "l1": (x - p.mean).abs().flatten(1).sum(1),
        "l2": (x - p.mean).square().flatten(1).sum(1),
        "likelihood": (x - p.mean).square().flatten(1).sum(1) / (2 * 0.25) + d * math.log(0.5 * math.sqrt(2 * math.pi)),
    }[reconstruction]
    torch.testing.assert_close(terms["reconstruction"][1], expected, rtol=1e-5, atol=1e-4)
    kl = 0.5 * (q.mean.square() + q.std.square() - 1 - 2 * q.std.log()).flatten(1).sum(1)
    assert terms["rate"][0] == 0.3
    torch.testing.assert_close(terms["rate"][1], kl, rtol=1e-4, atol=1e-4)


def test_the_perceptual_weight_is_that_beside_a_mean():
    """mean|x - x̂| + w LPIPS, d times: what papers state for means over the dimensions."""
    model, x = (
        autoencoder(reconstruction="l1", beta=0.0, perceptual=Perceptual.random(1), perceptual_weight=0.5),
        images(),
    )
    _, _, p = model(x, generator=generator())
    total = model.loss(x, generator=generator()).total / 64
    expected = (x - p.mean).abs().mean() + 0.5 * model.perceptual(p.mean, x).mean()
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("bottleneck", "names"),
    [
        (None, {"rate"}),
        (lambda: VQ(8, 2), {"commitment"}),
        (lambda: VQ(8, 2, decay=None), {"commitment", "codebook"}),
        (lambda: FSQ((5, 5)), set()),
    ],
)
def test_every_term_has_a_gradient_and_every_part_moves(bottleneck, names):
    """With each bottleneck, a perceptual loss and a critic, through the game on one process (traps 4, 26, 28)."""
    model = autoencoder(
        bottleneck=bottleneck and bottleneck(), critic=critic(), critic_weight=0.5, perceptual=Perceptual.random(1)
    )
    terms = model.loss(images(), step=0)
    measured = {name for name, (weight, _) in terms.items() if isinstance(weight, float) and weight == 0}
    assert measured == {"weight/adversarial"} | ({"codes/perplexity"} if bottleneck else set())
    assert terms.keys() - measured == {"reconstruction", "perceptual", "adversarial"} | names
    for name in terms.keys() - measured:
        weight, values = terms[name]
        found = torch.autograd.grad((weight * values).sum(), list(model.encoder.parameters()), retain_graph=True,
                                    allow_unused=True)  # fmt: skip
        reached = sum(float(g.abs().sum()) for g in found if g is not None)
        assert reached > 0 or name == "codebook", name
    players = [
        Player(lambda x, step: model.loss(x, step=step), model.moved, name="autoencoder"),
        Player(model.judge, [model.critic], name="critic"),
    ]
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    list(train(players, [images()], Accelerator(cpu=True), 2))
    stayed = [name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])]
    # While no logit is beyond ±1, the hinge pulls a bias of all logits up as much as down.
    assert set(stayed) <= {"critic.discriminator.last.bias"}


def test_the_critic_has_no_weight_and_costs_nothing_before_its_start():
    """Weight 0 means that the autoencoder does not run it; then a straight rise; without a step it cannot tell."""
    model, x = autoencoder(critic=critic(), critic_start=3, critic_warmup=4), images()
    calls = []
    model.critic.register_forward_hook(lambda *_: calls.append(1))
    weights = []
    for step in range(8):
        terms = model.loss(x, step=step, generator=generator())
        assert len(calls) == max(0, step - 2)
        weights.append(float(terms["adversarial"][0]) if "adversarial" in terms else 0.0)
    full = weights[-1]
    assert weights[:3] == [0.0] * 3 and weights[3:] == pytest.approx([full * k / 4 for k in (1, 2, 3, 4, 4)])
    # Its player learns meanwhile.
    assert model.judge(x, step=0).total.requires_grad
    with pytest.raises(ValueError, match="need loss"):
        model.loss(x)


def test_the_firewall_between_autoencoder_and_critic():
    """The critic's loss leaves the autoencoder without a gradient."""
    model = autoencoder(critic=critic(), bottleneck=VQ(8, 2))
    codes = model.bottleneck.codebook.clone()
    model.judge(images()).total.backward()
    assert all(p.grad is None for module in model.moved for p in module.parameters())
    assert all(p.grad is not None for p in model.critic.parameters()) and torch.equal(codes, model.bottleneck.codebook)


@pytest.mark.parametrize("bottleneck", [None, VQ(8, 2), FSQ((5, 5))])
def test_samples_without_a_second_stage(bottleneck):
    """z ~ N(0, I), or of even codes; what is encoded and decoded is the reconstruction, of codes rounded again."""
    model, x = autoencoder(bottleneck=bottleneck).eval(), images()
    a, b = (model.sample(3, generator=generator(5)) for _ in range(2))
    assert torch.equal(a, b) and a.shape == (3, *IMAGE)
    q = model.posterior(x)
    assert isinstance(q, Normal if bottleneck is None else Delta)
    assert torch.equal(model.reconstruct(x), model.decode(q.mean).mean)
    if bottleneck is not None:
        torch.testing.assert_close(model.reconstruct(x), model.decoder(bottleneck(q.mean).z).mean)


# The scale, and the cache.


@pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_mean_and_std_are_those_of_the_draws(shape, per_channel):
    """Var z = Var E[z|x] + E Var[z|x], against 2000 draws of each example (4 standard errors and more: 2%)."""
    stored = torch.stack([2 + 3 * torch.randn(16, *shape), torch.rand(16, *shape) * 2], 1)
    mean, std = mean_and_std(stored, per_channel)
    z = torch.cat([draw_latents(stored) for _ in range(2000)])
    over = [0, *range(2, z.ndim)] if per_channel else list(range(z.ndim))
    torch.testing.assert_close(std.flatten(), z.std(over).flatten(), rtol=0.02, atol=0)
    torch.testing.assert_close(mean.flatten(), z.mean(over).flatten(), rtol=0.02, atol=0.05)


def test_cached_latents_come_in_the_order_of_the_data():
    """Batch for batch what encoding the images would give, with their labels, on any rank; nothing random."""
    data, model = few(40), autoencoder().eval()
    stored = encode_data(data, model.posterior, batch_size=7)
    again = encode_data(data, model.posterior, batch_size=40)
    torch.testing.assert_close(stored.x, again.x)
    for rank in (0, 1):
        plain, cached = (iter(d.batches(6, 3, rank, 2, labels=True)) for d in (data, stored))
        for _ in range(5):
            a, b = next(plain), next(cached)
            q = model.posterior(a["x"])
            assert torch.equal(a["cond"], b["cond"])
            torch.testing.assert_close(b["x"], torch.stack([q.mean, q.std], 1))


def test_latents_of_three_channels_are_no_images():
    """They leave [-1, 1], and no check of images refuses them."""
    model = LatentModel(autoencoder(latent=(3, 4, 4)), flow((3, 4, 4)))
    with torch.no_grad():
        model.first.encoder.last.bias[:3] = 9.0
    stored = model.cache(few())
    assert model.first.posterior(few().decode(few().x)).mean.abs().max() > 1
    played = list(train(Player(model.latent_loss, [model.second]), stored.batches(8), Accelerator(cpu=True), 2))
    assert len(played) == 2 and all(value.isfinite() for _, logs in played for value in logs.values())


def test_images_that_are_too_many_for_memory_are_decoded_once():
    """The latents of a stream are those of the same images in memory."""
    from types import SimpleNamespace

    whole, model, seen = few(20), autoencoder().eval(), []

    class Images:
        skipping = SimpleNamespace(add=seen.append)
        read = staticmethod(lambda index: (whole.x[index], index, {"x.png": "broken"}))

        def __len__(self):
            return 20

    stream = Data("many", IMAGE, 10, whole.grey_levels, labels=whole.labels, stream=Images())
    assert torch.equal(
        encode_data(stream, model.posterior, batch_size=8).x, encode_data(whole, model.posterior, batch_size=8).x
    )
    assert seen == 3 * [{"x.png": "broken"}]


def test_what_cannot_be_cached():
    model = LatentModel(autoencoder(), flow())
    with pytest.raises(ValueError, match="of 'digits' only the shape is known"):
        model.cache(Data("digits", IMAGE, 10, 17))
    nn.init.zeros_(model.first.encoder.last.weight)
    with torch.no_grad():
        model.first.encoder.last.bias.fill_(-30.0)
    model.first.bottleneck = FSQ((5, 5))
    with pytest.raises(ValueError, match="latents must vary; channel 0 is constant over all examples"):
        model.cache(few())


# The whole model.


def test_samples_are_the_decoded_latents_of_the_second_stage():
    model = LatentModel(autoencoder(), flow())
    model.cache(few())
    nn.init.normal_(model.second.denoiser.backbone.last.weight, std=0.2)
    x = model.sample(4, generator=generator())
    w = model.second.sample(4, generator=generator())
    assert torch.equal(x, model.first.decode(model.shift + w / model.scale).mean) and x.shape == (4, *IMAGE)


def test_its_vae_scores_x():
    """The rate in w is the KL of q(z|x) to the prior in z, the change of variables included: N(shift, 1/scale²)."""
    from components.distributions import kl

    model, x = LatentModel(autoencoder(), StandardNormal(MAP)), images()
    model.cache(few())
    q = model.first.posterior(x)
    expected = kl(q, Normal(model.shift.expand(1, *MAP), (1 / model.scale).expand(1, *MAP)))
    terms = model.vae().nll(x)
    torch.testing.assert_close(terms["rate"][1], expected, rtol=1e-4, atol=1e-3)
    diffusion = Diffusion(Denoiser(UNet(MAP, 8, (1,), 1), LogSNRLinearSchedule(9.0, -9.0)), MAP)
    found = LatentModel(model.first, diffusion).vae()
    assert {"distortion", "prior.diffusion", "posterior_entropy"} <= found.nll(x).keys()
    assert found.bound(x).total.isfinite() and found.sample(2).shape == (2, *IMAGE)


def test_labels_and_words_reach_the_second_stage_and_are_dropped():
    """Label or caption → cond; `label_dropout` 1 is the unconditional loss, 0 the conditional one."""
    words = Captioned(digit_names(10), CharacterEncoder(8, 8, 1, 2))
    for second, condition, classes in (
        (flow(num_classes=10), None, 10),
        (flow(context=8), words, None),
    ):
        model = LatentModel(autoencoder(), second, condition, classes, label_dropout=1.0)
        data = model.cache(few(16))
        backbone = second.denoiser.backbone
        for p in backbone.parameters():
            nn.init.normal_(p, std=0.3)
        batch = next(iter(data.batches(8, labels=True)))

        def loss(batch, p, model=model):
            model.label_dropout = p
            w, cond = model.latent_batch(batch, generator(3))
            return w, model.second.loss(w, cond, generator(4))["simple"][1]

        w, conditional = loss(batch, 0.0)
        same, dropped = loss(batch, 1.0)
        assert torch.equal(same, w)
        torch.testing.assert_close(dropped, model.second.loss(w, generator=generator(4))["simple"][1])
        assert (conditional - dropped).abs().max() > 1e-3
        labels = torch.tensor([3, 7])
        a, b = (model.sample(2, cond=cond, generator=generator(0)) for cond in (labels, None))
        assert (a - b).abs().max() > 1e-4
    model.label_dropout = 0.0
    model.latent_loss(batch).total.backward()
    assert words.encoder.characters.weight.grad.abs().sum() > 0


def test_any_model_of_vectors_is_a_second_stage():
    """A GAN of the latents, as its two players: only loss and sample are asked for."""
    gan = GAN(MLPDecoder(2, 4, DeltaHead(bounded=False), 8, 1), Critic(MLPDiscriminator(4, 8, 2)), 2)
    first = Autoencoder(MLPEncoder(2, 4, 8, 1), MLPDecoder(4, 2, NormalHead("learned"), 8, 1))
    model = LatentModel(first, gan)
    assert model.sample(5).shape == (5, 2) and model.loss(torch.randn(6, 2)).total.isfinite()
    with pytest.raises(ValueError, match="prior must offer nll and sample; GAN is implicit"):
        model.vae()


# Parts that do not fit.


def scored():
    """A latent model as a VAE, and labels, which it does not take."""
    return LatentModel(autoencoder(), StandardNormal(MAP)).vae(), torch.zeros(8, dtype=torch.int64)


def of_vectors():
    return Autoencoder(MLPEncoder(6, 2, 8, 1), MLPDecoder(2, 6, NormalHead(0.5), 8, 1))


def gan_of_vectors():
    """Its loss reads only how many x there are."""
    return GAN(MLPDecoder(3, 7, DeltaHead(bounded=False), 8, 1), Critic(MLPDiscriminator(7, 8, 1)), 3)


def mixed():
    """A diffusion that says one shape, with a network of another."""
    return Diffusion(Denoiser(UNet((4, 4, 4), 8, (1,), 1), FlowSchedule(), "flow"), MAP)


LATENT, NO_BATCH = (
    r"model of Autoencoder's latents \(2, 4, 4\); ",
    r"latents \(2, 4, 4\); got shape .*: train on model.cache",
)


@pytest.mark.parametrize("ask, message", [
    # latents of another shape, when the model is built, naming both sides
    (lambda: LatentModel(autoencoder(), flow((4, 4, 4))), LATENT + r"Diffusion has samples \(4, 4, 4\)"),
    (lambda: LatentModel(autoencoder(), mixed()), LATENT + "Diffusion does not take them: x_t .*4, 4, 4"),
    (lambda: LatentModel(autoencoder(), nn.Linear(2, 2)),
     "Linear has no loss and no sample"),
    (lambda: LatentModel(of_vectors(), gan_of_vectors()), r"Autoencoder's latents \(2,\); GAN .*\(7,\)"),
    # images in the place of cached latents
    *[(lambda shape=shape: LatentModel(autoencoder(), flow()).latent_loss(torch.zeros(8, *shape)), NO_BATCH)
      for shape in (IMAGE, (3, 8, 8), (2, 2, 4, 5))],
    # scores
    (lambda: scored()[0].nll(images(), scored()[1]), "cond must be None for"),
    (lambda: scored()[0].sample(8, scored()[1]), "cond must be None for"),
    (lambda: LatentModel(autoencoder(bottleneck=VQ(8, 2)), flow()).vae(), "VQ gives codes"),
    # options of the first stage that do not go together
    (lambda: autoencoder(bottleneck=VQ(8, 3)), r"2 channels of .* latents \(2, 4, 4\); VQ has 3"),
    (lambda: Autoencoder(ResidualEncoder(IMAGE, MAP, 8, (1, 1)),
                         ResidualDecoder((3, 4, 4), IMAGE, NormalHead(1.0), 8, (1, 1))),
     r"latents \(2, 4, 4\); ResidualDecoder takes \(3, 4, 4\)"),
    (lambda: autoencoder(bottleneck=FSQ((5, 5)), beta=0.1),
     "beta is the weight of the KL: .* got 0.1 with a FSQ bottleneck"),
    (lambda: autoencoder(reconstruction="l3"), "one of likelihood, l1, l2; got 'l3'"),
    (lambda: autoencoder(critic=critic(), critic_weight=-0.5), "must not be negative; got 1.0, -0.5, 0 and 0"),
    (lambda: autoencoder().judge(images()), "judge needs a critic"),
])  # fmt: skip
def test_faults_19_and_20_what_does_not_fit_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


@pytest.mark.parametrize("ask, message", [
    (lambda: autoencoder(critic=PatchDiscriminator(1, 8, 1)),
     "critic must offer tell and fool, .*; got a PatchDiscriminator"),
    (lambda: autoencoder(head=DeltaHead()).loss(images()),
     "decoder must return a likelihood; got Delta, a point, which has none"),
])  # fmt: skip
def test_parts_of_another_kind_are_refused(ask, message):
    with pytest.raises(TypeError, match=message):
        ask()


# Runs of two stages.

ARGUMENTS = (
    "--device cpu --batch-size 8 --log-every 1 --keep-checkpoints 9 --width 8 --resolution 8 --sample-steps 2 "
    "--first-steps 4 --steps 5 --checkpoint-every 2"
).split()
WITH_CRITIC = "--critic 0.5 --critic-start 1 --accumulation 2 --batch-size 4"
WITH_WORDS = "--bottleneck vq --condition text"


def run(out: Path, *argv: str, build=None) -> None:
    """A tiny run of the recipe, or of another build, in this process."""
    recipe = load_recipe("latent_diffusion")
    experiment.main(recipe.Settings, build or recipe.build, [*ARGUMENTS, *argv, "--out", str(out)])


def stop_after(monkeypatch, stop: int) -> None:
    """A signal arrives in a step of the whole run, counted over its stages."""
    from hybrids.experiment.run import run as module

    inner, done = module.train, []

    def train(players, batches, accelerator, steps, start, skip_nonfinite):
        for n, logs in inner(players, batches, accelerator, steps, start, skip_nonfinite):
            done.append(n)
            if len(done) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            yield n, logs

    monkeypatch.setattr(module, "train", train)


def state(out: Path, step: int) -> dict:
    """Everything that a checkpoint holds, by name, and the log, but for the clock."""
    found = {}
    for path in sorted((out / f"checkpoints/step-{step}").iterdir()):
        if path.suffix == ".safetensors":
            found |= {f"{path.stem}/{key}": value for key, value in load_file(path).items()}
        elif path.name != "manifest.json":
            found[path.stem] = json.loads(path.read_text())
    found["progress"].pop("seconds")
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found["log"] = [{key: value for key, value in line.items() if not key.startswith("time/")} for line in log]
    return found


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        same = torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key]
        assert same, f"{key} differs"


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "stops"), [(WITH_CRITIC, (3, 4, 7)), (WITH_WORDS, (7,))])
def test_a_run_resumed_in_either_stage_is_the_straight_run(extra, stops, tmp_path, few_digits):
    """To the bit: weights of both stages, optimizers, average, noise, data order, log; stopped in the first stage (3),
    at its end (4), and in the second (7). Row 39 after resume: shift and scale are those of the cache."""
    run(tmp_path / "straight", *extra.split())
    straight = state(tmp_path / "straight", 9)
    assert {"stage-0", "stage-1"} <= {key.split("/")[0] for key in straight}
    for stop in stops:
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(SystemExit, match="75"), pytest.MonkeyPatch.context() as patch:
            stop_after(patch, stop)
            run(out, *extra.split())
        assert (out / f"checkpoints/step-{stop}").is_dir() and not (out / f"checkpoints/step-{stop + 1}").exists()
        torch.rand(3)
        run(out, *extra.split(), "--resume", "auto")
        assert_same(state(out, 9), straight)
        for picture in (tmp_path / "straight/samples").iterdir():
            assert (out / "samples" / picture.name).read_bytes() == picture.read_bytes()
    model = hybrids.load(tmp_path / "straight")
    from hybrids.experiment.run import run as module

    again = LatentModel(model.first, StandardNormal(model.latent))
    again.cache(module.load_data("digits", 8, 1))
    # Within 1%, asked for; the weights saved are those that the cache was made with.
    torch.testing.assert_close(model.scale, again.scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(model.shift, again.shift, rtol=1e-5, atol=1e-6)


def test_what_a_stage_draws_for_its_batches_is_drawn_again_alike(tmp_path, few_digits):
    """A stage that makes its batches with noise of its own: resumed in its middle, it makes the same; and the noise of
    its steps is that of the straight run."""
    from hybrids.data import Batches

    def build(settings, data):
        first, second = (nn.Linear(64, 1) for _ in range(2))

        def player(layer, name):
            return Player(
                lambda x: Terms(a=(layer(x.flatten(1) + 0.1 * torch.randn(len(x), 64)) - 1)[:, 0].square()), [layer],
                name=name,
            )  # fmt: skip

        def drawn() -> Batches:
            return Data("drawn", (64,), x=torch.randn(16, 64)).batches(8)

        for layer in (first, second):
            layer.sample = lambda n, generator=None: torch.zeros(n, 1, 8, 8)
        return [
            Stage("first", first, [player(first, "a")], steps=2),
            Stage("second", second, [player(second, "b")], drawn),
        ]

    run(tmp_path / "straight", build=build)
    for stop in (2, 6):
        with pytest.raises(SystemExit, match="75"), pytest.MonkeyPatch.context() as patch:
            stop_after(patch, stop)
            run(tmp_path / f"stopped-{stop}", build=build)
        torch.rand(5)
        run(tmp_path / f"stopped-{stop}", "--resume", "auto", build=build)
        assert_same(state(tmp_path / f"stopped-{stop}", 7), state(tmp_path / "straight", 7))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--flat --bottleneck vq", "--flat: --bottleneck vq and fsq"),
        ("--guidance-scale 3", "nothing to guide by with --condition none"),
        ("--condition label --guidance-scale 3 --label-dropout 0", "nothing to guide from with --label-dropout 0"),
        ("--data 25-gaussians --critic 1", "want images; 25-gaussians is points"),
        ("--data 25-gaussians --condition label", "--condition label needs labels; --data 25-gaussians has none"),
        ("--resolution 2 --critic 1", "at least 4 (in a recipe --resolution); got shape (8, 1, 2, 2)"),
        ("--condition text --text-encoder no/such", "pip install transformers"),
    ],
)
def test_what_the_recipe_refuses(argv, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    words = argv.split()
    base = [a for i, a in enumerate(ARGUMENTS) if "--resolution" not in (a, ARGUMENTS[i - 1])]
    recipe = load_recipe("latent_diffusion")
    with pytest.raises(SystemExit) as caught:
        experiment.main(recipe.Settings, recipe.build, [*base, *words, "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert caught.value.code == 2 and said in told and "Traceback" not in told


def test_a_resume_that_moves_the_ends_of_stages_is_refused(tmp_path, capsys, few_digits):
    """Step 5 is of the second stage of 4 + 4, and of the first of 8: taken for that, the second would start anew."""
    recipe = load_recipe("latent_diffusion")

    def run(*argv):
        common = ["--device", "cpu", "--batch-size", "8", "--log-every", "1", *TINY["latent_diffusion"]]
        experiment.main(recipe.Settings, recipe.build, [*common, "--out", str(tmp_path / "run"), *argv])

    run("--steps", "4", "--checkpoint-every", "2")
    before = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    for steps in ("3", "8"):
        source = str(tmp_path / "run/checkpoints/step-6")
        with pytest.raises(SystemExit, match="2"):
            run("--steps", steps, "--resume", source, "--out", str(tmp_path / "other"))
        assert "stages ended at [4, 8]" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == before
