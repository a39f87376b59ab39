"""From a plan to its jobs: finds the operations, writes their op models into the cache, and names the jobs.

The same plan with the same files always gives the same jobs with the same ids, so a run can be resumed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.jobs import Job, in_blocks, make_job
from harness.plan import Plan
from op_models import arrange, elp_nas, feeds, generate, graph, lift, locality, signs, standing
from op_models.arrange import Arrangement, CacheSizes
from op_models.artifact import ArtifactCache
from op_models.counts import macs
from op_models.errors import NotLiftableError, UnsupportedModelError
from op_models.graph import Graph, Group
from op_models.spaces.registry import SPACES

# Rough speed for the first guess of an operation's time; only loop lengths and the time estimate depend on it.
_GUESS_MACS_PER_US = 30_000.0
_GUESS_BYTES_PER_US = 15_000.0
_OVERHEAD_BYTES = 60_000
_FEED_INSTANCES = 4  # places of a network whose data feeds one operation
_LEAST_ROOM = 8  # steps of the grid on either side of zero that it takes to have both signs


@dataclass
class Expansion:
    """The jobs of a plan, and what cannot be measured with the reason."""

    jobs: list[Job] = field(default_factory=list)
    unliftable: dict[str, str] = field(default_factory=dict)
    feeds: dict[str, Path] = field(default_factory=dict)
    unfed: dict[str, str] = field(default_factory=dict)
    """Operations whose time depends on their data and that had to be fed with noise, with the reason."""

    @property
    def keys(self) -> set[str]:
        """Keys of the operations that are measured."""
        return {job.key for job in self.jobs if job.role == "operation" and job.key is not None}


@dataclass(frozen=True, slots=True)
class Source:
    """A network whose operations are lifted, and the keys to take from it (None: all)."""

    graph: Graph
    keys: frozenset[str] | None = None
    footprint_bytes: int | None = None
    """Footprint of the largest network that the operations are meant for (None: any)."""


def expand(
    plan: Plan, cache: ArtifactCache, caches: CacheSizes, *, progress: Callable[[str], None] = lambda _: None
) -> Expansion:
    """Jobs of a plan, in blocks, with their op models in the cache.

    Raises :class:`~op_models.errors.OpModelError` where a model file cannot be read at all.
    """
    expansion = Expansion()
    maker = _Maker(plan, cache, caches, expansion)
    maker.standing()
    for source in sources(plan):
        progress(f"operations of {source.graph.name}")
        maker.operations(source)
    if plan.operations.elp_nas:
        maker.elp_nas()
    for path in plan.networks.models:
        maker.network(path)
    expansion.jobs = in_blocks(
        list({job.job_id: job for job in expansion.jobs}.values()),
        most_models=plan.measure.block_models,
        most_bytes=plan.measure.block_bytes,
    )
    return expansion


def sources(plan: Plan) -> Iterator[Source]:
    """The networks that a plan's operations are lifted from."""
    for path in plan.operations.models:
        network = graph.read(path)
        yield Source(network, footprint_bytes=locality.graph_footprint_bytes(network))
    for name in plan.operations.spaces:
        for precision in plan.operations.precision:
            for i, data in enumerate(SPACES[name].covering(precision)):
                yield Source(graph.parse(data, f"{name}-{precision}-{i}"))
    for key in plan.operations.keys:
        yield Source(graph.parse(generate.network(key), key[:60]), frozenset([key]))


def memory_bytes(group: Group, arrangement: Arrangement, model_bytes: int) -> int:
    """Rough memory of a loaded op model: packed weights of every copy, inputs and outputs that stay, the file."""
    spec = group.spec
    inputs = arrange.activation_bytes(spec.activations) * arrangement.input_sets
    stay = 2 if arrangement.layout == "chain" else arrangement.tap_after or arrangement.copies
    outputs = arrange.activation_bytes(spec.outputs) * stay
    return _OVERHEAD_BYTES + model_bytes + inputs + outputs + arrange.weight_bytes(spec) * arrangement.copies


