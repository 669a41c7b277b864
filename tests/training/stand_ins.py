"""Random-weight stand-ins of every control family as files, small enough to run whole in a fraction of a second."""

import sys
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eam_core.companions import save_embeddings
from eam_core.denoiser import Text
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.dit4sr import DiT4SR, DiT4SRParams
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.tsdsr import student_modules
from eam_core.weight_files import save_weights

WIDTH, POOLED, TOKENS = 64, 32, 5
SD3 = MMDiTParams(depth=2, hidden_size=128, context_size=WIDTH, pooled_size=POOLED, pos_embed_max_size=64)
SD35 = MMDiTParams(
    depth=2,
    hidden_size=128,
    context_size=WIDTH,
    pooled_size=POOLED,
    pos_embed_max_size=64,
    qk_norm=True,
    dual_attention_blocks=(0,),
)
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [32, 64, 96, 96],
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


class StandIns(NamedTuple):
    """Files of four models: CONTROL,BASE,AUTOENCODER as --restore takes them, and a folder for text encoders."""

    eam: str
    controlnet: str
    dit4sr: str
    tsdsr: str
    encoders: Path

    @property
    def options(self) -> list[str]:
        """All four for --restore."""
        return [f"{name}={getattr(self, name)}" for name in ("eam", "controlnet", "dit4sr", "tsdsr")]


class HashedText:
    """Stands in for SD3's text encoders: random tokens that follow from the words; keeps what it was asked."""

    asked: ClassVar[list[list[str]]] = []

    def __init__(self, folder: Path, **settings: Any):
        self.asked.clear()

    def encode(self, prompts: list[str]) -> list[Text]:
        self.asked.append(list(prompts))
        return [self._text(prompt) for prompt in prompts]

    def _text(self, prompt: str) -> Text:
        generator = torch.Generator().manual_seed(int.from_bytes(prompt.encode()) % 2**63)
        draw = torch.randn(TOKENS + 1, WIDTH, generator=generator)
        return Text(draw[None, 1:], draw[:1, :POOLED])


def make_stand_ins(folder: Path, autoencoder: Path) -> StandIns:
    """Write them; `autoencoder` is the EAM one, which all but TSD-SR take."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sd3, sd35 = (_save(folder / name, MMDiT(params)) for name, params in (("sd3", SD3), ("sd35", SD35)))
        eam = _save(folder / "eam", ControlStream(ControlParams(depth=2, hidden_size=128)))
        net = _save(folder / "controlnet", ControlNet(ControlNetParams.for_base(SD3, 1)))
        dit4sr = DiT4SR(DiT4SRParams(depth=2, hidden_size=128, dual_attention_blocks=(0,)))
        control = _save(folder / "dit4sr", dit4sr)
        tsdsr = _save_tsdsr(folder / "tsdsr")
        vae = _save_vae(folder)
    (folder / "encoders").mkdir()
    return StandIns(
        eam=f"{eam},{sd3},{autoencoder}",
        controlnet=f"{net},{sd3},{autoencoder}",
        dit4sr=f"{control},{sd35},{autoencoder}",
        tsdsr=f"{tsdsr},{sd3},{vae}",
        encoders=folder / "encoders",
    )


def _save(path: Path, module: nn.Module) -> Path:
    path = path.with_suffix(".safetensors")
    state = {key: torch.randn(value.shape) * 0.1 for key, value in module.state_dict().items()}
    save_weights(path, state)
    return path


def _save_tsdsr(folder: Path) -> Path:
    folder.mkdir(parents=True)
    width = SD3.hidden_size
    rows = {"norm1.linear": 6, "norm1_context.linear": 6, "net.0.proj": 4, "norm_out.linear": 2}
    state: dict[str, Tensor] = {}
    for module in student_modules(SD3.depth):
        factor = next((number for end, number in rows.items() if module.endswith(end)), 1)
        if module == f"transformer_blocks.{SD3.depth - 1}.norm1_context.linear":
            factor = 2
        shape = (64, width) if module == "proj_out" else (factor * width, width)
        shape = (width, 16, 2, 2) if module == "pos_embed.proj" else shape
        state |= _low_rank(f"transformer.{module}", shape)
    save_file(state, folder / "transformer.safetensors")
    save_embeddings(folder / "embeddings.safetensors", HashedText(folder).encode(["the fixed prompt"])[0])
    return folder


def _save_vae(folder: Path) -> Path:
    """Write an autoencoder as diffusers does, and TSD-SR's changes of its encoder."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
    from comfy_launch import define_missing_operators

    define_missing_operators()
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**VAE)
    vae.save_pretrained(folder / "vae")
    convs = [(name, part) for name, part in vae.encoder.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    state: dict[str, Tensor] = {}
    for name, part in convs:
        state |= _low_rank(f"transformer.encoder.{name}", tuple(part.weight.shape))
    save_file(state, folder / "tsdsr" / "vae.safetensors")
    return folder / "vae"


def _low_rank(module: str, shape: tuple[int, ...], rank: int = 3) -> dict[str, Tensor]:
    down, up = (rank, *shape[1:]), (shape[0], rank, *(1 for _ in shape[2:]))
    parts = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    return {key: torch.randn(size) * 0.05 for key, size in parts.items()}
