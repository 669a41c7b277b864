"""What stands around SD3's blocks in the graph: hooks that start a run, and one patch per block for all of them.

A hook is an APPLY_MODEL wrapper: at the start of each forward pass it takes its own entry out of the conditioning and
leaves a run in a copy of transformer_options. A replace patch on each block runs the block inside these runs. No state
stays on these objects, as passes of several conditionings interleave.
"""

import logging
import uuid
from collections.abc import Callable
from typing import Any

import comfy.ldm.modules.diffusionmodules.mmdit as host_mmdit
import comfy.model_base
import comfy.ops
from comfy.conds import CONDRegular
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..eam_core.guidance import control_scale_at
from ..eam_core.model.family import ControlFamily
from ..eam_core.model.mmdit import Guest, GuestChain, Host
from .full_precision import computes_in
from .lr_memory import cast_with_origin, remembered, spare_memory

LR_COND = "eam_lr"
IMAGE_COND = "eam_image"

ArgsBlock = Callable[[dict[str, Any]], dict[str, Tensor]]
"""A block as core's replace patches call it: {img, txt, vec, transformer_options} to {img, txt}."""


class Shared:
    """An object that clones of a MODEL share: `clone` deep-copies model_options."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return self


class Hook(Shared):
    """Start a run of one module for each forward pass (APPLY_MODEL).

    A block has at most one hook of each kind; those of lower `rank` stand nearer to it, whatever the order of nodes.
    Where one `replaces_block`, its run takes the block's own place, inside of everything else.
    """

    cond: str
    rank: int
    replaces_block = False

    def __init__(self, patcher: ModelPatcher, scale: float, start: float, end: float):
        """Keep the module's patcher, its strength, and the fractions of the sampling between which it acts."""
        self.patcher, self.scale, self.start, self.end = patcher, scale, start, end
        self.key = f"{self.cond}_{uuid.uuid4().hex}"
        """Of its run in transformer_options; torch.compile follows no keys but text."""

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        sigma: Tensor,
        c_concat: Tensor | None = None,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[Any, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """Run the rest of the pass; conditioning without this hook's entry runs without it."""
        given = conds.pop(self.cond, None)
        options = transformer_options or {}
        base = executor.class_obj
        active = (base.model_sampling.percent_to_sigma(self.start), base.model_sampling.percent_to_sigma(self.end))
        scale = control_scale_at(float(sigma[0]), self.scale, *active)
        if given is not None and scale != 0:
            given = cast_with_origin(given, x, computes_in(base))
            options = {**options, self.key: self.run(base, x, given, scale, options)}
        return executor(x, sigma, c_concat, context, control, options, **conds)

    def run(self, base: comfy.model_base.SD3, x: Tensor, given: Tensor, scale: float, options: dict[Any, Any]) -> Guest:
        """Start the run for noisy latents x [B, C, H, W] with the pass's transformer_options."""
        raise NotImplementedError


class ControlHook(Hook):
    """Runs a control on the LR latents."""

    cond, rank = LR_COND, 1

    def __init__(self, patcher: ModelPatcher, control: ControlFamily, scale: float, start: float, end: float):
        """Keep the control, which shares its weights with the patcher's model, and what `Hook` keeps."""
        super().__init__(patcher, scale, start, end)
        self.control, self.replaces_block = control, control.replaces_block

    def run(self, base: comfy.model_base.SD3, x: Tensor, given: Tensor, scale: float, options: dict[Any, Any]) -> Guest:
        """Start from LR latents of the size of x."""
        check_lr_size(given, x)
        size = tuple(x.shape[-2:])
        network = base.diffusion_model
        limit = None if network.pos_embed is None else network.pos_embed_max_size * network.patch_size
        if limit is not None and max(size) > limit:
            raise ValueError(
                f"expected latents of at most {limit} x {limit} in one piece, got {size[1]} x {size[0]}; "
                "use EAM_TiledSampler with smaller tiles"
            )
        host = offer(network, size, given, options)
        memory = remembered(self.control, given, host, self.key, lambda: spare_memory(base, x))
        return self.control.start(given if memory is None else memory, host, control_scale=scale)


class ImagePromptHook(Hook):
    """Runs an image prompt on the vision tower's tokens."""

    cond, rank = IMAGE_COND, 0

    def run(self, base: comfy.model_base.SD3, x: Tensor, given: Tensor, scale: float, options: dict[Any, Any]) -> Guest:
        """Start from tokens [B, T, image_size]."""
        prompt = self.patcher.model
        return prompt.run(prompt.embed(given), scale)


def offer(network: host_mmdit.MMDiT, size: tuple[int, int], like: Tensor, options: dict[Any, Any]) -> Host:
    """Offer ComfyUI's network to a guest for latents of `size`; everything is computed by the network's own layers.

    Args:
        network: of a MODEL, whatever loads, casts or patches its weights.
        size: height and width of the latents.
        like: has the device and dtype that the network runs in.
        options: transformer_options of this pass.
    """
    patch = network.patch_size
    positions = network.cropped_pos_embed(size, device=like.device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Looked up at each call: other packs replace it there.
        attention = host_mmdit.optimized_attention
        return attention(q, k, v, heads=q.shape[1], skip_reshape=True, transformer_options=options)

    return Host(
        grid=(-(-size[0] // patch), -(-size[1] // patch)),
        positions=comfy.ops.cast_to_input(positions, like),
        x_embedder=network.x_embedder,
        blocks=network.joint_blocks,
        attend=attend,
    )


class AddCond(Shared):
    """Put one entry into every conditioning before it is sampled with (OUTER_SAMPLE); core batches it."""

    def __init__(self, name: str, cond: CONDRegular):
        """Keep the entry and the name that a hook takes it out by."""
        self.name, self.cond = name, cond

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the rest of the sampling."""
        guider = executor.class_obj
        for entries in guider.conds.values():
            for entry in entries:
                entry["model_conds"] = {**entry.get("model_conds", {}), self.name: self.cond}
        return executor(*args, **kwargs)


class BlockPatch(Shared):
    """Run a block, and whatever was patched around it before, inside the runs that hooks have started."""

    def __init__(self, hooks: tuple[Hook, ...], index: int, previous: Any):
        """Keep the hooks, the first nearest to block `index`, and an earlier patch of somebody else's."""
        self.hooks, self.index, self.previous = hooks, index, previous
        self.told = False

    @classmethod
    def adding(cls, hook: Hook, index: int, previous: Any) -> "BlockPatch":
        """Add a hook to what is patched around a block; one of its own kind is replaced."""
        if not isinstance(previous, cls):
            return cls((hook,), index, previous)
        others = (other for other in previous.hooks if type(other) is not type(hook))
        return cls(tuple(sorted((*others, hook), key=lambda each: each.rank)), index, previous.previous)

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Tensor]:
        """Take and return img and txt as core's replace patches do."""
        options = args["transformer_options"]
        active = [hook for hook in self.hooks if hook.key in options]
        inside = [options[hook.key] for hook in active if hook.replaces_block]
        around = [options[hook.key] for hook in active if not hook.replaces_block]
        original = extra["original_block"]
        if inside:
            original = self._within(inside, original)
        if self.previous:
            original = self._previous(original, extra)
        return self._within(around, original)(args) if around else original(args)

    def _within(self, runs: list[Guest], inner: ArgsBlock) -> ArgsBlock:
        """Put runs around a block as core calls it."""

        def call(args: dict[str, Any]) -> dict[str, Tensor]:
            def block(img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
                out = inner({**args, "img": img, "txt": txt, "vec": vec})
                return out["img"], out["txt"]

            img, txt = GuestChain(runs).run_block(self.index, args["img"], args["txt"], args["vec"], block)
            return {"img": img, "txt": txt}

        return call

    def _previous(self, inner: ArgsBlock, extra: dict[str, Any]) -> ArgsBlock:
        """Put the earlier patch around a block; say so once if it leaves out a control that stands inside of it."""

        def call(args: dict[str, Any]) -> dict[str, Tensor]:
            called = []
            out = self.previous(args, {**extra, "original_block": lambda changed: called.append(1) or inner(changed)})
            if not called and not self.told and inner is not extra["original_block"]:
                logging.warning(
                    f"EAM: another node's patch computes or skips block {self.index} by itself, so the control has "
                    "no part in that block"
                )
                self.told = True
            return out

        return call

    def models(self) -> list[ModelPatcher]:
        """Name the models that core must load along with the base."""
        earlier = self.previous.models() if hasattr(self.previous, "models") else []
        return [*(hook.patcher for hook in self.hooks), *earlier]

    def to(self, device_or_dtype: Any) -> "BlockPatch":
        """Pass on a move; the hooks' modules are moved by core."""
        if hasattr(self.previous, "to"):
            self.previous = self.previous.to(device_or_dtype)
        return self


def check_lr_size(lr: Tensor, x: Tensor) -> None:
    """Refuse to sample latents x of another size than the LR latents; both [B, C, H, W]."""
    (lr_height, lr_width), (height, width) = lr.shape[-2:], x.shape[-2:]
    if (lr_height, lr_width) != (height, width):
        raise ValueError(
            f"expected latents of {lr_width} x {lr_height} as EAM_ApplyControl made them, got {width} x {height}; "
            "connect its LATENT output to the sampler"
        )
