"""Studies that somebody may have meant to write: good ones, each with a few seeded changes."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

Study = dict[str, Any]
Site = tuple[Any, Any]
"""A container and a key or an index in it."""

AUGMENTATION = {"shift": 2, "flip": True, "crop": 0.5}
EMBEDDED: Study = {
    "name": "embedded_1",
    "source": {"dataset": "glyphs_and_textures", "images_per_class": 9, "seed": 3},
    "surrogate": {
        "objective": "supervised",
        "network": "resnet9",
        "budget": {"epochs": 2},
        "ema": 0.5,
    },
    "surrogate_seed": None,
    "targets": [
        "held_out_letters",
        {"dataset": "handwritten_digits", "shots": 3, "image_size": 16},
        {"dataset": "held_out_textures", "shots": None},
    ],
    "methods": [
        "random_classes",
        {"method": "random_examples", "select": "stratified"},
        {"method": "label_mapping", "keep": "lowest"},
        {"method": "label_mapping", "temperature": 1, "select": {"rule": "quota", "alpha": 0.5}},
        {"method": "feature_mapping", "clustering": {"num_clusters": 9}, "within": "herding"},
        {"method": "el2n", "select": {"rule": "ccs", "hardest": 0.2, "num_strata": 9}},
        {"method": "normsim", "combine": "soft_min", "norm": "2"},
        {"method": "given", "path": "kept.json"},
        {"method": "plugin", "scorer": "mine", "options": {"a": 1, "b": "c", "d": True}},
        {
            "method": "counterfactual",
            "recipe": {"objective": "supervised", "budget": {"epochs": 1}},
        },
    ],
    "pruning_ratios": [0, 0.25, 0.5],
    "pretraining": [
        {
            "objective": "supervised",
            "head": "source",
            "network": {"arch": "resnet9", "width": 8, "stem_stride": 1},
            "budget": {"examples_seen": 4096},
            "batch_size": 256,
            "precision": "bf16",
            "augmentation": AUGMENTATION,
            "batch_norm": {"group_size": 32},
        },
        "none",
        "raw_pixels",
    ],
    "adversarial": [
        "none",
        "fgsm_rs",
        {"attack": "pgd", "norm": "l2", "eps": 0.5, "awp": 0.01},
        {"attack": "pgd", "eps": "4/255", "steps": 2, "attack_bn": "eval"},
    ],
    "robustness": [
        {"attack": "pgd", "norm": "linf", "eps": ["0.5/255", 0.0157], "steps": 5},
        {"attack": "autoattack", "norm": "l2", "eps": [0.5], "num_images": 100},
    ],
    "transfers": [
        "linear_probe",
        {"transfer": "full_finetune", "epochs": 3, "lrs": [0.1, 1]},
        {"transfer": "knn", "ks": [1, 20]},
        {"transfer": "dp4tl_asis", "mode": "full_finetune", "optimizer": "sgd"},
    ],
    "seeds": [0, 1, 2],
    "search": "lossless",
    "report": {"margin": 0.02},
}
PICTURES: Study = {
    "name": "pictures",
    "source": {"dataset": "image_folder", "path": "a", "image_size": 32, "channels": 3},
    "targets": [
        {"dataset": "image_folder", "path": "b", "shots": 5},
        {"dataset": "coop", "path": "c", "images": "d"},
        {"dataset": "huggingface", "path": "e", "config": "f", "label": "g"},
        {"dataset": "parquet", "path": "h", "id": "i", "image": "j"},
        {"dataset": "custom", "path": "k", "loader": "l", "options": {"m": 1, "n": "o"}},
    ],
    "methods": [{"method": "label_mapping", "select": "whole_units"}],
    "pruning_ratios": [0.5],
    "pretraining": [
        {
            "objective": "supervised",
            "network": {"arch": "resnet18", "small_images": True, "blurpool": True},
            "optimizer": {
                "name": "adamw",
                "lr": 1e-3,
                "momentum": 0,
                "weight_decay": 0.1,
                "decay_norms": False,
            },
            "schedule": {"name": "cosine", "warmup": 0.1},
            "label_smoothing": 0.1,
        },
        {"objective": "supervised", "network": {"arch": "vit_b_16", "patch_size": 4}},
        {"objective": "ffcv_rn18_16", "budget": {"epochs": 8}, "resolution": None},
        {"objective": "none"},
    ],
    "transfers": [
        {"transfer": "linear_probe", "l2": [0.1, 1], "refit_on_val": True, "batch_norm": "adapt"},
        {"transfer": "linear_probe", "tta": "flip"},
        {"transfer": "dp4tl_full_finetune", "optimizer": "sgd", "epochs": 3},
        {"transfer": "full_finetune", "batch_size": 8, "weight_decays": [0], "search": "halving"},
        {"transfer": "full_finetune", "optimizer": "adam", "momentum": 0},
        {"transfer": "linear_probe", "solver": "adam"},
    ],
    "runtime": {
        "pretrain_workers": 2,
        "lanes": 3,
        "device": "cpu",
        "threads_per_worker": 1,
        "max_failures": 0,
    },
    "tracking": {"wandb": {"mode": "offline", "project": "p", "entity": None}},
}
MINIMAL: Study = {
    "name": "m",
    "source": "glyphs_and_textures",
    "targets": ["held_out_letters"],
    "methods": ["el2n"],
    "pruning_ratios": [0.5],
    "pretraining": ["supervised"],
}
BASES = (EMBEDDED, PICTURES, MINIMAL)

TAGS = {
    "dataset": [
        "glyphs_and_textures",
        "held_out_letters",
        "handwritten_digits",
        "held_out_textures",
        "image_folder",
        "imagenet",
        "coop",
        "waterbirds",
        "dtd",
        "sun397",
        "huggingface",
        "parquet",
        "webdataset",
        "custom",
    ],
    "arch": ["resnet9", "resnet18", "resnet50", "resnet101", "vit_b_16"],
    "method": [
        *("random_classes", "random_examples", "label_mapping", "feature_mapping", "el2n"),
        *("normsim", "tdds", "herding", "plugin", "given", "counterfactual"),
    ],
    "rule": ["top", "whole_units", "quota", "gumbel", "stratified", "ccs", "d2"],
    "objective": ["supervised", "dp4tl_rn18_16", "ffcv_rn18_16", "none", "raw_pixels"],
    "transfer": ["linear_probe", "full_finetune", "dp4tl_full_finetune", "knn", "dp4tl_asis"],
    "attack": ["pgd", "fgsm_rs", "n_fgsm", "free", "trades", "autoattack"],
}
TAG_OF = {name: tag for tag, names in TAGS.items() for name in names}
WORDS = [
    *TAG_OF,
    *("grid", "lossless", "halving"),
    *("sgd", "cyclic", "one_cycle", "fp32", "auto", "cuda", "online", "compact", "highest", "no"),
    *("", " ", "x", "1", "Name", "a\n", "a" * 64, "a" * 65, "é", "true", "null", "1e-3"),
]
FIELDS = [
    *TAGS,
    *("seed", "seeds", "shots", "image_size", "path", "channels", "keep", "select", "width"),
    *("epochs", "examples_seen", "budget", "network", "lr", "l2", "lrs", "batch_size", "ema"),
    *(
        "within",
        "combine",
        "temperature",
        "clustering",
        "options",
        "runtime",
        "report",
        "tracking",
        "search",
        "adversarial",
        "robustness",
        "attack",
        "eps",
        "head",
        "name",
        "wandb",
    ),
]
VALUES: list[Any] = [None, True, -1, 0, 1, 2, 16, 32, 0.5, 1.0, "x", [], {}, [1], {"a": 1}]
HUGE = [2**31 - 1, 2**31, 2**53 + 1, 10**30, 10**400, 1e30, 1e308, float("inf")]
FLOATS = [0.0, -0.0, 1e-300, 0.1, 0.5, 0.99, 1.0, 1.5, 7.0, 16.5, 64.0]


def sites(value: Any) -> Iterator[Site]:
    """Every place in a study that holds a value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from sites(value[key])


