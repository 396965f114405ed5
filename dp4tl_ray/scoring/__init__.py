"""From a method's record to scores: which arrays go into which function."""
