"""torch.compile for a model that restores many tiles of one shape: some minutes once, then less time for each."""

from collections.abc import Callable

from torch import nn

from .errors import EAMError


class CompileError(EAMError):
    """This machine cannot compile the model."""


def compile_in_place(model: nn.Module, warm_up: Callable[[], object], *, backend: str = "inductor") -> None:
    """Compile a model for the shapes of a first run, so that what is missing shows at once.

    Other shapes, such as that of a picture smaller than a tile, are compiled when they come.

    Args:
        model: changed in place; as it was where it cannot be compiled.
        warm_up: runs the model once, as it will be run.
        backend: of torch.compile.

    Raises:
        CompileError: there is no C++ compiler, or no Triton for a GPU, or the backend failed.
    """
    nn.Module.compile(model, backend=backend)
    try:
        warm_up()
    except EAMError:  # the model's own
        model._compiled_call_impl = None
        raise
    except Exception as error:  # each backend and compiler has its own
        model._compiled_call_impl = None
        cause = getattr(error, "inner_exception", error)
        said = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        raise CompileError(
            f"expected a compiler that torch.compile can use, got: {said}; install a C++ compiler (on a GPU: Triton), "
            "or leave out --compile"
        ) from error
