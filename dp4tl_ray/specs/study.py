"""A study: one YAML, one sweep. The plural keys are the axes, crossed; nothing else is a grid."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from dp4tl_ray.specs.base import Axis, Count, Natural, Spec, Whole
from dp4tl_ray.specs.data import ImageFolder, Source, Target, channels
from dp4tl_ray.specs.method import Method, contradiction
from dp4tl_ray.specs.network import VisionTransformer
from dp4tl_ray.specs.pretraining import Pretraining, RawPixels, Supervised, Surrogate, Untrained
from dp4tl_ray.specs.training import Recipe
from dp4tl_ray.specs.transfer import LinearProbe, Transfer
from dp4tl_ray.specs.unit_methods import Counterfactual

PruningRatio = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31), Whole]
SEARCH_SEEDS = 3
"""Fewest seeds that a verdict on a loss takes."""


class Runtime(Spec):
    """Where and how wide to run; never part of a result's identity."""

    pretrain_workers: Count = 1
    """Data-parallel workers of one pretraining."""
    min_workers: Count | None = None
    """Fewest workers that a pretraining goes on with when nodes leave; null waits for all."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """ddp keeps the whole network on every worker; fsdp2 shards weights, gradients and optimizer
    state over them, for networks that do not fit."""
    microbatch: Count | None = None
    """Examples of a worker's share per forward pass, a multiple of batch_norm.group_size; gradients
    accumulate. null takes the share at once."""
    compile: bool = False
    """torch.compile the network; needs a C++ compiler on CPU."""
    lanes: Count | None = None
    """Pretrainings at a time; null starts as many lanes as the cluster holds."""
    single_lanes: Natural | None = None
    """One-worker lanes beside them, for steps that no workers share; null takes what
    pretrain_workers leaves over."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU per worker where the cluster has them."""
    threads_per_worker: Count = 1
    """CPU threads of one worker, reserved in Ray."""
    worker_resources: dict[str, Annotated[float, Field(gt=0, le=1e15)]] = Field(default={})
    """Ray resources that a worker reserves beyond its threads and its GPU, such as {memory: 4e9}
    or a label of yours that only some nodes carry."""
    max_failures: Natural = 1
    """Times that a step whose worker died is tried again, from its last epoch."""
    max_preemptions: Natural = 20
    """Times that a step whose node went away is tried again; counted apart from failures."""


class Wandb(Spec):
    """Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "disabled"
    """offline writes runs to the store, to be sent later with `wandb sync`."""
    project: Annotated[str, Field(min_length=1)] = "dp4tl_ray"
    """Project of the runs; the study is their group."""
    entity: str | None = None
    """User or team that owns the project; null is the account's default."""


class Tracking(Spec):
    """Where results are mirrored; results.jsonl stays the truth. Never part of an identity."""

    wandb: Wandb = Wandb()
    """Weights & Biases."""


