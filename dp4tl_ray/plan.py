"""A study -> deduplicated, ordered steps. Pure: specs in, steps out; nothing is run or read.

A step is identified by its content: stage, version, spec and the digests of its inputs. Cells of
the grid that need the same step share it: ratio 0 is shared by all methods, target-agnostic methods
by all targets, a pretraining by all its transfers, one score by all ratios.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal, Protocol

from dp4tl_ray.specs.adversarial import AnyAdversarial, AnyRobustness, Standard, relative_cost
from dp4tl_ray.specs.base import digest, label
from dp4tl_ray.specs.data import PATHS, SCHEME, Custom, Dataset, OnDisk, located
from dp4tl_ray.specs.example_methods import Clustering
from dp4tl_ray.specs.method import (
    AnyMethod,
    Need,
    clustering,
    combined,
    for_one_target,
    needs,
    scored_as,
    selects_at_random,
    selects_by_features,
    within,
)
from dp4tl_ray.specs.network import AnyNetwork
from dp4tl_ray.specs.pretraining import (
    AnyPretraining,
    AnyTrained,
    Pretrained,
    RawPixels,
    Supervised,
    Untrained,
)
from dp4tl_ray.specs.selector import WholeUnits
from dp4tl_ray.specs.steps import (
    ClusterStep,
    DataStep,
    EmbedStep,
    FinetuneStep,
    PretrainStep,
    PruneStep,
    ScoreStep,
    Stage,
    StepSpec,
    SurrogateStep,
)
from dp4tl_ray.specs.study import Study
from dp4tl_ray.specs.training import Recipe, Training
from dp4tl_ray.specs.transfer import KNN, AnyTransfer, LinearProbe
from dp4tl_ray.specs.unit_methods import Counterfactual, RandomClasses

STAGE_VERSIONS: dict[Stage, int] = {
    "data": 3,
    "surrogate": 3,
    "embed": 2,
    "cluster": 1,
    "score": 2,
    "prune": 2,
    "pretrain": 3,
    "finetune": 3,
}
"""Raise a number when a stage computes something else than before: its old artifacts are then
no longer found."""

Role = Literal["source", "target"]
Record = Literal["nothing", "dynamics", "divergences"]
STANDARD = Standard()
HALF_OF_THE_CLASSES = RandomClasses(select=WholeUnits())


class Fingerprint(Protocol):
    """Identifies what lies outside of a study: the files of a dataset, the version of a plug-in,
    weights."""

    def __call__(self, thing: Dataset | AnyMethod | Pretrained, role: Role = "source") -> str:
        """Return a text that changes with the content; empty where the spec says everything."""
        ...


def no_fingerprint(thing: Dataset | AnyMethod | Pretrained, role: Role = "source") -> str:
    """Identify everything by its spec alone, which is enough for what is embedded."""
    return ""


def _identity(spec: StepSpec) -> dict[str, Any]:
    """Say what decides a step's result: of a dataset's files what they hold, not where they lie.

    A path that is a name, such as hub:NAME, says what they hold, and what a path means to the
    loader of another package nobody else knows.
    """
    moves = (
        isinstance(spec, DataStep)
        and spec.fingerprint
        and isinstance(spec.dataset, OnDisk)
        and not isinstance(spec.dataset, Custom)
        and not SCHEME.match(spec.dataset.path)
    )
    return spec.model_dump(mode="json", exclude={"dataset": {*PATHS}} if moves else None)


@dataclass(frozen=True)
class PlannedStep:
    """One stage with everything that decides its result."""

    spec: StepSpec
    inputs: Mapping[str, str]
    """Role -> digest of the step that is read."""
    name: str
    """Readable name, part of the folder."""

    @property
    def stage(self) -> Stage:
        """Stage of the step."""
        return self.spec.stage

    @cached_property
    def digest(self) -> str:
        """Identity of the step, 64 hexadecimal digits."""
        return digest(
            {
                "stage": self.stage,
                "version": STAGE_VERSIONS[self.stage],
                "spec": _identity(self.spec),
                "inputs": dict(self.inputs),
            }
        )


def title(step: PlannedStep, steps: Mapping[str, PlannedStep]) -> str:
    """Name a step for people, with the subset that it rests on."""
    pretrained = steps.get(step.inputs.get("pretrain", ""), step)
    subset = steps.get(pretrained.inputs.get("prune", ""))
    return f"{step.stage} {step.name}" + (f" on {subset.name}" if subset else "")


@dataclass(frozen=True)
class Cell:
    """One point of the grid: one pretraining transferred to one target; one line of results."""

    target: Dataset
    method: AnyMethod | None
    """None at ratio 0 and for the controls."""
    pruning_ratio: float
    pretraining: AnyPretraining
    network: AnyNetwork | None
    adversarial: AnyAdversarial
    transfer: AnyTransfer
    seed: int
    steps: Mapping[str, str]
    """Role -> digest: source, target, score, prune, pretrain, finetune."""


@dataclass
class Plan:
    """The steps of a study, in an order in which every input comes first."""

    study: Study
    steps: dict[str, PlannedStep] = field(default_factory=dict)
    cells: list[Cell] = field(default_factory=list)
    naive: Counter[Stage] = field(default_factory=Counter)
    """Steps per stage that a grid without sharing would run."""
    _closures: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """Digest -> the steps that read it."""
        users: dict[str, list[str]] = {key: [] for key in self.steps}
        for key, step in self.steps.items():
            for used in step.inputs.values():
                users[used].append(key)
        return users

    def closure(self, key: str) -> frozenset[str]:
        """Return a step and everything that it rests on."""
        if key not in self._closures:
            inputs = self.steps[key].inputs.values()
            self._closures[key] = frozenset({key}).union(*map(self.closure, inputs))
        return self._closures[key]

    @cached_property
    def priority(self) -> dict[str, float]:
        """Digest -> length of the longest path from it to a result; the longest goes first."""
        longest: dict[str, float] = {}
        for key in reversed(self.steps):
            after = max((longest[user] for user in self.users[key]), default=0.0)
            longest[key] = after + self.cost(key)
        return longest

    def cost(self, key: str) -> float:
        """Guess what a step costs relative to others: for the order of running and for ETAs."""
        return _nominal_cost(self.steps, key)

    def unique(self) -> Counter[Stage]:
        """Count the steps per stage that this plan runs at most."""
        return Counter(step.stage for step in self.steps.values())


def _nominal_cost(steps: Mapping[str, PlannedStep], key: str) -> float:
    """Guess a cost in examples seen, as if every source had 10,000 examples."""
    spec = steps[key].spec
    match spec:
        case PretrainStep(pretraining=Training() as recipe):
            kept = 1.0
            if (pruned := steps[key].inputs.get("prune")) is not None:
                prune = steps[pruned].spec
                assert isinstance(prune, PruneStep)
                kept -= prune.pruning_ratio
        case SurrogateStep(surrogate=Training() as recipe):
            kept = 1.0
        case _:
            return 1e3
    examples = (recipe.budget.epochs or 0) * kept * 1e4 + (recipe.budget.examples_seen or 0)
    return examples * (relative_cost(recipe.adversarial) if isinstance(recipe, Recipe) else 1.0)


class _Planner:
    """Adds the steps of one cell after the other, each step once."""

    def __init__(self, study: Study, fingerprint: Fingerprint) -> None:
        self.study, self.fingerprint = study, fingerprint
        self.plan = Plan(study)
        self.memo: dict[object, str] = {}
        # what is derived from a method, once: the memo tells specs apart by their id
        self.scored: dict[int, AnyMethod] = {}
        self.single: dict[int, AnyMethod] = {}
        self.records: dict[int, Record] = {}

    def record(self, surrogate: AnyTrained | Pretrained) -> Record:
        """Return what the methods that score by a surrogate need of how it learned."""
        if not isinstance(surrogate, Supervised):
            return "nothing"
        if id(surrogate) not in self.records:
            study = self.study
            scoring = (m for m in study.methods if study.surrogate_of(m) is surrogate)
            needed = frozenset[Need]().union(*map(needs, scoring))
            kinds: tuple[Record, ...] = ("divergences", "dynamics")
            self.records[id(surrogate)] = next((k for k in kinds if k in needed), "nothing")
        return self.records[id(surrogate)]

    def add(self, make: Callable[[], StepSpec], name: str, *key: object, **inputs: str) -> str:
        """Return the digest of a step, adding it to the plan where it is new.

        `key` names the step among those of this study, so that the ten-thousandth cell costs a
        dictionary look-up instead of a digest.
        """
        memo_key = (key, tuple(inputs.items()))
        if memo_key not in self.memo:
            step = PlannedStep(make(), inputs, name)
            self.memo[memo_key] = step.digest
            self.plan.steps.setdefault(step.digest, step)
        return self.memo[memo_key]

    def data(self, dataset: Dataset, role: Role) -> str:
        def make() -> DataStep:
            everything = {"shots": None} if hasattr(dataset, "shots") else {}
            # draws of one dataset share its arrays
            whole = located(dataset, self.study.data_root).model_copy(update=everything)
            return DataStep(dataset=whole, role=role, fingerprint=self.fingerprint(whole, role))

        return self.add(make, dataset.dataset, "data", role, id(dataset))

    def surrogate(self, source: str, surrogate: AnyTrained | Pretrained, seed: int) -> str:
        pinned = self.study.surrogate_seed
        seed = seed if pinned is None else pinned
        if isinstance(surrogate, Pretrained):
            seed = 0  # weights from elsewhere are the same for all
        return self.add(
            lambda: SurrogateStep(
                surrogate=surrogate,
                fingerprint=self._weights(surrogate),
                record=self.record(surrogate),
                seed=seed,
            ),
            f"{surrogate.objective}-{surrogate.network.arch}-s{seed}",
            "surrogate",
            id(surrogate),
            seed,
            source=source,
        )

    def _weights(self, trained: AnyPretraining) -> str:
        return self.fingerprint(trained) if isinstance(trained, Pretrained) else ""

    def embed(
        self,
        steps: Mapping[str, str],
        surrogate: AnyTrained | Pretrained,
        shots: int | None,
        seed: int,
        role: str,
    ) -> str:
        draw = seed if shots is not None else 0  # without a draw the seed changes nothing
        return self.add(
            lambda: EmbedStep(shots=shots, seed=draw),
            f"{role}-s{draw}",
            "embed",
            shots,
            draw,
            surrogate=self.surrogate(steps["source"], surrogate, seed),
            data=steps[role],
        )

    def subset(
        self, steps: dict[str, str], method: AnyMethod, ratio: float, target: Dataset, seed: int
    ) -> None:
        """Add score and pruning, and all that the method needs for them."""
        steps["score"] = self.score(steps, method, target, seed)
        inputs = {"source": steps["source"], "score": steps["score"]}
        if selects_by_features(method):
            surrogate = self.study.surrogate_of(method)
            inputs["source_embedding"] = self.embed(steps, surrogate, None, seed, "source")
        draw = seed if selects_at_random(method) else 0
        steps["prune"] = self.add(
            lambda: PruneStep(pruning_ratio=ratio, select=method.select, seed=draw),
            # without the name of its surrogate, which is an input: one may be named anew
            f"{label(method.model_copy(update={'surrogate': None}))}-r{ratio:g}-s{seed}",
            "prune",
            ratio,
            id(method),
            draw,
            **inputs,
        )

    def score(self, steps: Mapping[str, str], method: AnyMethod, target: Dataset, seed: int) -> str:
        """Add a score; it is shared by all ways to select from it."""
        surrogate = self.study.surrogate_of(method)
        scored = self.scored.setdefault(id(method), scored_as(method))
        if combined(scored) is not None:
            single = self.single.setdefault(id(method), for_one_target(scored))
            # sorted: the order of the targets in the study changes nothing
            each = sorted(
                self._score_for(steps, single, surrogate, t, seed) for t in self.study.targets
            )
            inputs = {f"score_{n}": key for n, key in enumerate(each)}
            return self._score(scored, seed, {"source": steps["source"], **inputs})
        return self._score_for(steps, scored, surrogate, target, seed)

    def _score_for(
        self,
        steps: Mapping[str, str],
        method: AnyMethod,
        surrogate: AnyTrained | Pretrained,
        target: Dataset,
        seed: int,
    ) -> str:
        """Add the score of a method for one target, with what it is computed from."""
        needed, inputs = needs(method), {"source": steps["source"]}
        if "source" in needed:
            inputs["source_embedding"] = self.embed(steps, surrogate, None, seed, "source")
        if "target" in needed:
            shots = getattr(target, "shots", None)
            with_target = {**steps, "target": self.data(target, "target")}
            inputs["target_embedding"] = self.embed(with_target, surrogate, shots, seed, "target")
        if not needed.isdisjoint({"network", "dynamics"}):
            inputs["surrogate"] = self.surrogate(steps["source"], surrogate, seed)
        for role, one in (("clusters", method), ("within_clusters", within(method))):
            if one is not None and (clusters := clustering(one)) is not None:
                inputs[role] = self.cluster(inputs["source_embedding"], clusters, seed)
        if isinstance(method, Counterfactual):
            inputs |= self.counterfactuals(steps["source"], method, target)
        return self._score(method, seed, inputs)

    def _score(self, method: AnyMethod, seed: int, inputs: dict[str, str]) -> str:
        return self.add(
            lambda: ScoreStep(method=method, fingerprint=self.fingerprint(method), seed=seed),
            f"{label(method)}-s{seed}",
            "score",
            id(method),
            seed,
            **inputs,
        )

    def cluster(self, embedding: str, clusters: Clustering, seed: int) -> str:
        return self.add(
            lambda: ClusterStep(clustering=clusters, seed=seed),
            f"k{clusters.num_clusters}-s{seed}",
            "cluster",
            clusters,
            seed,
            source_embedding=embedding,
        )

    def counterfactuals(
        self, source: str, method: Counterfactual, target: Dataset
    ) -> dict[str, str]:
        """Add a pretraining on each of many random halves of the classes, and its transfer.

        The transfer is to the whole target: what few shots add is noise, which hides influences.
        """
        inputs: dict[str, str] = {}
        everything = {"shots": None} if hasattr(target, "shots") else {}
        whole = target.model_copy(update=everything)
        recipe = method.recipe
        for seed in range(method.num_subsets):
            steps = {"source": source, "target": self.data(target, "target")}
            self.subset(steps, HALF_OF_THE_CLASSES, 0.5, target, seed)
            self.pretrain(steps, recipe, recipe.network, seed)
            self.finetune(steps, whole, method.transfer, (), seed)
            inputs |= {f"subset_{seed}": steps["prune"], f"transfer_{seed}": steps["finetune"]}
        return inputs

    def pretrain(
        self,
        steps: dict[str, str],
        pretraining: AnyTrained | Pretrained | Untrained,
        network: AnyNetwork,
        seed: int,
    ) -> None:
        trained = None if isinstance(pretraining, Untrained) else pretraining
        if isinstance(pretraining, Pretrained):
            seed = 0  # the weights are the same for all
        inputs = {"source": steps["source"]}
        if "prune" in steps:
            inputs["prune"] = steps["prune"]
        steps["pretrain"] = self.add(
            lambda: PretrainStep.model_validate(
                {
                    "pretraining": trained,
                    "fingerprint": self._weights(pretraining),
                    "network": network,
                    "seed": seed,
                }
            ),
            f"{_kind(pretraining)}-{network.arch}-s{seed}",
            "pretrain",
            id(pretraining),
            network,
            seed,
            **inputs,
        )

    def finetune(
        self,
        steps: dict[str, str],
        cell_target: Dataset,
        transfer: AnyTransfer,
        robustness: tuple[AnyRobustness, ...],
        seed: int,
    ) -> None:
        shots = getattr(cell_target, "shots", None)
        inputs = {"target": steps["target"]}
        if "pretrain" in steps:
            inputs["pretrain"] = steps["pretrain"]
        steps["finetune"] = self.add(
            lambda: FinetuneStep(shots=shots, transfer=transfer, robustness=robustness, seed=seed),
            f"{cell_target.dataset}-{transfer.transfer}-s{seed}",
            "finetune",
            shots,
            id(transfer),
            robustness,
            seed,
            **inputs,
        )


@dataclass(frozen=True)
class _Variant:
    """A pretraining with one of the adversarial variants."""

    written: AnyPretraining
    """As the study says."""
    network: AnyNetwork | None
    adversarial: AnyAdversarial = STANDARD
    attacked: Supervised | None = None
    """The same under the variant; null where that is what is written."""


def _variants(study: Study) -> list[_Variant]:
    """List the pretrainings; `none` stands once for each distinct network, and what is trained with
    labels for each adversarial variant."""
    networks = list(dict.fromkeys(p.network for p in study.networks))
    variants: list[_Variant] = []
    for pretraining in study.pretraining:
        match pretraining:
            case Untrained():
                variants += [_Variant(pretraining, network) for network in networks]
            case RawPixels():
                variants.append(_Variant(pretraining, None))
            case Supervised(network=network):
                for attack in study.adversarial:
                    attacked = pretraining.model_copy(update={"adversarial": attack})
                    variants.append(_Variant(pretraining, network, attack, attacked))
            case _:
                variants.append(_Variant(pretraining, pretraining.network))
    return variants


def _kind(pretraining: AnyPretraining) -> str:
    """Name a pretraining in a folder's name."""
    if isinstance(pretraining, Supervised) and pretraining.adversarial != Standard():
        return pretraining.adversarial.attack
    return pretraining.objective


