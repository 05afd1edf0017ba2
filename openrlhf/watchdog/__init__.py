"""Ranks that watch each other: connections, heartbeats, and the verdict which rank is lost."""
