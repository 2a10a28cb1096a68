"""Builds what a run trains: the method on its backbone, its frozen inputs, its view plan.

A method that learns from a frozen network (`Method.inputs`) gets it from here. A copy is saved in
the run's folder, so that the run can be resumed when the original is gone:

    teacher.safetensors            an encoder file
    teacher-projection.safetensors its projection into the space of texts, where it has one
    tokenizer/config.yaml          the run of a tokenizer
    tokenizer/weights.safetensors  the state_dict of its method
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from nolabel import _usercode, backbones, methods
from nolabel._files import save_tensors, write_text
from nolabel._files.yaml import read_yaml
from nolabel.backbones.base import recompute, require
from nolabel.backbones.vit import ViT, fit_positions
from nolabel.config import Run
from nolabel.data.source import Source
from nolabel.data.text.tokenizer import TOKENIZER_FILE, Tokenizer
from nolabel.encoders import load
from nolabel.encoders.file import LICENCE, save_encoder
from nolabel.encoders.text import image_projection
from nolabel.engine.checkpoint import restore
from nolabel.engine.init_network import InitNetwork, load_init
from nolabel.engine.resolve import Resolved
from nolabel.engine.run_views import view_plan
from nolabel.engine.saved_run import load_run
from nolabel.engine.saved_state import load_state
from nolabel.engine.texts import learn_tokenizer, saved_tokenizer
from nolabel.errors import FileDamaged, UsageError
from nolabel.methods.base import Method
from nolabel.methods.capabilities import Tokenizes
from nolabel.nn.frozen import Frozen
from nolabel.views.plan import ViewPlan

PROJECTION = "teacher-projection.safetensors"
TEACHER, TOKENIZER, WEIGHTS = "teacher.safetensors", "tokenizer", "weights.safetensors"
EXAMPLES = {
    "teacher": "--teacher timm:vit_small_patch16_224.dino, or the folder of a run",
    "tokenizer": "--teacher runs/vqvae-creatures, the folder of a run of vqvae or dvae",
}

FrozenInputs = Frozen | Tokenizer | None  # what a method is built with beside its backbone
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel


@dataclass(frozen=True)
class Built:
    """What a run trains; built once in each process."""

    run: Run
    method: Method  # initialised with the run's seed
    plan: ViewPlan
    frozen: FrozenInputs


def plan_of(run: Run) -> ViewPlan:
    """The view plan of a run, with the run's mean and std."""
    s = run.settings
    plan = view_plan(methods.load(run.method), run.options, s)
    return plan.with_statistics(s.mean, s.std)


def build(resolved: Resolved) -> Built:
    """The method, the views and the frozen inputs of a new run."""
    frozen = frozen_inputs(resolved.run, resolved.source)
    return Built(resolved.run, *build_method(resolved.run, frozen, resolved.init), frozen)


def frozen_inputs(
    run: Run, source: Source | None = None, folder: Path | None = None
) -> FrozenInputs:
    """The frozen network or the text tokenizer that the run's method is built with; None without.

    Args:
        source: training data of a new run; a text tokenizer is learnt from its captions.
        folder: of a started run; the copy in it is used.
    """
    if "text" not in methods.load(run.method).inputs:
        return load_teacher(run, folder)
    return learn_tokenizer(run, source) if source is not None else saved_tokenizer(run, folder)


