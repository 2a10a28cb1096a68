"""Resolves a request to a run whose settings all have values, in stages.

    layers       explicit options override --config, which overrides --recipe FILE and the recipe
    data         the source, its statistics, the image size, which operations suit the images
    network      the backbone: named by the user, chosen automatically, or that of --init
    batch        the batch size, the recipe's options for it, the length
    measurement  precision, workers, micro-batches, device of the views, steps in M minutes

`resolve` does all but the last stage, which needs the network: `engine.measurement`. Every verb
that trains, measures or predicts a run uses these stages. `nolabel pretrain METHOD --help` calls
`resolve` too, so large modules are imported only where they are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nolabel import limits, methods, recipes
from nolabel._files import read_json
from nolabel._moved import present_options
from nolabel.backbones import is_convolutional, stride_of
from nolabel.config import (
    Layer,
    Request,
    Run,
    Settings,
    complete,
    override,
    to_builtin,
)
from nolabel.data.decoded import OFF, cache_pixels
from nolabel.data.facts import Facts, facts_of
from nolabel.data.open import absolute_source, open_source, record_source
from nolabel.data.order import steps_per_epoch
from nolabel.data.source import Source
from nolabel.data.statistics import measure_statistics
from nolabel.encoders.names import absolute_encoder
from nolabel.engine.checks import check_settings
from nolabel.engine.log import say
from nolabel.engine.machine import Machine
from nolabel.engine.run_views import check_views, fit_views, operations_on, reasons_for, view_plan
from nolabel.errors import UsageError
from nolabel.methods.base import Contrastive, Method, RecipeContext
from nolabel.types import Optim
from nolabel.views.suitability import Operations

if TYPE_CHECKING:
    from nolabel.engine.init_network import InitNetwork

MEASURED = ("precision", "workers", "views_on", "steps")  # settings that the measurement can set


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A run before the measurement."""

    run: Run  # with provisional values for the settings that are not measured yet
    settings: Settings  # with None or "auto" for those settings
    source: Source
    request: Request
    on_gpu: bool = False
    init: InitNetwork | None = None
    fitted: tuple[str, ...] = ()  # what was fitted to the images in the views, and why

    @property
    def open(self) -> frozenset[str]:
        """Names of the settings that the measurement has to set."""
        return frozenset(k for k in MEASURED if getattr(self.settings, k) in (None, "auto"))

    def to_dict(self) -> dict[str, Any]:
        """Built-in types, as in config.yaml; None or "auto" for settings not measured yet."""
        return {**self.run.to_dict(), "settings": to_builtin(dataclasses.asdict(self.settings))}

    def at_length(self, steps: int) -> Run:
        """The run with what the recipe says for this many steps: rates, not the network."""
        run, s = self.run, self.settings
        context = context_of(s, run.backbone_kwargs, requested_batch(s), run.images, self.on_gpu)
        operations = operations_of(run)
        context = dataclasses.replace(context, steps=steps, operations=operations)
        options, optim = _layered(self.request, s, context)
        return dataclasses.replace(run, options=options, optim=optim)


