"""A study: one YAML, one sweep. The plural keys are the axes, crossed; nothing else is a grid."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from dp4tl_ray.specs.adversarial import Adversarial, Attacked, Checks, Free, Standard
from dp4tl_ray.specs.base import Axis, Count, Natural, Spec, Whole
from dp4tl_ray.specs.data import OnDisk, Source, Target, channels, known_as, too_small
from dp4tl_ray.specs.method import AnyMethod, Method, contradiction, demands, within
from dp4tl_ray.specs.network import AnyNetwork, SmallResNet, TorchvisionResNet, problem
from dp4tl_ray.specs.pretraining import (
    AnyTrained,
    Pretrained,
    Pretraining,
    RawPixels,
    Supervised,
    Trained,
    Untrained,
    lacks,
    misfit,
)
from dp4tl_ray.specs.self_supervised import MoCoV2, SelfSupervised
from dp4tl_ray.specs.training import Recipe, Resolution, Training
from dp4tl_ray.specs.transfer import KNN, LinearProbe, Transfer, unknown_target
from dp4tl_ray.specs.unit_methods import Counterfactual

PruningRatio = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31), Whole]
LEAST = 2
"""Examples that a statistic over a batch, or a comparison within one, takes."""
SEARCH_SEEDS = 3
"""Fewest seeds that a verdict on a loss takes."""


class Runtime(Spec):
    """Where and how wide to run; never part of a result's identity."""

    pretrain_workers: Count = 1
    """Data-parallel workers of one pretraining. They take the steps that one would, up to the order
    of float additions, whose rounding may show in small test sets."""
    min_workers: Count | None = None
    """Fewest workers that a pretraining goes on with when nodes leave; null waits for all."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """ddp keeps the whole network on every worker; fsdp2 shards weights, gradients and optimizer
    state over them, for networks that do not fit."""
    microbatch: Count | None = None
    """Examples of a worker's share per forward pass, a multiple of batch_norm.group_size; gradients
    accumulate. null takes the share at once."""
    checkpoint_steps: Count | None = None
    """Optimizer steps after which a training is also saved within an epoch; null saves at the end
    of each. A surrogate whose training methods score by is saved at the ends alone."""
    compile: bool = False
    """torch.compile the network; needs a C++ compiler on CPU."""
    lanes: Count | None = None
    """Pretrainings at a time; null starts as many lanes as the cluster holds."""
    single_lanes: Natural | None = None
    """One-worker lanes beside them, for steps that no workers share; null takes what makes no whole
    lane, or none where `lanes` is given."""
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
    """online shows a study while it runs. offline writes runs to the store's folder (of one in
    object storage, the head's copy), to be sent later with `wandb sync`; so does online when the
    server cannot be reached."""
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
    data_root: str = ""
    """Folder that the relative paths of datasets start at; empty is the working directory."""
    source: Source
    """Dataset to prune."""
    surrogate: Trained = Supervised()
    """Model of the whole source, used only to score: trained here, or `pretrained` elsewhere."""
    surrogates: dict[str, Trained] = Field(default={})
    """Further ones by name, for methods that say `surrogate: NAME`."""
    surrogate_seed: Natural | None = None
    """Pin one surrogate for all seeds, as the paper does; null trains one per seed."""
    targets: Axis[Target]
    """Axis: datasets to transfer to."""
    methods: Axis[Method]
    """Axis: pruning methods."""
    pruning_ratios: Axis[PruningRatio]
    """Axis: share of the source examples removed; 0 is the whole source, shared by all methods."""
    pretraining: Axis[Pretraining]
    """Axis: pretraining recipes; `none` and `raw_pixels` add the floors."""
    adversarial: Axis[Adversarial] = (Standard(),)
    """Axis: adversarial variants of the supervised pretrainings; a bare `pgd` is one."""
    transfers: Axis[Transfer] = (LinearProbe(),)
    """Axis: transfer protocols."""
    seeds: Axis[Seed] = (0,)
    """Axis: a seed varies target draw, surrogate, selection, pretraining and transfer together."""
    robustness: Checks = ()
    """Attacks on the test images after linear_probe, full_finetune and dp4tl_full_finetune; empty
    measures clean accuracy alone."""
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
            isinstance(t, LinearProbe | KNN) for t in self.transfers
        ):
            raise _rule("transfers", "raw_pixels has no weights: add linear_probe or knn")
        if isinstance(self.source, OnDisk) and self.source.shots is not None:
            raise _rule("source", "shots are drawn from targets; a source is pruned instead")
        self._targets_match_source()
        for n, transfer in enumerate(self.transfers, start=1):
            for target in self.targets:
                if problem := unknown_target(transfer, known_as(target)):
                    raise _rule("transfers", f"{transfer.transfer}: {problem}", n)
        for n, method in enumerate(self.methods, start=1):
            if problem := contradiction(method):
                raise _rule("methods", f"{method.method}: {problem}", n)
            if isinstance(method, Counterfactual):
                self._can_train("methods", method.recipe, n)
            self._can_score(method, n)
        if self.search == "lossless":
            self._can_be_searched()
        self._can_train("surrogate", self.surrogate)
        for name, surrogate in self.surrogates.items():
            try:
                self._can_train("surrogates", surrogate)
            except PydanticCustomError as error:
                message = f"{name}: {error.message()}"
                raise _rule((error.context or {})["field"], message) from None
        for n, recipe in enumerate(self.pretraining, start=1):
            if isinstance(recipe, Training | Pretrained):
                self._can_train("pretraining", recipe, n)
        self._can_be_attacked()
        return self

    def _can_be_attacked(self) -> None:
        """Refuse adversarial variants of what has none, or that the runtime cannot do."""
        for n, recipe in enumerate(self.pretraining, start=1):
            if isinstance(recipe, Supervised) and recipe.adversarial != Standard():
                raise _rule(
                    "pretraining", "its adversarial variants are those of the axis adversarial", n
                )
        attacks = [attack for attack in self.adversarial if isinstance(attack, Attacked)]
        for recipe in self.pretraining:
            if attacks and isinstance(recipe, SelfSupervised):
                raise _rule(
                    "adversarial",
                    f"{attacks[0].attack} needs labels, and {recipe.objective} has none: allowed "
                    "beside it: none",
                )
        surrogates = (self.surrogate, *self.surrogates.values())
        own = (s.adversarial for s in surrogates if isinstance(s, Supervised))
        attacks += [attack for attack in own if isinstance(attack, Attacked)]
        if attacks and self.runtime.sharding == "fsdp2":
            raise _rule("runtime", f"sharding fsdp2 does not go with {attacks[0].attack}: take ddp")
        moving = [a for a in attacks if a.attack_bn == "train" and not isinstance(a, Free)]
        if moving and self.runtime.microbatch:
            raise _rule(
                "runtime",
                f"microbatch does not go with {moving[0].attack} under attack_bn: train, whose "
                "running statistics would depend on it: null it",
            )

    def _targets_match_source(self) -> None:
        """Refuse images that one network cannot take both of, or that are kept too small."""
        if wrong := too_small(self.source):
            raise _rule("source", wrong)
        for n, target in enumerate(self.targets, start=1):
            if wrong := too_small(target):
                raise _rule("targets", wrong, n)
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

    def surrogate_of(self, method: AnyMethod) -> AnyTrained | Pretrained:
        """Return the model that a method scores by."""
        name = method.surrogate
        return self.surrogate if name is None else self.surrogates[name]

    def _can_score(self, method: AnyMethod, n: int) -> None:
        """Refuse a method whose surrogate cannot give what it is computed from."""
        if method.surrogate is not None and method.surrogate not in self.surrogates:
            known = ", ".join(sorted(self.surrogates)) or "none; name one under surrogates"
            raise _rule(
                "methods",
                f"{method.method}: surrogate {method.surrogate!r} is not known; allowed: {known}",
                n,
            )
        for one in (method, within(method)):
            if one is not None and (missing := lacks(self.surrogate_of(method), demands(one))):
                raise _rule("methods", f"{one.method}: {missing}", n)

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

    def _can_train(self, field: str, recipe: Training | Pretrained, n: int | None = None) -> None:
        """Refuse a recipe whose network, batch or budget does not fit."""
        if wrong := problem(recipe.network, self.source.image_size):
            raise _rule(field, wrong, n)
        if isinstance(recipe, Pretrained):
            if wrong := misfit(recipe):
                raise _rule(field, wrong, n)
            return
        if isinstance(recipe, Recipe) and recipe.resolution is not None:
            self._can_resize(field, recipe.network, recipe.resolution, n)
        seen = recipe.budget.examples_seen
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
        if isinstance(recipe, SelfSupervised):
            self._can_compare(field, recipe, n)

    def _can_resize(
        self, field: str, network: AnyNetwork, resolution: Resolution, n: int | None
    ) -> None:
        """Refuse progressive resizing of what has one size."""
        size, (smallest, largest, start, end, _) = self.source.image_size, resolution.ramp
        if not smallest <= largest <= size:
            raise _rule(
                field,
                f"resolution: smallest {smallest}, largest {largest} and the images' size {size} "
                "must not fall",
                n,
            )
        if start > end:
            raise _rule(field, f"resolution: start {start} is after end {end}", n)
        if not isinstance(network, SmallResNet | TorchvisionResNet):
            raise _rule(
                field,
                f"resolution: {network.arch} takes images of one size; a ResNet takes any: null it",
                n,
            )

    def _can_compare(self, field: str, recipe: SelfSupervised, n: int | None) -> None:
        """Refuse what an objective on whole batches cannot do."""
        size, group = recipe.batch_size, recipe.batch_norm.group_size
        if min(size, group) < LEAST:
            raise _rule(field, f"batch_size and batch_norm.group_size must be at least {LEAST}", n)
        if self.runtime.microbatch:
            raise _rule(
                "runtime",
                f"microbatch does not go with {field}, which compares the whole batch: null it, "
                "or lower batch_size",
            )
        if isinstance(recipe, MoCoV2):
            if size == group:
                raise _rule(
                    field,
                    f"moco_v2 shuffles keys between batch-norm groups, and batch_size {size} is "
                    f"one group: halve batch_norm.group_size {group}",
                    n,
                )
            if recipe.queue_size < size * (2 if recipe.symmetric else 1):
                raise _rule(
                    field,
                    f"queue_size {recipe.queue_size} does not hold the keys of one batch of {size}"
                    + (", two of each image" if recipe.symmetric else ""),
                    n,
                )

    @property
    def networks(self) -> tuple[AnyTrained, ...]:
        """Return the pretrainings that train."""
        return tuple(p for p in self.pretraining if isinstance(p, Training))


def _rule(field: str, message: str, n: int | None = None) -> PydanticCustomError:
    """Word a rule that a field breaks, or its n-th entry."""
    context = {"message": message, "field": field} | ({} if n is None else {"n": n})
    return PydanticCustomError("cross_field", "{message}", context)
