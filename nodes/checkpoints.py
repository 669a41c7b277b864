"""Find and load what EAM_LoadModel is asked for; every file is checked before it is loaded."""

from pathlib import Path

import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher

from ..eam_core.checkpoint import check_pair, control_params, require
from ..eam_core.errors import CheckpointError
from ..eam_core.presets import EMBEDDED
from ..eam_core.weight_files import read_weights
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
    require(read_weights(path, device="meta"), "mmdit", name)
    embeddings = folder_paths.get_folder_paths("embeddings")
    return comfy.sd.load_checkpoint_guess_config(path, embedding_directory=embeddings)[:3]


def control_path(choice: str, checkpoint: str, model: ModelPatcher) -> Path:
    """Return the control file that was chosen, or for `auto` the one that fits the base.

    Raises:
        CheckpointError: none or several fit.
    """
    if choice == AUTO and checkpoint == EMBEDDED_CHOICE:
        assert EMBEDDED.control
        return EMBEDDED.control
    if choice == AUTO:
        fitting = [name for name in folder_paths.get_filename_list("model_patches") if fits(name, model)]
        if len(fitting) != 1:
            todo = "choose one of them" if fitting else "put control weights trained for this base there"
            found = ", ".join(fitting) or "none"
            raise CheckpointError(
                f"expected one file of control weights for {checkpoint} in models/model_patches, found {found}; {todo}"
            )
        choice = fitting[0]
    return Path(folder_paths.get_full_path_or_raise("model_patches", choice))


def fits(name: str, model: ModelPatcher) -> bool:
    """Tell whether a file of models/model_patches holds control weights for a base of this size."""
    path = folder_paths.get_full_path_or_raise("model_patches", name)
    try:
        state = require(read_weights(path, device="meta"), "control", name)
        check_pair(base_params(model), control_params(state), name)
    except CheckpointError:
        return False
    return True
