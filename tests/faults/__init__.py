"""The failure campaign: python -m tests.faults, or make faults. Not part of the tests."""
