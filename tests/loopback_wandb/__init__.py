"""A server of Weights & Biases on loopback, as far as the real client and agent need one.

It records what they send, and refuses what it does not know. It proves what is sent, not that the
real server takes it, nor what a dashboard then draws.
"""
