"""From graph to kernels: the reference loop, the plan, the CPU backend and the choice between them."""
