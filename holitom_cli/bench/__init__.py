"""How fast a model answers on this machine, stage by stage, beside rivals on the same pixels."""
