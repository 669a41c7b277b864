"""ComfyUI's door to the nodes. Nothing is imported until ComfyUI asks for them."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension that lists the nodes."""
    from .nodes import EAMExtension

    return EAMExtension()
