"""The frontend: models by name, traced without weights into a torch.fx graph and a LayerGraph."""
