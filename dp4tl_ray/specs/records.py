"""What comes out: the manifest that a step leaves, and the line of results.jsonl."""

from typing import Annotated, Literal

from pydantic import Field

from dp4tl_ray.specs.adversarial import Norm
from dp4tl_ray.specs.base import Count, Fraction, Listed, Spec
from dp4tl_ray.specs.data import Source
from dp4tl_ray.specs.method import Method
from dp4tl_ray.specs.steps import Stage, StepSpec

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seconds = Annotated[float, Field(ge=0)]
Number = float | int | str | bool | None


class File(Spec):
    """One file of an artifact."""

    sha256: Sha256
    """Checksum of the content."""
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    checked_in_parts: bool = False
    """Whether parts of it have checksums that are compared when they are read."""


class Manifest(Spec):
    """Record of a finished step; written last, so that its existence means the step is done."""

    stage: Stage
    """Stage of the step."""
    stage_version: int
    """Raised when a stage computes something else than before; part of the identity."""
    digest: Sha256
    """Identity: sha256 over stage, version, spec and inputs."""
    name: str
    """Readable name of the step."""
    spec: StepSpec
    """What was asked for."""
    inputs: dict[str, Sha256]
    """Role -> digest of the steps whose artifacts were read."""
    files: dict[str, File]
    """File name -> checksum and size."""
    seconds: Seconds
    """Wall time, over all attempts when a step was resumed."""
    device: str
    """Device that did the work."""
    num_workers: int
    """Data-parallel workers."""
    metrics: dict[str, Number]
    """Small facts that the stage reports, such as losses and counts."""
    versions: dict[str, str]
    """Versions of what could change the result: python, torch, torchvision, timm where it is
    installed, numpy, this package."""
    resumed: bool = False
    """Whether the step continued from a checkpoint."""


ExportFormat = Literal["npy", "txt", "csv", "imagefolder-symlinks", "ffcv-indices", "hf", "dp4tl"]


class Export(Spec):
    """Record of a subset that was written for other code; it knows no time, so that the same export
    into the same folder has the same record."""

    study: str
    """Study that chose the subset."""
    source: Source
    """Dataset of which it is a part."""
    source_fingerprint: str
    """Names the content of its files; empty for embedded ones."""
    num_source: Annotated[int, Field(ge=0)]
    """Examples of the source."""
    num_skipped: Annotated[int, Field(ge=0)]
    """Pictures of its dataset that are none of them because they do not decode."""
    num_excluded: Annotated[int, Field(ge=0)] | None
    """Pictures of its dataset that `exclude` left out; null where that list was not at hand."""
    index: str | None
    """The dataset whose items an index counts, whatever was left out; null where the pictures are
    listed in an order of this package alone, and have no index."""
    target: str
    """Dataset that it was chosen for, as in results; `any` where the method knows of none, `all`
    where one subset serves all targets of the study."""
    method: Method
    """Pruning method."""
    method_label: str
    """The same, as in results."""
    pruning_ratio: Fraction
    """Share of source examples removed."""
    seed: int
    """Seed of the repetition."""
    num_kept: Annotated[int, Field(ge=0)]
    """Examples kept."""
    num_classes_kept: Annotated[int, Field(ge=0)]
    """Classes of which at least one example is kept."""
    subset_digest: Sha256
    """sha256 of the kept indices, as in results."""
    source_digest: Sha256
    """Identity of the step that read the source."""
    score_digest: Sha256
    """Identity of the scores."""
    prune_digest: Sha256
    """Identity of the step that chose the subset."""
    format: ExportFormat
    """What the files are."""
    order: str
    """In which order the files list the examples."""
    files: dict[str, File]
    """File name -> checksum and size."""
    use: str
    """How to read it, in one line of code."""


class Hyperparameters(Spec):
    """What the transfer chose on validation, or was told where it has no choice."""

    l2: float | None = None
    """L2 strength of the linear probe."""
    lr: float | None = None
    """Learning rate of full finetuning."""
    weight_decay: float | None = None
    """Weight decay of full finetuning."""
    k: int | None = None
    """Neighbours that vote."""
    epoch: int | None = None
    """Epoch of the best test accuracy, which dp4tl_asis alone looks at."""


