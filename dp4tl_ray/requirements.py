"""What a study asks for and cannot get is refused before any work: packages, examples, images."""

from importlib.util import find_spec

import numpy as np

from dp4tl_ray.data.load import count_source, is_absent, open_pictures
from dp4tl_ray.plan import Plan, title
from dp4tl_ray.specs.adversarial import AutoAttackRobustness
from dp4tl_ray.specs.data import HuggingFace, OnDisk, located
from dp4tl_ray.specs.load import StudyError
from dp4tl_ray.specs.network import TimmNetwork
from dp4tl_ray.specs.pretraining import AnyTrained, Pretrained
from dp4tl_ray.specs.selector import WholeUnits
from dp4tl_ray.specs.self_supervised import QUEUE_SHARE, MoCoV2
from dp4tl_ray.specs.steps import ClusterStep, PretrainStep, PruneStep, SurrogateStep
from dp4tl_ray.specs.study import Study
from dp4tl_ray.specs.training import Training
from dp4tl_ray.specs.unit_methods import Counterfactual


def check_packages(study: Study) -> None:
    """Refuse datasets, networks and attacks of a package that is not installed.

    Raises:
        StudyError: With what to install.
    """
    own = [method.recipe for method in study.methods if isinstance(method, Counterfactual)]
    recipes = (study.surrogate, *study.surrogates.values(), *study.pretraining, *own)
    networks = [recipe.network for recipe in recipes if isinstance(recipe, Training | Pretrained)]
    if any(isinstance(dataset, HuggingFace) for dataset in (study.source, *study.targets)):
        check_package("dataset: huggingface", "datasets", "huggingface")
    if any(isinstance(network, TimmNetwork) for network in networks):
        check_package("network.arch: timm", "timm", "timm")
    if any(isinstance(check, AutoAttackRobustness) for check in study.robustness):
        check_package("robustness: autoattack", "pyautoattack", "autoattack")


def check_package(who: str, package: str, extra: str) -> None:
    """Refuse what needs a package that is not installed.

    Args:
        who: What needs it.
        package: Its name for imports.
        extra: Of ours, which brings it.

    Raises:
        StudyError: With what to install.
    """
    found = find_spec(package)
    if found is None or found.origin is None:  # a folder of that name is no package
        raise StudyError(f"{who} needs the package {package}: pip install 'dp4tl_ray[{extra}]'")


def check_queues(study: Study, absent: list[str] | None = None) -> None:
    """Refuse a queue of keys that is too long for what the largest pruning ratio keeps.

    Args:
        study: What is asked for.
        absent: Receives a line for each queue if the source is not here.

    Raises:
        StudyError: With the arithmetic.
        DatasetError: The source is missing.
    """
    largest = max(study.pruning_ratios)
    recipes = [(f"pretraining[{n}]", r, largest) for n, r in enumerate(study.pretraining)]
    recipes += [("surrogate", study.surrogate, 0.0)]
    recipes += [(f"surrogates.{name}", r, 0.0) for name, r in study.surrogates.items()]
    queues = [(where, r.queue_size, ratio) for where, r, ratio in recipes if isinstance(r, MoCoV2)]
    if not queues:
        return
    source = located(study.source, study.data_root)
    if absent is not None and isinstance(source, OnDisk) and is_absent(source):
        absent += [
            f"{where}.queue_size: {queue_size} is not checked, for which the source is needed"
            for where, queue_size, _ in queues
        ]
        return
    total = count_source(source)
    for where, queue_size, ratio in queues:
        kept = round((1 - ratio) * total)
        if queue_size * QUEUE_SHARE > kept:
            raise StudyError(
                f"{where}.queue_size: {queue_size} is more than a quarter of the examples kept "
                f"(pruning_ratio {ratio:g} of {total} leaves {kept}); at most "
                f"{kept // QUEUE_SHARE}, and the same at all ratios, so that they differ in their "
                "data alone"
            )


def check_sizes(plan: Plan, absent: list[str] | None = None) -> None:
    """Refuse batches and clusters that are more than there is, and histories that are too short.

    Steps say so themselves where it shows only then: after whole classes, or pictures that are
    skipped.

    Args:
        plan: What would run.
        absent: Given, nothing is checked where the source is not here; its absence has been said.

    Raises:
        StudyError: With the arithmetic.
        DatasetError: The source is missing.
    """
    source = located(plan.study.source, plan.study.data_root)
    if absent is not None and isinstance(source, OnDisk) and is_absent(source):
        return
    total = count_source(source)
    for step in plan.steps.values():
        problem = ""
        match step.spec:
            case SurrogateStep(surrogate=Training() as recipe, record=record):
                problem = _batch(recipe, total, "there are")
                seen = recipe.budget.examples_seen or total * (recipe.budget.epochs or 0)
                whole = seen // recipe.batch_size * recipe.batch_size // total
                if not problem and record != "nothing" and whole < 2:
                    problem = (
                        f"methods that watch it train need 2 whole epochs, and batches of "
                        f"{recipe.batch_size} of {total} examples make {whole}: raise its budget"
                    )
            case ClusterStep(clustering=clustering) if clustering.num_clusters > total:
                number = clustering.num_clusters
                problem = (
                    f"clustering.num_clusters {number} is more than the {total} examples: lower it"
                )
            case PretrainStep(pretraining=Training() as recipe):
                subset = plan.steps.get(step.inputs.get("prune", ""))
                ratio, select = 0.0, None
                if subset is not None:
                    assert isinstance(subset.spec, PruneStep)
                    ratio, select = subset.spec.pruning_ratio, subset.spec.select
                if not isinstance(select, WholeUnits):
                    kept = round((1 - ratio) * total)
                    which = f"pruning_ratio {ratio:g} of {total} leaves"
                    problem = _batch(recipe, kept, which)
        if problem:
            raise StudyError(f"{title(step, plan.steps)}: {problem}")


def _batch(recipe: AnyTrained, num_examples: int, which: str) -> str:
    """Say that a batch is more than the examples."""
    if recipe.batch_size <= num_examples:
        return ""
    return (
        f"batch_size {recipe.batch_size} is more than the {num_examples} examples that {which}: "
        "lower it, or prune less"
    )


def check_shots(study: Study, absent: list[str] | None = None) -> None:
    """Refuse shots of which a class of the target has not as many images.

    Args:
        study: What is asked for.
        absent: Given, a target that is not here is passed over; its absence has been said.

    Raises:
        StudyError: With the class that has the fewest.
        DatasetError: A target is missing.
    """
    for n, target in enumerate(study.targets):
        if not isinstance(target, OnDisk) or target.shots is None:
            continue  # the embedded ones have bounds of their own
        found = located(target, study.data_root)
        if absent is not None and is_absent(found):
            continue
        pictures = open_pictures(found, "target")
        for split in ("train", "val"):
            labels = pictures.labels[pictures.rows(split)]
            each = np.bincount(labels, minlength=len(pictures.class_names))
            if each.min() < target.shots:
                raise StudyError(
                    f"targets[{n}].shots: {target.shots} are too many: class "
                    f"{pictures.class_names[each.argmin()]} has {each.min()} {split} images"
                )
