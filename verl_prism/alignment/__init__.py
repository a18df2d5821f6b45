"""Stage 2 inside verl: the worker role "adversarial OPD", its engine, trainer, reward manager and advantage."""
