"""The paper's procedure, one readable file per stage."""
