"""A run put together: from a configuration to data, model, trainer; going on; its end."""
