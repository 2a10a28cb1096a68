"""From a run to its method: backbone, frozen teacher, view plan.

A method that learns from a frozen network (`Method.inputs`) gets it from here. The run's folder
keeps a copy, so that the run goes on when the original is gone:

    teacher.safetensors        an encoder, as any encoder file
    tokenizer/config.yaml      a tokenizer's run,
    tokenizer/weights.safetensors  and all tensors of its method
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from nolabel import _usercode, backbones, methods
from nolabel.backbones.base import recompute, require
from nolabel.backbones.vit import ViT, fit_positions
from nolabel.config import Run, read_yaml
from nolabel.data.source import Source
from nolabel.data.text.tokenizer import TOKENIZER_FILE, Tokenizer
from nolabel.encoders import load
from nolabel.encoders.file import LICENCE, save_encoder
from nolabel.engine.checkpoint import load_checkpoint, restore
from nolabel.engine.init_network import InitNetwork, load_init
from nolabel.engine.resolve import Resolved
from nolabel.engine.saved_run import load_run
from nolabel.engine.texts import learn_tokenizer, saved_tokenizer
from nolabel.errors import FileDamaged, UsageError
from nolabel.methods.base import Method
from nolabel.methods.capabilities import Tokenizes
from nolabel.nn.frozen import Frozen
from nolabel.views.plan import ViewPlan

TEACHER, TOKENIZER, WEIGHTS = "teacher.safetensors", "tokenizer", "weights.safetensors"
EXAMPLES = {
    "teacher": "--teacher timm:vit_small_patch16_224.dino, or the folder of a run",
    "tokenizer": "--teacher runs/vqvae-creatures, the folder of a run of vqvae or dvae",
}


FrozenInputs = Frozen | Tokenizer | None  # what a method is built with beside its backbone


@dataclass(frozen=True)
class Built:
    """What a run trains, made once a process."""

    run: Run
    method: Method  # with the weights that the seed gives
    plan: ViewPlan
    frozen: FrozenInputs


def plan_of(run: Run) -> ViewPlan:
    """The views of a run, normalised by its statistics."""
    s = run.settings
    plan = methods.load(run.method).views(run.options, s.image_size)
    return plan.with_statistics(s.mean, s.std)


def build(resolved: Resolved) -> Built:
    """The method, the views and the frozen inputs of a new run."""
    frozen = frozen_inputs(resolved.run, resolved.source)
    return Built(resolved.run, *build_method(resolved.run, frozen, resolved.init), frozen)


def frozen_inputs(
    run: Run, source: Source | None = None, folder: Path | None = None
) -> FrozenInputs:
    """The frozen network or the tokenizer of texts that the run's method is built with, if any.

    Args:
        source: the training data of a new run, from whose captions a tokenizer is learnt.
        folder: of a run that has started: what it keeps is used.
    """
    if "text" not in methods.load(run.method).inputs:
        return load_teacher(run, folder)
    return learn_tokenizer(run, source) if source is not None else saved_tokenizer(run, folder)


def build_method(
    run: Run, frozen: FrozenInputs = None, init: InitNetwork | None = None
) -> tuple[Method, ViewPlan]:
    """Backbone, method and view plan of a run, with the weights that its seed gives.

    Args:
        run: resolved.
        frozen: from `frozen_inputs`; None finds what the run names or its folder keeps.
        init: the network of --init, where it is loaded already.
    """
    s = run.settings
    kind = methods.load(run.method)
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
            kwargs={**kind.backbone_kwargs(run.options), **run.backbone_kwargs},
        )  # fmt: skip
        require(backbone, kind.needs, kind.__name__)
        kind.init(backbone)
    plan = plan_of(run)
    for view in plan.views:
        if "mask" in backbone.can and view.size % backbone.patch_size:
            near = max(round(view.size / backbone.patch_size), 1) * backbone.patch_size
            raise UsageError(
                f"The {view.name!r} crops are {view.size} px, no multiple of the patches "
                f"of {backbone.patch_size} px. Use {near} px."
            )
    given = {} if frozen is None else {name: frozen for name in kind.inputs}  # one at most
    method = kind(backbone, run.options, **given)
    method.mean, method.std = plan.mean, plan.std
    if s.checkpoint_activations:
        if not any(can in backbone.can for can in ("drop", "mask")):
            raise UsageError(
                f"--checkpoint-activations is for transformers; {backbone.name!r} is none. Use "
                "--accumulate to save memory."
            )
        recompute(method)
    if s.init:
        method.continued = _take_up(method, run)
    return method, plan


def _take_up(method: Method, run: Run) -> bool:
    """Whether it continues a whole run of its own kind: student, teacher, heads, centres, queues.

    So a last stage at a higher resolution is `--init RUN --image-size N`. Where a tensor does not
    fit (other prototypes, another method), the encoder alone is what was taken.
    """
    folder = Path(str(run.settings.init))
    if not (folder / "config.yaml").is_file() or not (folder / "checkpoints").is_dir():
        return False
    other = str(methods.upgrade_config(read_yaml(folder / "config.yaml")).get("method"))
    if _usercode.without_hash(other) != _usercode.without_hash(run.method):
        return False
    state = load_checkpoint(folder).state["learner"]["method"]
    own = method.state_dict()
    if isinstance(method.encoder, ViT):
        state = fit_positions(state, own, method.encoder)
    fits = own.keys() == state.keys() and all(own[k].shape == v.shape for k, v in state.items())
    if fits:
        method.load_state_dict(state)
    return fits


def started(folder: Path) -> tuple[Run, Method, ViewPlan]:
    """A run that has started, its method without its weights (what --init named may be gone), and
    its views."""
    run = load_run(folder)
    return run, *build_method(run.with_settings(init=None), frozen_inputs(run, folder=folder))


def load_method(folder: str | Path) -> tuple[Method, Run]:
    """A trained method with its heads and decoders, from a run's newest checkpoint."""
    folder = Path(folder)
    run, method, _ = started(folder)
    restore(method, None, load_checkpoint(folder).state["learner"])
    return method.eval(), run


