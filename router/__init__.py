"""Which experts, when: the exact pre-attention router and the prefetch planner."""