def is_wide(step: PlannedStep) -> bool:
    """Whether all workers of a lane share a step: those that pass over a whole dataset do."""
    match step.spec:
        case SurrogateStep(surrogate=recipe) | PretrainStep(pretraining=recipe):
            return isinstance(recipe, Training)
        case EmbedStep(shots=shots):
            return shots is None
        case _:
            return False


def make_plan(study: Study, fingerprint: Fingerprint = no_fingerprint) -> Plan:
    """Plan a study: every cell of the grid, and the fewest steps that give all of them.

    Args:
        study: What is asked for.
        fingerprint: Names the content of a dataset that lies in files.
    """
    planner = _Planner(study, fingerprint)
    plan, seen = planner.plan, set[tuple[str, ...]]()
    axes = product(
        study.seeds,
        _variants(study),
        study.pruning_ratios,
        study.methods,
        study.targets,
        study.transfers,
    )
    for seed, variant, ratio, method, target, transfer in axes:
        pretraining, network = variant.written, variant.network
        if isinstance(pretraining, RawPixels) and not isinstance(transfer, LinearProbe | KNN):
            continue  # pixels have no weights to finetune; the study says so
        steps = {"source": planner.data(study.source, "source")}
        steps["target"] = planner.data(target, "target")
        pruned = ratio > 0 and isinstance(pretraining, Training)
        if pruned:
            planner.subset(steps, method, ratio, target, seed)
        if network is not None and not isinstance(pretraining, RawPixels):
            planner.pretrain(steps, variant.attacked or pretraining, network, seed)
        planner.finetune(steps, target, transfer, study.robustness, seed)
        rests_on = frozenset[str]().union(*map(plan.closure, steps.values()))
        plan.naive.update(plan.steps[key].stage for key in rests_on)
        identity = tuple(steps.values())
        if identity in seen:
            continue
        seen.add(identity)
        plan.cells.append(
            Cell(
                target,
                method if pruned else None,
                ratio if pruned else 0.0,
                pretraining,
                network,
                variant.adversarial,
                transfer,
                seed,
                steps,
            )
        )
    return plan