def _some(rng: random.Random, study: Study, wanted: Callable[[Any, Any], bool]) -> Site | None:
    found = [(c, k) for c, k in sites(study) if wanted(c, k)]
    return rng.choice(found) if found else None


def _number(container: Any, key: Any) -> bool:
    return isinstance(container[key], (int, float)) and not isinstance(container[key], bool)


def _replacer(
    choose: Callable[[random.Random, Any], Any],
    wanted: Callable[[Any, Any], bool] = lambda container, key: True,
) -> Callable[[random.Random, Study], bool]:
    """Make the mutation that puts another value somewhere."""

    def mutate(rng: random.Random, study: Study) -> bool:
        if not (site := _some(rng, study, wanted)):
            return False
        container, key = site
        container[key] = copy.deepcopy(choose(rng, container[key]))
        return True

    return mutate


def _delete(rng: random.Random, study: Study) -> bool:
    if not (site := _some(rng, study, lambda c, k: True)):
        return False
    del site[0][site[1]]
    return True


def _rename(rng: random.Random, study: Study) -> bool:
    """Misspell a key: one character gone, doubled or exchanged with the next; or another's key."""
    if not (site := _some(rng, study, lambda c, k: isinstance(c, dict) and len(k) > 1)):
        return False
    (record, key), at = site, rng.randrange(len(site[1]) - 1)
    swapped = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    names = (key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], swapped, rng.choice(FIELDS))
    record[rng.choice(names)] = record.pop(key)
    return True


