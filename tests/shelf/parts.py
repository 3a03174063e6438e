"""Every part of the shelf inside a small model: PARTS maps a name to a function that returns (players, batch)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from inside import (
    ADAM,
    CLASSES,
    FEATURES,
    IMAGE,
    LATENT,
    LEVELS,
    PHOTOGRAPH,
    SEQUENCE,
    WIDTH,
    Autoencoder,
    Game,
    Noisy,
    augmented,
    batch,
    denoising_gan,
    diffusion,
    distilled,
    dropped,
    gan,
    labelled,
    latent_map,
    one,
    painter,
    perceptual,
    pictures,
    residual_critic,
    unet,
    vae,
)
from torch import nn

from components.augmentations import DiffAugment
from components.backbones import MLP, DiT, SequenceTransformer, Stochastic
from components.bottlenecks import FSQ, VQ
from components.conditions import drop
from components.decoders import (
    BernoulliHead,
    CategoricalHead,
    DeltaHead,
    LogisticHead,
    LogisticMixtureHead,
    MLPDecoder,
    NormalHead,
    ResidualDecoder,
    StyleGenerator,
)
from components.denoisers import (
    Denoiser,
    GaussianMean,
    GreyLevels,
    MixtureMean,
    log_marginals,
)
from components.discriminators import (
    FeatureDiscriminator,
    MLPDiscriminator,
    MultiScaleDiscriminator,
    NoiseOfPair,
    PatchDiscriminator,
)
from components.encoders import MLPEncoder, ResidualEncoder, TimmEncoder, TimmFeatures, ViTEncoder
from components.ladders import Ladder, convolutional_ladder, dense_ladder
from components.losses import (
    LogNormalTimes,
    LossAwareTimes,
    Perceptual,
    RandomFeatures,
    UniformLogSNRTimes,
    UniformTimes,
    edm,
    hinge,
    least_squares,
    min_snr,
    minimax,
    non_saturating,
    p2,
    relativistic,
    simple,
    wasserstein,
)
from components.samplers import DDIM, METHODS, Ancestral, Heun, Sampler, invert
from components.schedules import (
    BetaSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
    LearnedSchedule,
    LogSNRLinearSchedule,
    ShiftedSchedule,
    VarianceExplodingSchedule,
    VariancePreservingSchedule,
)
from components.text import Captioned, CharacterEncoder, digit_names
from hybrids import AdversarialDiffusion, Critic, HierarchicalVAE, Player

GRID = {"grey_levels": LEVELS, "weighting": "likelihood"}
CHAIN = {"timesteps": 4, "weighting": "likelihood"}

PARTS: dict[str, Callable[[], Game]] = {
    "encoder-mlp": lambda: (one(vae()), batch()),
    "encoder-mlp-free-bits": lambda: (one(vae(free_bits=0.1)), batch()),
    "encoder-mlp-labels": lambda: (
        one(vae(MLPEncoder(FEATURES, LATENT, WIDTH, 1, num_classes=CLASSES),
                MLPDecoder(LATENT, FEATURES, NormalHead(1.0), WIDTH, 1, num_classes=CLASSES))),
        batch((FEATURES,), "cond"),
    ),
    "encoder-residual-labels": lambda: (
        one(labelled(ResidualEncoder(IMAGE, LATENT, WIDTH, (1, 1), num_classes=CLASSES))), batch(IMAGE, "cond")
    ),
    "encoder-vit-labels": lambda: (
        one(labelled(ViTEncoder(IMAGE, LATENT, 4, WIDTH, 1, 2, num_classes=CLASSES))), batch(IMAGE, "cond")
    ),
    "encoder-map": lambda: (one(latent_map()), batch(IMAGE)),
    "encoder-timm": lambda: (one(pictures(TimmEncoder("test_resnet", LATENT), shape=PHOTOGRAPH)), batch(PHOTOGRAPH)),
    "encoder-timm-frozen": lambda: (
        one(pictures(TimmEncoder("test_vit", LATENT, frozen=True, img_size=32), shape=PHOTOGRAPH)), batch(PHOTOGRAPH)
    ),
    "perceptual-random": lambda: (perceptual(Perceptual.random(1, widths=(4, 4)), IMAGE), batch(IMAGE)),
    "perceptual-timm": lambda: (
        perceptual(Perceptual(TimmFeatures("test_resnet", (0, 1)), (1.0, 0.5)), PHOTOGRAPH), batch(PHOTOGRAPH)
    ),
    "augmentation-flip-crop": lambda: (augmented(), batch(IMAGE)),
    "augmentation-diffaugment": lambda: (
        gan(painter(), residual_critic(), augment=DiffAugment(), r1=0.1), batch(IMAGE)
    ),
    "generator-mlp": lambda: (gan(), batch()),
    "generator-implicit": lambda: (gan(Noisy()), batch()),
    "generator-residual-labels": lambda: (
        gan(painter(num_classes=CLASSES, groups=2), residual_critic(num_classes=CLASSES)), batch(IMAGE, "cond")
    ),
    "generator-style-labels": lambda: (
        gan(StyleGenerator(LATENT, IMAGE, None, WIDTH, (1, 1), 2, CLASSES), residual_critic(num_classes=CLASSES)),
        batch(IMAGE, "cond"),
    ),
    "discriminator-mlp-everything": lambda: (
        denoising_gan(
            MLPDecoder(LATENT, FEATURES, DeltaHead(), WIDTH, 1),
            MLPDiscriminator(FEATURES, WIDTH, 2, True, timed=True, given_features=FEATURES, num_classes=CLASSES),
        ),
        batch((FEATURES,), "t", "given", "cond"),
    ),
    "discriminator-residual-everything": lambda: (
        denoising_gan(
            painter(),
            residual_critic(spectral_norm=True, timed=True, given_channels=1, num_classes=CLASSES, minibatch_std=True),
        ),
        batch(IMAGE, "t", "given", "cond"),
    ),
    "discriminator-patch": lambda: (gan(painter(), PatchDiscriminator(1, WIDTH, 1), r1=0.1), batch(IMAGE)),
    "discriminator-multiscale": lambda: (
        gan(painter(), MultiScaleDiscriminator(1, 2, WIDTH, 1, spectral_norm=True)), batch(IMAGE)
    ),
    "discriminator-features-random": lambda: (
        gan(painter(num_classes=CLASSES), FeatureDiscriminator(RandomFeatures(1, (4, 4)), IMAGE, WIDTH, CLASSES)),
        batch(IMAGE, "cond"),
    ),
    "discriminator-features-timm": lambda: (
        gan(painter(), FeatureDiscriminator(TimmFeatures("test_resnet", (0, 1), channels=1), IMAGE, WIDTH)),
        batch(IMAGE),
    ),
    "backbone-unet-labels": lambda: (
        dropped(unet(num_classes=CLASSES, fourier=(1, 2), dropout=0.1), CLASSES, IMAGE), batch(IMAGE, "cond")
    ),
    "backbone-unet-tokens": lambda: (dropped(unet(context=FEATURES), None, IMAGE), batch(IMAGE, "tokens", "mask")),
    "backbone-unet-self-condition": lambda: (
        dropped(unet(num_classes=CLASSES, self_condition=True), CLASSES, IMAGE), batch(IMAGE, "cond")
    ),
    "backbone-unet-sequence-labels": lambda: (
        dropped(unet(SEQUENCE, num_classes=CLASSES, fourier=(1,), dropout=0.1, self_condition=True), CLASSES, SEQUENCE),
        batch(SEQUENCE, "cond"),
    ),
    "backbone-unet-sequence-tokens": lambda: (
        dropped(unet(SEQUENCE, context=FEATURES), None, SEQUENCE), batch(SEQUENCE, "tokens", "mask")
    ),
    "backbone-dit-labels": lambda: (
        dropped(DiT(IMAGE, 4, WIDTH, 1, 2, num_classes=CLASSES), CLASSES, IMAGE), batch(IMAGE, "cond")
    ),
    "backbone-dit-tokens": lambda: (
        dropped(DiT(IMAGE, 4, WIDTH, 1, 2, context=FEATURES), None, IMAGE), batch(IMAGE, "tokens", "mask")
    ),
    "backbone-sequence": lambda: (
        one(diffusion(SequenceTransformer(SEQUENCE, 2, WIDTH, 1, 2), shape=SEQUENCE)), batch(SEQUENCE)
    ),
    "backbone-mlp-labels": lambda: (
        dropped(MLP(FEATURES, WIDTH, 1, fourier=(1,), num_classes=CLASSES), CLASSES, FEATURES),
        batch((FEATURES,), "cond"),
    ),
    "denoiser-large": lambda: (one(diffusion(denoiser={"variance": "large"}, **CHAIN)), batch()),
    "denoiser-learned-range": lambda: (
        one(diffusion(MLP(FEATURES, WIDTH, 1, out_features=2 * FEATURES),
                      denoiser={"variance": "learned_range", "clip": (-1.0, 1.0)}, **CHAIN)),
        batch(),
    ),
    "reconstruction-grey-levels": lambda: (one(diffusion(**GRID)), batch()),
    "reconstruction-gaussian": lambda: (one(diffusion(weighting="likelihood")), batch()),
    "reconstruction-denoised": lambda: (one(diffusion(schedule=BetaSchedule(), **CHAIN)), batch()),
    "reconstruction-denoised-levels": lambda: (
        one(diffusion(schedule=BetaSchedule(), grey_levels=LEVELS, **CHAIN)), batch()
    ),
    "analytic-gaussian": lambda: (
        distilled(lambda schedule: GaussianMean(schedule, torch.ones(FEATURES), torch.eye(FEATURES))),
        batch((FEATURES,), "t"),
    ),
    "analytic-mixture": lambda: (
        distilled(lambda schedule: MixtureMean(schedule, torch.eye(FEATURES), 0.1)), batch((FEATURES,), "t")
    ),
}  # fmt: skip


def shelve(kind: str, parts: dict[str, Callable[[], object]], inside: Callable[[object], list[Player]], *of) -> None:
    """Entries "kind-name" that differ in one part."""
    for name, part in parts.items():
        PARTS[f"{kind}-{name}"] = lambda part=part: (inside(part()), batch(*of))


shelve("head", {
    "bernoulli": BernoulliHead,
    "categorical": lambda: CategoricalHead(LEVELS),
    "logistic": lambda: LogisticHead(LEVELS),
    "logistic-mixture": lambda: LogisticMixtureHead(LEVELS, 2),
    "normal": lambda: NormalHead(0.5),
    "normal-shared": lambda: NormalHead("shared"),
    "normal-learned": lambda: NormalHead("learned"),
}, lambda head: one(pictures(head=head)), IMAGE)  # fmt: skip

shelve("bottleneck", {
    "vq": lambda: VQ(8, 2),
    "vq-gradient": lambda: VQ(8, 2, decay=None),
    "fsq": lambda: FSQ((3, 4)),
}, lambda bottleneck: one(Autoencoder(bottleneck)), IMAGE)  # fmt: skip

shelve("loss", {
    "minimax": lambda: {"pair": minimax},
    "non-saturating": lambda: {"pair": non_saturating, "r1": 0.5, "lazy": 2},
    "hinge": lambda: {"pair": hinge},
    "least-squares": lambda: {"pair": least_squares},
    "wasserstein": lambda: {"pair": wasserstein, "gp": 10.0},
    "relativistic": lambda: {"pair": relativistic, "r1": 0.5, "r2": 0.5},
}, lambda options: gan(**options))  # fmt: skip

shelve("schedule", {
    "linear": lambda: (BetaSchedule("linear"), "epsilon"),
    "scaled-linear": lambda: (BetaSchedule("scaled_linear", beta_start=0.00085, beta_end=0.012), "epsilon"),
    "cosine-table": lambda: (BetaSchedule("squaredcos_cap_v2"), "v_prediction"),
    "sigmoid": lambda: (BetaSchedule("sigmoid"), "epsilon"),
    "zero-snr": lambda: (BetaSchedule("scaled_linear", rescale_betas_zero_snr=True), "v_prediction"),
    "cosine": lambda: (CosineSchedule(), "sample"),
    "log-snr-linear": lambda: (LogSNRLinearSchedule(), "epsilon"),
    "exploding": lambda: (VarianceExplodingSchedule(), "epsilon"),
    "edm": lambda: (EDMSchedule(), "edm"),
    "flow": lambda: (FlowSchedule(), "flow"),
    "shifted": lambda: (ShiftedSchedule(FlowSchedule(), 3.0), "flow"),
}, lambda part: one(
    diffusion(schedule=part[0], denoiser={"prediction": part[1]}, sampler=Sampler("ddim", steps=2))
))  # fmt: skip

shelve("schedule", {
    "learned": LearnedSchedule,
    "learned-ends": lambda: LearnedSchedule(learn_endpoints=True),
    "learned-shifted": lambda: ShiftedSchedule(LearnedSchedule(), 2.0),
}, lambda schedule: one(diffusion(schedule=schedule, **GRID)))  # fmt: skip

shelve("weighting", {
    "simple": lambda: simple, "min-snr": min_snr, "p2": p2, "edm": edm,
}, lambda weighting: one(diffusion(weighting=weighting)))  # fmt: skip

shelve("times", {
    "uniform": UniformTimes,
    "uniform-log-snr": UniformLogSNRTimes,
    "log-normal": LogNormalTimes,
    "loss-aware": lambda: LossAwareTimes(bins=4),
}, lambda times: one(diffusion(times=times, schedule=CosineSchedule(13.0, -5.0))))  # fmt: skip


@dataclass(frozen=True)
class ThereAndBack(Sampler):
    """A sampler, its inverse, and the sampler again: for DDIM."""

    def __call__(self, denoiser, x, cond=None, generator=None, times=None, mean_at_end=None) -> torch.Tensor:
        x = super().__call__(denoiser, x, cond, generator, times)
        return super().__call__(denoiser, invert(denoiser, x, times, cond), cond, generator, times, mean_at_end)


shelve("sampler", {
    **{name.replace("_", "-"): lambda name=name: Sampler(name, steps=2) for name in METHODS},
    "ancestral-large": lambda: Sampler(Ancestral(variance="large"), steps=2),
    "ddim-noise": lambda: Sampler(DDIM(eta=0.5), steps=2),
    "heun-churn": lambda: Sampler(Heun(s_churn=1.0), steps=2),
    "ddim-inverted": lambda: ThereAndBack("ddim", steps=2),
    "thresholded": lambda: Sampler("dpm_solver_pp", steps=2, thresholding=0.9),
}, lambda sampler: one(diffusion(sampler=sampler)))  # fmt: skip


def few_steps(backbone: nn.Module, discriminator: nn.Module, shape) -> list[Player]:
    """A denoising diffusion GAN, whose generator has a latent of its own."""
    denoiser = Denoiser(Stochastic(backbone, LATENT, 2), VariancePreservingSchedule(), "sample")
    model = AdversarialDiffusion(denoiser, Critic(discriminator, r1=0.1), shape, 2, LATENT)

    def judge(b: dict, step: int):
        return model.judge(b["x"], b.get("cond"), step)

    return [
        Player(judge, [model.critic], optimizer=ADAM, name="critic"),
        Player(lambda b: model.loss(b["x"], b.get("cond")), [denoiser], optimizer=ADAM, name="generator"),
    ]


PARTS |= {
    "stochastic-mlp": lambda: (
        few_steps(MLP(FEATURES, WIDTH, 1), MLPDiscriminator(FEATURES, WIDTH, 2, timed=True, given_features=FEATURES),
                  FEATURES),
        batch(),
    ),
    "discriminator-noise-of-pair": lambda: (
        few_steps(
            MLP(FEATURES, WIDTH, 1),
            NoiseOfPair(
                MLPDiscriminator(FEATURES, WIDTH, 2, timed=True, given_features=FEATURES), VariancePreservingSchedule(),
                2,
            ),
            FEATURES,
        ),
        batch(),
    ),
    "mlps-of-images": lambda: (
        few_steps(MLP(IMAGE, WIDTH, 1), MLPDiscriminator(IMAGE, WIDTH, 2, timed=True, given_features=IMAGE), IMAGE),
        batch(IMAGE),
    ),
    "stochastic-unet-labels": lambda: (
        few_steps(unet(num_classes=CLASSES), residual_critic(timed=True, given_channels=1, num_classes=CLASSES), IMAGE),
        batch(IMAGE, "cond"),
    ),
}  # fmt: skip


def hierarchical(ladder: Ladder, decoder: nn.Module) -> list[Player]:
    """A VAE of a learned ladder."""
    return one(HierarchicalVAE(ladder.levels, decoder, ladder.encoder))


def on_a_grid() -> list[Player]:
    """A diffusion whose network corrects Bayes' rule on grey levels."""
    prediction = GreyLevels((FEATURES,), LEVELS, log_marginals(batch()["x"], LEVELS))
    backbone = MLP(FEATURES, WIDTH, 1, out_features=LEVELS * FEATURES)
    schedule = LearnedSchedule(8.0, -5.0)
    return one(diffusion(backbone, schedule, denoiser={"prediction": prediction}, weighting="likelihood"))


