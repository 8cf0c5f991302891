"""The one way from updates to a merged one: read, edit, place, solve side by side, give back."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Self, cast, final

import torch
from torch import Tensor

from riemerge.errors import AdapterError, NumericalError, RiemergeError
from riemerge.frechet.status import Status
from riemerge.linalg import SVD
from riemerge.methods.edits import Edit, parse_edit
from riemerge.methods.geometries import FORMULA, GEOMETRIES
from riemerge.methods.geometries.geometry import Geometry, Placed, Solved, Steps, spread
from riemerge.methods.method import SUMS, Domain, Method
from riemerge.methods.modules import Edited, Module, open_module
from riemerge.methods.reduced import Group, Member, open_side_by_side
from riemerge.methods.setting import Answer, FlatEdit, Look, Mean, Setting, Stream, Survey, Together
from riemerge.methods.stack import Evidence, Merged, Options, Stack, resolve
from riemerge.methods.table import PARAMETERS
from riemerge.methods.threads import in_order
from riemerge.progress import Progress
from riemerge.updates import BlockMap, Blocks, Cores, LowRankUpdate
from riemerge.updates.reduction import Kind

if TYPE_CHECKING:
    from riemerge.frechet import Problem
    from riemerge.methods.batches import Task

# Numbers of factors that are reduced together, on a GPU more, which waits for each batch; and the most
# modules. None of it depends on the threads: the bits of a batch may.
_TOGETHER = {"cpu": 2**22}
_ON_DEVICE = 2**27
_MOST = 64

# Domains whose rows see what modules of one kind are reduced to together.
_REDUCED = frozenset({"weights", "gram", "span", "cores", "factors"})

# Numbers that modules may keep while they wait to be solved side by side: 128 MiB of float64.
_WINDOW = 2**24


@final
@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table with its functions found: edits of all updates of a module, then their mean.

    Attributes:
        method: The row.
        edits: The edits, in order.
        formula: The formula of the mean; empty where it is that of the geometry.
        survey: What looks at all modules first; empty where nothing does.
        look: What looks at all rows of a module before the formula merges runs of them; empty for nothing.
        edits_by_rows: Whether runs of rows may be edited apart.
        surveys_edits: Whether the survey is that of an edit, which sees the updates before it.
        together: The formula for modules side by side; empty where it sees one at a time.
    """

    method: Method
    edits: tuple[FlatEdit, ...] = ()
    formula: Mean | Literal[""] = ""
    survey: Survey | Literal[""] = ""
    look: Look | Literal[""] = ""
    edits_by_rows: bool = True
    surveys_edits: bool = False
    together: Together | Literal[""] = ""

    @classmethod
    def of(cls, method: Method) -> Self:
        """Find the functions that a row names."""
        named = [parse_edit(text) for text in method.edits]
        return cls(
            method,
            tuple(partial(_edit, edit, given) for edit, given in named),
            method.mean and resolve(method.mean),
            method.survey and resolve(method.survey),
            method.look and resolve(method.look),
            all(edit.by_rows or edit.look for edit, _ in named),
            method.survey in {edit.survey for edit, _ in named},
            method.together and resolve(method.together),
        )

    def geometry(self, values: Mapping[str, Any]) -> Geometry:
        """Return the row's geometry where the parameters have these values."""
        return GEOMETRIES.make(fill(self.method.geometry, values))

    def domain(self, values: Mapping[str, Any]) -> Domain:
        """Return what the row sees of a module."""
        if self.formula or self.method.geometry == FORMULA:
            return self.method.domain
        if self.method.loss == "square":
            return self.geometry(values).closed_domain
        return self.geometry(values).domain

    def read_domain(self, values: Mapping[str, Any]) -> Domain:
        """Return what the row's edits see of a module."""
        if self.edits:
            return "entries"
        return self.domain(values)

    def by_rows(self, values: Mapping[str, Any]) -> bool:
        """Return whether the row can merge the dense updates of a module a run of rows at a time."""
        if not self.edits_by_rows:
            return False
        if self.domain(values) in SUMS:
            return True
        if self.formula or self.method.geometry == FORMULA:
            return self.domain(values) == "entries" and (self.method.by_rows or bool(self.look))
        return self._merges_blocks(values)

    def edited_domain(self, values: Mapping[str, Any]) -> Domain:
        """Return what the mean sees of edited updates: themselves where runs of rows are merged apart."""
        return "entries" if self._merges_blocks(values) else self.domain(values)

    def edit(self, there: Module, values: Mapping[str, Any]) -> tuple[Module, Any]:
        """Edit the updates of a module, and return it with what the mean sees of it."""
        x = there.x
        for edit in self.edits:
            x = edit(x, there.setting)
        if not self.edits or (self.formula and self.domain(values) == "entries"):
            return there, x
        domain = self.edited_domain(values) if isinstance(x, Blocks) else self.domain(values)
        edited = Edited(there.setting, domain, there, x)
        return edited, edited.x

    def _merges_blocks(self, values: Mapping[str, Any]) -> bool:
        return not self.formula and self.method.loss == "square" and self.geometry(values).by_rows

    def mean(self, x: Any, setting: Setting) -> Steps:
        """Say what to solve for the mean of edited updates: nothing where it has a closed form."""
        found: Tensor | SVD | Blocks | Answer | None = None
        if isinstance(x, Blocks) and self.look:
            found = x.change(self.look(x.stream, setting))
        elif isinstance(x, Blocks):
            found = x.each(self._merge_block(setting))
        elif self.formula:
            found = self.formula(x, setting)
        else:
            geometry = self.geometry(setting.values)
            if self.method.loss == "square":
                found = geometry.closed_mean(x, setting)
            if found is None:
                return (yield from geometry.mean(x, setting))
        if not isinstance(found, Answer):
            found = Answer(cast("Tensor", found), Status.EXACT)
        if not isinstance(x, Blocks):
            _check_shape(found.value, _shape_of_answer(x, self.domain(setting.values)))
        known = found.status, found.advice, found.cost, found.gradient_norm
        return Solved(found.value, Evidence(*known, passes=found.passes))

    def _merge_block(self, setting: Setting) -> BlockMap:
        """Return what takes the mean of a run of rows."""
        if self.formula:
            formula = self.formula
            return lambda block: cast("Tensor", formula(block, setting))
        geometry = self.geometry(setting.values)

        def merge(block: Tensor) -> Tensor:
            found = cast("Tensor", geometry.closed_mean(block, setting))
            if geometry.domain == "gram":
                found = torch.tensordot(found, block, dims=1)
            return found

        return merge

    @property
    def solver(self) -> str:
        """The solver, unless a recipe has one."""
        name, _, _ = self.method.solver.partition(":")
        return {"closed_form": "lbfgs"}.get(name, self.method.solver)

    def task(self, placed: Placed, setting: Setting) -> Task:
        """Return the problem that a geometry placed, under the row's loss."""
        from riemerge.methods.batches import Task  # brings the solvers, which no closed form needs

        weights = placed.weights
        if weights is None:
            weights = setting.weights
        return Task(placed, weights, fill(self.method.loss, setting.values), setting.starts)

    def run_survey(self, stream: Stream) -> Mapping[str, Any]:
        """Return what the row's survey finds; a fault of it is told with the module that it was at."""
        assert self.survey
        module = ""

        def watch() -> Iterator[tuple[Tensor | Blocks, Setting]]:
            nonlocal module
            for x, setting in stream():
                module = setting.module
                yield x, setting

        try:
            return self.survey(watch)
        except NumericalError as fault:
            raise NumericalError([f"{module}: {problem}" for problem in fault.problems]) from None


