"""Transfer protocols: how a pretrained network meets a target."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from dp4tl_ray.specs.adversarial import Adversarial, Standard
from dp4tl_ray.specs.base import Axis, BareName, Count, NotNegative, Positive, Spec
from dp4tl_ray.specs.training import Augmentation

DECADES = tuple(float(f"1e{exponent}") for exponent in range(-6, 6))


TestTimeAugmentation = Literal["none", "flip"]


class LinearProbe(Spec):
    """A linear classifier of frozen features.

    Kornblith et al. 2019 choose the L2 strength among 45 values from 1e-6 to 1e5, evenly on a log
    scale; the default is one per decade of that range. Here features are standardised by the train
    images' mean and deviation, and the penalty stands beside the mean loss, so that a strength
    means the same for every network and number of images. The choice is made on validation; ties
    go to the stronger one.
    """

    transfer: Literal["linear_probe"] = "linear_probe"
    l2: Axis[Positive] = DECADES
    """Strengths to choose from: the penalty is l2/2 |W|^2 beside the mean cross-entropy."""
    solver: Literal["lbfgs", "adam"] = "lbfgs"
    """lbfgs solves to convergence. adam is the recipe of the paper's code, which chooses nothing:
    Adam at 0.01 falling along a cosine, 50 epochs in batches of 128, no penalty, features as they
    are, last epoch."""
    refit_on_val: bool = False
    """After the choice, solve again on train and validation images together; val_accuracy stays
    that of the choice."""
    batch_norm: Literal["frozen", "adapt"] = "frozen"
    """frozen leaves the network as it is. adapt replaces the running statistics of batch norm by
    those of the target's train images, weights unchanged: one pass, every image counting the same.
    Salman et al. 2020 probe in train mode instead, where statistics follow the latest batches over
    all epochs, and the probe trains on features normalised batch by batch."""

    tta: TestTimeAugmentation = "none"
    """flip averages the logits of each validation and test image and its mirror image."""

    @model_validator(mode="after")
    def _is_trained_on_images_as_they_are(self) -> "LinearProbe":
        if self.tta == "flip" and self.refit_on_val:
            raise _rule("tta", "flip averages validation images, which refit_on_val trains on")
        return self

    @model_validator(mode="after")
    def _adam_has_no_penalty(self) -> "LinearProbe":
        if self.solver == "adam" and self.l2 != DECADES:
            raise _rule("l2", "solver: adam has no penalty to choose: leave l2 out")
        return self


class FullFinetune(Spec):
    """All weights trained on the target, under a new head; last epoch.

    Learning rate and weight decay are chosen together on validation; ties go to the smaller rate,
    then to the smaller decay. Beside `pretraining: none` this is training from scratch, the
    control. The paper's code chooses nothing: `dp4tl_full_finetune`.
    """

    transfer: Literal["full_finetune"] = "full_finetune"
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Update rule; adam wants smaller rates than the defaults, such as 1e-5 to 1e-3."""
    lrs: Axis[Positive] = (0.003, 0.01, 0.03, 0.1)
    """Learning rates to choose from."""
    weight_decays: Axis[NotNegative] = (5e-4,)
    """Weight decays to choose from, crossed with the learning rates: an L2 penalty under sgd,
    decoupled from the gradient under adam (AdamW; at 0 the same as Adam)."""
    search: Literal["grid", "halving"] = "grid"
    """grid trains every pair to the end. halving pauses all of them after a ninth and after a third
    of the epochs, each under the learning rates of the whole budget, and goes on with the better
    third on validation. It is synchronous, so the choice depends on no worker's speed;
    asynchronous halving (ASHA) would be faster on many workers and choose by their timing."""
    epochs: Count = 30
    """Passes over the target's train images."""
    batch_size: Count = 64
    """Examples per step; a smaller target is one batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Nesterov momentum of sgd, first beta of adam; the learning rate falls along a cosine."""
    augmentation: Augmentation = Augmentation()
    """Random changes of the training images."""
    adversarial: Adversarial = Standard()
    """Adversarial finetuning; none trains on the images as they are."""
    tta: TestTimeAugmentation = "none"
    """flip averages the logits of each validation and test image and its mirror image."""


PaperOptimizer = Literal["by_target", "adam", "sgd"]
PAPER_OPTIMIZERS: dict[str, Literal["adam", "sgd"]] = {
    **dict.fromkeys(("cifar10", "cifar100", "dtd", "flowers102", "oxford_iiit_pet"), "adam"),
    **dict.fromkeys(("food101", "stanford_cars", "sun397", "waterbirds"), "sgd"),
    "ucf101": "adam",
}
"""Dataset -> what the paper's code finetunes by (configs/imagenet_transfer_to_downstream)."""
PAPER_RATES = {"adam": (1e-4, 0.0), "sgd": (0.1, 5e-4)}
"""Learning rate and weight decay of either."""


