"""Stores in object storage: requests, leases, and the store itself."""
