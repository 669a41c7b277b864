"""Choose a captioner by where it is: a URL names an endpoint, anything else a local folder."""

from pathlib import Path

from .messages import Generator


def open_model(source: str, *, name: str = "", device: str = "auto", allow_remote: bool = False) -> Generator:
    """Open a vision-language model.

    Args:
        source: folder of a transformers model, or http(s) address of an OpenAI-compatible endpoint.
        name: which of the endpoint's models to ask; its first when empty. Unused for folders.
        device: "cpu", "cuda", "mps" or "auto", for folders.
        allow_remote: let pictures go to an endpoint on another machine.

    Raises:
        CaptionError: there is no usable model.
    """
    if source.lower().startswith(("http://", "https://")):
        from .endpoint import Endpoint

        return Endpoint(source, model=name, allow_remote=allow_remote)
    from .local import LocalModel

    return LocalModel(Path(source), device=device)
