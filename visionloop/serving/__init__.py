"""How a model is served: Triton repository entries, Envoy's route tables, the client, the rollout's decisions."""
