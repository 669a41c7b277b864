"""Time of the embedded default against Real-ESRGAN x4plus (ncnn), 128 to 512 px, in one run on the CPU.

    python tests/bench/default_speed.py [--threads 2] [--rounds 5]

Wants the packages of tests/bench/peers.txt. Both are loaded before the clock starts and take turns.
"""

import peers
import report
import torch

from eam_core.images import load_image
from eam_core.presets import ASSETS


@torch.no_grad()
def main() -> None:
    """Run from the command line."""
    parser = report.parser(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image = load_image(ASSETS / "sample_lr.png").rgb
    cases = {}
    for name in ("ours", "realesrgan"):
        enlarge = peers.PEERS[name].load(options.threads)
        cases[name] = lambda enlarge=enlarge: enlarge(image)
    seconds = report.take_turns(cases, options.rounds)
    name = f"embedded default against Real-ESRGAN x4plus, 128 to 512 px, {options.threads} threads, CPU"
    report.finish([report.Row(row=12, name=name, value=seconds["ours"] / seconds["realesrgan"], bar=2.0)], options.rows)


if __name__ == "__main__":
    main()
