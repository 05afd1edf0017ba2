"""Machines with GPUs, shown on machines without one: by their environments, by stand-ins, by the rules of NCCL."""
