"""Fixtures that several core tests share: small random models, the authors' files, captioners, and diffusers."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eam_core import cli
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

import dit4sr_golden
import tsdsr_golden
from command_line import FAST
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


class Known(dict):
    """What there is by kind of model; a test of a kind that this transformers lacks is left out."""

    def __missing__(self, kind: str) -> None:
        pytest.skip(f"this transformers has no {kind}")


@pytest.fixture(scope="session")
def local_folders(captioning_models, tmp_path_factory) -> dict[str, Path]:
    """Folders of random models by kind; not to be changed."""
    known = [kind for kind in KINDS if captioning_models.is_known(kind)]
    return Known({kind: captioning_models.build_model(kind, tmp_path_factory.mktemp(kind) / kind) for kind in known})


@pytest.fixture(scope="module")
def local_models(local_folders) -> dict[str, LocalModel]:
    return Known({kind: LocalModel(folder, device="cpu", batch_size=2) for kind, folder in local_folders.items()})


@pytest.fixture
def local_copy(local_folders, tmp_path) -> Path:
    """A folder of one's own to break."""
    return shutil.copytree(local_folders["qwen2_5_vl"], tmp_path / "model")


# What the authors' code makes of small random weights


@pytest.fixture(scope="module")
def one_thread():
    """For so small models, threads on busy cores only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dit4sr() -> dit4sr_golden.Golden:
    """The smaller model; its first release's file, whose weights are the revised one's."""
    return dit4sr_golden.Golden.load("dit4sr_v1_host.safetensors")


@pytest.fixture(scope="module", params=tsdsr_golden.FILES or [None])
def tsdsr(request) -> tsdsr_golden.Golden:
    if request.param is None:
        pytest.skip(f"no golden files tsdsr_*.safetensors in {tsdsr_golden.FOLDER}; set EAM_GOLDEN")
    return tsdsr_golden.Golden.load(request.param)


@pytest.fixture(scope="module")
def tsdsr_paths(tsdsr, diffusers, tmp_path_factory) -> dict[str, Path]:
    """Base, control and autoencoder of the golden file as the files a user has."""
    folder = tmp_path_factory.mktemp("tsdsr")
    return {
        "base": tsdsr.save_base(folder / "base.safetensors", "model.diffusion_model."),
        "control": tsdsr.save_control(folder / "tsdsr"),
        "autoencoder": tsdsr.save_autoencoder(diffusers, folder / "vae"),
    }


@pytest.fixture(scope="module")
def tsdsr_restorer(tsdsr_paths) -> Restorer:
    return Restorer.from_files(**tsdsr_paths)


# The command line


@pytest.fixture(scope="module")
def tiny_files(tiny, tmp_path_factory) -> SimpleNamespace:
    return tiny.save(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def tiny_options(tiny_files) -> list[str]:
    """Options that name the tiny model."""
    files = (("base", tiny_files.base), ("control", tiny_files.control), ("autoencoder", tiny_files.autoencoder))
    return [text for name, path in files for text in (f"--{name}", str(path))]


@pytest.fixture
def upscale(tiny_options, capsys):
    """Run the command line in this process; return exit status, stdout and stderr."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*args, options=tiny_options):
        try:
            status = cli.main(["upscale", *map(str, args), *FAST, *options])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)
