"""Operations of a stage that are fused: attention, norms, rotations and activations in bfloat16 on CPU, each one C call."""
