"""The design being edited: an immutable specification, a stack of the ones before it, and an address that holds it.

``current()`` gives this session's :class:`Draft`. Every edit goes through :meth:`Draft.change`; widgets that show
fields carry :attr:`Draft.generation` in their keys, so that undo, import and selection give them fresh values.
The whole unsaved draft stands in the address (``?draft=``), so that a view can be shared and a reload loses nothing;
:mod:`pages.widgets.history` keeps the steps that led to it.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import streamlit as st

from pages.widgets import history
from planner import (
    ArchitectureSpec,
    InvalidSpec,
    PlannerError,
    Problem,
    ServingPlan,
    TrainingPlan,
    parse_plan,
    parse_spec,
)
from planner.plans import Plan

UNDO_DEPTH = 200
LAG_SECONDS = 3.0
"""How long an address that was left may still come with the browser's requests."""
LARGEST_DRAFT_BYTES = 2_000_000
"""What an address may unpack to: far above any design, far below what would hurt."""

Part = Literal["sequence_mixer", "channel_mixer", "layer", "model"]
Share = Literal["parameters", "flops", "cache_bytes"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the design is looked at: what its cache, memory and compute are computed for, and what the bars share."""

    serving: ServingPlan = field(default_factory=lambda: ServingPlan(context_length=32_768))
    training: TrainingPlan = field(default_factory=lambda: TrainingPlan(sequence_length=4096))
    share: Share = "parameters"


@dataclass(frozen=True, slots=True)
class Origin:
    """The saved revision that a draft was opened from."""

    design_id: int
    revision_id: int
    number: int
    spec: ArchitectureSpec


@dataclass
class Draft:
    """What one session edits."""

    spec: ArchitectureSpec
    origin: Origin | None = None
    saved: ArchitectureSpec | None = None
    """What counts as unchanged: the saved revision, or what was opened."""
    baseline: ArchitectureSpec | None = None
    baseline_label: str = ""
    settings: Settings = field(default_factory=Settings)
    past: list[ArchitectureSpec] = field(default_factory=list)
    future: list[ArchitectureSpec] = field(default_factory=list)
    selected: tuple[int, ...] = ()
    part: Part = "model"
    generation: int = 0
    problems: dict[str, Problem] = field(default_factory=dict)
    """By widget: what is wrong with what stands typed in it."""
    typed: dict[str, Any] = field(default_factory=dict)
    """By widget: values that could not be taken yet."""
    notice: str = ""
    painted: int = 0
    """The last click on a paint that was taken; kept here, as Streamlit may end a handler at its session's state."""
    address: dict[str, str] = field(default_factory=dict)
    """Query parameters as they were last written."""
    left: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    """When earlier addresses were left, and what they were."""

    def lags(self, asked: dict[str, str]) -> bool:
        """Whether the browser still stands at an address that this draft has just left.

        An edit that follows another closely is sent before the browser has taken the new address: that is no wish to
        go back, and the draft must not be read from it. What comes from there says that more may be on its way.
        """
        now = time.monotonic()
        if not any(asked == address for when, address in self.left if when >= now - LAG_SECONDS):
            return False
        self.left = [(now if address == asked else when, address) for when, address in self.left]
        return True

    def answered(self, began: float) -> None:
        """Leave the time of a run, which began at ``began``, out of what the browser is given to catch up."""
        busy = time.monotonic() - began
        self.left = [(when + busy, address) for when, address in self.left]

    def move_to(self, address: dict[str, str]) -> None:
        """Note that the draft now stands at ``address``."""
        now = time.monotonic()
        self.left = [entry for entry in self.left if entry[0] >= now - LAG_SECONDS] + [(now, self.address)]
        self.address = address

    def change(self, spec: ArchitectureSpec, *, refresh: bool = True) -> None:
        """Take ``spec`` as the design. ``refresh`` gives all field widgets fresh values from it."""
        if spec == self.spec:
            return
        self.past = [*self.past, self.spec][-UNDO_DEPTH:]
        self.future = []
        self._show(spec, refresh)

    def undo(self) -> None:
        """Go back one edit."""
        if self.past:
            self.future.append(self.spec)
            self._show(self.past.pop(), refresh=True)

    def redo(self) -> None:
        """Go forward again after an undo."""
        if self.future:
            self.past.append(self.spec)
            self._show(self.future.pop(), refresh=True)

    def select(self, part: Part, layers: tuple[int, ...] = ()) -> None:
        """Select a part of some layers, or the model's own fields."""
        self.part, self.selected = part, layers
        self.refresh()

    def refresh(self) -> None:
        """Give the field widgets fresh values, and forget what stands typed in them."""
        self.generation += 1
        self.problems, self.typed = {}, {}

    def _show(self, spec: ArchitectureSpec, refresh: bool) -> None:
        self.spec = spec
        count = spec.num_layers
        kept = tuple(index for index in self.selected if index < count)
        if kept != self.selected:
            self.selected = kept
            self.part = self.part if kept else "model"
            refresh = True
        if self.selected:
            mixers = [layer for index, layer in spec.iterate_layers() if index in set(self.selected)]
            if self.part != "layer" and all(getattr(layer, self.part, None) is None for layer in mixers):
                self.part = "layer"
        if refresh:
            self.refresh()

    @property
    def unsaved_changes(self) -> int:
        """How many edits lie between the draft and what was opened; 0 where they have come to the same design."""
        if self.saved is None or self.spec == self.saved:
            return 0
        for distance, spec in enumerate(reversed(self.past), start=1):
            if spec == self.saved:
                return distance
        for distance, spec in enumerate(reversed(self.future), start=1):
            if spec == self.saved:
                return distance
        return max(1, len(self.past))

    def query(self) -> dict[str, str]:
        """The query parameters that lead back here."""
        query: dict[str, str] = {}
        if self.origin is not None:
            query = {"design": str(self.origin.design_id), "revision": str(self.origin.number)}
        usual = self.saved if self.origin is None else self.origin.spec
        held = None if self.baseline == usual and self.baseline == self.spec else self.baseline
        if self.origin is None or self.unsaved_changes or self.settings != Settings() or held not in (None, usual):
            query["draft"] = pack(self.spec, self.settings, held, self.baseline_label)
        return query


def opened(spec: ArchitectureSpec, origin: Origin | None = None) -> Draft:
    """A draft that begins with ``spec``, everything folded and nothing changed."""
    baseline = origin.spec if origin is not None else spec
    label = f"revision {origin.number}" if origin is not None else "as opened"
    return Draft(spec=spec, origin=origin, saved=baseline, baseline=baseline, baseline_label=label)


def pack(spec: ArchitectureSpec, settings: Settings, baseline: ArchitectureSpec | None = None, label: str = "") -> str:
    """A design, its settings and the baseline, where it has another one, as text that fits into an address."""
    usual = Settings()
    changed = {
        "serving": _difference(settings.serving, usual.serving),
        "training": _difference(settings.training, usual.training),
        "share": settings.share,
    }
    held = [] if baseline is None else [baseline.to_dict(), label]
    data = json.dumps([spec.to_dict(), changed, *held], separators=(",", ":")).encode()
    squeezed = zlib.compressobj(9, wbits=-15)
    return base64.urlsafe_b64encode(squeezed.compress(data) + squeezed.flush()).decode().rstrip("=")


def _difference(plan: Plan, usual: Plan) -> dict[str, Any]:
    standard = usual.model_dump(mode="json")
    return {name: value for name, value in plan.model_dump(mode="json").items() if value != standard[name]}


def unpack(text: str) -> tuple[ArchitectureSpec, Settings, ArchitectureSpec | None, str]:
    """What :func:`pack` was given; raises ``PlannerError`` for anything else."""
    usual = Settings()
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        inflater = zlib.decompressobj(-15)
        data = inflater.decompress(raw, LARGEST_DRAFT_BYTES)
        if inflater.unconsumed_tail or not inflater.eof:
            raise ValueError("cut short, or too large")
        spec, changed, *held = json.loads(data)
        baseline, label = held or (None, "")
        serving = {**usual.serving.model_dump(), **changed["serving"]}
        training = {**usual.training.model_dump(), **changed["training"]}
        share = changed["share"]
        if share not in get_args(Share):
            raise ValueError(f"no bars of {share!r}")
    except (ValueError, zlib.error, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise InvalidSpec.of(
            "The address holds a draft that cannot be read.",
            path="draft",
            remedy="Copy the whole address again, or start from a preset.",
            code="unreadable_draft",
        ) from error
    settings = Settings(parse_plan(ServingPlan, serving), parse_plan(TrainingPlan, training), share)
    return parse_spec(spec), settings, None if baseline is None else parse_spec(baseline), str(label)[:120]


def current(default: ArchitectureSpec) -> Draft:
    """This session's draft: the one in the address where it is new there, else the one being edited."""
    asked = dict(st.query_params)
    draft: Draft | None = st.session_state.get("draft")
    if draft is None or (asked and asked != draft.address and not draft.lags(asked)):
        draft = from_address(asked, default)
        draft.address = asked
        history.restore(draft, asked)
        st.session_state["draft"] = draft
    return draft


def from_address(asked: Mapping[str, str], default: ArchitectureSpec) -> Draft:
    """The draft that an address asks for; what cannot be opened is said in ``notice``, and the default opens."""
    from db.errors import StoreError

    try:
        origin = _origin(asked) if "design" in asked else None
        draft = opened(origin.spec if origin is not None else default, origin)
        if "draft" in asked:
            spec, settings, baseline, label = unpack(asked["draft"])
            if origin is None:
                draft = opened(spec)
            elif spec != draft.spec:
                draft.past = [draft.spec]
                draft.spec = spec
            draft.settings = settings
            if baseline is not None:
                draft.baseline, draft.baseline_label = baseline, label
        return draft
    except (StoreError, PlannerError) as error:
        return replace(opened(default), notice=str(error))


def _origin(asked: Mapping[str, str]) -> Origin:
    from pages.widgets import chrome

    store = chrome.get_store()
    try:
        design_id = int(asked["design"])
        number = int(asked["revision"]) if "revision" in asked else None
    except ValueError as error:
        raise InvalidSpec.of(
            "The address names no design.", path="design", remedy="Open it from Home.", code="unknown_design"
        ) from error
    design = store.designs.get(design_id)
    if number is None or number == design.latest.number:
        revision = design.latest
    else:
        found = [each for each in store.designs.revisions(design_id) if each.number == number]
        if not found:
            raise InvalidSpec.of(
                f"{design.name!r} has no revision {number}.",
                path="revision",
                remedy=f"Its latest is {design.latest.number}.",
                code="unknown_revision",
            )
        revision = found[0]
    spec = parse_spec(dict(revision.spec))
    return Origin(design_id, revision.id, revision.number, spec)


def write_address(draft: Draft) -> None:
    """Put the draft into the address, if it is not there yet, and keep its steps for who comes back to it."""
    query = draft.query()
    history.keep(draft, query)
    if query != draft.address or dict(st.query_params) != query:
        draft.move_to(query)
        st.query_params.from_dict(query)
