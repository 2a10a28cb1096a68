"""Who takes part in a tournament: whether the method is open, and the candidates that suit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nolabel import distributed, methods
from nolabel.backbones import is_convolutional
from nolabel.config import LENGTHS, Request, Run
from nolabel.engine.fit import Fitted, at_rung
from nolabel.engine.resolve import Resolved, operations_of, resolve
from nolabel.errors import UsageError, unknown
from nolabel.recipes.candidates import Candidate, candidates
from nolabel.views.fields import ORIENTATION, SHARED

ASKED = ("auto", "on", "off")  # --tournament

# Whether `auto` plays without labels. No measure chooses well enough yet: of the methods in
# benchmarks/results/labelfree.json (two minutes, `resnet_nano`) the best by self-retrieval has 6.0
# points of k-NN less than the best one on creatures and 1.0 less on Fashion-MNIST; always SimCLR
# 0.0 and 1.0; by RankMe or LiDAR 17.1 and 4.4.
WITHOUT_LABELS = False

Note = Callable[[str], None]


def reason_against(request: Request) -> str:
    """Why the method of this request cannot be chosen by trial; "" if it can.

    Args:
        request: with its length settled (`engine.fit`).
    """
    s = request.settings
    if request.explicit.options or request.file.options:
        names = ", ".join({**request.file.options, **request.explicit.options})
        return f"options of one method are given ({names})"
    if s.minutes is None or s.steps is not None or s.epochs is not None:
        return f"the length is not in minutes (one of {', '.join(LENGTHS)})"
    if s.recipe != "auto":
        return f"--recipe is {s.recipe}"
    given = [name for name in ("init", "views", "compile", "shard") if getattr(s, name)]
    given += [k for k in SHARED if getattr(s, k) is not None and k not in ORIENTATION]
    if given:
        return f"--{given[0].replace('_', '-')} is for one method"
    if distributed.world_size() > 1:
        return "several processes train it"
    return ""


def asked(request: Request) -> bool:
    """Whether a tournament is to be played, if there is time for one.

    Raises:
        UsageError: it is asked for, and impossible.
    """
    if request.tournament not in ASKED:
        raise unknown("--tournament", request.tournament, ASKED)
    if request.tournament == "off":
        return False
    why = reason_against(request)
    if request.tournament == "on" and why:
        raise UsageError(
            f"--tournament on cannot choose the method: {why}. Leave that out, or name the method."
        )
    labels = bool(request.settings.probe)
    return not why and (request.tournament == "on" or WITHOUT_LABELS or labels)


def entrants(
    resolved: Resolved, run: Run, fitted: Fitted, note: Note
) -> list[tuple[Candidate, Resolved]]:
    """The candidates that suit the run, the rule's choice first, each with its run.

    Args:
        resolved: of the rule's choice.
        run: of it, with precision, workers and device of the views measured.
        fitted: the outcome of `fit`.
        note: prints which candidates are left out.
    """
    rule = Candidate(name=run.method, method=run.method, why="is the rule's choice")
    listed = candidates(on_gpu=resolved.on_gpu)
    plain = [c for c in listed if c.method == run.method and c.plain]
    out = [((plain or [rule])[0], resolved)]
    s, below = run.settings, None if fitted.choice is None else fitted.choice.before
    measured = {k: getattr(s, k) for k in ("precision", "workers", "views_on")}
    request = resolved.request.choose(**measured)
    patch = {**request.file.settings, **request.explicit.settings}.get("patch_size")
    for c in (c for c in listed if c not in plain):
        kind = methods.load(c.method)
        if is_convolutional(s.backbone) and kind.needs & {"mask", "drop", "attention"}:
            continue
        own = dataclasses.replace(request, method=c.method)
        if c.smaller:
            if below is None:
                continue
            own = at_rung(own, patch, below)
        try:
            its = _resolved(own, resolved, fitted)
            changes = c.changes(its.run.options)
            if changes:
                chosen = dataclasses.replace(own.chosen, options=changes)
                its = _resolved(dataclasses.replace(own, chosen=chosen), resolved, fitted)
            elif c.options or c.times:
                continue  # the recipe does so already
        except UsageError as error:
            note(f"tournament: {c.name} is left out: {error}")
            continue
        out.append((c, its))
    return out


def _resolved(request: Request, like: Resolved, fitted: Fitted) -> Resolved:
    """The run of a request; what was measured on the images is measured again for another size."""
    size = request.settings.image_size
    same = size in (None, like.run.settings.image_size)
    return resolve(
        request, source=like.source, facts=fitted.facts,
        operations=operations_of(like.run) if same else None, quiet=True,
    )  # fmt: skip
