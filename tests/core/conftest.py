"""Fixtures that several core tests share: small random models, the authors' files, captioners, and diffusers."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eam_core.captioning.local import LocalModel
from eam_core.loading import NullText
from eam_core.model.autoencoder import AutoencoderParams, PatchAutoencoder
from eam_core.model.control import ControlParams, ControlStream
from eam_core.model.mmdit import MMDiT, MMDiTParams
from eam_core.model.psi_dit import PsiDiT
from eam_core.pipeline import Restorer
from eam_core.weight_files import save_weights

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

from local_model_chats import KINDS


@pytest.fixture(scope="session")
def diffusers():
    """Import diffusers; torchvision's registry build and CPU-only torch disagree, which would stop it."""
    library = None
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("diffusers")
    del library  # the definitions live as long as it does


def _random(module: torch.nn.Module, std: float) -> torch.nn.Module:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) * std)
    return module.eval()


class TinyModels:
    """Makes the parts of a random model."""

    params = MMDiTParams(depth=2, hidden_size=64, context_size=32, pooled_size=24, pos_embed_max_size=32)

    def model(self, lr_attention: str = "self", params: MMDiTParams = params) -> PsiDiT:
        torch.manual_seed(0)
        control = ControlParams(depth=params.depth, hidden_size=params.hidden_size, lr_attention=lr_attention)
        return PsiDiT(_random(MMDiT(params), 0.1), _random(ControlStream(control), 0.2))

    def autoencoder(self, channels: int = 16) -> PatchAutoencoder:
        torch.manual_seed(1)
        sizes = {"coarse_width": 16, "coarse_blocks": 1, "fine_width": 8, "fine_blocks": 1, "clean_width": 8}
        module = PatchAutoencoder(AutoencoderParams(latent_channels=channels, **sizes))
        smooth = torch.rand(512, 3, 4, 4) * 2 - 1
        module.init_from_patches(torch.nn.functional.interpolate(smooth, size=8, mode="bilinear"))
        return module.eval()

    def restorer(self, lr_attention: str = "self", **parts) -> Restorer:
        text = NullText(num_tokens=4, context_size=self.params.context_size, pooled_size=self.params.pooled_size)
        parts = {"model": self.model(lr_attention), "autoencoder": self.autoencoder(), "text": text} | parts
        return Restorer(**parts)

    def save(self, folder: Path) -> SimpleNamespace:
        """Write base, control and autoencoder as training does; return their paths."""
        paths = SimpleNamespace(**{n: folder / f"{n}.safetensors" for n in ("base", "control", "autoencoder")})
        model = self.model()
        save_weights(paths.base, model.base.state_dict(), training={"kind": "mmdit", "null_tokens": 4})
        save_weights(paths.control, model.control.state_dict(), training={"kind": "control"})
        save_weights(paths.autoencoder, self.autoencoder().state_dict(), dtype=torch.float16)
        return paths


@pytest.fixture(scope="session")
def tiny() -> TinyModels:
    return TinyModels()


# Captioners


@pytest.fixture
def no_caption_settings(monkeypatch):
    """Take what the user's environment says of endpoints away."""
    for name in ("EAM_API_KEY", "EAM_ALLOW_REMOTE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def local_folders(captioning_models, tmp_path_factory) -> dict[str, Path]:
    """Folders of random models by kind; not to be changed."""
    return {kind: captioning_models.build_model(kind, tmp_path_factory.mktemp(kind) / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def local_models(local_folders) -> dict[str, LocalModel]:
    return {kind: LocalModel(folder, device="cpu", batch_size=2) for kind, folder in local_folders.items()}


@pytest.fixture
def local_copy(local_folders, tmp_path) -> Path:
    """A folder of one's own to break."""
    return shutil.copytree(local_folders["qwen2_5_vl"], tmp_path / "model")