def resolve(
    request: Request,
    *,
    source: Source | None = None,
    machine: Machine | None = None,
    facts: Facts | None = None,
    operations: Operations | None = None,
    quiet: bool = False,
) -> Resolved:
    """Runs all stages except the measurement.

    Under torchrun the caller must have joined the process group (`parallel.processes`). All ranks
    then open and build the same things.

    Args:
        request: what the user asked for.
        source: the data, if they are already open.
        machine: the machine that the run is for; None: this one.
        facts: of the source, if they are known already.
        operations: what operations of the views do to its images, if it was measured already.
        quiet: do not print the automatic batch size, nor what was fitted to the images.

    Raises:
        UsageError: impossible or unknown settings.
        DataError: no image can be read.
    """
    request = dataclasses.replace(request, method=methods.name_by_hash(request.method))
    kind = methods.load(request.method)
    check_settings(request.settings)
    check_views(kind, request.settings)
    s = _record_networks(request.settings)
    s = dataclasses.replace(
        s, data=record_source(s.data), probe=None if s.probe is None else record_source(s.probe)
    )
    if source is None:
        source = open_source(
            s.data, image_size=s.image_size, download=s.download, channels=s.channels
        )
    s = dataclasses.replace(  # a run is resumed from anywhere
        s,
        data=absolute_source(s.data),
        probe=None if s.probe is None else absolute_source(s.probe),
        init=None if s.init is None else absolute_encoder(s.init),
    )
    machine = machine or Machine.here(s.device)
    if facts is None and (s.image_size is None or s.cache == "auto"):
        facts = facts_of(source)
    s = data_stage(s, source, facts)
    fit = s.fit_views and _recipe_name(s) == "auto"
    operations = (operations or operations_on(source, s)) if fit else None
    s, init = network_stage(s, kind, machine)
    kwargs = {} if init is None else {**init.backbone.kwargs}
    if s.batch_size == "auto":
        from nolabel.engine.batch_size import largest_batch

        # The recipe's own batch may be larger than the data; the cost model needs only some batch.
        some = dataclasses.replace(s, batch_size=2)
        draft = batch_stage(request, some, source, machine, kwargs, operations)
        paper = recipes.paper(
            kind, context_of(draft.settings, kwargs, None, len(source), machine.on_gpu)
        )
        # Rates and more depend on the batch: the recipe is asked again.
        s = dataclasses.replace(
            s, batch_size=largest_batch(draft.run, paper.batch_size, machine, quiet=quiet)
        )
    resolved = batch_stage(request, s, source, machine, kwargs, operations)
    if s.cache == "auto":
        resolved = _with_cache(resolved, facts, machine)
    if resolved.fitted and not quiet:
        say("views: " + "; ".join(resolved.fitted))
    return dataclasses.replace(resolved, init=init)


def data_stage(s: Settings, source: Source, facts: Facts | None) -> Settings:
    """Settings that depend only on the images: statistics and image size."""
    if s.channels != 3 and s.mean is None:
        mean, std = measure_statistics(source)
        s = dataclasses.replace(s, mean=mean, std=std)
    if s.image_size is None and facts is not None:
        fixed = s.backbone and "_224" in s.backbone
        size = 224 if fixed else recipes.default_image_size(facts.side)
        s = dataclasses.replace(s, image_size=size)
    if s.workers is None and source.in_memory:
        s = dataclasses.replace(s, workers=0)  # data in memory need no worker processes
    return s


def network_stage(
    s: Settings, kind: type[Method], machine: Machine
) -> tuple[Settings, InitNetwork | None]:
    """Backbone and patch size: named, automatic, or those of --init, which is loaded here."""
    if not s.init:
        return _backbone(s, kind, machine.on_gpu), None
    from nolabel.engine.init_network import load_init

    init = load_init(s)
    # The patch is among the keyword arguments that rebuild the network.
    return dataclasses.replace(s, backbone=init.backbone.name, patch_size=None), init


