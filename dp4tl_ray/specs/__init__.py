"""What may be asked for: closed, frozen records; no torch, no ray."""
