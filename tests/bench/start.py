"""Time that the pack adds to ComfyUI's start, and that `python -m eam_core --help` takes.

    python tests/bench/start.py [--rounds 3]

The first is what ComfyUI does with a pack: import it, ask for its nodes and read their schemas, in a process that has
ComfyUI's own modules already. Best of the rounds, as other work on the machine only adds.
"""

import subprocess
import sys
import time
from pathlib import Path

import report

REPO = Path(__file__).resolve().parents[2]
LOAD = """
import asyncio, importlib.util, sys, time
sys.path.append({tools!r})
from comfy_install import comfy_root
from comfy_launch import define_missing_operators
sys.path.insert(0, str(comfy_root()))
sys.argv = ["start", "--cpu"]
define_missing_operators()
import utils.install_util, comfy.options  # as main.py does, before other packages named utils
comfy.options.enable_args_parsing()
import comfy.samplers, comfy.sd, comfy.utils, folder_paths, latent_preview, nodes, server
from comfy_api.latest import io, ui
spec = importlib.util.spec_from_file_location("pack", {door!r}, submodule_search_locations=[{repo!r}])
start = time.perf_counter()
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
nodes = asyncio.run(extension.get_node_list())
for node in nodes:
    node.GET_SCHEMA()
print(len(nodes), time.perf_counter() - start)
"""


def seconds_to_load() -> float:
    """Load the pack in a process of its own and return the seconds it took."""
    code = LOAD.format(tools=str(REPO / "tools"), door=str(REPO / "__init__.py"), repo=str(REPO))
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    number, seconds = run.stdout.split()[-2:]
    assert int(number) > 0, "the pack gave no nodes"
    return float(seconds)


def seconds_of_help() -> float:
    """Return the wall time of the command line's help."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "eam_core", "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    load = min(seconds_to_load() for _ in range(options.rounds))
    shown = min(seconds_of_help() for _ in range(options.rounds))
    report.finish(
        [
            report.Row(row=11, name="seconds the pack adds to ComfyUI's start", value=load, bar=0.1),
            report.Row(row=11, name="seconds of python -m eam_core --help", value=shown, bar=1.5),
        ],
        options.rows,
    )


if __name__ == "__main__":
    main()