def load_teacher(run: Run, folder: Path | None = None) -> Frozen | None:
    """The frozen network that the run's method learns from; None if it takes none.

    Args:
        folder: of a run that has started: its own copy is used, not what the options name.

    Raises:
        UsageError: none is named, it is of the wrong kind, or its channels are not the run's.
        FileDamaged: the copy was altered.
    """
    takes = next(iter(methods.load(run.method).inputs & EXAMPLES.keys()), "")
    if not takes:
        return None
    plan = plan_of(run)
    given = (plan.mean, plan.std)
    if takes == "tokenizer":
        copy = folder / TOKENIZER if folder else None
        kept = copy is not None and (copy / "config.yaml").is_file()
        frozen = _kept_tokenizer(copy, given) if copy and kept else _tokenizer(run, given)
    else:
        kept = folder is not None and (folder / TEACHER).is_file()
        name = str(folder / TEACHER) if folder and kept else _named(run, takes)
        enc = load(name, device="cpu", channels=plan.channels)
        frozen = Frozen(
            enc.backbone, enc.mean, enc.std, given=given, image_size=enc.image_size,
            about={k: enc.meta.get(k) for k in ("method", "licence")},
        )  # fmt: skip
    if len(frozen.mean) != plan.channels:
        raise UsageError(
            f"The teacher {run.options.teacher!r} takes images of {len(frozen.mean)} channels, the "
            f"run's have {plan.channels}. Use --channels {len(frozen.mean)}, or another teacher."
        )
    return frozen


def keep(frozen: FrozenInputs, folder: Path) -> None:
    """Writes a method's frozen inputs into a run's folder; pixels need none."""
    if isinstance(frozen, Tokenizer):
        frozen.save(folder / TOKENIZER_FILE)
        return
    teacher = frozen
    if teacher is None or not teacher.module.state_dict():
        return
    about = teacher.about
    if "run" in about:
        from safetensors.torch import save_file

        place = folder / TOKENIZER
        place.mkdir()
        state: dict[str, Tensor] = teacher.module.state_dict()
        # Copies, because tensors that share their memory are refused.
        save_file({k: v.cpu().clone().contiguous() for k, v in state.items()}, place / WEIGHTS)
        _usercode.copy_code(about["run"], place)
        text = yaml.safe_dump(about["run"], sort_keys=False)
        (place / "config.yaml").write_text(text, encoding="utf-8")
        return
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


def _named(run: Run, takes: str) -> str:
    if not run.options.teacher:
        raise UsageError(f"{run.method} learns from a frozen network. Give {EXAMPLES[takes]}.")
    return str(run.options.teacher)


Given = tuple[tuple[float, ...], tuple[float, ...]]


def _tokenizer(run: Run, given: Given) -> Frozen:
    name = _named(run, "tokenizer")
    if not (Path(name) / "config.yaml").is_file():
        raise UsageError(
            f"The teacher {name!r} is no folder of a run (no config.yaml). Give "
            f"{EXAMPLES['tokenizer']}."
        )
    return _frozen_tokenizer(*load_method(name), given, name)


def _kept_tokenizer(place: Path, given: Given) -> Frozen:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    run = load_run(place)
    method, _ = build_method(run.with_settings(init=None))
    try:
        method.load_state_dict(load_file(place / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise FileDamaged(f"The copy of the tokenizer in {place} is damaged: {error}") from error
    return _frozen_tokenizer(method, run, given, str(place))


def _frozen_tokenizer(method: Method, run: Run, given: Given, name: str) -> Frozen:
    if not isinstance(method, Tokenizes):
        raise UsageError(
            f"The teacher {name!r} is a run of {run.method}, which makes no tokens. Give "
            f"{EXAMPLES['tokenizer']}; a method of your own inherits Tokenizes."
        )
    plan = plan_of(run)
    return Frozen(method, plan.mean, plan.std, given=given, about={"run": run.to_dict()})