class DP4TLFullFinetune(Spec):
    """Full finetuning by the recipe of the paper's code, without any choice; last epoch.

    Batches of 128, random crops of 8 to 100 % of the area and flips, and a learning rate that falls
    along a cosine: by adam from 1e-4 without weight decay, or by sgd from 0.1 with momentum 0.9 and
    weight decay 5e-4. Not as there: the test split is looked at once, after the last epoch
    (`dp4tl_asis` reports the best of all epochs, as the code does); the head is new; momentum is
    Nesterov's; images have the source's size, there 224 pixels, and 160 for CIFAR.
    """

    transfer: Literal["dp4tl_full_finetune"] = "dp4tl_full_finetune"
    optimizer: PaperOptimizer = "by_target"
    """by_target takes the code's own for each target: adam for cifar10, cifar100, dtd, flowers102,
    oxford_iiit_pet and ucf101, sgd for food101, stanford_cars, sun397 and waterbirds. For others it
    has none: say which."""
    epochs: Count = 200
    """Passes over the target's train images."""


def unknown_target(transfer: "AnyTransfer", dataset: str) -> str:
    """Say why a transfer has no optimizer for a dataset; empty if it has one."""
    asks = getattr(transfer, "optimizer", None) == "by_target"
    if not asks or dataset in PAPER_OPTIMIZERS:
        return ""
    return (
        f"optimizer by_target: the paper's code does not finetune on {dataset}; write optimizer: "
        f"adam or sgd (it knows {', '.join(sorted(PAPER_OPTIMIZERS))})"
    )


def paper_finetune(optimizer: PaperOptimizer, dataset: str, epochs: int) -> FullFinetune:
    """Return the paper's full finetuning on a dataset, as one pair to choose from."""
    name = PAPER_OPTIMIZERS[dataset] if optimizer == "by_target" else optimizer
    lr, weight_decay = PAPER_RATES[name]
    return FullFinetune(
        optimizer=name,
        lrs=(lr,),
        weight_decays=(weight_decay,),
        epochs=epochs,
        batch_size=128,
        augmentation=Augmentation(crop=0.08, flip=True),
    )


class KNN(Spec):
    """Weighted vote of the nearest train images in frozen features (Wu et al. 2018).

    Features have unit length; a neighbour votes with exp(cosine / temperature). Nothing is trained.
    """

    transfer: Literal["knn"] = "knn"
    ks: Axis[Count] = (1, 5, 20, 200)
    """Numbers of neighbours to choose from on validation; more than there are train images count as
    all of them. Ties go to the smaller one."""
    temperature: Positive = 0.07
    """Small ones let the nearest neighbours decide."""


class DP4TLAsIs(Spec):
    """What the paper's released code does, only for comparison with its published numbers.

    It looks at the test split after every epoch and reports the best of these accuracies, so that
    its numbers are too high; every other protocol looks at the test split once. Validation images
    are not used. It trains as `solver: adam` of linear_probe does, or as dp4tl_full_finetune. The
    code reuses the first outputs of the pretrained head for the target's classes; here the head is
    new, because a compact head may have fewer outputs than the target has classes. Its SGD has
    plain momentum, ours Nesterov's.
    """

    transfer: Literal["dp4tl_asis"] = "dp4tl_asis"
    mode: Literal["linear_probe", "full_finetune"] = "linear_probe"
    """What is trained."""
    optimizer: PaperOptimizer = "adam"
    """As in dp4tl_full_finetune; a linear probe is always trained by adam."""
    epochs: Count | None = None
    """Passes over the target's train images; null takes 50 (probe) or 200, as the code does."""

    @model_validator(mode="after")
    def _probe_takes_adam(self) -> "DP4TLAsIs":
        if self.mode == "linear_probe" and self.optimizer != "adam":
            raise _rule(
                "optimizer", "mode: linear_probe is trained by adam; others are for finetuning"
            )
        return self


def _rule(field: str, message: str) -> PydanticCustomError:
    """Word a rule that a field breaks together with another."""
    return PydanticCustomError("cross_field", "{message}", {"message": message, "field": field})


AnyTransfer = LinearProbe | FullFinetune | DP4TLFullFinetune | KNN | DP4TLAsIs
Transfer = Annotated[AnyTransfer, Field(discriminator="transfer"), BareName("transfer")]