def build_method(
    run: Run, frozen: FrozenInputs = None, init: InitNetwork | None = None
) -> tuple[Method, ViewPlan]:
    """Method and view plan of a run, initialised with the run's seed.

    Args:
        run: resolved.
        frozen: from `frozen_inputs`; None loads what the run names.
        init: the network of --init, if it is loaded already.

    Raises:
        UsageError: the backbone does not suit the method, the views or the settings.
    """
    s = run.settings
    method_class = methods.load(run.method)
    if frozen is None:
        frozen = frozen_inputs(run)
    if s.init:
        init = init or load_init(s)
        backbone = init.backbone
        torch.set_rng_state(init.rng_state)
    else:
        torch.manual_seed(s.seed)
        backbone = backbones.build(
            s.backbone, image_size=s.image_size, patch_size=s.patch_size,
            channels=s.channels,
            kwargs={**method_class.backbone_kwargs(run.options), **run.backbone_kwargs},
        )  # fmt: skip
        require(backbone, method_class.needs, method_class.__name__)
        method_class.init(backbone)
    plan = plan_of(run)
    for view in plan.views:
        if "mask" in backbone.can and view.size % backbone.patch_size:
            nearest = max(round(view.size / backbone.patch_size), 1) * backbone.patch_size
            raise UsageError(
                f"The {view.name!r} crops are {view.size} px, not a multiple of the patch "
                f"size of {backbone.patch_size} px. Use {nearest} px."
            )
    inputs = {} if frozen is None else {name: frozen for name in method_class.inputs}  # at most one
    method = method_class(backbone, run.options, **inputs)
    method.mean, method.std = plan.mean, plan.std
    if s.checkpoint_activations:
        if not any(can in backbone.can for can in ("drop", "mask")):
            raise UsageError(
                f"--checkpoint-activations is for transformers, and {backbone.name!r} is not one. "
                "Use --accumulate to save memory."
            )
        recompute(method)
    if s.init:
        method.continued = _load_heads(method, run)
    return method, plan


def _load_heads(method: Method, run: Run) -> bool:
    """Loads the complete state of the run that --init names: student, teacher, heads, queues.

    So a last stage at a higher resolution is `--init RUN --image-size N`. If the run is of another
    method, or a tensor has another shape (another number of prototypes), only the encoder is used.

    Returns:
        Whether the complete state was loaded.
    """
    folder = Path(str(run.settings.init))
    if not (folder / "config.yaml").is_file() or not (folder / "checkpoints").is_dir():
        return False
    init_method = str(methods.upgrade_config(read_yaml(folder / "config.yaml")).get("method"))
    if _usercode.without_hash(init_method) != _usercode.without_hash(run.method):
        return False
    state = load_state(folder).state["learner"]["method"]
    target = method.state_dict()
    if isinstance(method.encoder, ViT):
        state = fit_positions(state, target, method.encoder)
    same_keys = target.keys() == state.keys()
    fits = same_keys and all(target[k].shape == v.shape for k, v in state.items())
    if fits:
        method.load_state_dict(state)
    return fits


def rebuild(folder: Path) -> tuple[Run, Method, ViewPlan]:
    """A started run, its method and its view plan.

    The weights are random: they come from a checkpoint, and the encoder of --init may be gone.
    """
    run = load_run(folder)
    return run, *build_method(run.with_settings(init=None), frozen_inputs(run, folder=folder))


def load_method(folder: str | Path) -> tuple[Method, Run]:
    """A trained method with heads and decoders, in eval mode, from a run's newest checkpoint."""
    folder = Path(folder)
    run, method, _ = rebuild(folder)
    try:
        restore(method, None, load_state(folder).state["learner"])
    except FileDamaged as error:
        raise FileDamaged(
            f"Heads and decoders of a run are in its checkpoints alone. {error}"
        ) from error
    return method.eval(), run


def load_teacher(run: Run, folder: Path | None = None) -> Frozen | None:
    """The frozen network that the run's method learns from; None if the method has none.

    Args:
        folder: of a started run; the copy in it is used, not what the options name.

    Raises:
        UsageError: no teacher is named, it is of the wrong type, or it has other channels.
        FileDamaged: the copy was altered.
    """
    input_name = next(iter(methods.load(run.method).inputs & EXAMPLES.keys()), "")
    if not input_name:
        return None
    plan = plan_of(run)
    statistics = (plan.mean, plan.std)
    if input_name == "tokenizer":
        copy = folder / TOKENIZER if folder else None
        if copy is not None and (copy / "config.yaml").is_file():
            frozen = _tokenizer_copy(copy, statistics)
        else:
            frozen = _tokenizer_of_run(run, statistics)
    else:
        copy = folder / TEACHER if folder else None
        name = str(copy) if copy and copy.is_file() else _teacher_name(run, input_name)
        enc = load(name, device="cpu", channels=plan.channels)
        frozen = Frozen(
            enc.backbone, enc.mean, enc.std, given=statistics, image_size=enc.image_size,
            about={k: enc.meta.get(k) for k in ("method", "licence")},
            projection=_projection_copy(copy) if name == str(copy) else image_projection(enc),
        )  # fmt: skip
    if len(frozen.mean) != plan.channels:
        raise UsageError(
            f"The teacher {run.options.teacher!r} takes images of {len(frozen.mean)} channels, the "
            f"run's images have {plan.channels}. Use --channels {len(frozen.mean)}, or another "
            "teacher."
        )
    return frozen


