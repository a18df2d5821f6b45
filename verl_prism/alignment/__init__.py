"""Stage 2 inside verl: the discriminator's worker role, engine, trainer and reward manager."""