def batch_stage(
    request: Request,
    s: Settings,
    source: Source,
    machine: Machine,
    backbone_kwargs: Mapping[str, Any],
    operations: Operations | None = None,
) -> Resolved:
    """Batch size, options and length: the user's, or else the recipe's.

    Args:
        request: what the user asked for, with its layers.
        s: settings with data and network resolved, and a batch size that is a number or None.
        source: the data.
        machine: the machine that the run is for.
        backbone_kwargs: keyword arguments of the network of --init.
        operations: what operations of the views do to the images; None: not measured.

    Raises:
        UsageError: the batch is larger than the data.
    """
    kind = methods.load(request.method)
    asked, in_file = requested_batch(s), _recipe_file(s).settings
    context = context_of(s, backbone_kwargs, asked, len(source), machine.on_gpu)
    context = dataclasses.replace(context, operations=operations)
    recipe = recipes.recipe(kind, _recipe_name(s), context)
    batch = int(asked or in_file.get("batch_size") or recipe.batch_size)
    if len(source) < 2 and issubclass(kind, Contrastive):
        raise UsageError(
            f"{request.method} compares images with each other, but {source.name!r} holds one. "
            "Give two images or more, or a method that learns from each image alone, such as mae."
        )
    if batch > len(source):
        raise UsageError(
            f"Batch size {batch} is larger than the data: {len(source)} images. "
            f"Use --batch-size {len(source)} or less."
        )
    if batch < 2 and issubclass(kind, Contrastive):
        raise UsageError(
            f"{request.method} compares the images of a batch with each other, so that a batch of "
            f"{batch} teaches nothing. Use --batch-size 2 or more, and as many images."
        )
    per_epoch = steps_per_epoch(batch, len(source))
    if s.minutes is None and s.steps is None and s.epochs is None:
        if "epochs" not in in_file and recipe.steps:
            s = dataclasses.replace(s, steps=recipe.steps)
        else:
            s = dataclasses.replace(s, epochs=in_file.get("epochs") or recipe.epochs)
    if s.steps is None and s.epochs is not None:
        s = dataclasses.replace(s, steps=max(per_epoch * s.epochs, 1))
    # The recipe is asked again: it may depend on the length.
    context = dataclasses.replace(context, steps=s.steps)
    options, optim = _layered(request, s, context)
    plain, _ = _layered(request, s, dataclasses.replace(context, operations=None))
    before = view_plan(kind, plain, s)
    s = fit_views(kind, options, s, operations)
    s = dataclasses.replace(
        s,
        batch_size=batch,
        out=s.out or folder_name(request.method, source),
        views_on="cpu" if s.views_on == "auto" and not machine.on_gpu else s.views_on,
    )
    run = Run(
        method=request.method, settings=complete(s, continued=False), options=options,
        optim=optim, backbone_kwargs=backbone_kwargs, images=len(source),
        steps_per_epoch=per_epoch,
        operations={} if operations is None else dataclasses.asdict(operations),
    )  # fmt: skip
    return Resolved(
        run=run, settings=s, source=source, request=request, on_gpu=machine.on_gpu,
        fitted=reasons_for(before, view_plan(kind, options, s), operations),
    )  # fmt: skip


def requested_batch(s: Settings) -> int | None:
    """The batch size of the settings; None: the recipe's."""
    return None if s.batch_size is None else int(s.batch_size)


def _recipe_name(s: Settings) -> str:
    """The recipe that a run starts from; a file's values come on top of "auto"."""
    return s.recipe if recipes.is_name(s.recipe) else "auto"


def _recipe_file(s: Settings) -> Layer:
    """The values of --recipe FILE."""
    return Layer() if recipes.is_name(s.recipe) else Layer.from_file(s.recipe)


def _layered(request: Request, s: Settings, context: RecipeContext) -> tuple[Any, Optim]:
    """Options and optimiser: the recipe's, and over them what was asked."""
    recipe = recipes.recipe(methods.load(request.method), _recipe_name(s), context)
    options, optim = recipe.options, recipe.optim
    # Later ones win.
    for layer in (request.chosen, _recipe_file(s), request.file, request.explicit):
        options = override(options, layer.options, "options.")
        optim = override(optim, layer.optim, "optim.")
    limits.check(options)
    limits.check(optim, "--optim.")
    return _record_teacher(options), optim


def context_of(
    s: Settings,
    backbone_kwargs: Mapping[str, Any],
    batch_size: int | None,
    images: int,
    on_gpu: bool,
) -> RecipeContext:
    """The facts that a recipe depends on.

    Args:
        s: with image size and backbone settled.
        backbone_kwargs: of the network of --init, whose patch is among them.
        batch_size: None: the recipe chooses.
        images: of the data.
        on_gpu: whether the run has a CUDA device.
    """
    return RecipeContext(
        image_size=s.image_size or 0,
        images=images,
        batch_size=batch_size,
        conv=is_convolutional(str(s.backbone)),
        patch_size=stride_of(str(s.backbone), s.patch_size or backbone_kwargs.get("patch_size")),
        device="cuda" if on_gpu else "cpu",
    )


