"""Ranks that watch each other: heartbeats over connections of their own, and the failure detector."""