def _repeat(rng: random.Random, study: Study) -> bool:
    """Repeat an entry of a list: as it is, as another number, or as a record for a bare name."""
    if not (site := _some(rng, study, lambda c, k: isinstance(c[k], list) and bool(c[k]))):
        return False
    entries = site[0][site[1]]
    entry = copy.deepcopy(rng.choice(entries))
    if rng.random() < 0.5:
        entry = _rewritten(entry)
    entries.insert(rng.randrange(len(entries) + 1), entry)
    return True


def _rewritten(value: Any) -> Any:
    """Write a value the other way: the record for the bare name, 3.0 for 3."""
    if isinstance(value, str) and value in TAG_OF:
        return {TAG_OF[value]: value}
    if isinstance(value, dict) and len(value) == 1:
        return next(iter(value.values()))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return value


def _foreign(rng: random.Random, study: Study) -> bool:
    """Add a field that belongs elsewhere."""
    site = _some(rng, study, lambda c, k: isinstance(c[k], dict))
    record = study if site is None or rng.random() < 0.2 else site[0][site[1]]
    record[rng.choice(FIELDS)] = copy.deepcopy(rng.choice(VALUES))
    return True


def _swap(rng: random.Random, study: Study) -> bool:
    """Put a part of a study, from anywhere, somewhere else."""
    site = _some(rng, study, lambda c, k: True)
    other = _some(rng, copy.deepcopy(rng.choice(BASES)), lambda c, k: True)
    if site is None or other is None:
        return False
    site[0][site[1]] = other[0][other[1]]
    return True


def _kin(rng: random.Random, value: Any) -> Any:
    """Another name of the same union: a swapped tag."""
    return rng.choice(TAGS[TAG_OF[value]])


def _is_name(container: Any, key: Any) -> bool:
    return isinstance(container[key], str) and container[key] in TAG_OF


def _nested(rng: random.Random, value: Any) -> Any:
    return rng.choice(([value], {"value": value}, {rng.choice(FIELDS): value}))


MUTATIONS: dict[str, Callable[[random.Random, Study], bool]] = {
    "delete": _delete,
    "rename": _rename,
    "null": _replacer(lambda rng, value: None),
    "boolean": _replacer(lambda rng, value: rng.choice((True, False))),
    "string": _replacer(lambda rng, value: rng.choice(WORDS)),
    "number as a string": _replacer(lambda rng, value: str(value), _number),
    "list": _replacer(lambda rng, value: rng.choice(([], [1], [value, value], ["x"], [None]))),
    "dict": _replacer(lambda rng, value: rng.choice(({}, {"x": 1}, {"epochs": 1}, {"seed": 0}))),
    "other value": _replacer(lambda rng, value: rng.choice(VALUES)),
    "negative": _replacer(lambda rng, value: rng.choice((-1, -0.5, -(10**30))), _number),
    "huge": _replacer(lambda rng, value: rng.choice(HUGE), _number),
    "float": _replacer(lambda rng, value: rng.choice(FLOATS), _number),
    "small whole number": _replacer(lambda rng, value: rng.randrange(1, 9), _number),
    "integral float": _replacer(lambda rng, value: _rewritten(value), _number),
    "empty list": _replacer(lambda rng, value: [], lambda c, k: isinstance(c[k], list)),
    "duplicate entry": _repeat,
    "swapped tag": _replacer(_kin, _is_name),
    "name or record": _replacer(
        lambda rng, value: _rewritten(value), lambda c, k: _rewritten(c[k]) != c[k]
    ),
    "foreign field": _foreign,
    "foreign part": _swap,
    "nested": _replacer(_nested),
}


def mutated(seed: int, count: int) -> Iterator[tuple[tuple[str, ...], Study]]:
    """Yield studies with one to three mutations each, and the names of the mutations."""
    rng, kinds = random.Random(seed), list(MUTATIONS)
    for _ in range(count):
        study = copy.deepcopy(rng.choice(BASES))
        chosen = rng.choices(kinds, k=rng.choice((1, 1, 1, 2, 3)))
        yield tuple(kind for kind in chosen if MUTATIONS[kind](rng, study)), study
