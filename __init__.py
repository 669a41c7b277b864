"""ComfyUI's door to the nodes. Nothing is imported until ComfyUI asks for them."""


async def comfy_entrypoint():
    """Return the extension that lists the nodes."""
    from .nodes import EAMExtension

    return EAMExtension()