def diff_from_recipe(run: Run) -> list[tuple[str, Any, Any]]:
    """Options in which a resolved run differs from its recipe: (name, value, recipe's value)."""
    s = run.settings
    context = context_of(s, run.backbone_kwargs, int(s.batch_size), run.images, _had_gpu(run))
    context = dataclasses.replace(context, steps=s.steps, operations=operations_of(run))
    recipe = recipes.recipe(methods.load(run.method), _recipe_name(s), context)
    out = []
    pairs = (("", run.options, recipe.options), ("optim.", run.optim, recipe.optim))
    for where, own, other in pairs:
        for f in dataclasses.fields(own):
            a, b = getattr(own, f.name), getattr(other, f.name)
            if a != b:
                out.append((where + f.name, a, b))
    return out


def operations_of(run: Run) -> Operations | None:
    """What was measured on the run's images; None: nothing."""
    if not run.operations:
        return None
    return Operations(**present_options("config.yaml operations", run.operations))


def _had_gpu(run: Run) -> bool:
    """Whether a finished run had a CUDA device: by its folder, or else by this machine."""
    file = run.folder / "environment.json"
    if run.settings.device == "cpu" or not file.is_file():
        return Machine.here(run.settings.device).on_gpu
    about = read_json(file)
    return bool(about.get("gpus")) if isinstance(about, dict) else False  # damaged


def _record_networks(s: Settings) -> Settings:
    """The settings with a user's own networks named by file and hash, as config.yaml has them."""
    from nolabel.backbones.own import name_by_hash

    backbone = None if s.backbone is None else name_by_hash(s.backbone)
    init = None if s.init is None else name_by_hash(s.init)
    return dataclasses.replace(s, backbone=backbone, init=init)


def _record_teacher(options: Any) -> Any:
    """The options with a teacher that means the same from every folder: paths are absolute, and
    `random:file.py:Class` is named by file and hash."""
    from nolabel.backbones.own import name_by_hash

    teacher = getattr(options, "teacher", None)
    if not isinstance(teacher, str):
        return options
    return dataclasses.replace(options, teacher=absolute_encoder(name_by_hash(teacher) or ""))


def folder_name(method: str, source: Source) -> str:
    """The folder of a run for which none is named."""
    name = Path(method.partition(":")[0]).stem if ".py" in method else method
    return f"runs/{name}-{Path(source.name.replace(':', '-')).name}"


def _with_cache(resolved: Resolved, facts: Facts | None, machine: Machine) -> Resolved:
    """The run with `cache` settled: at how many pixels decoded images stay in memory."""
    run, source, pixels = resolved.run, resolved.source, None
    if facts is not None and not source.in_memory and machine.cache_memory:
        s = run.settings
        plan = methods.load(run.method).views(run.options, s.image_size)
        pixels = cache_pixels(
            plan, facts.areas, len(source), machine.cache_memory, facts.item_bytes
        )
    cache = OFF if pixels is None else pixels
    settings = dataclasses.replace(resolved.settings, cache=cache)
    return dataclasses.replace(resolved, run=run.with_settings(cache=cache), settings=settings)


def _backbone(s: Settings, kind: type[Method], on_gpu: bool) -> Settings:
    """Adds the default network for the image size, the machine and the method, if none is named."""
    size = s.image_size or 0
    if s.backbone is None:
        name, patch = recipes.default_network(
            kind.needs, size, on_gpu=on_gpu, vit=recipes.takes_vit(kind) or s.patch_size is not None
        )
    else:
        name, patch = s.backbone, recipes.default_patch(s.backbone, size)
    return dataclasses.replace(s, backbone=name, patch_size=s.patch_size or patch)
