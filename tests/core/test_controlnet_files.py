"""DiT-ControlNet's files: found again, refused for another base, and restoring by library and command line."""

import dataclasses

import pytest
import torch
from controlnet_models import BASES, NUM_BLOCKS, PLAIN, SMALL, random_
from PIL import Image

from eam_core.checkpoint import build_control, check_pair, control_params, describe
from eam_core.cli import main
from eam_core.errors import CheckpointError
from eam_core.model.control_init import init_controlnet
from eam_core.model.controlnet import ControlNet, ControlNetParams
from eam_core.model.layers import Factory
from eam_core.model.mmdit import MMDiTParams
from eam_core.model.psi_dit import PsiDiT
from eam_core.restore_config import RestoreConfig
from eam_core.weight_files import read_weights, save_weights

# Files


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("num_blocks", NUM_BLOCKS)
def test_controlnet_file_is_found_again(tmp_path, num_blocks, base):
    expected = random_(ControlNet(ControlNetParams.for_base(base, num_blocks)))
    save_weights(tmp_path / "x.safetensors", expected.state_dict())
    got = build_control(read_weights(tmp_path / "x.safetensors"), "x")
    assert isinstance(got, ControlNet)
    assert got.params == expected.params
    assert control_params(read_weights(tmp_path / "x.safetensors", device="meta")) == expected.params
    assert got.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in got.state_dict().items())
    assert describe(got.state_dict()) == "EAM control weights"
    check_pair(base, got.params, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 5}, "depth 4 instead of 5"),
        ({"hidden_size": 64}, "hidden_size 128 instead of 64"),
        ({"qk_norm": True}, "qk_norm False instead of True"),
    ],
)
def test_controlnet_for_another_base_is_refused(change, message):
    with pytest.raises(CheckpointError, match=f"c.safetensors was trained for another: {message}; choose the base"):
        check_pair(dataclasses.replace(PLAIN, **change), ControlNetParams.for_base(PLAIN, 2), "c.safetensors")


def test_every_missing_or_misshapen_tensor_is_refused():
    state = ControlNet(SMALL).state_dict()
    for key in state:
        with pytest.raises(CheckpointError, match=r"^expected .* x "):
            build_control({k: v for k, v in state.items() if k != key}, "x")
        for wrong in (torch.zeros(()), torch.zeros(*state[key].shape, 2)):
            with pytest.raises(CheckpointError, match=r"^expected .* x "):
                build_control({**state, key: wrong}, "x")
    with pytest.raises(CheckpointError, match="num_blocks from 1 to the base's 1 blocks, got 2"):
        build_control({**state, "block_scales": torch.ones(1)}, "x")


@pytest.mark.parametrize(
    ("num_blocks", "num_keys", "millions"), [(6, 129, 493.5), (12, 261, 1017.5), (24, 525, 2065.6)]
)
def test_sizes_for_sd3_medium(num_blocks, num_keys, millions):
    medium = MMDiTParams(depth=24, hidden_size=1536)
    control = ControlNet(ControlNetParams.for_base(medium, num_blocks), Factory(device="meta"))
    state = control.state_dict()
    assert control_params(state) == control.params
    assert len(state) == num_keys
    assert round(sum(parameter.numel() for parameter in control.parameters()) / 1e6, 1) == millions
    check_pair(medium, control_params(state), "x")


# The whole way


def controlnet_for(tiny, *, start: bool) -> PsiDiT:
    model = tiny.model()
    control = ControlNet(ControlNetParams.for_base(tiny.params, 1))
    init_controlnet(control, model.base.state_dict())
    if not start:
        random_(control.lr_embedder)
        random_(control.zero_linears)
    return PsiDiT(model.base, control)


def test_library_restores_with_a_controlnet(tiny):
    image = torch.rand(1, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    config = RestoreConfig(scale=4, steps=2, tile=64, overlap=16, color_fix="none", seed=4)
    results = [
        tiny.restorer(model=controlnet_for(tiny, start=start)).restore(image, dataclasses.replace(config, **change))
        for start, change in ((True, {}), (True, {"control_scale": 0.0}), (False, {}), (False, {"control_scale": 0.0}))
    ]
    assert results[0].shape == (1, 3, 80, 112) and results[0].isfinite().all()
    assert torch.equal(results[0], results[1]), "a fresh ControlNet is the base"
    assert torch.equal(results[3], results[1]), "control_scale 0 is the base"
    assert not torch.allclose(results[2], results[1], atol=1e-2)


def test_command_line_takes_a_controlnet_file(tiny, tmp_path):
    paths = tiny.save(tmp_path)
    source = tmp_path / "photo.png"
    Image.new("RGB", (24, 16), (90, 120, 60)).save(source)
    given = ["--base", str(paths.base), "--control", str(paths.control), "--autoencoder", str(paths.autoencoder)]
    fast = ["--scale", "2", "--steps", "1", "--tile", "128", "--device", "cpu"]
    pictures = []
    for start in (True, False):
        save_weights(paths.control, controlnet_for(tiny, start=start).control.state_dict())
        target = tmp_path / f"{start}.png"
        assert main(["upscale", str(source), str(target), *fast, *given]) == 0
        pictures.append(Image.open(target))
    assert pictures[0].size == (48, 32)
    assert pictures[0].tobytes() != pictures[1].tobytes()