class Report(Spec):
    """How results are judged."""

    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Loss of accuracy that still counts as none, as a fraction (0.01 is one point)."""


class Study(Spec):
    """One sweep: source and surrogate, the axes to cross, and where to run."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9][a-z0-9_]{0,63}$",
            # to some readers of the schema, $ allows a newline at the end
            json_schema_extra={"not": {"pattern": r"\n"}},
        ),
    ]
    """Lower-case letters, digits and underscores; results appear under it."""
    source: Source
    """Dataset to prune."""
    surrogate: Surrogate = Surrogate()
    """Small model trained on the whole source, used only to score."""
    targets: Axis[Target]
    """Axis: datasets to transfer to."""
    methods: Axis[Method]
    """Axis: pruning methods."""
    pruning_ratios: Axis[PruningRatio]
    """Axis: share of the source examples removed; 0 is the whole source, shared by all methods."""
    pretraining: Axis[Pretraining]
    """Axis: pretraining recipes; `none` and `raw_pixels` add the floors."""
    adversarial: Axis[Literal["none"]] = ("none",)
    """Axis: adversarial variants of the pretraining."""
    transfers: Axis[Transfer] = (LinearProbe(),)
    """Axis: transfer protocols."""
    seeds: Axis[Seed] = (0,)
    """Axis: a seed varies target draw, surrogate, selection, pretraining and transfer together."""
    search: Literal["grid", "lossless"] = "grid"
    """grid runs every pruning ratio. lossless finds, per method and target, the largest of them
    whose loss against the full source stays below report.margin, by bisection: few ratios run. It
    assumes that loss grows with the ratio; it needs ratio 0, `none` among pretraining and at least
    3 seeds."""
    runtime: Runtime = Runtime()
    """Where and how wide to run; never part of an identity."""
    tracking: Tracking = Tracking()
    """Where results are mirrored; never part of an identity."""
    report: Report = Report()
    """How results are judged; never part of an identity."""

    @model_validator(mode="after")
    def _fields_agree(self) -> "Study":
        """Check the rules that no JSON Schema can say; each names its field."""
        if (self.runtime.min_workers or 1) > self.runtime.pretrain_workers:
            raise _rule(
                "runtime",
                f"min_workers {self.runtime.min_workers} is more than pretrain_workers "
                f"{self.runtime.pretrain_workers}",
            )
        if not self.networks:
            raise _rule("pretraining", "needs at least one that trains, such as supervised")
        if any(isinstance(p, RawPixels) for p in self.pretraining) and not any(
            isinstance(t, LinearProbe) for t in self.transfers
        ):
            raise _rule("transfers", "raw_pixels is probed linearly: add linear_probe")
        if isinstance(self.source, ImageFolder) and self.source.shots is not None:
            raise _rule("source", "shots are drawn from targets; a source is pruned instead")
        for n, target in enumerate(self.targets, start=1):
            if target.image_size != self.source.image_size:
                raise _rule(
                    "targets",
                    f"{target.dataset} has image_size {target.image_size}, "
                    f"the source {self.source.image_size}: they must agree",
                    n,
                )
            if channels(target) != channels(self.source):
                raise _rule(
                    "targets",
                    f"{target.dataset} has {channels(target)} channel(s), "
                    f"the source {channels(self.source)}: they must agree",
                    n,
                )
        for n, method in enumerate(self.methods, start=1):
            if problem := contradiction(method):
                raise _rule("methods", f"{method.method}: {problem}", n)
            if isinstance(method, Counterfactual):
                self._can_train("methods", method.recipe, n)
        if self.search == "lossless":
            self._can_be_searched()
        self._can_train("surrogate", self.surrogate)
        for n, recipe in enumerate(self.pretraining, start=1):
            if isinstance(recipe, Supervised):
                self._can_train("pretraining", recipe, n)
        return self

    def _can_be_searched(self) -> None:
        """Refuse a search that cannot come to a verdict."""
        if 0 not in self.pruning_ratios:
            raise _rule("pruning_ratios", "search: lossless compares with the full source: add 0.0")
        if len(self.pruning_ratios) == 1:
            raise _rule("pruning_ratios", "search: lossless needs ratios above 0 to search")
        if not any(isinstance(p, Untrained) for p in self.pretraining):
            raise _rule(
                "pretraining",
                "search: lossless needs the untrained floor, to tell whether a target is "
                "sensitive: add none",
            )
        if len(self.seeds) < SEARCH_SEEDS:
            raise _rule(
                "seeds",
                f"search: lossless needs at least {SEARCH_SEEDS} seeds, got {len(self.seeds)}",
            )

    def _can_train(self, field: str, recipe: Recipe, n: int | None = None) -> None:
        """Refuse a recipe whose batch, budget or patches do not fit."""
        network, seen = recipe.network, recipe.budget.examples_seen
        if isinstance(network, VisionTransformer) and self.source.image_size % network.patch_size:
            raise _rule(
                field,
                f"patch_size {network.patch_size} does not divide image_size "
                f"{self.source.image_size}",
                n,
            )
        if seen is not None and seen < recipe.batch_size:
            raise _rule(
                field, f"examples_seen {seen} is less than one batch of {recipe.batch_size}", n
            )
        workers, group = self.runtime.pretrain_workers, recipe.batch_norm.group_size
        if recipe.batch_size % group:
            raise _rule(
                field,
                f"batch_size {recipe.batch_size} is not a multiple of "
                f"batch_norm.group_size {group}",
                n,
            )
        if recipe.batch_size // group < workers:
            raise _rule(
                field,
                f"batch_size {recipe.batch_size} has {recipe.batch_size // group} group(s) of "
                f"batch_norm.group_size {group}, fewer than the {workers} pretrain_workers",
                n,
            )
        if self.runtime.microbatch and self.runtime.microbatch % group:
            raise _rule(
                "runtime",
                f"microbatch {self.runtime.microbatch} is not a multiple of the "
                f"batch_norm.group_size {group} of {field}",
            )

    @property
    def networks(self) -> tuple[Supervised, ...]:
        """Return the pretrainings that train."""
        return tuple(p for p in self.pretraining if isinstance(p, Supervised))


def _rule(field: str, message: str, n: int | None = None) -> PydanticCustomError:
    """Word a rule that a field breaks, or its n-th entry."""
    context = {"message": message, "field": field} | ({} if n is None else {"n": n})
    return PydanticCustomError("cross_field", "{message}", context)


AnyPretraining = Supervised | Untrained | RawPixels
