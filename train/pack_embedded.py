"""Make the embedded default from three trained files: half precision, checked to fit together, under their final names.

python -m train.pack_embedded --autoencoder FILE --base FILE --control FILE --out DIR
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from eam_core.checkpoint import build_autoencoder, build_control, build_mmdit, check_pair
from eam_core.errors import EAMError
from eam_core.presets import EMBEDDED
from eam_core.weight_files import read_metadata, read_weights, save_weights

BUILDERS = {"autoencoder": build_autoencoder, "base": build_mmdit, "control": build_control}


def without_folders(value: Any) -> Any:
    """Leave of every absolute path in settings its last part: what ships says nothing of where it was made."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in BUILDERS:
        parser.add_argument(f"--{name}", required=True, help=f"trained {name} weights (.safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    sources = vars(parser.parse_args())
    out = sources.pop("out")
    try:
        modules = {name: build(read_weights(sources[name]), sources[name]) for name, build in BUILDERS.items()}
        check_pair(modules["base"].params, modules["control"].params, sources["control"])  # type: ignore[arg-type]
        out.mkdir(parents=True, exist_ok=True)
        for name, module in modules.items():
            metadata = {key: without_folders(json.loads(value)) for key, value in read_metadata(sources[name]).items()}
            target = out / getattr(EMBEDDED, name).name
            save_weights(target, module.state_dict(), dtype=torch.float16, **metadata)
            print(f"{target.name}: {target.stat().st_size / 2**20:.1f} MiB")
    except EAMError as error:
        sys.exit(f"pack_embedded: {error}")


if __name__ == "__main__":
    main()