def save_frozen_inputs(frozen: FrozenInputs, folder: Path) -> None:
    """Writes a method's frozen inputs into a run's folder; the teacher `pixels` needs no file."""
    if isinstance(frozen, Tokenizer):
        frozen.save(folder / TOKENIZER_FILE)
        return
    teacher = frozen
    if teacher is None or not teacher.module.state_dict():
        return
    about = teacher.about
    if "run" in about:
        tokenizer = folder / TOKENIZER
        tokenizer.mkdir(exist_ok=True)
        state: dict[str, Tensor] = teacher.module.state_dict()
        # Copies: safetensors refuses tensors that share memory.
        save_tensors(
            {k: v.cpu().clone().contiguous() for k, v in state.items()}, tokenizer / WEIGHTS
        )
        _usercode.copy_code(about["run"], tokenizer)
        text = yaml.safe_dump(about["run"], sort_keys=False)
        write_text(tokenizer / "config.yaml", text)
        return
    if teacher.projection is not None:
        weight = teacher.projection.weight.detach().cpu().clone().contiguous()
        save_tensors({"weight": weight}, folder / PROJECTION)
    save_encoder(
        folder / TEACHER,
        teacher.module,
        branch="encoder",
        method=about.get("method") or "",
        mean=teacher.mean,
        std=teacher.std,
        image_size=teacher.image_size,
        run=None,
        licence=about.get("licence") or LICENCE,
    )


def _projection_copy(teacher: Path | None) -> nn.Linear | None:
    """The projection saved beside the copy of a teacher; None if it has none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = None if teacher is None else teacher.with_name(PROJECTION)
    if path is None or not path.is_file():
        return None
    try:
        weight = load_file(path)["weight"]
        projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        projection.load_state_dict({"weight": weight}, assign=True)
    except (SafetensorError, KeyError, IndexError, OSError) as error:
        raise FileDamaged(f"{path} is damaged: {error}") from error
    return projection


def _teacher_name(run: Run, input_name: str) -> str:
    if not run.options.teacher:
        raise UsageError(f"{run.method} learns from a frozen network. Give {EXAMPLES[input_name]}.")
    return str(run.options.teacher)


def _tokenizer_of_run(run: Run, statistics: Statistics) -> Frozen:
    name = _teacher_name(run, "tokenizer")
    if not (Path(name) / "config.yaml").is_file():
        raise UsageError(
            f"The teacher {name!r} is not the folder of a run (no config.yaml). Give "
            f"{EXAMPLES['tokenizer']}."
        )
    return _frozen_tokenizer(*load_method(name), statistics, name)


def _tokenizer_copy(folder: Path, statistics: Statistics) -> Frozen:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    run = load_run(folder)
    method, _ = build_method(run.with_settings(init=None))
    try:
        method.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise FileDamaged(f"The copy of the tokenizer in {folder} is damaged: {error}") from error
    return _frozen_tokenizer(method, run, statistics, str(folder))


def _frozen_tokenizer(method: Method, run: Run, statistics: Statistics, name: str) -> Frozen:
    if not isinstance(method, Tokenizes):
        raise UsageError(
            f"The teacher {name!r} is a run of {run.method}, which makes no tokens. Give "
            f"{EXAMPLES['tokenizer']}; a method of your own inherits Tokenizes."
        )
    plan = plan_of(run)
    return Frozen(method, plan.mean, plan.std, given=statistics, about={"run": run.to_dict()})
