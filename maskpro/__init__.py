"""maskpro: learn strict n:m sparse masks for frozen, pretrained diffusion networks, and search for the best one."""
