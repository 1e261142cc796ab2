"""Batches, images, the contract that they must keep, and the split that each sample belongs to: no server known."""
