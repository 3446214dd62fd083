"""What the torch.fx graphs of llmpq are made of: operations, annotations, copies."""
