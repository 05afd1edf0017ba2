"""kernels: `get_kernel` gives flash-attn's functions for any name, and decorators change nothing."""

from tests.cuda.stand_ins import flash_attn

GOT = []


def get_kernel(repo_id, revision=None, version=None, **kwargs):
    GOT.append(repo_id)
    return flash_attn


def __getattr__(name):
    """Classes, and decorators that are called with names."""
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {}) if name[0].isupper() else lambda *args, **kwargs: lambda target: target
