"""The ablations of EAM's Tables 2 to 5 and one of the LR attention: what each row changes, and the runs this takes."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from eam_core.mim import MaskConfig
from train.control_task import ControlConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of a table.

    Attributes:
        name: as the table prints it.
        parts: fields of this nested config that differ from the recipe.
        data: the same.
        mask: of the masked steps; None leaves the recipe's.
        test_captions: kind of caption used when scoring, where it is not that of training.
    """

    name: str
    parts: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    mask: MaskConfig | None = None
    test_captions: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One ablation; the last arm is what the paper recommends.

    Attributes:
        name: number of the paper's table, or a word for one that the paper does not have.
        title: what its rows differ in.
        claim: what the paper says about it.
        arms: its rows.
    """

    name: str
    title: str
    claim: str
    arms: tuple[Arm, ...]

    @property
    def label(self) -> str:
        """Its name in headings."""
        return f"Table {self.name}" if self.name.isdigit() else self.name.capitalize()

    @property
    def file_stem(self) -> str:
        """Name of its report without suffix."""
        return self.label.replace(" ", "").lower()


TABLES = {
    table.name: table
    for table in (
        Table(
            name="2",
            title="Architecture",
            claim="Psi-DiT converges faster than DiT-ControlNet and ends with better perceptual scores, at a little "
            "lower PSNR.",
            arms=(
                Arm(name="DiT-ControlNet", parts={"family": "controlnet", "local_heads": 0}),
                Arm(name="Psi-DiT, no local heads", parts={"local_heads": 0}),
                Arm(name="Psi-DiT"),
            ),
        ),
        Table(
            name="3",
            title="Initial weights of the LR stream",
            claim="Starting as the base itself (zero init) beats not doing so, and copying the noisy-latent branch "
            "(NLB) beats copying the text branch (TEB).",
            arms=(
                Arm(name="random, no zero init", parts={"lr_init": "random", "zero_init": "off"}),
                Arm(name="zero init", parts={"lr_init": "random"}),
                Arm(name="zero init, TEB", parts={"lr_init": "text"}),
                Arm(name="zero init, NLB"),
            ),
        ),
        Table(
            name="4",
            title="Masks of the LR tokens, then fine-tuning without masks",
            claim="Masked training beats none, high ratios beat low ones, and progressive masks (PMS) are best.",
            arms=(
                Arm(name="no mask", mask=MaskConfig(strategy="none")),
                *(Arm(name=f"fixed {r:.2f}", mask=MaskConfig(strategy="fixed", ratio=r)) for r in (0.5, 0.75, 0.85)),
                Arm(name="random 0.75-1.00", mask=MaskConfig(strategy="random")),
                Arm(name="PMS", mask=MaskConfig(strategy="pms")),
            ),
        ),
        Table(
            name="5",
            title="Prompts in training and in testing",
            claim="Subject-aware prompts (SA) help when the model was trained with them; detail-aware (DA) otherwise.",
            arms=(
                Arm(name="DA, tested with DA", data={"captions": "da"}),
                Arm(name="DA, tested with SA", data={"captions": "da"}, test_captions="sa"),
                Arm(name="SA, tested with DA", data={"captions": "sa"}, test_captions="da"),
                Arm(name="SA, tested with SA", data={"captions": "sa"}),
            ),
        ),
        Table(
            name="attention",
            title="What the LR tokens attend to",
            claim="Noisy and LR tokens attend to each other (joint); the paper tries nothing else. With 'self' and "
            "'cross' the LR tokens are the same at every step and need computing once.",
            arms=(
                Arm(name="cross", parts={"lr_attention": "cross", "local_heads": 0}),
                Arm(name="self", parts={"lr_attention": "self", "local_heads": 0}),
                Arm(name="joint, no local heads", parts={"local_heads": 0}),
                Arm(name="joint"),
            ),
        ),
    )
}

MODELS = Table(name="models", title="Given models side by side", claim="", arms=())
"""Trains nothing: only what is given with --restore is scored."""


def arms_for(table: Table, base: ControlConfig) -> list[Arm]:
    """Return the arms of a table, without those that a recipe makes equal to a later one."""
    configs = [(arm_config(base, arm, seed=0, mask_share=0.5), arm.test_captions) for arm in table.arms]
    return [arm for index, arm in enumerate(table.arms) if configs[index] not in configs[index + 1 :]]


def arm_config(base: ControlConfig, arm: Arm, *, seed: int, mask_share: float) -> ControlConfig:
    """Return the settings of one arm's run with one seed.

    Args:
        base: what all arms share.
        arm: what this one changes.
        seed: of the run.
        mask_share: share of the steps that are masked, in the arms that mask; the rest is fine-tuning without masks.
    """
    objective = base.objective
    if arm.mask:
        masked_steps = 0 if arm.mask.strategy == "none" else round(mask_share * base.loop.steps)
        objective = dataclasses.replace(objective, mask=arm.mask, masked_steps=masked_steps)
    return dataclasses.replace(
        base,
        parts=dataclasses.replace(base.parts, **arm.parts),
        data=dataclasses.replace(base.data, **arm.data),
        loop=dataclasses.replace(base.loop, seed=seed),
        objective=objective,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One arm with one seed."""

    arm: Arm
    seed: int
    config: ControlConfig

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.run_dir)

    @property
    def scores(self) -> Path:
        """Where its scores lie; the same weights may be tested with several kinds of captions."""
        return self.folder / f"scores-{self.arm.test_captions or self.config.data.captions}.json"


def plan(table: Table, base: ControlConfig, seeds: list[int], mask_share: float, run_dir: str) -> list[Run]:
    """List the runs of a table; equal settings share a folder."""
    runs = []
    for arm in arms_for(table, base):
        for seed in seeds:
            config = arm_config(base, arm, seed=seed, mask_share=mask_share)
            settings = json.dumps(dataclasses.asdict(dataclasses.replace(config, run_dir="")), sort_keys=True)
            folder = f"{run_dir}/{hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()}"
            runs.append(Run(arm=arm, seed=seed, config=dataclasses.replace(config, run_dir=folder)))
    return runs
