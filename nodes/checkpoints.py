"""Find and load what EAM_LoadModel is asked for; every file is checked before it is loaded."""

from pathlib import Path

import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher

from ..eam_core.checkpoint import check_pair, infer_control_params, infer_mmdit_params, require
from ..eam_core.control_files import read_control
from ..eam_core.errors import CheckpointError
from ..eam_core.model.layers import HEAD_DIM, Factory
from ..eam_core.model.mmdit import MMDiT
from ..eam_core.presets import EMBEDDED
from ..eam_core.weight_files import read_weights
from .control_choices import control_choices, file_of
from .embedded import load_embedded
from .patcher import base_params
from .types import AUTO, EMBEDDED_CHOICE


def load_base(name: str) -> tuple[ModelPatcher, comfy.sd.CLIP | None, comfy.sd.VAE]:
    """Load the embedded default, or a whole SD3-family checkpoint as core does.

    Raises:
        CheckpointError: the file is damaged, pickled or of another family.
    """
    if name == EMBEDDED_CHOICE:
        return load_embedded()
    path = folder_paths.get_full_path_or_raise("checkpoints", name)
    _refuse_hostile(Path(path), name)
    embeddings = folder_paths.get_folder_paths("embeddings")
    return comfy.sd.load_checkpoint_guess_config(path, embedding_directory=embeddings)[:3]


def _refuse_hostile(path: Path, name: str) -> None:
    """Refuse a checkpoint that core would unpickle, or build larger than its file is."""
    state = read_weights(path, device="meta")
    # Core chooses its reader by the ending: a file can be safetensors and a pickle at once.
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise CheckpointError(
            f"expected a checkpoint whose name ends in .safetensors, got {name}, which ComfyUI would open as a pickle; "
            "get the .safetensors version of these weights"
        )
    params = infer_mmdit_params(require(state, "mmdit", name), name)
    wanted = sum(weight.numel() for weight in MMDiT(params, Factory(device="meta")).parameters())
    held = sum(tensor.numel() for tensor in state.values())
    # Core takes the depth from the width. Weights of low precision may be packed, two numbers in one.
    if params.hidden_size != HEAD_DIM * params.depth or wanted > 2 * held:
        raise CheckpointError(
            f"expected a whole transformer in {name}, with {HEAD_DIM} channels for each of its blocks, got "
            f"{params.hidden_size} channels, {params.depth} blocks and {held} numbers; download it again"
        )


def control_path(choice: str, checkpoint: str, model: ModelPatcher) -> Path:
    """Return the control file that was chosen, or for `auto` the one that fits the base.

    Raises:
        CheckpointError: none or several fit.
    """
    if choice == AUTO and checkpoint == EMBEDDED_CHOICE:
        assert EMBEDDED.control
        return EMBEDDED.control
    if choice == AUTO:
        fitting = [name for name in control_choices() if fits(name, model)]
        if len(fitting) != 1:
            todo = "choose one of them" if fitting else "put control weights trained for this base there"
            found = ", ".join(fitting) or "none"
            raise CheckpointError(
                f"expected one file of control weights for {checkpoint} in models/model_patches, found {found}; {todo}"
            )
        choice = fitting[0]
    return file_of(choice)


def fits(name: str, model: ModelPatcher) -> bool:
    """Tell whether an entry of models/model_patches holds control weights for a base of this size."""
    try:
        file = read_control(file_of(name), device="meta")
        check_pair(base_params(model), infer_control_params(file.tensors, name), name)
    except CheckpointError:
        return False
    return True