class RobustAccuracy(Spec):
    """Accuracy on the test split under one attack."""

    attack: Literal["pgd", "autoattack"]
    """What was tried."""
    norm: Norm
    """Ball that perturbations stay in."""
    eps: Annotated[float, Field(ge=0)]
    """Radius in units of pixels in [0, 1]."""
    steps: Count | None
    """Steps of PGD; null for an ensemble."""
    accuracy: Fraction
    """Share of the attacked test examples classified correctly, as they are and under attack."""


class Metrics(Spec):
    """Accuracies on the test split, looked at once."""

    accuracy: Fraction
    """Share of test examples classified correctly."""
    mean_class_accuracy: Fraction
    """Mean over classes of the share classified correctly."""
    worst_group_accuracy: Fraction | None = None
    """The smallest share of a group classified correctly; null for targets without groups."""
    robust: Listed[RobustAccuracy] = ()
    """Accuracies under the attacks that the study asks for."""


class Result(Spec):
    """One line of results.jsonl: one pretraining transferred to one target."""

    study: str
    """Study that asked for it."""
    source: str
    """Source dataset."""
    target: str
    """Target dataset."""
    method: str
    """Pruning method; `none` at ratio 0 and for the controls."""
    own_method: str
    """The same method with a subset of its own for each target; differs from `method` where one
    subset serves all targets of the study."""
    pruning_ratio: Fraction
    """Share of source examples removed."""
    class_ratio: Fraction | None
    """Share of source classes of which nothing is kept; null without pretraining."""
    unvoted_share: Fraction | None
    """Share of kept classes or clusters without a vote; null for methods that do not vote."""
    objective: str
    """What the pretraining minimised; none (untrained network), raw_pixels, or pretrained (weights
    from elsewhere)."""
    pretraining: str
    """Pretraining recipe, by the fields that differ from the defaults."""
    adversarial: str
    """Adversarial variant of the pretraining."""
    network: str
    """Architecture; empty for raw pixels."""
    budget: str
    """Budget of the pretraining, such as epochs=10; empty without pretraining."""
    optimizer_steps: Annotated[int, Field(ge=0)]
    """Optimizer steps of the pretraining."""
    examples_seen: Annotated[int, Field(ge=0)]
    """Examples that the pretraining drew."""
    step_cost: Annotated[float, Field(ge=0)] = 1.0
    """Cost of an optimizer step of its adversarial variant, in steps of standard training, as
    counted: a gradient of images takes two thirds of one, a forward pass a third."""
    transfer: str
    """Transfer protocol."""
    transfer_hyperparameters: Hyperparameters
    """What the transfer chose on validation."""
    seed: int
    """Seed of the repetition."""
    surrogate_seed: int | None
    """Seed of the surrogate where it is pinned: the spread over seeds then excludes it."""
    num_source: Annotated[int, Field(ge=0)]
    """Examples of the source."""
    num_kept: Annotated[int, Field(ge=0)]
    """Examples kept."""
    num_classes_kept: Annotated[int, Field(ge=0)]
    """Classes of which at least one example is kept."""
    metrics: Metrics | None
    """Accuracies; null when the cell failed."""
    val_accuracy: Fraction | None
    """Validation accuracy of the chosen hyper-parameters."""
    surrogate_seconds: Seconds
    """Wall time of the surrogate that the subset rests on; 0 without one."""
    score_seconds: Seconds
    """Wall time of embedding, clustering, scoring and pruning, and for `counterfactual` of all the
    pretrainings that it looks at."""
    pretrain_seconds: Seconds
    """Wall time of the pretraining."""
    transfer_seconds: Seconds
    """Wall time of the transfer."""
    device_seconds: Seconds
    """Wall time of the pretraining times its workers."""
    device: str
    """Device of the pretraining."""
    precision: str
    """Precision of the pretraining; empty without one."""
    num_workers: int
    """Data-parallel workers of the pretraining."""
    alarms: Listed[str] = ()
    """What is wrong with steps that ended well: pictures that data left out, the training of the
    surrogate or of the network that collapsed, a transfer whose gradients may be masked."""
    status: Literal["done", "failed"]
    """failed: a step on the way failed; `error` says which and why."""
    error: str = ""
    """Name of the failed step and the reason."""
    surrogate_digest: str
    """Identity of the surrogate; empty without one."""
    subset_digest: str
    """sha256 of the kept indices: equal digests are equal subsets; empty for the whole source."""
    pretrain_digest: str
    """Identity of the pretraining; empty for raw pixels."""
    predictions_digest: str
    """sha256 of the per-example test predictions; empty when failed."""
    attacked_digest: str = ""
    """sha256 of the predictions under attack; empty without any."""
