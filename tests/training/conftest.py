"""Small photos and networks that the training tests start from, and how they start a script."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from eam_core import presets
from eam_core.model.autoencoder import AutoencoderParams, PatchAutoencoder
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.presets import EMBEDDED, NUM_NULL_TOKENS
from eam_core.weight_files import save_weights
from train.train_base import init_base


class Parts(NamedTuple):
    """Files of a small model, random but well-formed."""

    photos: Path
    autoencoder: Path
    base: Path

    def options(self, run_dir: Path | str, *more: str) -> list[str]:
        """Return the debug recipe of train_psi_dit on these files."""
        files = ["--data", str(self.photos), "--autoencoder", str(self.autoencoder), "--base", str(self.base)]
        return ["debug", *files, "--run-dir", str(run_dir), *more]


class Script(NamedTuple):
    """Starts scripts of the package `train` in processes of their own."""

    environment: dict[str, str]

    def start(self, name: str, arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start `python -m train.NAME`; what it prints is collected together."""
        command = [sys.executable, "-P", "-m", f"train.{name}", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment, **pipes, **options)

    def run(self, name: str, arguments: Sequence[str], **options: Any) -> tuple[int, str]:
        """Run it to its end; returns exit status and what it printed."""
        process = self.start(name, arguments, **options)
        text = process.communicate(timeout=300)[0]
        return process.returncode, text


@pytest.fixture(scope="session")
def script() -> Script:
    return Script(
        {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "CUDA_VISIBLE_DEVICES": "",
            "TQDM_DISABLE": "1",
        }
    )


def make_photos(folder: Path, count: int = 9) -> Path:
    """Write small smooth pictures of colour noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        coarse = torch.randint(0, 256, (12, 16, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(coarse.numpy()).resize((224, 160), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    root = tmp_path_factory.mktemp("parts")
    made = Parts(make_photos(root / "photos"), root / "autoencoder.safetensors", root / "base.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"coarse_width": 8, "coarse_blocks": 1, "fine_width": 8, "fine_blocks": 1}
        autoencoder = PatchAutoencoder(AutoencoderParams(**sizes, clean_width=8, clean_blocks=1))
        autoencoder.init_from_patches(torch.rand(2000, 3, 8, 8) * 2 - 1)
        base = MMDiT(MMDiTParams(depth=2, hidden_size=64, context_size=64, pooled_size=64, pos_embed_max_size=32))
        init_base(base)
        for block in base.joint_blocks:  # open the blocks, so that what they read matters
            torch.nn.init.normal_(block.x_block.adaLN_modulation[1].weight, std=0.05)  # type: ignore[union-attr]
    save_weights(made.autoencoder, autoencoder.state_dict())
    save_weights(made.base, base.state_dict(), training={NUM_NULL_TOKENS: EMBEDDED.num_null_tokens})
    return made


@pytest.fixture(scope="session")
def stand_ins() -> ModuleType:
    """Return stand_ins.py; test files cannot import their neighbours by name."""
    spec = importlib.util.spec_from_file_location("stand_ins", Path(__file__).parent / "stand_ins.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def models(stand_ins: ModuleType, parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Files of four random models, one of each control family."""
    pytest.importorskip("diffusers")
    return stand_ins.make_stand_ins(tmp_path_factory.mktemp("models"), parts.autoencoder)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let families that take 28 or 40 steps take three, and leave all else of theirs."""
    for name in ("sd3", "dit4sr"):
        monkeypatch.setitem(presets.SPECS, name, replace(presets.SPECS[name], steps=3))
    monkeypatch.setattr("eam_core.loading.SD3", presets.SPECS["sd3"])
