"""What ComfyUI logs as it loads the pack, every warning shown."""

import re

from comfy_host import PACK_NAME, ComfyServer


def test_the_pack_warns_of_nothing_as_it_is_loaded(server: ComfyServer) -> None:
    log = server.start_up_log()
    assert re.search(rf"seconds.*{PACK_NAME}$", log, re.MULTILINE), "the pack was not loaded"
    # Python writes FILE:LINE: KIND: text; the default filters would hide those that arise outside of scripts.
    warnings = re.findall(r"^(\S+):\d+: \w*Warning: .*$", log, re.MULTILINE)
    assert warnings, "no warning of anybody's: they are not shown"
    assert [path for path in warnings if PACK_NAME in path or "eam_core" in path] == []
