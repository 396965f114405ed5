"""Transfer protocols: each is given a pretrained network and a target, and predicts its test."""
