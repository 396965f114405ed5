"""Recipe -> learner: one case per self-supervised objective."""

from typing import assert_never

import numpy as np
import torch

from dp4tl_ray.specs.self_supervised import (
    BYOL,
    AnySelfSupervised,
    MoCoV2,
    MoCoV3,
    SimCLR,
    SimSiam,
    VICReg,
)
from dp4tl_ray.training.networks import Classifier
from dp4tl_ray.training.objectives.byol import BYOLLearner
from dp4tl_ray.training.objectives.learner import Learner
from dp4tl_ray.training.objectives.moco_v2 import MoCoV2Learner
from dp4tl_ray.training.objectives.moco_v3 import MoCoV3Learner
from dp4tl_ray.training.objectives.simclr import SimCLRLearner
from dp4tl_ray.training.objectives.simsiam import SimSiamLearner
from dp4tl_ray.training.objectives.vicreg import VICRegLearner
from dp4tl_ray.training.worker import seed_for


def build_learner(network: Classifier, recipe: AnySelfSupervised, seed: int) -> Learner:
    """Build what learns with a network, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        # not the stream that the network's own weights were drawn from
        torch.manual_seed(int(np.random.default_rng(seed_for(seed, "heads")).integers(2**63)))
        match recipe:
            case MoCoV2():
                return MoCoV2Learner(network, recipe)
            case MoCoV3():
                return MoCoV3Learner(network, recipe)
            case SimCLR():
                return SimCLRLearner(network, recipe)
            case SimSiam():
                return SimSiamLearner(network, recipe)
            case BYOL():
                return BYOLLearner(network, recipe)
            case VICReg():
                return VICRegLearner(network, recipe)
            case _:
                assert_never(recipe)
