"""What EAM_LoadModel offers of models/model_patches: one entry per set of weights, however many files it has."""

from pathlib import Path, PurePath

import folder_paths

from ..eam_core.weight_sets import set_name

FOLDER = "model_patches"


def control_choices() -> list[str]:
    """Return the names of all sets of weights; shards stand under the name of their index."""
    return sorted({_shown(name) for name in folder_paths.get_filename_list(FOLDER)})


def file_of(choice: str) -> Path:
    """Return the file, or the index of shards, that a choice names; FileNotFoundError if it is gone."""
    for name in folder_paths.get_filename_list(FOLDER):
        if _shown(name) == choice:
            return Path(folder_paths.get_full_path_or_raise(FOLDER, name)).with_name(PurePath(choice).name)
    return Path(folder_paths.get_full_path_or_raise(FOLDER, choice))


def file_times(choice: str) -> list[tuple[str, int]]:
    """Return names and times of change of what a choice reads, so that a changed or added file is noticed."""
    from ..eam_core.companions import EMBEDDINGS, ENCODER

    try:
        file = file_of(choice)
    except FileNotFoundError:
        return []
    read = (file.with_name(name) for name in dict.fromkeys((file.name, ENCODER, EMBEDDINGS)))
    return [(path.name, path.stat().st_mtime_ns) for path in read if path.is_file()]


def _shown(name: str) -> str:
    # Not PurePath: on Windows core's names hold backslashes, which have to stay.
    last = PurePath(name).name
    return name.removesuffix(last) + set_name(last)
