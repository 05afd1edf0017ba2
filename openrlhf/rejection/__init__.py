"""Rejection sampling: generate → score → select → train, again and again. Each stage is a function and a command.

A stage leaves a folder that `records.py` describes; a stage that was cut off goes on with what is there.
"""