@contextmanager
def _damage_told(name: str, group: Group) -> Iterator[None]:
    """An operation whose tensors do not fit its kind (a damaged file) cannot be arranged; the others can."""
    try:
        yield
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        reason = f"its tensors do not fit it ({error})"
        raise NotLiftableError(name, reason, [step.op for step in group.spec.steps]) from error


class _Maker:
    def __init__(self, plan: Plan, cache: ArtifactCache, caches: CacheSizes, expansion: Expansion) -> None:
        self.plan, self.cache, self.caches, self.expansion = plan, cache, caches, expansion
        self.done: set[tuple[str, arrange.Context]] = set()

    def _job(self, data: bytes, **facts: object) -> None:
        common: dict[str, object] = {
            "model_sha256": self.cache.put(data),
            "model_bytes": len(data),
            "memory_bytes": len(data) + _OVERHEAD_BYTES,
            "delegate": self.plan.runtime.delegate,
            "threads": self.plan.runtime.threads,
            "seed": self.plan.measure.seed,
        }
        self.expansion.jobs.append(make_job(**(common | facts)))

    def standing(self) -> None:
        self._job(standing.empty_model(), role="empty", name="empty")
        self._job(standing.reference_model(), role="reference", name="reference")

    def network(self, path: Path) -> None:
        data = graph.read(path).data
        self._job(data, role="network", name=str(path), memory_bytes=4 * len(data) + (64 << 20))

    def operations(self, source: Source) -> None:
        wanted: dict[str, tuple[Group, list[arrange.Context]]] = {}
        for group in graph.groups(source.graph):
            key = group.spec.key
            if key not in wanted and (source.keys is None or key in source.keys):
                # An earlier, smaller network may have left out a context that this one needs.
                contexts = [context for context in self._contexts(group, source) if (key, context) not in self.done]
                if contexts:
                    wanted[key] = group, contexts
        if not wanted:
            return
        lifter = lift.Lifter(source.graph)
        self._branching(lifter, {key for key, (group, _) in wanted.items() if feeds.branching(group.spec)})
        real = self._feeds(source.graph, wanted)
        for key, (group, contexts) in wanted.items():
            if feeds.branching(group.spec):
                continue
            for context in contexts:
                self.done.add((key, context))
                try:
                    with _damage_told(source.graph.name, group):
                        self._operation(lifter, group, context, real.get(key))
                except NotLiftableError as error:
                    self.expansion.unliftable[key] = error.reason

    def _contexts(self, group: Group, source: Source) -> Sequence[arrange.Context]:
        if feeds.branching(group.spec):
            return ("cold",)  # what its branches cost is the same everywhere
        try:
            with _damage_told(source.graph.name, group):
                contexts = arrange.contexts(group.spec, self.caches, footprint_bytes=source.footprint_bytes)
        except NotLiftableError as error:
            self.expansion.unliftable[group.spec.key] = error.reason
            return ()
        # An operation that has none of the contexts asked for is measured in the one that it has.
        return [context for context in contexts if context in self.plan.operations.contexts] or contexts[:1]

    def _operation(self, lifter: lift.Lifter, group: Group, context: arrange.Context, feed: str | None) -> None:
        spec = group.spec
        expected_us = 0.3 + macs(spec) / _GUESS_MACS_PER_US + arrange.copy_bytes(spec) / _GUESS_BYTES_PER_US
        arranged = arrange.arrange(spec, context, self.caches, expected_us=expected_us)
        self._op_models(lifter, group, arranged, spec.key, feed)

    def _op_models(self, lifter: lift.Lifter, group: Group, arranged: arrange.Arrangements, key: str, feed: str | None) -> None:
        for model in self._with_weights(arranged.models):
            data = lifter.op_model(group, model)
            self._job(
                data,
                role="operation",
                name=f"{group.spec.name} {model.name}",
                key=key,
                context=model.context,
                copies=model.copies,
                why=arranged.why,
                memory_bytes=memory_bytes(group, model, len(data)),
                feed_sha256=feed,
            )

    def _branching(self, lifter: lift.Lifter, keys: Container[str]) -> None:
        """Quantised operators that branch on signs: on data like that of the network, of one sign, and evenly mixed."""
        network = lifter.graph
        found: dict[str, list[Group]] = {}
        for group in graph.groups(network):
            if group.spec.key in keys:
                found.setdefault(group.spec.key, []).append(group)
        if not found:
            return
        chosen = {key: groups[:_FEED_INSTANCES] for key, groups in found.items()}
        read: dict[str, list[feeds.Array]] = {}
        seed = self.plan.measure.seed
        try:
            flat = [group for groups in chosen.values() for group in groups]
            for group, arrays in zip(flat, feeds.group_inputs(network, flat, seed=seed), strict=True):
                read.setdefault(group.spec.key, []).append(arrays[0])
        except UnsupportedModelError as error:
            self.expansion.unfed.update(dict.fromkeys(found, error.reason))
        for key, groups in found.items():
            self.done.add((key, "cold"))
            group = max(groups, key=lambda group: signs.room(network, group))
            try:
                with _damage_told(network.name, group):
                    self._signed(lifter, group, read.get(key, ()))
            except NotLiftableError as error:
                self.expansion.unliftable[key] = error.reason

    def _signed(self, lifter: lift.Lifter, group: Group, read: Sequence[feeds.Array]) -> None:
        key, tensor, seed = group.spec.key, group.spec.activations[0], self.plan.measure.seed
        arranged = arrange.fresh(group.spec, feeds.FRESH_ELEMENTS)
        copies, zero = arranged.models[0].copies, signs.zero_point(lifter.graph, group)
        data = {
            feeds.variant(key, name): feeds.signed(tensor.shape, tensor.dtype, zero, name, copies, seed) for name in feeds.SIGNS
        }
        own = feeds.resampled(read, copies, seed) if read else data[feeds.variant(key, "even")]
        if signs.room(lifter.graph, group) < _LEAST_ROOM:
            data.clear()  # on this grid there is one sign alone
        for name, instances in {key: own, **data}.items():
            feed = self.cache.put(feeds.pack([(instance,) for instance in instances]))
            self.expansion.feeds[feed] = self.cache.path(feed)
            self._op_models(lifter, group, arranged, name, feed)

    def _with_weights(self, models: Sequence[arrange.Arrangement]) -> list[arrange.Arrangement]:
        """LiteRT's own kernels read weights where they lie in the file: there, only weights of a copy's own are cold."""
        own = self.plan.runtime.delegate == "none"
        return [replace(model, own_weights=own and model.context != "hot") for model in models]

    def _feeds(self, network: Graph, keys: Container[str]) -> Mapping[str, str]:
        """Real input data for operations whose time depends on the data: hash of the packed arrays by key."""
        delegate = self.plan.runtime.delegate
        needing: dict[str, list[Group]] = {}
        for group in graph.groups(network):
            wanted = group.spec.key in keys and not feeds.branching(group.spec)
            if wanted and feeds.needs_real_data(group.spec, delegate):
                needing.setdefault(group.spec.key, []).append(group)
        chosen = [(key, group) for key, found in needing.items() for group in found[:_FEED_INSTANCES]]
        if not chosen:
            return {}
        try:
            read = feeds.group_inputs(network, [group for _, group in chosen], seed=self.plan.measure.seed)
        except UnsupportedModelError as error:
            self.expansion.unfed.update(dict.fromkeys(needing, error.reason))
            return {}
        made: dict[str, str] = {}
        for key in needing:
            packed = feeds.pack([data for (name, _), data in zip(chosen, read, strict=True) if name == key])
            made[key] = self.cache.put(packed)
            self.expansion.feeds[made[key]] = self.cache.path(made[key])
        return made

    def elp_nas(self) -> None:
        for operation in elp_nas.OPERATIONS:
            for copies in elp_nas.COPIES:
                data = operation.chain(copies)
                published = copies == max(elp_nas.COPIES)
                self._job(
                    data,
                    role="elp-nas",
                    name=operation.name,
                    copies=copies,
                    memory_bytes=6 * len(data) + (8 << 20),
                    invokes=-(-elp_nas.RUNS // self.plan.measure.rounds_min) if published else None,
                )