def _edit(edit: Edit, given: Mapping[str, Any], x: Any, setting: Setting) -> Any:
    """Edit updates under the parameters that the row's text gives the edit, which each model has alike."""
    if given:
        values = dict(setting.values)
        for name, value in given.items():
            values[name] = value
            if PARAMETERS[name].per_model:
                values[name] = torch.full_like(setting.weights, value)
        setting = replace(setting, values=values, rank=given.get("rank", setting.rank))
    function = resolve(edit.function)
    if not isinstance(x, Blocks):
        return function(x, setting)
    if edit.look:
        return x.change(resolve(edit.look)(x.stream, setting))
    return x.each(lambda block: function(block, setting))


def _shape_of_answer(x: Any, domain: Domain) -> tuple[int, ...]:
    """Return the shape of the answer about T updates that a row of a domain sees."""
    if domain in SUMS:
        return (len(x),)
    if isinstance(x, Tensor):
        return tuple(x.shape[1:])
    shape: tuple[int, int] = x.shape if isinstance(x, Cores) else x[0].shape
    return shape


def _check_shape(value: Any, expected: tuple[int, ...]) -> None:
    """Refuse the answer of a row, a tensor or a decomposed one, where it has another shape."""
    found: Any = tuple(value.shape) if hasattr(value, "shape") else type(value).__name__
    if isinstance(value, SVD):
        left, middle, right = (tuple(part.shape) for part in value)
        found = left, middle, right
        if left[-1:] == middle[-1:] == right[-1:]:
            found = (*left[:-1], *right[-2:-1])
    if found != expected:
        raise NumericalError(f"the row answers with {found}; expected a tensor of the shape {expected}")


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Return a column of a row with the values of the parameters that it names.

    >>> fill("huber:delta={delta}", {"delta": 2.0})
    'huber:delta=2.0'
    """
    return text.format_map(
        {name: str(value).lower() if isinstance(value, bool) else value for name, value in values.items()}
    )


def _weighted_mean(x: Tensor, setting: Setting) -> Tensor:
    """Return the weighted mean of T tensors, for what a row does not see."""
    total = setting.weights.sum()
    if total == 0:
        raise NumericalError("the weights add up to 0, and this tensor gets the weighted mean: choose others")
    mean: Tensor = torch.tensordot((setting.weights / total).to(x), x, dims=1)
    return mean


_PLAIN = Row(Method("", "", "", domain="entries", by_rows=True), formula=_weighted_mean)


@final
@dataclass
class _Begun:
    """A module on its way: merged, waiting for the solution of what it placed, or refused."""

    module: Module | None = None
    steps: Steps | None = None
    placed: Placed | None = None
    value: Any = None
    evidence: Evidence = field(default_factory=lambda: Evidence(Status.EXACT))
    merged: Merged | None = None
    fault: RiemergeError | None = None
    passes: int = 0
    seconds: float = 0.0

    @property
    def width(self) -> int:
        """How many numbers it keeps while it waits."""
        if self.module is None or self.placed is None:
            return 0
        return 3 * self.placed.points.numel() + self.module.width

    def begin(self, row: Row) -> None:
        """Take the first step of the mean of a module that was read."""
        assert self.module is not None
        try:
            self.steps = row.mean(self.module.x, self.module.setting)
            self.advance(None)
        except (NumericalError, AdapterError) as fault:
            self.fault = fault

    def advance(self, solved: Solved | None) -> Self:
        """Take the next step, from the solution of the last."""
        assert self.steps is not None
        if solved is not None:
            self.passes += solved.evidence.passes
            self.seconds += solved.evidence.seconds
        began = perf_counter()
        self.placed = None
        try:
            self.placed = self.steps.send(cast("Solved", solved))  # None starts a generator
        except StopIteration as end:
            self.finish(*end.value)
        except (NumericalError, AdapterError) as fault:
            self.fault = fault
        self.seconds += perf_counter() - began
        return self

    def task(self, row: Row) -> Task:
        """Return what is to be solved next."""
        assert self.placed is not None
        assert self.module is not None
        return row.task(self.placed, self.module.setting)

    def finish(self, value: Any, evidence: Evidence) -> None:
        """Keep the merged update, if it is one."""
        self.value = value
        self.evidence = replace(evidence, passes=evidence.passes or self.passes)
        tensors: tuple[Tensor, ...] = (value,)
        if isinstance(self.module, Member) and not isinstance(value, LowRankUpdate):
            return  # seen with the others of its kind
        if isinstance(value, LowRankUpdate):
            tensors = (value.A, value.B)
        elif isinstance(value, SVD):
            tensors = value
        elif isinstance(value, Blocks):
            tensors = ()  # seen when it is measured
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            text = "the merged update is not finite: the inputs are too large for this method"
            self.fault = NumericalError(text)

    def give_back(self, options: Options, count: int) -> Merged:
        """Give the merged update its width."""
        if self.merged is not None:
            return self.merged
        assert self.module is not None
        return self.module.give_back(self.value, options, self.know(count))

    def know(self, count: int) -> Evidence:
        """Return what is known of the mean, about all of T inputs."""
        assert self.module is not None
        places = self.module.setting.places
        evidence = replace(spread(self.evidence, places, count), seconds=self.seconds)
        if evidence.numerical_ranks is not None:
            ranks = dict(zip(places, evidence.numerical_ranks, strict=True))
            evidence = replace(evidence, numerical_ranks=tuple(ranks.get(i, 0) for i in range(count)))
        return evidence


def merge_modules(method: Method, stack: Stack, options: Options) -> Iterator[tuple[str, Merged]]:
    """Return the row's mean of each module, cut to `options.rank` (the inputs' largest if None).

    Law: what is cut is the nearest update of that rank to the row's exact mean in the Frobenius norm, and the
    share of the squared norm that it kept is recorded. A module's updates of weight 0 are left out of it.
    Rows of all domains but `entries` never form a dense dW of factors; those of `entries` hold the dense
    result of one module on each thread, and all T inputs where runs of rows cannot be merged apart. Dense
    updates are merged as they are, whatever the domain, and not
    cut; those that the row does not see (`Stack.plain`) get the weighted mean. Modules whose mean is to be
    solved wait for each other, as many as `_WINDOW` holds, and those of one kind are solved side by side.

    Raises:
        NumericalError: The row has no answer for some modules: all of them are named, of a survey the first.
        AdapterError: The updates of some modules do not fit each other in the row's geometry.
    """
    run = _Run(Row.of(method), stack, options, len(stack.modules))
    window: dict[str, _Begun] = {}
    for read, (name, begun) in enumerate(run.begin_all(), 1):
        window[name] = begun
        waiting = [one for one in window.values() if one.placed]
        if waiting:
            run.report("read", read)
        if not waiting or read == len(stack.modules) or sum(one.width for one in window.values()) >= _WINDOW:
            yield from run.finish(window)
            window = {}
    run.refuse()


def pose_modules(method: Method, stack: Stack, options: Options) -> list[tuple[tuple[str, ...], Problem]]:
    """Return the Fréchet problems that the row solves first, each with the names of its K modules.

    Law: modules of one kind are one problem; a module whose mean is a closed form has none.

    Raises:
        NumericalError: What `merge_modules` raises before it solves, and so does AdapterError.
    """
    from riemerge.methods.batches import pose

    run = _Run(Row.of(method), stack, options, len(stack.modules))
    window = dict(run.begin_all())
    run.note(window)
    run.refuse()
    tasks = {name: one.task(run.row) for name, one in window.items() if one.placed}
    names = list(tasks)
    return [(tuple(names[i] for i in places), problem) for places, problem in pose([*tasks.values()])]


def _see(row: Row, stack: Stack, options: Options, name: str) -> tuple[Tensor | Blocks, Setting]:
    """Return what a survey sees of a module."""
    kind, domain = _kind(row, stack, name)
    if kind is not None:
        light = replace(options, overlaps=None, starts=None)
        groups, faults = open_side_by_side(row.method, domain, stack, light, [name], {})
        for fault in faults.values():
            raise fault
        there: Module = groups[0].members[0]
    else:
        values = stack.values(name)
        there = open_module(row.method, domain, stack, options, name, by_rows=row.by_rows(values))
        if not row.surveys_edits:
            _, x = row.edit(there, values)
            return x, there.setting
    return there.x, there.setting


def _kind(row: Row, stack: Stack, name: str) -> tuple[Kind | None, Domain]:
    """Return what a module has in common with those that it is reduced with, and what the row sees of it; no
    kind where each is read by itself.
    """
    domain = row.read_domain(stack.values(name))
    if name in stack.plain or domain not in _REDUCED:
        return None, domain
    if stack.kinds is not None:
        return stack.kinds(name), domain
    updates = stack.modules[name]
    if not isinstance(updates, tuple):
        return None, domain
    return Kind.of(updates), domain


@final
class _Run:
    """One merge by a row: what its modules have in common."""

    def __init__(self, row: Row, stack: Stack, options: Options, total: int) -> None:
        self.row = row
        self._stack = stack
        self._options = options
        self._total = total
        self._done = 0
        self._faults: dict[type[RiemergeError], list[tuple[str, str]]] = defaultdict(list)

    def begin_all(self) -> Iterator[tuple[str, _Begun]]:
        """Begin all modules, after the row's survey: those of one kind after each other."""
        row, stack, options, names = self.row, self._stack, self._options, sorted(self._stack.modules)
        facts: Mapping[str, Any] = {}
        if row.survey:
            seen = [name for name in names if name not in stack.plain]
            facts = row.run_survey(lambda: (_see(row, stack, options, name) for name in seen))
        begun = in_order(partial(self.begin_batch, facts), self._batches(names), options.threads)
        return itertools.chain.from_iterable(begun)

    def _batches(self, names: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield names of modules that are reduced together, in the order of the first of each."""
        kinds: dict[tuple[Kind | None, Domain], list[str]] = defaultdict(list)
        for name in names:
            kinds[_kind(self.row, self._stack, name)].append(name)
        batches = []
        for (kind, _), several in kinds.items():
            count = 1
            if kind is not None:
                numbers = _TOGETHER.get(kind.device, _ON_DEVICE) // kind.numbers
                count = min(max(1, numbers), _MOST)
            batches += [several[i : i + count] for i in range(0, len(several), count)]
        yield from sorted(batches)

    def begin_batch(self, facts: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, _Begun]]:
        """Read the modules of a batch, and merge them where their means have closed forms."""
        kind, domain = _kind(self.row, self._stack, names[0])
        if kind is None:
            return [(name, self.begin(facts, name)) for name in names]
        begun = {name: _Begun() for name in names}
        groups, faults = open_side_by_side(self.row.method, domain, self._stack, self._options, names, facts)
        for name, fault in faults.items():
            begun[name].fault = fault
        for group in groups:
            self._begin_group(group, [begun[name] for name in group.names])
        return list(begun.items())

    def _begin_group(self, group: Group, each: Sequence[_Begun]) -> None:
        """Merge the modules of a group where their means have closed forms."""
        began = perf_counter()
        for member, one in zip(group.members, each, strict=True):
            one.module = member
        values = self._merge_together(group, each)
        if values is None:
            for one in each:
                one.begin(self.row)
        seconds = (perf_counter() - began) / len(each)
        for one in each:
            one.seconds = seconds
        closed = [one for one in each if one.placed is None and one.fault is None]
        self._give_back(closed, values)
        group.lighten()

    def _merge_together(self, group: Group, each: Sequence[_Begun]) -> Tensor | SVD | None:
        """Return the means of all modules of a group, where the row has a formula for that."""
        values: Tensor | SVD | None = None
        if self.row.together:
            # A module without an answer says nothing of the others: each is asked by itself.
            with suppress(NumericalError):
                values = self.row.together(group.cores, group.settings)
        try:
            if values is not None:
                _check_shape(values, (len(each), *group.cores.shape))
        except NumericalError as fault:
            for one in each:
                one.fault = fault
        return values

    def _give_back(self, each: Sequence[_Begun], values: Tensor | SVD | None = None) -> None:
        """Give the merged updates of some modules of one group their width.

        Args:
            each: Modules whose means are known.
            values: The means, side by side, where they are not with the modules.
        """
        if not each:
            return
        members = [cast("Member", one.module) for one in each]
        count = len(self._stack.names)
        answers: Sequence[Any] | Tensor = [one.value for one in each]
        if values is not None:
            answers = values
        merged = members[0].group.give_back(
            [member.place for member in members], answers, [one.know(count) for one in each]
        )
        for one, found in zip(each, merged, strict=True):
            one.module = one.value = one.steps = None
            if isinstance(found, NumericalError):
                one.fault = found
            else:
                one.merged = found

    def begin(self, facts: Mapping[str, Any], name: str) -> _Begun:
        """Read and edit a module, and merge it where its mean has a closed form."""
        stack, options = self._stack, self._options
        row = _PLAIN if name in stack.plain else self.row
        values = stack.values(name)
        begun = _Begun()
        try:
            domain, by_rows = row.read_domain(values), row.by_rows(values)
            there = open_module(row.method, domain, stack, options, name, by_rows=by_rows, facts=facts)
            began = perf_counter()
            there, x = row.edit(there, values)
            begun.module, begun.steps = there, row.mean(x, there.setting)
            begun.seconds = perf_counter() - began
            begun.advance(None)
            if begun.placed:
                begun.module = there
            elif begun.fault is None:
                begun.merged = begun.give_back(options, len(stack.names))
                if options.later and not there.light:
                    now = _Run(row, stack, replace(options, later=False), 1)
                    lift = lambda: now.begin(facts, name).give_back(options, 0).update  # noqa: E731
                    begun.merged = replace(begun.merged, lift=lift)
                begun.module = begun.value = None
        except (NumericalError, AdapterError) as fault:
            begun.fault = fault
        return begun

    def finish(self, window: Mapping[str, _Begun]) -> Iterator[tuple[str, Merged]]:
        """Solve what the modules of a window placed, step by step, and yield them merged."""
        self.note(window)
        if any(one.placed for one in window.values()):
            self._solve(window)
        if self._faults:
            return
        give_back = partial(_Begun.give_back, options=self._options, count=len(self._stack.names))
        together: dict[Any, list[_Begun]] = defaultdict(list)
        for waiting in window.values():
            if isinstance(waiting.module, Member):
                together[waiting.module.group].append(waiting)
        deque(in_order(self._give_back, together.values(), self._options.threads), maxlen=0)
        self.note(window)
        if self._faults:
            return
        each = in_order(give_back, window.values(), self._options.threads)
        for name, merged in zip(window, each, strict=True):
            self._done += 1
            self.report("merge", self._done)
            yield name, merged

    def _solve(self, window: Mapping[str, _Begun]) -> None:
        """Solve what the modules of a window placed, step by step."""
        from riemerge.methods.batches import solve  # brings the solvers, which no closed form needs

        while not self._faults and (waiting := [one for one in window.values() if one.placed]):
            tasks = [one.task(self.row) for one in waiting]
            done = self._done + len(window) - len(waiting)
            solved = solve(tasks, self.row.solver, self._options, done=done, total=self._total)
            deque(in_order(_advance, zip(waiting, solved, strict=True), self._options.threads), maxlen=0)
            self.note(window)

    def report(self, stage: str, done: int) -> None:
        """Tell how many modules are through a stage."""
        if self._options.progress is not None:
            self._options.progress(Progress(stage, done, self._total, self.row.method.name))

    def refuse(self) -> None:
        """Refuse what cannot be merged, all of it at once."""
        for kind in (NumericalError, AdapterError):
            kind.refuse(problem for _, problem in sorted(self._faults[kind], key=lambda one: one[0]))

    def note(self, window: Mapping[str, _Begun]) -> None:
        """Take note of the modules that are refused."""
        for name, one in window.items():
            if one.fault is not None:
                # What a file lacks is told with the file and the module already.
                self._faults[type(one.fault)] += [
                    (name, problem if f"{name}: " in problem else f"{name}: {problem}")
                    for problem in one.fault.problems
                ]
                one.fault = None


def _advance(pair: tuple[_Begun, Solved]) -> _Begun:
    return pair[0].advance(pair[1])