PARTS |= {
    "ladder-convolutional-labels": lambda: (
        hierarchical(
            convolutional_ladder(IMAGE, 2, 2, WIDTH, num_classes=CLASSES),
            ResidualDecoder((WIDTH, 8, 8), IMAGE, NormalHead(0.5), WIDTH, num_classes=CLASSES),
        ),
        batch(IMAGE, "cond"),
    ),
    "ladder-dense": lambda: (
        hierarchical(dense_ladder(FEATURES, 2, 2, WIDTH), MLPDecoder(WIDTH, FEATURES, NormalHead(0.5), WIDTH, 1)),
        batch(),
    ),
    "grey-levels": lambda: (on_a_grid(), batch()),
}


def captioned() -> list[Player]:
    """A diffusion with labels in words as its condition, which it learns to read."""
    words = Captioned(digit_names(CLASSES), CharacterEncoder(FEATURES, 6, 1, 2))
    model = diffusion(unet(context=FEATURES), shape=IMAGE)
    return [Player(lambda b: model.loss(b["x"], drop(words(b["cond"]), 0.5)), [model.denoiser, words], optimizer=ADAM)]


PARTS |= {
    "vae-of-images-by-mlps": lambda: (
        one(vae(MLPEncoder(IMAGE, LATENT, WIDTH, 1), MLPDecoder(LATENT, IMAGE, NormalHead("learned"), WIDTH, 1))),
        batch(IMAGE),
    ),
    "text-characters": lambda: (captioned(), batch(IMAGE, "cond")),
}  # fmt: skip
