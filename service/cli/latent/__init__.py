"""Commands on what a latent space is good for."""
